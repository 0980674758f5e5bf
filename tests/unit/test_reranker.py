"""Reranking from Python: the same ranks and logits as the command line, in the form in which the rows came."""

from __future__ import annotations

import gc
import pickle
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rerank_cli import Reranker, rerank
from rerank_cli.cli import main
from rerank_cli.errors import InputError, ModelError, UsageError
from tests.conftest import TINY_CHECKPOINT, read_lines, write_lines, write_table

SAMPLES = Path(__file__).parents[2] / "samples"
EMBEDDER = TINY_CHECKPOINT.parents[1] / "nemotron-vl-embed-open" / "checkpoint"


@pytest.fixture(scope="module")
def reranker() -> Iterator[Reranker]:
    with Reranker(TINY_CHECKPOINT) as opened:
        yield opened


def _flat() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "query": ["one", "two", "one", "two"],
            "passage": ["a b", "c", "d e f", "g"],
            "kind": pd.Categorical(["x", "y", "x", "x"]),
            "when": pd.to_datetime(["2020-01-01"] * 4, utc=True),
            "number": pd.array([1, None, 3, 4], dtype="Int8"),
            7: [object() for _ in range(4)],
        },
        index=["i", "j", "j", "l"],
    )


def _run(tmp_path: Path, source: str, suffix: str, *options: str) -> str:
    out = str(tmp_path / f"out{suffix}")
    assert main(["rerank-file", source, "-o", out, "-q", *options]) == 0
    return out


_TINY = ("--model", str(TINY_CHECKPOINT))


def test_the_built_in_model_ranks_lists_as_the_command_line_does(tmp_path: Path) -> None:
    row = read_lines(SAMPLES / "python-docs.jsonl")[0]
    source = write_lines(tmp_path / "in.jsonl", [{**row, "passages": row["passages"][:6]}])
    assert rerank(read_lines(source)) == read_lines(_run(tmp_path, source, ".jsonl"))


def test_lists_come_back_as_the_command_line_writes_them(reranker: Reranker, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", read_lines(SAMPLES / "python-docs.jsonl")[:2])
    found = reranker.rerank(read_lines(source), top_n=4, prob=True)
    assert found == read_lines(_run(tmp_path, source, ".jsonl", "--top-n", "4", "--prob", *_TINY))


@pytest.mark.parametrize("name", ["python-docs-flat.parquet", "python-docs.parquet"])
def test_a_table_comes_back_as_the_command_line_writes_it(reranker: Reranker, tmp_path: Path, name: str) -> None:
    table = pq.read_table(SAMPLES / name).slice(0, 45 if "flat" in name else 2)
    source = write_table(tmp_path / "in.parquet", table)
    assert reranker.rerank(table).equals(pq.read_table(_run(tmp_path, source, ".parquet", *_TINY)))


def test_a_frame_has_the_ranks_and_logits_of_the_table(reranker: Reranker) -> None:
    table = pq.read_table(SAMPLES / "python-docs-flat.parquet").slice(0, 50)
    found = reranker.rerank(table.to_pandas(), prob=True)
    expected = reranker.rerank(table, prob=True)
    assert list(found.columns) == expected.column_names
    assert pa.Table.from_pandas(found, preserve_index=False).to_pylist() == expected.to_pylist()


def test_one_reranker_takes_frame_after_frame(reranker: Reranker) -> None:
    frame = _flat()
    frames = [frame.iloc[:2], frame, frame]
    first, second, third = [reranker.rerank(frame) for frame in frames]
    assert len(first) == 2
    pd.testing.assert_frame_equal(second, third)


def test_a_store_is_shared_with_the_command_line(reranker: Reranker, tmp_path: Path) -> None:
    rows = read_lines(SAMPLES / "python-docs.jsonl")[:2]
    source, store = write_lines(tmp_path / "in.jsonl", rows), tmp_path / "store"
    _run(tmp_path, source, ".jsonl", "--store", str(store), *_TINY)
    with Reranker(TINY_CHECKPOINT, store=store, store_limit=5_000_000) as stored:
        submitted = []
        assert stored._engine is not None
        submit = stored._engine.submit
        stored._engine.submit = lambda pairs, **more: submitted.extend(pairs) or submit(pairs, **more)
        assert stored.rerank(rows) == reranker.rerank(rows)
        assert submitted == []
        stored.score([("a query", "that is new")])
        assert len(submitted) == 1
    with Reranker(TINY_CHECKPOINT, store=str(store)) as again:
        assert again.score(("a query", "that is new")) == reranker.score(("a query", "that is new"))
    with pytest.raises(UsageError, match="not a folder"):
        Reranker(TINY_CHECKPOINT, store=source)


def test_foreign_columns_of_a_frame_keep_values_types_and_index(reranker: Reranker) -> None:
    frame = _flat()
    found = reranker.rerank(frame)
    order = [int(place) for place in pd.Series(found[7]).map({value: n for n, value in enumerate(frame[7])})]
    pd.testing.assert_frame_equal(found[list(frame.columns)], frame.iloc[order])
    assert found["query"].tolist() == ["one", "one", "two", "two"]
    assert found["rank"].tolist() == [1, 2, 1, 2]


def test_the_given_rows_are_left_as_they_are(reranker: Reranker) -> None:
    frame, rows = _flat(), [{"query": "q", "passages": ["a", {"text": "b"}]}]
    before = frame.copy()
    reranker.rerank(frame)
    reranker.rerank(rows)
    pd.testing.assert_frame_equal(frame, before)
    assert rows == [{"query": "q", "passages": ["a", {"text": "b"}]}]


def test_a_list_column_comes_back_sorted(reranker: Reranker) -> None:
    frame = pd.DataFrame({"query": ["q", "r"], "docs": [["a b c", {"text": "d", "n": 1}], ["e"]], "k": [1, 2]}, [5, 5])
    found = reranker.rerank(frame)
    assert found["k"].tolist() == [1, 2]
    assert found.index.tolist() == [5, 5]
    expected = reranker.rerank(frame.to_dict("records"))
    assert found["docs"].tolist() == [row["docs"] for row in expected]
    assert [passage["rank"] for passage in found["docs"].iloc[0]] == [1, 2]


def test_pairs_of_query_and_passages_are_rows(reranker: Reranker) -> None:
    found = reranker.rerank([("q", ["a b", "c"]), ("r", [])])
    assert found == reranker.rerank([{"query": "q", "passages": ["a b", "c"]}, {"query": "r", "passages": []}])
    assert {passage["text"] for passage in found[0]["passages"]} == {"a b", "c"}


def test_columns_of_an_earlier_answer_are_replaced(reranker: Reranker) -> None:
    once = reranker.rerank(_flat(), on_error="keep")
    pd.testing.assert_frame_equal(
        reranker.rerank(once, on_error="keep").drop(columns="index"), once.drop(columns="index")
    )


def test_requests_of_other_programs_are_answered_in_their_shape(reranker: Reranker) -> None:
    request = {"query": {"text": "q"}, "passages": [{"text": "a b"}, {"text": "c"}]}
    (answer,) = reranker.rerank([request])
    assert sorted(entry["index"] for entry in answer["rankings"]) == [0, 1]


_TEXTS = st.text(alphabet="abc ", max_size=8)


@settings(max_examples=25)
@given(st.lists(st.tuples(_TEXTS, _TEXTS), max_size=12), st.booleans())
def test_each_query_has_a_permutation_of_its_rows(
    reranker: Reranker, pairs: list[tuple[str, str]], as_table: bool
) -> None:
    frame = pd.DataFrame(pairs, columns=["query", "passage"], dtype=object)
    frame["place"] = range(len(pairs))
    if as_table:
        table = pa.table({name: pa.array(frame[name], pa.string()) for name in ("query", "passage")})
        found = reranker.rerank(table.append_column("place", pa.array(frame["place"]))).to_pandas()
    else:
        found = reranker.rerank(frame)
    assert sorted(found["place"]) == list(range(len(pairs)))
    assert list(dict.fromkeys(found["query"])) == list(dict.fromkeys(frame["query"]))
    for query, rows in found.groupby("query", sort=False):
        assert rows["rank"].tolist() == list(range(1, len(rows) + 1))
        assert sorted(rows["index"]) == list(range(len(rows)))
        assert rows["logit"].is_monotonic_decreasing
        assert [pairs[place] for place in rows["place"]] == [(query, passage) for passage in rows["passage"]]


_BAD = [
    {"query": "q", "passage": "a b"},
    {"query": "r", "passage": None},
    {"query": None, "passage": "c"},
    {"query": "q", "passage": None},
    {"query": "r", "passage": "d"},
]
_FORMS = [pd.DataFrame, pa.Table.from_pylist, list]


def _records(answer: Any) -> list[dict[str, Any]]:
    if isinstance(answer, pd.DataFrame):
        answer = answer.astype(object).where(answer.notna(), None).to_dict("records")
    return answer.to_pylist() if isinstance(answer, pa.Table) else list(answer)


@pytest.mark.parametrize("form", _FORMS)
def test_the_first_bad_row_is_named(reranker: Reranker, form: Any) -> None:
    with pytest.raises(InputError, match=r"^row 2: field `passage` is missing"):
        reranker.rerank(form(_BAD))
    assert len(_records(reranker.rerank(form(_BAD[:1])))) == 1  # and it goes on with the next data


@pytest.mark.parametrize("form", _FORMS)
def test_bad_rows_are_kept_behind_their_query_with_the_reason(reranker: Reranker, form: Any) -> None:
    found = _records(reranker.rerank(form(_BAD), on_error="keep"))
    assert [(row["query"], row["passage"], row["rank"], row["logit"] is None) for row in found] == [
        ("q", "a b", 1, False),
        ("q", None, None, True),
        ("r", "d", 1, False),
        ("r", None, None, True),
        (None, "c", None, True),
    ]
    assert [bool(row.get("rerank_error")) for row in found] == [False, True, False, True, True]
    assert found[-1]["rerank_error"].startswith("field `query` is missing")


@pytest.mark.parametrize("form", _FORMS)
def test_bad_lists_are_kept_in_their_place_with_their_passages(reranker: Reranker, form: Any) -> None:
    rows = [
        {"query": None, "passages": ["a", "b"]},
        {"query": "q", "passages": ["c", "d"]},
        {"query": "r", "passages": None},
    ]
    found = _records(reranker.rerank(form(rows), on_error="keep"))
    assert [row["query"] for row in found] == [None, "q", "r"]
    texts = [[p if isinstance(p, str) else p["text"] for p in row["passages"] or []] for row in found]
    assert texts[0] == ["a", "b"]
    assert sorted(texts[1]) == ["c", "d"]
    assert found[2]["passages"] is None
    assert [bool(row.get("rerank_error")) for row in found] == [True, False, True]
    assert all(isinstance(p, str) or p["logit"] is None for p in found[0]["passages"])


@pytest.mark.parametrize("row", [{"query": "q\ud800", "passage": "a"}, {"query": "q", "passage": "\udfff"}])
def test_half_a_surrogate_pair_is_a_bad_row_as_in_a_file(reranker: Reranker, row: dict[str, str]) -> None:
    rows = [{"query": "r", "passage": "b"}, row]
    for given_rows in (rows, pd.DataFrame(rows, dtype=object)):
        good, bad = _records(reranker.rerank(given_rows, on_error="keep"))
        assert good["rank"] == 1
        assert not good.get("rerank_error")
        assert bad["rerank_error"].startswith("lone surrogate")


def test_passages_may_be_an_array_or_a_series(reranker: Reranker) -> None:
    texts = ["a b", "c"]
    expected = reranker.rerank([("q", texts)])
    assert reranker.rerank([("q", np.array(texts))]) == expected
    assert reranker.rerank([("q", pd.Series(texts))]) == expected
    column = reranker.rerank(pd.DataFrame({"query": ["q"], "passages": [np.array(texts, dtype=object)]}))
    assert column["passages"].tolist() == [expected[0]["passages"]]


def test_page_images_are_ranked_as_the_command_line_ranks_them(tmp_path: Path) -> None:
    rows = read_lines(SAMPLES / "pages.jsonl")[:1]
    source = write_lines(tmp_path / "in.jsonl", rows)
    model = TINY_CHECKPOINT.parents[1] / "nemotron-vl-rerank-open" / "checkpoint"
    expected = _run(tmp_path, source, ".jsonl", "--model", str(model), "--image-root", str(SAMPLES))
    assert rerank(rows, model, image_root=str(SAMPLES)) == read_lines(expected)


def test_a_kept_row_stands_once_where_its_whole_query_is_dropped(reranker: Reranker) -> None:
    rows = [{"query": "q", "passage": "a " * 600}, {"query": "q", "passage": "b"}]
    with Reranker(TINY_CHECKPOINT, truncate="error") as strict:
        (found,) = strict.rerank(rows, on_error="keep", threshold=1e9)
    assert found["passage"] == "a " * 600
    assert found["rerank_error"].endswith("(too-long)")


@pytest.mark.parametrize("form", _FORMS)
def test_no_rows_are_no_rows(reranker: Reranker, form: Any) -> None:
    if form is list:
        assert reranker.rerank([]) == []
        return
    found = reranker.rerank(pa.Table.from_pylist(_BAD).slice(0, 0) if form is not pd.DataFrame else form(_BAD).head(0))
    names = found.column_names if isinstance(found, pa.Table) else list(found.columns)
    assert len(found) == 0
    assert names == ["query", "passage", "rank", "logit", "index"]


def test_a_selection_that_keeps_nothing_gives_no_rows(reranker: Reranker) -> None:
    assert reranker.rerank(_flat(), threshold=1e9).empty
    assert reranker.rerank([("q", ["a"])], threshold=1e9)[0]["passages"] == []


def test_fields_have_the_names_that_the_user_says(reranker: Reranker) -> None:
    frame = pd.DataFrame({"q": ["x", "x"], "body": ["a", "b"], "g": [1, 2]})
    assert reranker.rerank(frame, query_field="q", text_field="body")["rank"].tolist() == [1, 2]
    assert reranker.rerank(frame, query_field="q", text_field="body", group_by="g")["rank"].tolist() == [1, 1]


def test_an_embedding_model_gives_a_cosine() -> None:
    with Reranker(EMBEDDER) as embedder:
        found = embedder.rerank(_flat())
        assert found["cosine"].between(-1.001, 1.001).all()
        assert "logit" not in found
        with pytest.raises(UsageError, match="cosine"):
            embedder.rerank(_flat(), prob=True)


def test_the_end_of_the_block_frees_the_model() -> None:
    with Reranker(TINY_CHECKPOINT) as opened:
        model = weakref.ref(opened._engine._model)  # the weights of this engine
        assert model() is not None
    gc.collect()
    assert model() is None
    with pytest.raises(UsageError, match="closed"):
        opened.rerank([("q", ["a"])])
    opened.close()  # again does nothing


def test_rerank_takes_the_options_of_both() -> None:
    found = rerank([("q", ["a " * 50, "b"])], TINY_CHECKPOINT, max_tokens=16, top_n=2, device="cpu")
    assert [passage.get("truncated", False) for passage in sorted(found[0]["passages"], key=lambda p: p["index"])] == [
        True,
        False,
    ]


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"top_k": 3}, TypeError, "unknown option `top_k`; did you mean `top_n`"),
        ({"batch_size": 3}, TypeError, "unknown option `batch_size`; did you mean `token_budget`"),
        ({"truncate": "start"}, UsageError, "truncate 'start'"),
        ({"top_n": 0}, UsageError, "top_n 0: must be at least 1"),
        ({"top_n": "3"}, TypeError, "top_n '3': must be a whole number or None"),
        ({"top_n": True}, TypeError, "top_n True: must be a whole number or None"),
        ({"max_tokens": 64.5}, TypeError, "max_tokens 64.5: must be a whole number or None"),
        ({"prob": "no"}, TypeError, "prob 'no': must be True or False"),
        ({"online": "false"}, TypeError, "online 'false': must be True or False"),
        ({"threshold": "0"}, TypeError, "threshold '0': must be a number or None"),
        ({"store": 5}, TypeError, "store 5: must be a text or a Path or None"),
        ({"max_unknown": "5%"}, TypeError, "max_unknown '5%': must be a number or None"),
        ({"max_unknown": 5}, UsageError, "max_unknown 5: must be a share, from 0 to 1"),
        ({"threshold": float("nan")}, UsageError, "threshold"),
        ({"device": "mps"}, UsageError, "device mps: not supported"),
        ({"precision": "fp7"}, UsageError, 'precision="fp7": not known'),
        ({"image_root": "/no/such/folder"}, InputError, "no such folder"),
        ({"instruction": "x"}, UsageError, "takes no instruction"),
    ],
)
def test_what_cannot_be_meant_is_refused(options: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        rerank([("q", ["a"])], TINY_CHECKPOINT, **options)


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    pairs = ("q", ["a", "b"])
    options = {"max_tokens": 64, "top_n": 1, "threshold": -50.0, "prob": True}
    given = {
        "max_tokens": np.int64(64), "top_n": np.int32(1), "threshold": np.float32(-50), "prob": np.bool_(True)
    }  # fmt: skip
    found = [rerank([pairs], TINY_CHECKPOINT, store=tmp_path / "store", **some) for some in (options, given)]
    assert found[0] == found[1]


IN_A_CHILD = """
import os, sys
from rerank_cli import Reranker
model, store = sys.argv[1:]
pairs = ("q", ["a", "b"])
kept = Reranker(model, store=store)
threads = kept.plan.threads
kept.rank(*pairs)
for use in (lambda: kept.rank(*pairs), lambda: Reranker(model).rank(*pairs)):
    if os.fork() == 0:
        try:
            use()
            sys.stdout.write("done\\n")
        except Exception as error:
            sys.stdout.write(f"{error}\\n")
        sys.stdout.flush()
        os._exit(0)
    os.wait()
print(threads, kept.rank(*pairs)[0]["rank"])
"""


def test_a_forked_process_is_told_that_it_has_no_reranker(tmp_path: Path) -> None:
    command = [sys.executable, "-c", IN_A_CHILD, str(TINY_CHECKPOINT), str(tmp_path / "store")]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100).stdout.splitlines()
    refused = "Reranker: does not work in a process that was forked from the one that has loaded it"
    threads, rank = said.pop().split()
    assert rank == "1"
    assert said == [refused, "done" if threads == "1" else refused]  # a new one would wait for threads of the parent


def test_a_reranker_is_not_pickled(reranker: Reranker) -> None:
    with pytest.raises(TypeError, match="load one in each process"):
        pickle.dumps(reranker)


@pytest.mark.parametrize(
    "data", ["text", {"query": "q", "passages": []}, 5, [1], pd.DataFrame({"a": [1]}), pa.table({"a": [1]}), [{"a": 1}]]
)
def test_data_without_rows_to_rerank_is_refused(reranker: Reranker, data: Any) -> None:
    with pytest.raises((UsageError, InputError)):
        reranker.rerank(data)


def test_a_data_set_of_several_splits_leads_to_one_and_one_without_a_length_is_read_row_by_row(
    reranker: Reranker,
) -> None:
    def with_format(_self: object, _name: str) -> object:
        raise AssertionError("only a data set of one table is turned into one")

    # As those of the package of datasets, which the tests do without: 5.2.0 was tried by hand.
    splits = type("DatasetDict", (dict,), {"__module__": "datasets.dataset_dict", "with_format": with_format})
    with pytest.raises(UsageError, match="DatasetDict: not rows") as refused:
        reranker.rerank(splits(train=[{"query": "q", "text": "a"}]))
    assert "`data['train']`" in (refused.value.hint or "")
    rows = {"__iter__": lambda _self: iter([{"query": "q", "text": "a"}]), "with_format": with_format}
    streamed = type("IterableDataset", (), {"__module__": "datasets.iterable_dataset", **rows})()
    assert [row["rank"] for row in reranker.rerank(streamed)] == [1]


def test_a_model_that_is_not_there_is_told() -> None:
    with pytest.raises(ModelError):
        Reranker("no/such-model")


def test_the_package_is_imported_without_torch_and_has_only_its_names() -> None:
    code = (
        "import sys, rerank_cli; assert not {'torch', 'numpy', 'pandas', 'pyarrow'} & set(sys.modules);"
        "assert not hasattr(rerank_cli, 'nothing'); from rerank_cli import *; print(Reranker, rerank)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "rerank_cli.reranker.Reranker" in done.stdout


# In a notebook


def test_a_query_and_its_passages_are_enough(reranker: Reranker) -> None:
    found = reranker.rerank("query", ["a", "b"])
    assert [passage["rank"] for passage in found] == [1, 2]
    assert found == reranker.rank("query", ["a", "b"]) == reranker.rerank([("query", ["a", "b"])])[0]["passages"]
    assert reranker.rerank("query", np.array(["a", "b"]), top_n=1) == found[:1]
    assert reranker.rerank("query", pd.Series(["a", "b"])) == reranker.rerank("query", pa.array(["a", "b"])) == found
    with_ids = reranker.rerank("query", [{"text": "a", "id": 7}, {"text": "b", "id": 8}])
    assert {passage["id"] for passage in with_ids} == {7, 8}
    assert reranker.rerank("query", []) == []


def test_scores_come_in_the_order_of_the_pairs(reranker: Reranker) -> None:
    pairs = [("query", "b"), ("other", "a"), ("query", "a"), ("query", "b")]
    found = reranker.score(pairs)
    assert found.dtype == np.float32
    logits = {passage["text"]: passage["logit"] for passage in reranker.rerank("query", ["a", "b"])}
    assert found[[2, 0]].tolist() == pytest.approx([logits["a"], logits["b"]], abs=1e-5)
    assert found[0] == found[3]
    assert reranker.score(("query", "b")) == pytest.approx(logits["b"], abs=1e-5)
    with pytest.raises(UsageError, match="pair 2: is not a query and a passage"):
        reranker.score([("a", "b"), ("a", "b", "c")])


@pytest.mark.parametrize("kind", ["pandas", "polars", "arrow"])
def test_a_frame_is_never_taken_for_the_names_of_its_columns(reranker: Reranker, kind: str) -> None:
    """A list of a frame is its columns: pairs and passages that nobody has meant."""
    table = pa.table({"query": ["one", "two"], "text": ["a", "b"]})
    frame: Any = table if kind == "arrow" else table.to_pandas()
    if kind == "polars":
        frame = pytest.importorskip("polars").from_arrow(table)
    with pytest.raises(UsageError, match="is not a list of pairs") as raised:
        reranker.score(frame)
    assert "rerank(frame)" in str(raised.value.hint)
    found = reranker.rerank("query", frame)
    assert {passage["text"] for passage in found} == {"a", "b"}


def test_dicts_and_sets_are_no_pairs_and_no_lists_of_passages(reranker: Reranker) -> None:
    for pair in ({"query": "one", "passage": "a"}, {"one", "a"}, 1):
        with pytest.raises(UsageError, match="pair 1: is not a query and a passage"):
            reranker.score([pair])
    with pytest.raises(UsageError, match="is a dict, not a list"):
        reranker.rerank("query", {"a": "text", "b": "text"})


def test_what_it_is_can_be_read(reranker: Reranker) -> None:
    assert repr(reranker).startswith(f"<Reranker {TINY_CHECKPOINT}: fp32 on cpu, at most 512 tokens")


@pytest.mark.parametrize("rows", ["lists", "pairs"])
def test_an_arrow_stream_comes_back_as_what_it_came_as(reranker: Reranker, rows: str) -> None:
    duckdb, pl = pytest.importorskip("duckdb"), pytest.importorskip("polars")
    data = (
        {"query": ["q", "q"], "passage": ["a", "b"]} if rows == "pairs" else {"query": ["q"], "passages": [["a", "b"]]}
    )
    wanted = reranker.rerank(pa.table(data)).to_pylist()
    frame = pl.DataFrame(data)
    found = reranker.rerank(frame)
    assert isinstance(found, pl.DataFrame)
    assert found.to_dicts() == wanted
    relation = duckdb.sql("SELECT * FROM frame")
    assert reranker.rerank(relation).to_pylist() == wanted
    assert reranker.rerank(pa.table(data).to_batches()[0]).to_pylist() == wanted
    with pytest.raises(UsageError, match="LazyFrame") as caught:
        reranker.rerank(frame.lazy())
    assert caught.value.hint == "`.collect()` gives its rows"


def test_a_column_that_says_something_of_one_row_is_there(reranker: Reranker) -> None:
    long = {"query": ["q", "q"], "passage": ["a", "b " * 600]}
    assert "truncated" in reranker.rerank(pa.table(long)).column_names
    assert "truncated" in reranker.rerank(pd.DataFrame(long)).columns
    lists = reranker.rerank(pa.table({"query": ["q"], "passages": [long["passage"]]}))
    assert sorted(passage["truncated"] is True for passage in lists["passages"].to_pylist()[0]) == [False, True]


def test_hints_name_arguments_and_stand_in_the_traceback(reranker: Reranker) -> None:
    with pytest.raises(TypeError, match="unknown option `topn`; did you mean `top_n`"):
        reranker.rerank("q", ["a"], topn=1)
    for name, said in {
        "documents": "did you mean `passages`", "return_documents": "passages are always returned with their texts",
        "dtype": r"`precision` is an option of `Reranker\(...\)`",
    }.items():  # fmt: skip
        with pytest.raises(TypeError, match=f"unknown option `{name}`.*{said}"):
            reranker.rerank("q", ["a"], **{name: "x"})
    with pytest.raises(UsageError, match="takes pairs") as not_pairs:
        reranker.score("q", "a")
    assert not_pairs.value.__notes__[0].startswith("hint: `score((")
    with pytest.raises(ModelError) as caught:
        Reranker("nobody/has-this")
    assert "--" not in f"{caught.value}{caught.value.hint}"
    assert caught.value.__notes__ == [f"hint: {caught.value.hint}"]
    with pytest.raises(UsageError, match="a query without passages"):
        reranker.rerank("q")


def test_a_bar_is_shown_when_it_is_wanted(reranker: Reranker, capsys: pytest.CaptureFixture[str]) -> None:
    reranker.rerank("q", ["a", "b"])
    assert capsys.readouterr() == ("", "")
    reranker.rerank("q", ["a", "b"], progress=True)
    assert "2 pairs" in capsys.readouterr().out
