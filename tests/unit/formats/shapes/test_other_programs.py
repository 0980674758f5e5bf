"""Rows that other programs write: found by themselves, ranked, and back as they were, from JSON lines and Parquet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rerank_cli.errors import InputError, UsageError
from rerank_cli.formats.inputs import ReadOptions, open_lists, resolve_inputs
from rerank_cli.formats.shapes import READABLE, SHAPES, FieldNames, KnownListShape, ListShape, Texts
from rerank_cli.formats.shapes.other_programs import KNOWN, SAME_AS
from rerank_cli.records import CandidateList
from tests.conftest import run_files, write_lines, write_table
from tests.unit.formats.shapes.known_rows import ROWS, WITH_TITLES, Candidate

FOUND = [
    Candidate("a1", "Kettles", "boil water", 9.5),
    Candidate("a2", "Toasters", "kettle descale with vinegar", 8.5),
    Candidate("a3", "Tea", "descale", 7.5),
]
QUERY = "descale kettle vinegar"  # the fake engine counts the words in common: a2, a3, a1
KINDS = ("jsonl", "parquet")


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    return write_table(path, rows) if path.suffix == ".parquet" else write_lines(path, rows)


def opened(path: str, names: FieldNames | None = None, shape: str = "auto") -> ListShape:
    found, _ = open_lists(resolve_inputs([path]), names or FieldNames(), ReadOptions(), shape)
    assert isinstance(found, ListShape)
    return found


def lists(path: str, names: FieldNames | None = None, shape: str = "auto") -> list[CandidateList]:
    found, items = open_lists(resolve_inputs([path]), names or FieldNames(), ReadOptions(), shape)
    grouped = list(found.group(items))
    assert all(isinstance(item, CandidateList) for item in grouped), grouped
    return [item for item in grouped if isinstance(item, CandidateList)]


def without_ours(value: Any) -> Any:
    """A row without what a run adds to it."""
    ours = {"rank", "logit", "index", "truncated", "tokens", "kept_tokens"}
    if isinstance(value, dict):
        return {name: without_ours(inner) for name, inner in value.items() if name not in ours}
    if isinstance(value, str) and value.startswith("["):
        return without_ours(json.loads(value))
    return [without_ours(inner) for inner in value] if isinstance(value, list) else value


def test_the_names_of_the_table_differ_from_all_others() -> None:
    names = [known.name for known in KNOWN]
    assert len(set(names)) == len(names)
    assert not {*names, *SAME_AS} & set(SHAPES)
    assert set(SAME_AS.values()) <= set(names)
    assert {*names, *SAME_AS, *SHAPES} == set(READABLE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ROWS)
def test_a_known_shape_is_found_without_an_option_and_told(tmp_path: Path, name: str, kind: str) -> None:
    shape, build = ROWS[name]
    path = write(tmp_path / f"in.{kind}", [build(QUERY, "q7", FOUND), build("tea", "q8", FOUND[:2])])
    found = opened(path)
    assert isinstance(found, KnownListShape)
    assert found.known.name == shape
    assert found.told[0].startswith(f"read as {shape} (")
    first, second = lists(path)
    ids = [found.passage_id(first, index) for index in range(3)]
    assert (first.query, first.passages) == (QUERY, tuple(c.text for c in FOUND))
    assert (second.query, len(second.passages)) == ("tea", 2)
    assert ids == ["a1", "a2", "a3"]
    assert first.id == "q7"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ROWS)
def test_a_known_shape_comes_back_as_it_was_in_rank_order(tmp_path: Path, name: str, kind: str) -> None:
    _, build = ROWS[name]
    path = write(tmp_path / f"in.{kind}", [build(QUERY, "q7", FOUND)])
    expected = build(QUERY, "q7", [FOUND[1], FOUND[2], FOUND[0]])
    for out in ("out.jsonl", "out.parquet") if kind == "parquet" else ("out.jsonl",):
        run = run_files([path], tmp_path / out)
        assert (run.counts.rows_in, run.counts.rows_out, run.errors) == (1, 1, [])
        assert without_ours(run.rows[0]) == without_ours(expected)
        text = json.dumps(run.rows[0])
        assert all(name in text for name in ("rank", "logit", "index"))
    if name == "phoenix":
        assert isinstance(run.rows[0]["documents"], str)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ROWS)
def test_of_a_known_shape_a_null_text_is_bad_alone(tmp_path: Path, name: str, kind: str) -> None:
    _, build = ROWS[name]
    bad = [FOUND[0], FOUND[1]._replace(text=None), FOUND[2]]
    path = write(tmp_path / f"in.{kind}", [build(QUERY, "q7", FOUND), build(QUERY, "q8", bad)])
    run = run_files([path], tmp_path / "out.jsonl")
    counts = run.counts
    assert (counts.rows_in, counts.rows_out, counts.rows_error, counts.passages_error) == (2, 2, 0, 1)
    (error,) = run.errors
    assert (error["row"], error["id"], error["index"], error["passage_id"]) == (2, "q8", 1, "a2")
    expected = build(QUERY, "q8", [FOUND[2], FOUND[0]])
    for other in ("answers", "reference_contexts"):  # lists of their own, which only look as if they belonged
        if name in ("msmarco", "ragas") and other in expected:
            expected[other] = expected[other][:1] * 3
    if name == "elasticsearch":
        expected["hits"]["total"]["value"] = 3
    assert without_ours(run.rows[1]) == without_ours(expected)


@pytest.mark.parametrize("name", WITH_TITLES)
def test_titles_have_one_rule_in_every_shape(tmp_path: Path, name: str) -> None:
    path = write_lines(tmp_path / "in.jsonl", [ROWS[name][1](QUERY, "q7", FOUND)])
    assert any("title" in told and "--text-field title,text" in told for told in opened(path).told)
    (found,) = lists(path, FieldNames(text="title,text"))
    assert found.passages == ("Kettles boil water", "Toasters kettle descale with vinegar", "Tea descale")
    assert not any("title" in told for told in opened(path, FieldNames(text="title,text")).told[1:])


def test_the_plain_shapes_have_the_same_rule_for_titles(tmp_path: Path) -> None:
    passages = [{"title": "Kettles", "text": "boil"}, {"title": None, "text": "tea"}, {"title": "", "text": " x "}]
    path = write_lines(tmp_path / "in.jsonl", [{"query": "q", "passages": passages}])
    assert "not read" in opened(path).told[0]
    (found,) = lists(path, FieldNames(text="title,text"))
    assert found.passages == ("Kettles boil", "tea", "x")
    flat = write_lines(tmp_path / "flat.jsonl", [{"query": "q", **passage} for passage in passages])
    (found,) = lists(flat, FieldNames(text="title,text"))
    assert found.passages == ("Kettles boil", "tea", "x")


def test_a_passage_with_two_texts_is_refused_with_both_commands(tmp_path: Path) -> None:
    row = ROWS["elasticsearch"][1](QUERY, "q", FOUND)
    for hit in row["hits"]["hits"]:
        hit["_source"]["abstract"] = "another text"
    path = write_lines(tmp_path / "in.jsonl", [row])
    with pytest.raises(InputError, match=r"`_source.body` and `_source.abstract` could both be the text") as caught:
        opened(path)
    assert caught.value.commands == [["--text-field", "_source.body"], ["--text-field", "_source.abstract"]]
    (found,) = lists(path, FieldNames(text="_source.abstract"))
    assert set(found.passages) == {"another text"}


def test_two_readings_are_refused_with_both_commands(tmp_path: Path) -> None:
    documents = [{"text": "one reading", "content": "another one"}]
    path = write_lines(tmp_path / "in.jsonl", [{"query": "q", "documents": documents}])
    with pytest.raises(InputError, match="two readings are possible, as list and as haystack") as caught:
        opened(path)
    assert caught.value.commands == [["--shape", "list"], ["--shape", "haystack"]]
    assert lists(path, shape="haystack")[0].passages == ("another one",)
    assert lists(path, shape="list")[0].passages == ("one reading",)


def test_serialised_documents_and_pairs_of_langchain_are_read(tmp_path: Path) -> None:
    dumped = {"lc": 1, "type": "constructor", "id": ["langchain", "Document"], "kwargs": {"page_content": "a"}}
    path = write_lines(tmp_path / "in.jsonl", [{"question": "q", "context": [dumped, dumped]}])
    assert lists(path)[0].passages == ("a", "a")
    pair = [{"page_content": "kettle", "metadata": {}}, 0.5]
    path = write_lines(
        tmp_path / "pairs.jsonl", [{"query": "kettle", "documents": [[{"page_content": "x"}, 0.9], pair]}]
    )
    run = run_files([path], tmp_path / "out.jsonl")
    assert [(one[0]["page_content"], one[0]["rank"], one[1]) for one in run.rows[0]["documents"]] == [
        ("kettle", 1, 0.5),
        ("x", 2, 0.9),
    ]


def test_a_json_text_of_anserini_is_opened(tmp_path: Path) -> None:
    doc = json.dumps({"id": "d1", "contents": "kettle"})
    row = {"query": {"text": "kettle", "qid": "1"}, "candidates": [{"docid": "d1", "score": 1.0, "doc": doc}]}
    assert lists(write_lines(tmp_path / "in.jsonl", [row]))[0].passages == ("kettle",)


# Rows of ids


@pytest.fixture
def texts(tmp_path: Path) -> Texts:
    queries, corpus = tmp_path / "queries.tsv", tmp_path / "corpus.jsonl"
    queries.write_text(f"q7\t{QUERY}\nq8\ttea\n")
    write_lines(corpus, [{"_id": c.id, "title": c.title, "text": c.text} for c in FOUND])
    return Texts(str(queries), str(corpus))


def test_top_ranked_of_mteb_takes_its_texts_from_files(tmp_path: Path, texts: Texts) -> None:
    path = write_lines(tmp_path / "in.jsonl", [{"query-id": "q7", "corpus-ids": ["a1", "a2", "a9"]}])
    shape, items = open_lists(resolve_inputs([path]), FieldNames(), ReadOptions(), "auto", texts)
    bad, found = shape.group(items)
    assert isinstance(found, CandidateList)
    assert (found.query, found.id, found.places) == (QUERY, "q7", (0, 1))
    assert (bad.code, bad.passage, bad.passage_id) == ("unknown-id", 2, "a9")
    with pytest.raises(UsageError, match="rows of the shape mteb hold ids only: --queries and --corpus are needed"):
        open_lists(resolve_inputs([path]), FieldNames(), ReadOptions(), "auto")


def test_results_of_beir_are_rows_of_ids(tmp_path: Path, texts: Texts) -> None:
    rows = [{"query-id": "q7", "corpus-id": c.id, "score": c.score} for c in FOUND]
    path = write_lines(tmp_path / "in.jsonl", rows)
    shape, items = open_lists(resolve_inputs([path]), FieldNames(), ReadOptions(), "auto", texts)
    (found,) = shape.group(items)
    assert isinstance(found, CandidateList)
    assert (found.query, found.id, found.passages[2]) == (QUERY, "q7", "Tea descale")


# Properties


words = st.sampled_from(["descale", "kettle", "vinegar", "x", "é", "\u2028", "a b", ""])
candidates = st.lists(
    st.tuples(st.text(max_size=4), st.none() | words, words, st.floats(-9, 9)), min_size=1, max_size=6
)


@pytest.mark.parametrize("name", ROWS)
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.lists(candidates, min_size=1, max_size=3), hostile=st.text(max_size=6))
def test_rows_and_passages_are_accounted_for_and_nothing_of_the_users_changes(
    tmp_path: Path, name: str, data: list[Any], hostile: str
) -> None:
    _, build = ROWS[name]
    rows = []
    for number, passages in enumerate(data):
        found = [
            Candidate(f"{place}", f"{title}", text, score) for place, (title, text, _, score) in enumerate(passages)
        ]
        if all(one.text is None for one in found):
            found[0] = found[0]._replace(text="descale")
        rows.append({**build(QUERY, f"q{number}", found), f"own {hostile}": {"n": number, "rank": [hostile]}})
    path = write_lines(tmp_path / "in.jsonl", [build(QUERY, "first", FOUND), *rows])
    run = run_files([path], tmp_path / "out.jsonl", overwrite=True)
    counts = run.counts
    assert counts.rows_in == counts.rows_out + counts.rows_error == len(rows) + 1
    assert len(run.rows) == counts.rows_out
    bad = sum(text is None for passages in data for _, text, _, _ in passages)
    changed = sum(all(text is None for _, text, _, _ in passages) for passages in data)
    assert counts.passages_error == bad - changed == len(run.errors)
    for row, out in zip(rows, run.rows[1:], strict=True):
        assert out[f"own {hostile}"] == row[f"own {hostile}"]


def test_parquet_keeps_the_types_of_what_it_brings_back(tmp_path: Path) -> None:
    path = write_table(tmp_path / "in.parquet", [ROWS["elasticsearch"][1](QUERY, "q7", FOUND)])
    run_files([path], tmp_path / "out.parquet")
    before, after = pq.read_schema(path), pq.read_schema(tmp_path / "out.parquet")
    hits = after.field("hits").type.field("hits").type.value_type
    assert after.field("took").type == before.field("took").type
    assert [hits.field(place).name for place in range(hits.num_fields)][:4] == ["_index", "_id", "_score", "_source"]
