"""No row of any content stops a run: it is a list or an error row, in every shape, and its answer can be written."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rerank_cli.formats.jsonl import parse_row
from rerank_cli.formats.shapes import NO_TEXTS, SHAPES, FieldNames, Item, Selection, written_as
from rerank_cli.records import CandidateList, JsonRow, RowError
from tests.conftest import ranked_of

KEYS = (
    "query", "passages", "documents", "passage", "text", "image", "id", "query_id", "truncate", "top_n", "custom_id",
    "body", "url", "method", "text_1", "text_2", "queries", "return_documents", "max_tokens_per_doc", "truncation",
    "rank_fields", "passage_id", "title", "other",
)  # fmt: skip
WORDS = ("NONE", "END", "/v1/rerank", "/v1/score", "POST", "data:image/png;base64,AA==", "", "a b", "1.10")
leaves = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 3), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=5),
    st.sampled_from(WORDS),
)  # fmt: skip
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(KEYS), inner, max_size=4)
    ),
    max_leaves=12,
)  # fmt: skip
rows = st.dictionaries(st.sampled_from(KEYS), values, max_size=8)
LIKELY: dict[str, dict[str, Any]] = {
    "list": {"query": "q", "passages": ["a"]},
    "flat": {"query": "q", "passage": "a"},
    "nim": {"query": {"text": "q"}, "passages": [{"text": "a"}]},
    "cohere": {"query": "q", "documents": ["a", {"text": "b"}]},
    "openai-batch": {"custom_id": "1", "url": "/v1/score", "body": {"text_1": "q", "text_2": ["a"]}},
}
"""What random fields are put into, so that many rows come through."""


def read(row: dict[str, Any], number: int) -> Item:
    return parse_row(json.dumps(row).encode(), file="in.jsonl", number=number)


@pytest.mark.parametrize("to", SHAPES)
@pytest.mark.parametrize("name", LIKELY)
@settings(max_examples=25)
@given(fields=rows, whole=st.booleans())
@example(fields={"passages": [None, ""]}, whole=True)
def test_a_row_of_any_content_is_a_list_or_an_error_row(
    name: str, to: str, fields: dict[str, Any], whole: bool
) -> None:
    likely = LIKELY[name]
    shape = written_as(SHAPES[name].open(FieldNames(), NO_TEXTS), SHAPES[to])
    row = read({**likely, **fields} if whole else {**fields, **likely}, 2)
    found = list(shape.group([read(likely, 1), row]))
    lists = sum(len(item.rows) for item in found if isinstance(item, CandidateList))
    bad_rows = sum(isinstance(item, RowError) and item.passage is None for item in found)
    assert lists + bad_rows == 2
    for item in found:
        if isinstance(item, RowError):
            shape.kind.dump_error(item)
            continue
        assert isinstance(item, CandidateList)
        assert all(query.encode() is not None for query, _ in item.pairs)
        for line in shape.render(ranked_of(item, *map(float, range(len(item.passages)))), Selection(prob=True)):
            written = shape.kind.dump(line)
            assert written.endswith(b"\n")
            assert written.count(b"\n") == 1
            if to != "trec":
                json.loads(written)


@given(lines=st.lists(rows, max_size=6))
def test_the_shape_of_any_rows_is_known_or_refused(lines: list[dict[str, Any]]) -> None:
    from rerank_cli.errors import InputError
    from rerank_cli.formats.shapes import recognise

    seen: list[Item] = []
    parsed = [read(row, number) for number, row in enumerate(lines, 1)]
    assert all(isinstance(row, JsonRow) for row in parsed)
    try:
        kind = recognise(iter(parsed), seen, FieldNames())
    except InputError as error:
        refusals = ("a row of the shape", "neither a list", "could both be", "two readings")
        assert any(words in error.message for words in refusals)
    else:
        assert seen == parsed
        assert kind is None or kind.name in SHAPES
