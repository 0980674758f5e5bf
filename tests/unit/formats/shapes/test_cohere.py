"""The bodies are those of the API references of Cohere (v2 and v1), Jina and vLLM, written out by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from rerank_cli.formats.shapes import NO_TEXTS, SHAPES, FieldNames, Selection
from rerank_cli.job.ranking import select
from rerank_cli.records import CandidateList, ImagePassage, RowError
from tests.conftest import json_rows, ranked_of

SHAPE = SHAPES["cohere"].open(FieldNames(), NO_TEXTS)
COHERE_V2: dict[str, Any] = {
    "model": "rerank-v3.5",
    "query": "What is the capital of the United States?",
    "top_n": 2,
    "documents": [
        "Carson City is the capital city of the American state of Nevada.",
        "Washington, D.C. is the capital of the United States.",
        "Capital punishment has existed in the United States since before it was a country.",
    ],
    "max_tokens_per_doc": 4096,
}
COHERE_V1 = {**COHERE_V2, "documents": [{"text": text} for text in COHERE_V2["documents"]], "return_documents": True}
JINA = {
    "model": "jina-reranker-v2-base-multilingual",
    "query": "Organic skincare products for sensitive skin",
    "top_n": 3,
    "documents": ["Organic skincare for sensitive skin with aloe vera", "New makeup trends", "Bio-Hautpflege"],
    "return_documents": False,
}
VLLM = {"model": "BAAI/bge-reranker-base", "query": "What is the capital of France?", "documents": ["Brazil", "Paris"]}


def read(body: dict[str, Any]) -> CandidateList | RowError:
    (found,) = SHAPE.group(json_rows(body))
    assert isinstance(found, (CandidateList, RowError))
    return found


def good(body: dict[str, Any]) -> CandidateList:
    found = read(body)
    assert isinstance(found, CandidateList), found
    return found


def answer(body: dict[str, Any], *logits: float) -> dict[str, Any]:
    (row,) = SHAPE.render(select(replace(ranked_of(good(body), *logits), tokens=42), Selection()), Selection())
    return row


def sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


def test_a_body_of_cohere_is_answered_with_its_top_n() -> None:
    assert answer(COHERE_V2, 0.5, 3.0, -2.0) == {
        "results": [
            {"index": 1, "relevance_score": pytest.approx(sigmoid(3.0), abs=1e-15)},
            {"index": 0, "relevance_score": pytest.approx(sigmoid(0.5), abs=1e-15)},
        ],
        "usage": {"prompt_tokens": 42, "total_tokens": 42},
    }


def test_documents_come_back_as_objects_where_they_are_asked_for() -> None:
    first, second = answer(COHERE_V1, 0.5, 3.0, -2.0)["results"]
    assert first["document"] == {"text": "Washington, D.C. is the capital of the United States."}
    assert second["document"] == {"text": "Carson City is the capital city of the American state of Nevada."}
    texts = {**COHERE_V2, "return_documents": True}
    assert answer(texts, 0.5, 3.0, -2.0)["results"][0]["document"] == first["document"]


def test_bodies_of_jina_and_vllm_are_read() -> None:
    results = answer(JINA, 1.0, -1.0, 2.0)["results"]
    assert [result["index"] for result in results] == [2, 0, 1]
    assert all("document" not in result for result in results)
    assert [result["index"] for result in answer(VLLM, 0.0, 1.0)["results"]] == [1, 0]
    assert len(answer({**VLLM, "top_n": 0}, 0.0, 1.0)["results"]) == 2


def test_the_order_is_that_of_the_logits_where_sigmoids_are_equal() -> None:
    results = answer(VLLM, 40.0, 50.0)["results"]
    assert [(result["index"], result["relevance_score"]) for result in results] == [(1, 1.0), (0, 1.0)]


def test_what_a_request_asks_of_long_documents_is_followed() -> None:
    assert good(COHERE_V2).limits.passage_tokens == 4096
    assert good(VLLM).limits.passage_tokens is None
    assert good({**VLLM, "truncation": False}).limits.whole
    assert not good({**VLLM, "truncation": True}).limits.whole


@pytest.mark.parametrize(
    "asks", [{"raw_scores": True}, {"use_activation": False}, {"activation": False}, {"softmax": False}]
)
def test_a_request_for_raw_scores_gets_logits(asks: dict[str, bool]) -> None:
    results = answer({**VLLM, **asks}, 0.5, -40.0)["results"]
    assert [result["relevance_score"] for result in results] == [0.5, -40.0]


def test_top_k_and_truncate_are_followed_as_the_apis_mean_them() -> None:
    assert len(answer({**VLLM, "top_k": 1}, 0.0, 1.0)["results"]) == 1
    assert good({**VLLM, "truncate": "NONE"}).limits.whole
    assert good({**VLLM, "truncate": False}).limits.whole
    assert not good({**VLLM, "truncate": "END"}).limits.whole
    assert good({**VLLM, "truncate_prompt_tokens": -1, "truncation_side": "right"}).passages == ("Brazil", "Paris")


def test_a_document_may_be_an_image() -> None:
    found = good(
        {**VLLM, "query": {"text": "q"}, "documents": [{"image": "data:image/png;base64,AA=="}, {"text": "t"}]}
    )
    assert isinstance(found.passages[0], ImagePassage)
    assert (found.query, found.passages[1]) == ("q", "t")


def test_unknown_fields_come_back_and_steering_fields_do_not() -> None:
    row = answer({"id": "r7", **COHERE_V2, "priority": 1, "note": None}, 1.0, 2.0, 3.0)
    assert list(row) == ["id", "note", "results", "usage"]


@pytest.mark.parametrize(
    ("fields", "code", "message"),
    [
        ({"query": None}, "missing-field", "field `query` is missing"),
        ({"documents": None}, "missing-field", "field `documents` is missing"),
        ({"query": 5}, "wrong-type", "`query` is a number, not text"),
        ({"query": {"image": "x"}}, "not-supported", "`query.image`: a query is text"),
        ({"documents": "a"}, "wrong-type", "field `documents` is text, not a list"),
        ({"documents": ["a", 7]}, "wrong-type", "documents[1] is a number, not a text or an object"),
        ({"documents": [{"title": "a"}]}, "missing-field", "documents[0] has no `text`: it has `title`"),
        ({"top_n": -1}, "bad-value", "`top_n` is `-1`, not a whole number from 0"),
        ({"top_n": "3"}, "bad-value", "`top_n` is `3`, not a whole number from 0"),
        ({"top_n": 1.5}, "bad-value", "`top_n` is `1.5`, not a whole number from 0"),
        ({"top_n": True}, "bad-value", "`top_n` is `True`, not a whole number from 0"),
        ({"max_tokens_per_doc": 0}, "bad-value", "`max_tokens_per_doc` is `0`, not a whole number from 1"),
        ({"return_documents": "yes"}, "bad-value", "`return_documents` is text, not true or false"),
        ({"rank_fields": ["title"]}, "not-supported", "`rank_fields` cannot be followed, and would change the scores"),
        ({"raw_scores": True, "use_activation": True}, "bad-value", "`raw_scores` and `use_activation` contradict"),
        ({"top_k": 3}, "bad-value", "`top_n` and `top_k` differ"),
        ({"truncate": "START"}, "bad-value", "`truncate` is `START`, not NONE, END, true or false"),
        ({"instruction": "x"}, "not-supported", "`instruction` cannot be followed, and would change the scores"),
    ],
)
def test_a_bad_body_is_an_error_row(fields: dict[str, Any], code: str, message: str) -> None:
    found = read({"id": "r1", **COHERE_V2, **fields})
    assert isinstance(found, RowError)
    assert (found.code, found.id) == (code, "r1")
    assert found.message.startswith(message)
