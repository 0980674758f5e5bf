"""The requests are those of NVIDIA's API reference, written out by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from rerank_cli.errors import UsageError
from rerank_cli.formats.shapes import NO_TEXTS, SHAPES, FieldNames, Selection
from rerank_cli.records import CandidateList, ImagePassage, RowError
from tests.conftest import json_rows, ranked_of

NIM = SHAPES["nim"]
PNG = "data:image/png;base64,iVBORw0KGgo="
REQUEST: dict[str, Any] = {
    "model": "nvidia/llama-nemotron-rerank-1b-v2",
    "query": {"text": "which way did the traveler go?"},
    "passages": [
        {"text": "two roads diverged in a yellow wood, and sorry i could not travel both"},
        {"text": "then took the other, as just as fair, and having perhaps the better claim"},
        {"text": "i shall be telling this with a sigh somewhere ages and ages hence"},
    ],
    "truncate": "END",
}


def read(request: dict[str, Any], **names: str) -> CandidateList | RowError:
    (found,) = NIM.open(FieldNames(**names), NO_TEXTS).group(json_rows(request))
    assert isinstance(found, (CandidateList, RowError))
    return found


def good(request: dict[str, Any], **names: str) -> CandidateList:
    found = read(request, **names)
    assert isinstance(found, CandidateList), found
    return found


def test_a_request_is_answered_as_the_nim_answers_it() -> None:
    found = good(REQUEST)
    assert (found.query, len(found.passages)) == ("which way did the traveler go?", 3)
    ranked = replace(ranked_of(found, -1.2421875, 0.6982421875, -11.328125), tokens=120)
    (answer,) = NIM.open(FieldNames(), NO_TEXTS).render(ranked, Selection())
    assert answer == {
        "rankings": [
            {"index": 1, "logit": 0.6982421875},
            {"index": 0, "logit": -1.2421875},
            {"index": 2, "logit": -11.328125},
        ],
        "usage": {"prompt_tokens": 120, "total_tokens": 120},
    }


def test_fields_that_the_api_does_not_know_come_back_so_that_an_answer_finds_its_request() -> None:
    found = good({"id": 7, **REQUEST, "trace": {"n": 1}})
    (answer,) = NIM.open(FieldNames(), NO_TEXTS).render(ranked_of(found, 1.0, 2.0, 3.0), Selection())
    assert list(answer) == ["id", "trace", "rankings", "usage"]
    assert found.id == 7


@pytest.mark.parametrize(
    ("truncate", "whole"),
    [({"truncate": "NONE"}, True), ({"truncate": "END"}, False), ({}, True), ({"truncate": None}, True)],
)
def test_none_is_the_default_and_forbids_any_cut(truncate: dict[str, Any], whole: bool) -> None:
    request = {name: value for name, value in REQUEST.items() if name != "truncate"} | truncate
    assert good(request).limits.whole is whole


def test_more_passages_than_the_nim_takes_are_read() -> None:
    assert len(good({**REQUEST, "passages": [{"text": str(n)} for n in range(1000)]}).passages) == 1000


def test_a_passage_is_a_text_an_image_or_both() -> None:
    passages = [{"text": "a"}, {"image": PNG}, {"text": "b", "image": PNG}]
    first, second, third = good({**REQUEST, "passages": passages}).passages
    assert first == "a"
    assert isinstance(second, ImagePassage)
    assert isinstance(third, ImagePassage)
    assert (second.text, third.text, second.image.value) == ("", "b", PNG)


def test_the_image_beside_a_text_can_be_left_out_for_a_model_of_texts() -> None:
    found = good({**REQUEST, "passages": [{"text": "b", "image": PNG}]}, image="none")
    assert found.passages == ("b",)


@pytest.mark.parametrize(
    ("fields", "code", "message"),
    [
        ({"query": "text"}, "wrong-type", "field `query` is text, not an object with `text`"),
        ({"query": {}}, "wrong-type", "`query.text` is null, not text"),
        ({"query": {"text": 5}}, "wrong-type", "`query.text` is a number, not text"),
        ({"query": {"text": "q", "image": PNG}}, "not-supported", "`query.image`: a query is text"),
        ({"query": None}, "missing-field", "field `query` is missing"),
        ({"passages": {"text": "a"}}, "wrong-type", "field `passages` is an object, not a list"),
        ({"passages": None}, "missing-field", "field `passages` is missing"),
        ({"passages": ["a"]}, "wrong-type", "passages[0] is text, not an object with `text` or `image`"),
        ({"passages": [{"text": "a"}, {"txt": "b"}]}, "missing-field", "passages[1] has no `text`: it has `txt`"),
        ({"passages": [{"text": ["a"]}]}, "wrong-type", "`passages[0].text` is a list, not text"),
        ({"truncate": "START"}, "bad-value", "`truncate` is `START`, not `NONE` or `END`"),
        ({"truncate": 1}, "bad-value", "`truncate` is a number, not `NONE` or `END`"),
        ({"truncate": ["END"]}, "bad-value", "`truncate` is a list, not `NONE` or `END`"),
        ({"passages": [{"image": "pages/a.png"}]}, "bad-data-uri", "passages[0].image is not of the form `data:image/"),
        ({"passages": [{"image": "https://a/b.png"}]}, "bad-data-uri", "passages[0].image is not of the form `data:im"),
        ({"passages": [{"image": 5}]}, "wrong-type", "`passages[0].image` is a number, not a path, a data URI or byte"),
    ],
)
def test_a_bad_request_is_an_error_row(fields: dict[str, Any], code: str, message: str) -> None:
    found = read({"id": "r1", **REQUEST, **fields})
    assert isinstance(found, RowError)
    assert (found.code, found.id) == (code, "r1")
    assert found.message.startswith(message)


def test_an_embedding_model_gives_cosines() -> None:
    ranked = ranked_of(good(REQUEST), 0.1, 0.2, 0.3)
    (answer,) = NIM.open(FieldNames(), NO_TEXTS).render(ranked, Selection(score="cosine"))
    assert answer["rankings"][0] == {"index": 2, "cosine": 0.3}


@pytest.mark.parametrize("name", ["query", "passages", "text", "image", "group_by"])
def test_fields_of_a_request_have_fixed_names(name: str) -> None:
    with pytest.raises(UsageError, match="the fields of the shape nim have fixed names"):
        NIM.open(FieldNames(**{name: "x"}), NO_TEXTS)
