from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_cli.formats.jsonl import ExactFloat, dump_row, parse_row
from rerank_cli.formats.shapes import (
    FieldNames,
    FlatShape,
    Grouped,
    ListShape,
    PairShape,
    Selection,
    Shape,
    detect_shape,
    lookup,
)
from rerank_cli.records import CandidateList, Gap, JsonRow, RankedList, RankedPassage, RowError
from tests.conftest import json_row, json_rows, ranked_of, told

NO_NAMES = FieldNames()


def grouped(shape: Shape, *rows: Mapping[str, Any]) -> list[Grouped]:
    return list(shape.group(json_rows(*rows)))


def one(shape: Shape, row: Mapping[str, Any]) -> Grouped:
    (found,) = grouped(shape, row)
    return found


def list_of(shape: Shape, row: Mapping[str, Any]) -> CandidateList:
    found = one(shape, row)
    assert isinstance(found, CandidateList), found
    return found


def error_of(shape: Shape, row: Mapping[str, Any]) -> RowError:
    found = one(shape, row)
    assert isinstance(found, RowError), found
    return found


def back(shape: Shape, row: Mapping[str, Any], *logits: float, selection: Selection | None = None) -> dict[str, Any]:
    """The output row of a list with these logits."""
    (rendered,) = shape.render(ranked_of(list_of(shape, row), *logits), selection or Selection())
    return rendered


# List shape: in


@pytest.mark.parametrize("name", ["passages", "candidates", "documents", "docs"])
def test_a_list_is_found_under_each_of_its_names(name: str) -> None:
    found = list_of(ListShape(NO_NAMES), {"query": "q", name: ["a", {"text": "b"}]})
    assert (found.query, found.passages, len(found.rows)) == ("q", ("a", "b"), 1)


def test_a_name_that_holds_something_wins_over_one_that_does_not() -> None:
    row = {"query": "q", "documents": 3, "passages": None, "candidates": ["first"]}
    shape = ListShape(NO_NAMES)
    assert list_of(shape, row).passages == ("first",)
    assert back(shape, row, 1.0)["candidates"][0]["text"] == "first"


def test_two_names_of_the_list_that_differ_are_refused_with_the_option() -> None:
    row = {"query": "q", "documents": ["second"], "candidates": ["first"]}
    error = error_of(ListShape(NO_NAMES), row)
    assert (error.code, error.message) == (
        "two-fields",
        "`candidates` and `documents` could both be the list of passages, and they differ: "
        "say `--passages-field candidates` or `--passages-field documents`",
    )
    assert list_of(ListShape(FieldNames(passages="documents")), row).passages == ("second",)
    assert list_of(ListShape(NO_NAMES), {**row, "documents": ["first"]}).passages == ("first",)


@pytest.mark.parametrize("shape", [FlatShape(NO_NAMES), PairShape(NO_NAMES)])
def test_two_names_of_the_passage_that_differ_are_refused_with_the_option(shape: Shape) -> None:
    row = {"query": "q", "document": "kettle-manual.pdf", "text": "Pour vinegar in."}
    error = error_of(shape, row)
    assert error.code == "two-fields"
    assert "`document` and `text`" in error.message
    assert "--text-field document" in error.message
    assert list_of(shape, {**row, "document": "Pour vinegar in."}).passages == ("Pour vinegar in.",)
    assert list_of(shape, {**row, "document": ""}).passages == ("Pour vinegar in.",)


def test_fields_are_found_at_dotted_paths_and_at_names_with_dots() -> None:
    names = FieldNames(query="body.q", passages="body.hits", text="source.content", id="meta.n")
    row = {
        "body": {"q": "query", "hits": [{"source": {"content": "a"}}, {"source.content": "b"}]},
        "meta.n": 7,
    }
    found = list_of(ListShape(names), row)
    assert (found.query, found.passages, found.id) == ("query", ("a", "b"), 7)


@pytest.mark.parametrize(
    ("row", "identity"),
    [
        ({"query_id": 1, "qid": 2, "id": 3}, 1),
        ({"qid": 2, "id": 3}, 2),
        ({"query_id": None, "id": 3}, 3),
        ({}, None),
    ],
)
def test_the_id_of_a_list_has_names_in_order(row: dict[str, Any], identity: object) -> None:
    assert list_of(ListShape(NO_NAMES), {"query": "q", "passages": [], **row}).id == identity


@pytest.mark.parametrize("passages", [[], ["only"], [{"text": "only"}]])
def test_lists_of_none_and_of_one_passage_are_lists(passages: list[Any]) -> None:
    assert len(list_of(ListShape(NO_NAMES), {"query": "q", "passages": passages}).passages) == len(passages)


@pytest.mark.parametrize(
    ("row", "code", "message"),
    [
        (
            {"passages": []},
            "missing-field",
            "field `query` is missing; the row has `passages`; name it by --query-field",
        ),
        ({"query": None, "passages": []}, "missing-field", "field `query` is missing; the row has `query` (null), `p"),
        ({"query": 5, "passages": []}, "wrong-type", "`query` is a number, not text"),
        ({"query": ["q"], "passages": []}, "wrong-type", "`query` is a list, not text"),
        ({"query": {"text": "q"}, "passages": []}, "wrong-type", "`query` is an object, not text"),
        ({"query": True, "passages": []}, "wrong-type", "`query` is true, not text"),
        ({"query": b"q", "passages": []}, "wrong-type", "`query` is binary data, not text"),
        ({"query": "q"}, "missing-field", "field `passages` is missing; the row has `query`; name it by --passages-f"),
        ({"query": "q", "passages": "a"}, "wrong-type", "field `passages` is text, not a list"),
        ({"query": "q", "passages": {"0": "a"}}, "wrong-type", "field `passages` is an object, not a list"),
        ({"query": "q", "passages": [3]}, "wrong-type", "passages[0] is a number, not a text or an object"),
        ({"query": "q", "passages": [None]}, "wrong-type", "passages[0] is null, not a text or an object"),
        ({"query": "q", "passages": [["a"]]}, "wrong-type", "passages[0] is a list, not a text or an object"),
        ({"query": "q", "passages": [{}, None]}, "missing-field", "passages[0] has no `text`: it has no fields"),
        (
            {"query": "q", "passages": [{"id": 1, "text": None}]},
            "missing-field",
            "passages[0] has no `text`: it has `id`, `text` (null); name it by --text-field",
        ),
        (
            {"query": "q", "passages": [{"image": 7}]},
            "wrong-type",
            "`passages[0].image` is a number, not a path, a data URI or bytes; if it is no image of the passage, say "
            "`--image-field none`",
        ),
        ({"query": "q", "passages": [{"text": 1.5}]}, "wrong-type", "`passages[0].text` is a number, not text"),
        ({"query": "q", "passages": [{"text": False}]}, "wrong-type", "`passages[0].text` is false, not text"),
    ],
)
def test_one_bad_field_makes_the_whole_row_of_a_list_one_error(row: dict[str, Any], code: str, message: str) -> None:
    fields = {"query_id": "q7", **row}
    found = one(ListShape(NO_NAMES), fields) if b"q" not in fields.values() else None
    if found is None:  # bytes come from Parquet alone, so this row has no JSON form
        (found,) = ListShape(NO_NAMES).group([JsonRow("in.parquet", 1, fields, b"")])
    assert isinstance(found, RowError)
    assert (found.code, found.row, found.id) == (code, 1, "q7")
    assert message in found.message.replace("`query_id`, ", "").replace("`query_id` ", "")


def test_an_error_has_the_place_and_the_bytes_of_its_row() -> None:
    row = parse_row(b'{"query": "q",   "passages": 1.10}', file="lists.jsonl", number=41)
    assert isinstance(row, JsonRow)
    (error,) = ListShape(NO_NAMES).group([row])
    assert isinstance(error, RowError)
    assert (error.file, error.row, error.raw) == ("lists.jsonl", 41, b'{"query": "q",   "passages": 1.10}')


def test_an_error_names_at_most_eight_fields_of_a_row() -> None:
    message = error_of(ListShape(NO_NAMES), {f"f{i}": i for i in range(9)}).message
    assert "`f7`, ..." in message
    assert "`f8`" not in message


@pytest.mark.parametrize(("identity", "kept"), [("a", "a"), (3, 3), (1.5, 1.5), ([1], None), ({"a": 1}, None)])
def test_the_id_in_an_error_is_text_or_a_number(identity: object, kept: object) -> None:
    assert error_of(ListShape(NO_NAMES), {"id": identity}).id == kept


def test_the_id_in_an_error_is_the_one_that_the_user_names() -> None:
    for shape in (ListShape(FieldNames(id="meta.key")), PairShape(FieldNames(id="meta.key"))):
        assert error_of(shape, {"id": "other", "meta": {"key": "k1"}}).id == "k1"
    assert error_of(FlatShape(FieldNames(group_by="meta.key")), {"id": "other", "meta": {"key": "k1"}}).id == "k1"


@pytest.mark.parametrize("shape", [ListShape(NO_NAMES), FlatShape(NO_NAMES), PairShape(NO_NAMES)])
def test_errors_and_gaps_of_the_reader_pass_in_their_places(shape: Shape) -> None:
    bad = RowError("in.jsonl", 2, None, "bad-json", "", b"{")
    row = json_row({"query": "q", "passage": "a", "passages": ["a"]})
    found = list(shape.group([Gap.BLANK, bad, row, Gap.IDLE]))
    assert [item for item in found if not isinstance(item, CandidateList)] == [Gap.BLANK, bad, Gap.IDLE]
    assert len(found) == 4


# List shape: out


def test_a_list_comes_back_with_its_passages_in_rank_order() -> None:
    row = {"query": "q", "passages": ["a", {"id": 7, "text": "b", "n": {"x": [1]}}, "c"], "lang": "en"}
    assert back(ListShape(NO_NAMES), row, 0.5, 2.0, -1.0) == {
        "query": "q",
        "passages": [
            {"id": 7, "text": "b", "n": {"x": [1]}, "rank": 1, "logit": 2.0, "index": 1},
            {"text": "a", "rank": 2, "logit": 0.5, "index": 0},
            {"text": "c", "rank": 3, "logit": -1.0, "index": 2},
        ],
        "lang": "en",
    }


def test_fields_stay_where_they_were() -> None:
    row = {"z": 1, "documents": ["a"], "query": "q", "a": 2}
    assert list(back(ListShape(NO_NAMES), row, 1.0)) == ["z", "documents", "query", "a"]


def test_rendering_leaves_the_input_row_alone() -> None:
    row = {"body": {"query": "q", "hits": [{"text": "a", "logit": 1}], "k": 1}, "x": [1]}
    before = copy.deepcopy(row)
    names = FieldNames(query="body.query", passages="body.hits")
    rendered = back(ListShape(names), row, 3.0)
    assert row == before
    hit = {"text": "a", "input_logit": 1, **scored("a", 3.0)}
    assert rendered == {"body": {**before["body"], "hits": [hit]}, "x": [1]}


def scored(text: str, logit: float) -> dict[str, Any]:
    return {"text": text, "rank": 1, "logit": logit, "index": 0}


def test_a_list_field_whose_name_has_dots_comes_back_under_it() -> None:
    row = {"query": "q", "a.b": ["x"], "a": {"b": 1}}
    assert back(ListShape(FieldNames(passages="a.b")), row, 1.0) == {
        "query": "q",
        "a.b": [scored("x", 1.0)],
        "a": {"b": 1},
    }


def test_an_empty_list_comes_back_as_it_is() -> None:
    row = {"query": "q", "passages": [], "k": 1}
    assert back(ListShape(NO_NAMES), row) == row


def test_what_an_earlier_run_added_is_replaced() -> None:
    earlier = {"rank": 1, "logit": -3.0, "index": 4, "prob": 0.1, "truncated": True, "tokens": 700, "kept_tokens": 512}
    row = {"query": "q", "passages": [{**earlier, "text": "a", "id": 1}]}
    assert back(ListShape(NO_NAMES), row, 1.0)["passages"] == [
        {"text": "a", "id": 1, "rank": 1, "logit": 1.0, "index": 0},
    ]


def test_fields_of_the_users_own_stay_although_a_score_may_have_their_name() -> None:
    row = {"query": "q", "passages": [{"text": "a", "tokens": 12, "prob": 0.4}]}
    assert back(ListShape(NO_NAMES), row, 1.0)["passages"][0] == {"text": "a", "input_tokens": 12, "prob": 0.4} | {
        "rank": 1,
        "logit": 1.0,
        "index": 0,
    }


def test_probability_and_truncation_are_told_where_they_are_true() -> None:
    source = list_of(ListShape(NO_NAMES), {"query": "q", "passages": ["a", "b"]})
    ranking = (RankedPassage(1, 1, 0.0, 600, 512), RankedPassage(2, 0, -800.0, 20, 20))
    (row,) = ListShape(NO_NAMES).render(RankedList(source, ranking), Selection(prob=True))
    cut = {"truncated": True, "tokens": 600, "kept_tokens": 512}
    assert row["passages"] == [
        {"text": "b", "rank": 1, "logit": 0.0, "index": 1, "prob": 0.5, **cut},
        {"text": "a", "rank": 2, "logit": -800.0, "index": 0, "prob": 0.0},
    ]


def test_numbers_come_back_as_they_were_written() -> None:
    row = parse_row(b'{"query": "q", "passages": [{"text": "a", "bm25": 1.10}], "n": 1e5}', file="-", number=1)
    assert isinstance(row, JsonRow)
    (source,) = ListShape(NO_NAMES).group([row])
    assert isinstance(source, CandidateList)
    (rendered,) = ListShape(NO_NAMES).render(ranked_of(source, 1.0), Selection())
    assert b'"bm25": 1.10' in dump_row(rendered)
    assert b'"n": 1e5' in dump_row(rendered)


# Flat shape


def flat(*rows: tuple[Any, ...]) -> list[dict[str, Any]]:
    return [dict(zip(("query_id", "query", "passage"), row, strict=False)) for row in rows]


@pytest.mark.parametrize("name", ["passage", "document", "text", "doc"])
def test_a_passage_is_found_under_each_of_its_names(name: str) -> None:
    assert list_of(FlatShape(NO_NAMES), {"query": "q", name: "a"}).passages == ("a",)


def test_neighbouring_rows_of_a_query_are_one_list() -> None:
    rows = flat((1, "q1", "a"), (1, "q1", "b"), (2, "q2", "c"))
    first, second = grouped(FlatShape(NO_NAMES), *rows)
    assert isinstance(first, CandidateList)
    assert isinstance(second, CandidateList)
    assert (first.query, first.passages, first.id, [row.number for row in first.rows]) == ("q1", ("a", "b"), 1, [1, 2])
    assert (second.query, second.passages, second.id) == ("q2", ("c",), 2)


def test_without_ids_the_text_of_the_query_groups() -> None:
    rows = [{"query": "q1", "text": "a"}, {"query": "q1", "text": "b"}, {"query": "q2", "text": "a"}]
    lists = grouped(FlatShape(NO_NAMES), *rows)
    assert [item.passages for item in lists if isinstance(item, CandidateList)] == [("a", "b"), ("a",)]
    assert [item.id for item in lists if isinstance(item, CandidateList)] == [None, None]


def test_the_group_is_at_a_dotted_path() -> None:
    rows = [{"query": "q", "text": text, "meta": {"g": g}} for g, text in [(1, "a"), (1, "b"), (2, "c")]]
    lists = grouped(FlatShape(FieldNames(group_by="meta.g")), *rows)
    assert [(item.id, item.passages) for item in lists if isinstance(item, CandidateList)] == [
        (1, ("a", "b")),
        (2, ("c",)),
    ]


def test_a_row_without_the_group_that_the_user_names_is_an_error() -> None:
    found = grouped(FlatShape(FieldNames(group_by="topic")), *[{"query": "q", "text": "a"}, {"query": "q", "topic": 1}])
    assert [(told(item), item.message) for item in found if isinstance(item, RowError)] == [
        ((1, "missing-field"), "field `topic` is missing; the row has `query`, `text`"),
        ((2, "missing-field"), "field `passage` is missing; the row has `query`, `topic`; name it by --text-field"),
    ]


def test_of_a_group_only_the_bad_row_is_an_error() -> None:
    rows = flat((1, "q1", "a"), (1, "q1", 5), (1, "q1", "c"))
    bad, good = grouped(FlatShape(NO_NAMES), *rows)
    assert isinstance(bad, RowError)
    assert (told(bad), bad.id, bad.message) == ((2, "wrong-type"), 1, "`passage` is a number, not text")
    assert isinstance(good, CandidateList)
    assert [row.number for row in good.rows] == [1, 3]


def test_a_group_that_comes_back_is_an_error_for_each_of_its_rows() -> None:
    rows = flat((1, "q1", "a"), (2, "q2", "b"), (1, "q1", "c"), (1, "q1", "d"), (3, "q3", "e"), (2, "q2", "f"))
    found = grouped(FlatShape(NO_NAMES), *rows)
    assert [told(item) for item in found if isinstance(item, RowError)] == [
        (3, "scattered-group"),
        (4, "scattered-group"),
        (6, "scattered-group"),
    ]
    assert [item.passages for item in found if isinstance(item, CandidateList)] == [("a",), ("b",), ("e",)]
    assert [item.id for item in found if isinstance(item, RowError)] == [1, 1, 2]


def test_another_query_under_the_same_id_is_an_error() -> None:
    found = grouped(FlatShape(NO_NAMES), *flat((1, "q1", "a"), (1, "other", "b"), (1, "q1", "c")))
    assert [told(item) for item in found if isinstance(item, RowError)] == [(2, "query-differs")]
    assert [item.passages for item in found if isinstance(item, CandidateList)] == [("a", "c")]


def test_ids_that_only_look_alike_are_different_groups() -> None:
    ids = [
        1,
        "1",
        1.0,
        True,
        ExactFloat("1.10"),
        ExactFloat("1.1e0"),
        1.1,
        -1,
        -2,
        0,
        2**61 - 1,
        None,
        "None",
        [1],
        "[1]",
    ]
    rows = [JsonRow("in.jsonl", n, {"query_id": i, "query": "q", "text": "a"}, b"") for n, i in enumerate(ids, 1)]
    found = list(FlatShape(NO_NAMES).group(rows))
    assert [told(item) for item in found if isinstance(item, RowError)] == []
    assert len(found) == len(ids)


def test_an_id_is_not_taken_for_the_text_of_a_query() -> None:
    shape = FlatShape(NO_NAMES)
    assert shape.group_key({"query_id": "q"}) != shape.group_key({"query": "q"})


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 2)), max_size=12))
def test_every_flat_row_is_in_one_list_or_an_error(rows: list[tuple[str, int]]) -> None:
    found = grouped(FlatShape(NO_NAMES), *flat(*((key, f"q{key}", str(passage)) for key, passage in rows)))
    numbers = [item.row for item in found if isinstance(item, RowError)]
    numbers += [row.number for item in found if isinstance(item, CandidateList) for row in item.rows]
    assert sorted(numbers) == list(range(1, len(rows) + 1))
    keys = [item.id for item in found if isinstance(item, CandidateList)]
    assert keys == list(dict.fromkeys(key for key, _ in rows)), "groups in order of first appearance"


def test_the_rows_of_a_group_come_back_in_rank_order() -> None:
    rows = [{"query_id": 1, "query": "q", "passage": text, "n": text, "rank": 5} for text in "abc"]
    (source,) = grouped(FlatShape(NO_NAMES), *rows)
    assert isinstance(source, CandidateList)
    rendered = list(FlatShape(NO_NAMES).render(ranked_of(source, 1.0, 3.0, 2.0), Selection()))
    assert [(row["passage"], row["rank"], row["logit"], row["index"], row["n"]) for row in rendered] == [
        ("b", 1, 3.0, 1, "b"),
        ("c", 2, 2.0, 2, "c"),
        ("a", 3, 1.0, 0, "a"),
    ]
    assert list(rendered[0]) == ["query_id", "query", "passage", "n", "input_rank", "rank", "logit", "index"]
    assert rendered[0]["input_rank"] == 5


# Pairs


def test_a_pair_comes_back_with_its_logit_and_keeps_the_rest() -> None:
    row = {"query": "q", "text": "a", "rank": 3, "index": 9, "k": None}
    assert back(PairShape(NO_NAMES), row, 1.5) == {**row, "logit": 1.5}


def test_one_query_serves_all_rows() -> None:
    shape = PairShape(NO_NAMES, query="mine")
    assert [item.query for item in grouped(shape, {"text": "a"}, {"query": 5, "text": "b"}) if is_list(item)] == [
        "mine",
        "mine",
    ]


def is_list(item: Grouped) -> bool:
    assert isinstance(item, CandidateList)
    return True


def test_a_pair_that_lacks_its_query_or_passage_is_an_error() -> None:
    assert error_of(PairShape(NO_NAMES), {"text": "a"}).message.startswith("field `query` is missing")
    assert error_of(PairShape(NO_NAMES, query="q"), {"body": "a"}).message.startswith("field `passage` is missing")


# Which shape, which columns


@pytest.mark.parametrize(
    ("fields", "names", "shape"),
    [
        (["query", "passages"], NO_NAMES, "list"),
        (["query", "docs", "text"], NO_NAMES, "list"),
        (["query", "text"], NO_NAMES, "flat"),
        (["query", "doc"], NO_NAMES, "flat"),
        (["query", "hits"], NO_NAMES, None),
        (["query", "hits"], FieldNames(passages="hits"), "list"),
        (["query", "body"], FieldNames(text="body"), "flat"),
        (["query", "passages"], FieldNames(text="body"), "list"),
        ([], NO_NAMES, None),
    ],
)
def test_the_fields_tell_the_shape(fields: list[str], names: FieldNames, shape: str | None) -> None:
    found = detect_shape(fields, names)
    assert (found and found.name) == shape


PASSAGE_IDS = ("passage_id", "doc_id", "docid", "pid", "docno", "id", "_id")
OF_A_PASSAGE = ("text", "image", *PASSAGE_IDS)


@pytest.mark.parametrize(
    ("shape", "columns", "wanted"),
    [
        (
            ListShape(NO_NAMES),
            ["id", "query", "passages", "docs", "x"],
            {
                "query": None,
                "id": None,
                "passages": OF_A_PASSAGE,
                "docs": OF_A_PASSAGE,
            },
        ),
        (ListShape(NO_NAMES), ["x"], {"query": None, "passages": OF_A_PASSAGE}),
        (
            ListShape(FieldNames(query="m.q", passages="hits", text="s.body", id="m.no")),
            ["m", "hits", "id"],
            {"m": None, "id": None, "hits": ("s.body", "s", "m.no", "m", "image", *PASSAGE_IDS)},
        ),
        (
            FlatShape(NO_NAMES),
            ["qid", "query", "text", "doc", "docid", "x"],
            {"query": None, "text": None, "doc": None, "qid": None, "docid": None},
        ),
        (FlatShape(FieldNames(group_by="m.g", id="n")), ["query", "m"], {"query": None, "passage": None, "m": None}),
        (PairShape(NO_NAMES), ["passage", "query", "id"], {"passage": None, "query": None, "id": None}),
        (PairShape(FieldNames(text="a.b"), query="q"), ["a.b", "query"], {"a.b": None}),
    ],
)
def test_a_shape_reads_only_its_columns(shape: Shape, columns: list[str], wanted: dict[str, Any]) -> None:
    assert dict(shape.columns(columns)) == wanted


def test_of_a_list_in_a_struct_the_whole_column_is_read() -> None:
    shape = ListShape(FieldNames(passages="body.hits"))
    assert shape.columns(["query", "body"]) == {"query": None, "body": None}
    assert "body.hits" in shape.columns(["query", "body.hits"])


# Ids for evaluation


@pytest.mark.parametrize(
    ("shape", "row", "identity"),
    [
        (ListShape(NO_NAMES), {"passages": [{"text": "a", "id": 4}]}, 4),
        (ListShape(NO_NAMES), {"passages": [{"text": "a", "id": 4, "pid": "x"}]}, "x"),
        (ListShape(NO_NAMES), {"passages": ["a"]}, None),
        (ListShape(NO_NAMES), {"passages": [{"text": "a"}]}, None),
        (ListShape(FieldNames(id="m.key")), {"passages": [{"text": "a", "m": {"key": 1}, "id": 2}]}, 1),
        (ListShape(FieldNames(id="topic")), {"topic": 9, "passages": [{"text": "a", "id": 2}]}, 2),
        (ListShape(FieldNames(passages="b.hits")), {"b": {"hits": [{"text": "a", "id": 5}]}}, 5),
        (FlatShape(NO_NAMES), {"text": "a", "docid": "d"}, "d"),
        (FlatShape(NO_NAMES), {"text": "a", "docid": "d", "passages": ["x", "y"]}, "d"),
        (FlatShape(FieldNames(id="n")), {"text": "a", "n": 3, "id": 1}, 3),
        (FlatShape(NO_NAMES), {"text": "a"}, None),
    ],
)
def test_the_id_of_a_passage(shape: Shape, row: dict[str, Any], identity: object) -> None:
    source = list_of(shape, {"query": "q", **row})
    assert shape.passage_id(source, 0) == identity


def test_each_row_of_a_group_has_its_own_id() -> None:
    (source,) = grouped(FlatShape(NO_NAMES), *({"query": "q", "text": text, "pid": text} for text in "ab"))
    assert isinstance(source, CandidateList)
    assert [FlatShape(NO_NAMES).passage_id(source, index) for index in (0, 1)] == ["a", "b"]


@pytest.mark.parametrize(
    ("path", "value"),
    [("a", {"b": {"c": 1}}), ("a.b.c", 1), ("a.b.x", None), ("a.b.c.d", None), ("x.y", 2), ("a.", None), ("n", None)],
)
def test_a_path_is_followed_through_objects(path: str, value: object) -> None:
    assert lookup({"a": {"b": {"c": 1}}, "x.y": 2, "x": {"y": 3}}, path) == value
