"""What belongs to a list stays in step with it, and what is the user's own is never lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rerank_cli.errors import InputError
from rerank_cli.formats.inputs import ReadOptions, open_lists, resolve_inputs
from rerank_cli.formats.shapes import FieldNames, ListShape
from tests.conftest import FakeEncoder, run_files, told, write_lines, write_table

TEXTS = ["x", "descale kettle", "kettle"]  # by the words in common with the query: 1, 2, 0
QUERY = "descale kettle"
ORDER = [1, 2, 0]
KINDS = ("jsonl", "parquet")


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    return write_table(path, rows) if path.suffix == ".parquet" else write_lines(path, rows)


def opened(path: str, **names: str) -> ListShape:
    shape, _ = open_lists(resolve_inputs([path]), FieldNames(**names), ReadOptions(), "auto")
    assert isinstance(shape, ListShape)
    return shape


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("out", ["out.jsonl", "out.parquet"])
def test_lists_in_step_come_back_in_step(tmp_path: Path, kind: str, out: str) -> None:
    row = {
        "query": QUERY, "docs": TEXTS, "doc_ids": ["a", "b", "c"], "scores": [3.5, 2.5, 1.5], "tags": ["t"],
        "meta": {"urls": ["u0", "u1", "u2"]},
    }  # fmt: skip
    path = write(tmp_path / f"in.{kind}", [row])
    shape = opened(path)
    assert shape.siblings == ("doc_ids", "scores", "meta.urls")
    assert shape.told[0] == "in step with the passages: `doc_ids`, `scores`, `meta.urls`"
    (found,) = run_files([path], tmp_path / out).rows
    assert [one["text"] for one in found["docs"]] == [TEXTS[place] for place in ORDER]
    assert (found["doc_ids"], found["scores"]) == (["b", "c", "a"], [2.5, 1.5, 3.5])
    assert (found["meta"], found["tags"]) == ({"urls": ["u1", "u2", "u0"]}, ["t"])


def test_a_list_that_is_as_long_by_chance_is_refused_with_both_commands(tmp_path: Path) -> None:
    row = {"query": QUERY, "passages": TEXTS, "steps": [1, 2, 3]}
    path = write_lines(tmp_path / "in.jsonl", [row, row])
    with pytest.raises(InputError, match="`steps` has as many entries as `passages`: does it belong to it") as caught:
        opened(path)
    assert caught.value.commands == [["--siblings", "steps"], ["--siblings", "none"]]
    names = FieldNames(siblings="steps")
    assert run_files([path], tmp_path / "yes.jsonl", names=names).rows[0]["steps"] == [2, 3, 1]
    names = FieldNames(siblings="none")
    assert run_files([path], tmp_path / "no.jsonl", names=names).rows[0]["steps"] == [1, 2, 3]


def test_lengths_that_vary_together_say_that_lists_belong_and_others_that_they_do_not(tmp_path: Path) -> None:
    rows = [
        {"query": QUERY, "passages": TEXTS[:n], "steps": list(range(n)), "other": [1, 2], "names": ["x"] * (n - 1)}
        for n in (2, 3)
    ]
    assert opened(write_lines(tmp_path / "in.jsonl", rows)).siblings == ("steps",)


def test_a_list_out_of_step_is_a_bad_row(tmp_path: Path) -> None:
    rows = [
        {"query": QUERY, "passages": TEXTS, "doc_ids": ids}
        for ids in (["a", "b", "c"], ["a", "b"], None, ["a", "b", "c"])
    ]
    path = write_lines(tmp_path / "in.jsonl", rows)
    run = run_files([path], tmp_path / "out.jsonl", names=FieldNames(siblings="doc_ids"))
    assert [told(error) for error in run.errors] == [(2, "out-of-step")]
    assert run.errors[0]["error"]["message"] == "`doc_ids` is in step with the passages and has 2 entries, not 3"
    assert [row["doc_ids"] for row in run.rows] == [["b", "c", "a"], None, ["b", "c", "a"]]


def test_ids_in_a_list_in_step_are_those_of_texts(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "in.jsonl", [{"query": QUERY, "docs": TEXTS, "doc_ids": ["a", "b", "c"]}])
    shape, items = open_lists(resolve_inputs([path]), FieldNames(), ReadOptions(), "auto")
    (found,) = shape.group(items)
    assert [shape.passage_id(found, place) for place in range(3)] == ["a", "b", "c"]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lists=st.lists(
        st.lists(st.tuples(st.none() | st.sampled_from(["kettle", "descale kettle", "x", ""]), st.just(0)), min_size=1),
        min_size=1, max_size=4,
    ),
    table=st.booleans(),
)  # fmt: skip
def test_siblings_follow_their_passages_whatever_is_bad(
    tmp_path: Path, lists: list[list[tuple[str | None, int]]], table: bool
) -> None:
    rows = [
        {"query": QUERY, "passages": [text for text, _ in one], "doc_ids": [place for place, _ in enumerate(one)]}
        for one in lists
    ]
    path = write(
        tmp_path / ("in.parquet" if table else "in.jsonl"), [{**rows[0], "passages": ["x"], "doc_ids": [0]}, *rows]
    )
    run = run_files([path], tmp_path / "out.jsonl", names=FieldNames(siblings="doc_ids"), overwrite=True)
    assert run.counts.rows_in == run.counts.rows_out + run.counts.rows_error == len(rows) + 1
    good = [row for row in rows if any(text is not None for text in row["passages"])]
    assert len(run.rows) == len(good) + 1
    for row, found in zip(good, run.rows[1:], strict=True):
        assert found["doc_ids"] == [passage["index"] for passage in found["passages"]]
        assert [passage["text"] for passage in found["passages"]] == [row["passages"][at] for at in found["doc_ids"]]
    bad = sum(text is None for row in good for text in row["passages"])
    assert run.counts.passages_error == bad


# Passages that are bad alone


@pytest.mark.parametrize("kind", KINDS)
def test_a_null_passage_is_bad_alone(tmp_path: Path, kind: str) -> None:
    passages = [{"id": "a", "text": "x"}, {"id": "b", "text": None}, None, {"id": "d", "text": "kettle"}]
    path = write(tmp_path / f"in.{kind}", [{"query_id": "q", "query": QUERY, "passages": passages}])
    run = run_files([path], tmp_path / "out.jsonl")
    assert [(one["id"], one["rank"], one["index"]) for one in run.rows[0]["passages"]] == [("d", 1, 3), ("a", 2, 0)]
    first, second = run.errors
    assert (first["row"], first["id"], first["index"], first["passage_id"]) == (1, "q", 1, "b")
    assert (second["index"], second["passage_id"], json.loads(second["raw"])) == (2, None, None)
    assert json.loads(first["raw"]) == {"id": "b", "text": None}
    counts = run.counts
    assert (counts.rows_in, counts.rows_out, counts.rows_error, counts.passages_error) == (1, 1, 0, 2)


@pytest.mark.parametrize("text", ["unscorable", "nan", "inf"])
def test_a_passage_without_a_score_is_bad_alone_too(tmp_path: Path, text: str) -> None:
    rows = [{"query": QUERY, "passages": [None, text, "kettle"]}, {"query": QUERY, "passages": [text]}]
    run = run_files([write_lines(tmp_path / "in.jsonl", rows)], tmp_path / "out.jsonl")
    assert [(one["text"], one["index"]) for one in run.rows[0]["passages"]] == [("kettle", 2)]
    assert [(error["row"], error.get("index")) for error in run.errors] == [(1, 0), (1, 1), (2, None)]
    assert run.counts.passages_error == 2
    assert run.counts.rows_error == 1


# Fields with names of ours


def test_own_fields_are_kept_under_a_prefix_and_told(tmp_path: Path) -> None:
    own = {"index": "chunk-17", "rank": 40, "logit": None, "tokens": 512, "prob": 0.3, "input_rank": "taken"}
    path = write_lines(tmp_path / "in.jsonl", [{"query": "q", "passages": [{"text": "a", **own}]}])
    assert opened(path).told == (
        "the input has fields of our names, which are kept: `rank` as `input_rank`, `logit` as `input_logit`, "
        "`index` as `input_index`, `tokens` as `input_tokens`",
    )
    (found,) = run_files([path], tmp_path / "out.jsonl").rows[0]["passages"]
    assert found == {
        "text": "a", "input_index": "chunk-17", "input_input_rank": 40, "input_logit": None, "input_tokens": 512,
        "prob": 0.3, "input_rank": "taken", "rank": 1, "logit": 0.0, "index": 0,
    }  # fmt: skip


@pytest.mark.parametrize("shape", ["list", "flat"])
def test_own_columns_are_kept_with_their_types(tmp_path: Path, shape: str) -> None:
    own = {"rank": "old", "index": 7, "tokens": 512}
    row: dict[str, Any] = {"query": "q", "passage": "a", **own}
    if shape == "list":
        row = {"query": "q", "passages": [{"text": "a", **own}]}
    run_files([write_table(tmp_path / "in.parquet", [row])], tmp_path / "out.parquet")
    table = pq.read_table(tmp_path / "out.parquet")
    if shape == "list":
        table = pa.Table.from_struct_array(table.column("passages").combine_chunks().flatten())
    assert table.schema.field("input_index").type == pa.int64()
    found = table.to_pylist()[0]
    assert (found["input_rank"], found["input_index"], found["input_tokens"]) == ("old", 7, 512)
    assert (found["rank"], found["index"]) == (1, 0)


@pytest.mark.parametrize("suffix", KINDS)
def test_what_this_program_wrote_is_replaced(tmp_path: Path, suffix: str) -> None:
    path = write_lines(tmp_path / "in.jsonl", [{"query": QUERY, "passages": TEXTS}])
    first = run_files([path], tmp_path / f"one.{suffix}")
    again = run_files([str(first.out)], tmp_path / f"two.{suffix}")
    assert [set(one) for one in again.rows[0]["passages"]] == [set(one) for one in first.rows[0]["passages"]]


def test_lists_in_step_stay_so_in_the_forms_of_a_python_program() -> None:
    import pandas as pd

    from rerank_cli.formats.in_memory import given_rows
    from rerank_cli.formats.shapes import Selection
    from rerank_cli.records import CandidateList
    from tests.conftest import ranked_of

    row = {"query": QUERY, "docs": TEXTS, "doc_ids": ["a", "b", "c"]}
    for data in ([row], pd.DataFrame([row]), pa.Table.from_pylist([row])):
        given = given_rows(data, FieldNames())
        (found,) = given.shape.group(given.rows())
        assert isinstance(found, CandidateList)
        answer = given.answer([ranked_of(found, 1.0, 2.0, 0.0)], None, Selection())
        ids = answer[0]["doc_ids"] if isinstance(answer, list) else next(iter(answer["doc_ids"]))
        assert (ids.as_py() if isinstance(ids, pa.ListScalar) else ids) == ["b", "a", "c"]


def test_a_list_that_is_out_of_step_in_a_few_rows_costs_these(tmp_path: Path) -> None:
    rows = [{"query": "tea", "docs": ["a", "tea"], "doc_ids": ["1", "2"]} for _ in range(5)]
    rows[3] = {**rows[3], "doc_ids": ["1"]}
    run = run_files([write_lines(tmp_path / "in.jsonl", rows)], tmp_path / "out.jsonl")
    assert [row["doc_ids"] for row in run.rows] == [["2", "1"]] * 4
    assert [told(error) for error in run.errors] == [(4, "out-of-step")]
    always = [{**row, "doc_ids": ["1"]} for row in rows]
    run = run_files([write_lines(tmp_path / "in.jsonl", always)], tmp_path / "other.jsonl")
    assert (len(run.rows), run.rows[0]["doc_ids"]) == (5, ["1"])


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_names_of_a_cut_are_ours_in_every_row(tmp_path: Path, suffix: str) -> None:
    passages = [{"text": "tea", "tokens": 7, "truncated": "no"}, {"text": "x " * 40, "tokens": 8, "truncated": "no"}]
    rows = [{"query": "tea", "passages": passages}]
    path = tmp_path / f"in.{suffix}"
    source = write_lines(path, rows) if suffix == "jsonl" else write_table(path, rows)
    run = run_files([source], tmp_path / "out.jsonl", encoder=FakeEncoder(max_tokens=9))
    first, second = run.rows[0]["passages"]
    assert (first["input_tokens"], first["input_truncated"], "tokens" in first) == (7, "no", False)
    assert (second["input_tokens"], second["truncated"], second["tokens"], second["kept_tokens"]) == (8, True, 41, 9)
