"""Which shape a file has, and how a list of one shape is written in another."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rerank_cli.errors import InputError, UsageError
from rerank_cli.formats.inputs import ReadOptions, open_lists, resolve_inputs
from rerank_cli.formats.shapes import NO_TEXTS, SHAPES, FieldNames, Item, Selection, not_carried, recognise, written_as
from rerank_cli.formats.shapes.suggestions import no_shape_error
from rerank_cli.records import CandidateList, RowError
from tests.conftest import json_rows, ranked_of, write_lines, write_table

ROWS: dict[str, dict[str, Any]] = {
    "list": {"id": "l", "query": "q", "passages": [{"id": "a", "text": "x"}, {"id": "b", "text": "y"}], "lang": "en"},
    "flat": {"query_id": "f", "query": "q", "passage": "x", "passage_id": "a", "lang": "en"},
    "nim": {"id": "n", "query": {"text": "q"}, "passages": [{"text": "x", "id": "a"}, {"text": "y", "id": "b"}]},
    "cohere": {"id": "c", "query": "q", "documents": [{"id": "a", "text": "x"}, {"id": "b", "text": "y"}], "top_n": 5},
    "openai-batch": {
        "custom_id": "o", "url": "/v1/rerank",
        "body": {"query": "q", "documents": [{"id": "a", "text": "x"}, {"id": "b", "text": "y"}]},
    },
}  # fmt: skip


def recognised(*rows: dict[str, Any], names: FieldNames | None = None, stop: int | None = None) -> str | None:
    seen: list[Item] = []
    kind = recognise(iter(json_rows(*rows)), seen, names or FieldNames(), stop=stop)
    assert len(seen) <= 100
    return kind and kind.name


# Recognition


@pytest.mark.parametrize(("name", "row"), ROWS.items(), ids=ROWS)
def test_a_row_tells_its_shape(name: str, row: dict[str, Any]) -> None:
    assert recognised(row) == name
    assert recognised({"comment": "no shape"}, row, row) == name


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"query": "q", "documents": ["a"]}, "list"),
        ({"query": "q", "documents": ["a"], "return_documents": False}, "cohere"),
        ({"query": "q", "documents": ["a"], "max_tokens_per_doc": 10}, "cohere"),
        ({"query": "q", "passages": ["a"], "top_n": 3}, "list"),
        ({"query": {"text": "q"}, "documents": ["a"], "top_n": 3}, "cohere"),
        ({"query": {"image": "i"}, "passages": []}, "nim"),
        ({"custom_id": "1", "query": "q", "passages": ["a"]}, "list"),
        ({"custom_id": "1", "body": {}}, "openai-batch"),
        ({"query": "q", "image": "a.png"}, "flat"),
        ({"query": "q"}, None),
        ({}, None),
    ],
)
def test_the_marks_of_a_request_tell_it_from_a_list(row: dict[str, Any], name: str | None) -> None:
    assert recognised(row) == name


def test_field_names_say_that_rows_are_the_users_own() -> None:
    names = FieldNames(query="query.text", passages="passages")
    assert recognised(ROWS["nim"], names=names) == "list"
    assert recognised(ROWS["cohere"], names=FieldNames(text="text")) == "list"


def test_one_row_with_a_mark_decides_for_rows_without() -> None:
    plain = {"query": "q", "documents": ["a"]}
    assert recognised(plain, plain, {**plain, "top_n": 2}, plain) == "cohere"


@pytest.mark.parametrize(
    ("first", "other"),
    [("list", "flat"), ("nim", "list"), ("list", "nim"), ("cohere", "openai-batch"), ("flat", "nim")],
)
def test_a_mixture_is_refused_with_the_numbers_of_the_rows(first: str, other: str) -> None:
    with pytest.raises(InputError) as caught:
        recognised({}, ROWS[first], {"comment": 1}, ROWS[other])
    assert caught.value.message.startswith("in.jsonl:4: a row of the shape ")
    assert "(in.jsonl:2)" in caught.value.message
    assert f"among rows of the shape {first} " in caught.value.message


def test_no_more_rows_are_looked_at_than_the_run_reads() -> None:
    assert recognised(ROWS["list"], ROWS["nim"], stop=1) == "list"
    assert recognised(ROWS["list"], stop=0) is None


def test_a_later_row_of_another_shape_is_an_error_row(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "in.jsonl", [ROWS["list"]] * 120 + [ROWS["nim"]])
    shape, items = open_lists(resolve_inputs([path]), FieldNames(), ReadOptions(), "auto")
    found = list(shape.group(items))
    assert (len(found), [item.row for item in found if isinstance(item, RowError)]) == (121, [121])


def test_a_named_shape_is_not_guessed(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "in.jsonl", [{"query": "q", "documents": ["a"]}, ROWS["nim"]])
    shape, items = open_lists(resolve_inputs([path]), FieldNames(), ReadOptions(), "cohere")
    first, second = shape.group(items)
    assert isinstance(first, CandidateList)
    assert isinstance(second, RowError)
    with pytest.raises(UsageError, match="--shape cohear: not known") as caught:
        open_lists(resolve_inputs([path]), FieldNames(), ReadOptions(), "cohear")
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("known are auto, list, flat, nim, cohere, tei, openai-batch, trec, rank_llm, ")
    with pytest.raises(UsageError, match="--in-format nim: not known") as caught:
        resolve_inputs([path], "nim")
    assert caught.value.hint == "`--shape nim` says what the rows are"


@pytest.mark.parametrize("name", ["nim", "cohere", "openai-batch"])
def test_requests_are_lines_and_no_tables(tmp_path: Path, name: str) -> None:
    path = write_table(tmp_path / "a.parquet", [{"query": "q", "documents": ["a"]}])
    with pytest.raises(InputError, match=f"rows of the shape {name} are JSON lines, this is Parquet"):
        open_lists(resolve_inputs([path]), FieldNames(), ReadOptions(), name)


# Conversion


def converted(name: str, to: str, row: dict[str, Any] | None = None) -> list[Any]:
    """The lines of a row of shape `name` in shape `to`; logits 0, 1, ..."""
    shape = written_as(SHAPES[name].open(FieldNames(), NO_TEXTS), SHAPES[to])
    (found,) = shape.group(json_rows(row or ROWS[name]))
    if isinstance(found, RowError):
        return [found]
    assert isinstance(found, CandidateList)
    ranked = replace(ranked_of(found, *map(float, range(len(found.passages)))), tokens=9)
    return [shape.kind.dump(line).decode() for line in shape.render(ranked, Selection())]


def objects(name: str, to: str, row: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    return [json.loads(line) for line in converted(name, to, row)]


HALF, MORE = 0.5, pytest.approx(0.731, abs=1e-3)


@pytest.mark.parametrize("name", ["nim", "cohere", "openai-batch"])
def test_a_request_can_come_out_as_a_list(name: str) -> None:
    (row,) = objects(name, "list")
    assert row["query"] == "q"
    assert row["passages"] == [
        {"id": "b", "text": "y", "rank": 1, "logit": 1.0, "index": 1},
        {"id": "a", "text": "x", "rank": 2, "logit": 0.0, "index": 0},
    ]
    assert {"id": "n", "custom_id": "o"}.get("custom_id" if name == "openai-batch" else "id") is not None
    assert not {"truncate", "top_n", "documents", "body", "url", "model"} & row.keys()


@pytest.mark.parametrize("name", ["list", "nim", "cohere", "openai-batch"])
def test_a_list_can_come_out_as_flat_rows(name: str) -> None:
    first, second = objects(name, "flat")
    assert (first["query"], first["passage_id"], first["passage"], first["rank"], first["logit"]) == (
        "q",
        "b",
        "y",
        1,
        1,
    )
    assert (second["passage_id"], second["passage"], second["rank"]) == ("a", "x", 2)
    assert first.get("lang") == ("en" if name == "list" else None)


@pytest.mark.parametrize("name", ["list", "cohere", "openai-batch"])
def test_a_list_can_come_out_as_answers_of_the_nim(name: str) -> None:
    (row,) = objects(name, "nim")
    assert row["rankings"] == [{"index": 1, "logit": 1.0}, {"index": 0, "logit": 0.0}]
    assert row["usage"] == {"prompt_tokens": 9, "total_tokens": 9}
    assert {"passages", "query"}.isdisjoint(row)


@pytest.mark.parametrize("name", ["list", "nim", "openai-batch"])
def test_a_list_can_come_out_as_answers_of_cohere(name: str) -> None:
    (row,) = objects(name, "cohere")
    assert row["results"] == [{"index": 1, "relevance_score": MORE}, {"index": 0, "relevance_score": HALF}]


@pytest.mark.parametrize(("name", "custom_id"), [("list", "l"), ("nim", "n"), ("cohere", "c")])
def test_a_list_with_an_id_can_come_out_as_answers_of_a_batch(name: str, custom_id: str) -> None:
    (row,) = objects(name, "openai-batch")
    assert row["custom_id"] == custom_id
    assert row["response"]["body"]["results"][0] == {"index": 1, "relevance_score": MORE}


def test_a_list_without_an_id_is_no_answer_of_a_batch() -> None:
    (error,) = converted("list", "openai-batch", {"query": "q", "passages": ["a"]})
    assert (error.code, error.message) == (
        "no-custom-id", "the row has no id, which is its `custom_id` in an OpenAI batch"
    )  # fmt: skip


@pytest.mark.parametrize("name", ["list", "nim", "cohere", "openai-batch"])
def test_a_list_can_come_out_as_a_run(name: str) -> None:
    identity = name[0]
    assert converted(name, "trec") == [
        f"{identity} Q0 b 1 1.000000 rerank-cli\n",
        f"{identity} Q0 a 2 0.000000 rerank-cli\n",
    ]


def test_flat_rows_can_come_out_as_a_list() -> None:
    shape = written_as(SHAPES["flat"].open(FieldNames(), NO_TEXTS), SHAPES["list"])
    rows = [ROWS["flat"], {**ROWS["flat"], "passage": "y", "passage_id": "b", "bm25": 2.5}]
    (found,) = shape.group(json_rows(*rows))
    assert isinstance(found, CandidateList)
    (row,) = shape.render(ranked_of(found, 0.0, 1.0), Selection())
    assert row == {
        "query_id": "f",
        "query": "q",
        "passages": [
            {"passage_id": "b", "lang": "en", "bm25": 2.5, "text": "y", "rank": 1, "logit": 1.0, "index": 1},
            {"passage_id": "a", "lang": "en", "text": "x", "rank": 2, "logit": 0.0, "index": 0},
        ],
    }


def test_a_field_of_the_users_own_is_not_lost_to_the_text_that_was_scored() -> None:
    shape = written_as(SHAPES["flat"].open(FieldNames(text="passage"), NO_TEXTS), SHAPES["list"])
    (found,) = shape.group(json_rows({"query": "q", "passage": "scored", "text": "not scored"}))
    assert isinstance(found, CandidateList)
    (row,) = shape.render(ranked_of(found, 1.0), Selection())
    assert row["passages"][0]["text"] == "scored"
    assert row["passages"][0]["passage.text"] == "not scored"


def test_pairs_with_different_queries_come_out_in_their_own_shape_only() -> None:
    line = {"custom_id": "o", "url": "/v1/score", "body": {"text_1": ["q", "r"], "text_2": ["a", "b"]}}
    (error,) = converted("openai-batch", "list", line)
    assert (error.code, error.message) == (
        "several-queries",
        "its pairs have different queries, which list cannot carry",
    )


def test_images_stay_with_their_passages() -> None:
    uri = "data:image/png;base64,AA=="
    row = {"query": {"text": "q"}, "passages": [{"image": uri}, {"text": "t", "image": uri}]}
    (found,) = objects("nim", "list", row)
    assert [{"image": p.get("image"), "text": p.get("text")} for p in found["passages"]] == [
        {"image": uri, "text": "t"},
        {"image": uri, "text": None},
    ]
    assert "passage" not in objects("nim", "flat", row)[1]


@pytest.mark.parametrize(
    ("name", "to", "missing"),
    [
        ("list", "list", ()),
        ("nim", "nim", ()),
        ("cohere", "cohere", ()),
        ("nim", "list", ()),
        ("list", "nim", ("fields of passages", "marks of truncation", "passage ids", "texts")),
        ("list", "cohere", ("fields of passages", "logits", "marks of truncation", "passage ids", "texts")),
        ("list", "trec", ("fields of passages", "fields of rows", "marks of truncation", "texts")),
    ],
)
def test_what_is_not_carried_is_known(name: str, to: str, missing: tuple[str, ...]) -> None:
    shape = written_as(SHAPES[name].open(FieldNames(), NO_TEXTS), SHAPES[to])
    assert not_carried(shape, Selection()) == missing


@pytest.mark.parametrize(("name", "carried"), [("list", True), ("nim", False), ("cohere", True)])
def test_a_probability_that_is_asked_for_and_has_no_place_is_told(name: str, carried: bool) -> None:
    shape = SHAPES[name].open(FieldNames(), NO_TEXTS)
    assert not_carried(shape, Selection(prob=True)) == (() if carried else ("prob",))


def test_a_named_list_whose_passages_have_no_known_text_is_refused_by_what_they_have() -> None:
    with pytest.raises(InputError, match="no text is known in the passages of `docs`: the first has `docid`, `body`"):
        raise no_shape_error(
            "own.jsonl:1", {"question": "a", "docs": [{"docid": 1, "body": "b"}]}, FieldNames(passages="docs")
        )
