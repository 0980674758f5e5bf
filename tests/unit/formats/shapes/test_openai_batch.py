"""The lines are those of OpenAI's Batch API reference, with the bodies of vLLM's rerank and score APIs."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from rerank_cli.formats.shapes import NO_TEXTS, SHAPES, FieldNames, Selection
from rerank_cli.records import CandidateList, RowError
from tests.conftest import json_rows, ranked_of

KIND = SHAPES["openai-batch"]
SHAPE = KIND.open(FieldNames(), NO_TEXTS)
RERANK: dict[str, Any] = {
    "custom_id": "request-1",
    "method": "POST",
    "url": "/v1/rerank",
    "body": {
        "model": "BAAI/bge-reranker-v2-m3",
        "query": "What is the capital of France?",
        "documents": ["The capital of Brazil is Brasilia.", "The capital of France is Paris."],
    },
}
SCORE: dict[str, Any] = {
    "custom_id": "request-2",
    "method": "POST",
    "url": "/v1/score",
    "body": {
        "model": "BAAI/bge-reranker-v2-m3",
        "queries": "What is the capital of France?",
        "documents": ["The capital of Brazil is Brasilia.", "The capital of France is Paris."],
    },
}


def read(*lines: dict[str, Any]) -> list[CandidateList | RowError]:
    found = list(SHAPE.group(json_rows(*lines)))
    assert all(isinstance(item, (CandidateList, RowError)) for item in found)
    return found


def answer(line: dict[str, Any], *logits: float) -> dict[str, Any]:
    (found,) = read(line)
    assert isinstance(found, CandidateList), found
    (row,) = SHAPE.render(replace(ranked_of(found, *logits), tokens=30), Selection())
    return row


def sigmoid(logit: float) -> Any:
    return pytest.approx(1 / (1 + math.exp(-logit)), abs=1e-15)


def test_a_rerank_request_is_answered_as_a_batch_answers_it() -> None:
    row = answer(RERANK, -2.0, 3.0)
    assert list(row) == ["id", "custom_id", "response", "error"]
    assert row["id"].startswith("batch_req_")
    assert (row["custom_id"], row["error"]) == ("request-1", None)
    assert list(row["response"]) == ["status_code", "request_id", "body"]
    assert row["response"]["status_code"] == 200
    assert row["response"]["body"] == {
        "results": [{"index": 1, "relevance_score": sigmoid(3.0)}, {"index": 0, "relevance_score": sigmoid(-2.0)}],
        "usage": {"prompt_tokens": 30, "total_tokens": 30},
    }


def test_scores_stand_in_the_order_of_the_request() -> None:
    assert answer(SCORE, -2.0, 3.0)["response"]["body"] == {
        "object": "list",
        "data": [
            {"index": 0, "object": "score", "score": sigmoid(-2.0)},
            {"index": 1, "object": "score", "score": sigmoid(3.0)},
        ],
        "usage": {"prompt_tokens": 30, "total_tokens": 30},
    }


@pytest.mark.parametrize(
    ("body", "pairs"),
    [
        ({"text_1": "q", "text_2": "a"}, [("q", "a")]),
        ({"text_1": "q", "text_2": ["a", "b"]}, [("q", "a"), ("q", "b")]),
        ({"text_1": ["q", "r"], "text_2": ["a", "b"]}, [("q", "a"), ("r", "b")]),
        ({"queries": ["q"], "documents": ["a", "b"]}, [("q", "a"), ("q", "b")]),
        ({"queries": "q", "items": ["a"]}, [("q", "a")]),
        ({"data_1": "q", "data_2": ["a"]}, [("q", "a")]),
    ],
)
def test_texts_to_score_have_several_names_and_numbers(body: dict[str, Any], pairs: list[tuple[str, str]]) -> None:
    (found,) = read({**SCORE, "body": body})
    assert isinstance(found, CandidateList), found
    assert found.pairs == pairs


def test_the_same_batch_gives_the_same_ids_and_other_requests_others() -> None:
    first, second = answer(RERANK, 1.0, 2.0), answer({**RERANK, "custom_id": "request-9"}, 1.0, 2.0)
    assert first == answer(RERANK, 1.0, 2.0)
    assert first["id"] != second["id"]
    assert first["response"]["request_id"] != second["response"]["request_id"]


@pytest.mark.parametrize("url", ["/v1/rerank", "/rerank", "/v2/rerank", "https://host/v1/rerank/"])
def test_the_end_of_the_url_tells_the_endpoint(url: str) -> None:
    assert isinstance(read({**RERANK, "url": url})[0], CandidateList)


@pytest.mark.parametrize(
    ("fields", "status", "code", "message"),
    [
        ({"url": "/v1/embeddings"}, 404, "unknown-url", "`url` is `/v1/embeddings`, and ends neither in `/rerank` nor"),
        ({"url": None}, 404, "unknown-url", "`url` is null"),
        ({"method": "GET"}, 405, "bad-method", "`method` is not `POST`"),
        ({"body": None}, 400, "wrong-type", "`body` is null, not an object"),
        ({"body": "{}"}, 400, "wrong-type", "`body` is text, not an object"),
        ({"body": {}}, 400, "missing-field", "field `query` is missing"),
        ({"body": {"query": "q", "documents": [5]}}, 400, "wrong-type", "documents[0] is a number"),
        ({"url": "/v1/score", "body": {}}, 400, "wrong-type", "`body.text_1` is neither a text nor a list of texts"),
        (
            {"url": "/v1/score", "body": {"text_1": ["a", "b"], "text_2": ["c"]}},
            400,
            "bad-value",
            "`text_1` has 2 text",
        ),
        ({"url": "/v1/score", "body": {"text_1": "a", "text_2": []}}, 400, "wrong-type", "`body.text_2` is neither a"),
        ({"custom_id": None}, 400, "bad-value", "`custom_id` is null, not text"),
        ({"custom_id": 5}, 400, "bad-value", "`custom_id` is a number, not text"),
    ],
)
def test_a_bad_request_is_a_line_of_the_error_file(
    fields: dict[str, Any], status: int, code: str, message: str
) -> None:
    (found,) = read({**RERANK, **fields})
    assert isinstance(found, RowError)
    assert found.code == code
    assert found.message.startswith(message)
    line = json.loads(KIND.dump_error(found))
    assert line["custom_id"] == {**RERANK, **fields}["custom_id"]
    assert line["response"]["status_code"] == status
    told = line["response"]["body"]["error"]
    assert (told["message"], told["code"], told["type"]) == (found.message, code, "invalid_request_error")
    # What every errors file has stands beside it.
    assert (line["file"], line["row"], json.loads(line["raw"])) == ("in.jsonl", 1, {**RERANK, **fields})
    assert line["error"] == {"code": code, "message": found.message}


def test_a_score_that_is_no_number_is_a_fault_of_the_server() -> None:
    error = RowError("in.jsonl", 3, "request-1", "not-finite", "the model gave nan as its score", b"{}")
    line = json.loads(KIND.dump_error(error))
    assert (line["response"]["status_code"], line["response"]["body"]["error"]["type"]) == (500, "server_error")


def test_a_line_that_is_not_json_has_no_custom_id() -> None:
    line = json.loads(KIND.dump_error(RowError("in.jsonl", 3, None, "bad-json", "not JSON", b"\xff{")))
    assert (line["custom_id"], line["row"], line["raw_base64"]) == (None, 3, "/3s=")


def test_a_file_name_that_is_no_text_can_be_told() -> None:
    line = json.loads(KIND.dump_error(RowError("a\udcff.jsonl", 3, None, "bad-json", "not JSON", b"{")))
    assert line["file"] == "a\\udcff.jsonl"


def test_a_custom_id_that_comes_back_is_an_error() -> None:
    first, second = read(RERANK, {**SCORE, "custom_id": "request-1"})
    assert isinstance(first, CandidateList)
    assert isinstance(second, RowError)
    assert second.code == "repeated-custom-id"
