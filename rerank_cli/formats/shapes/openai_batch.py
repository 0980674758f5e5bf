"""`openai-batch`: a request of an OpenAI batch file a line, with the bodies of `/v1/rerank` and `/v1/score`.

    {"custom_id": "a", "method": "POST", "url": "/v1/rerank", "body": {"query": ..., "documents": [...]}}
    {"custom_id": "b", "method": "POST", "url": "/v1/score", "body": {"text_1": ..., "text_2": [...]}}
    {"id": ..., "custom_id": "a", "response": {"status_code": 200, "request_id": ..., "body": {...}}, "error": null}

The output holds the requests that were answered, in the order of the input. The errors file holds the others, in the
same form with their status code, and with what every errors file has (`file`, `row`, `raw`). Ids are made from the
`custom_id`, so that the same batch gives the same bytes. A `/v1/rerank` body is read and answered like the shape
`cohere`. `/v1/score` is vLLM's: one text against one or many, or two lists of the same length pair by pair, under any
of the names that vLLM has for them. `score` is the sigmoid of the logit (the logit itself where the request asks for
it), and the data are in the order of the input.

Sources: OpenAI's Batch API reference; vLLM's documentation of its score and rerank APIs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, ClassVar

from rerank_cli.formats import jsonl
from rerank_cli.formats.choices import FieldNames, Selection
from rerank_cli.formats.shapes import cohere
from rerank_cli.formats.shapes.fields import (
    RowProblem,
    fields_without,
    own_passage,
    row_error,
    text_or_type,
    type_in_words,
)
from rerank_cli.formats.shapes.flat import digest_of
from rerank_cli.formats.shapes.request_keys import length_limits, refuse_unfollowed, wants_logits
from rerank_cli.formats.shapes.shape import (
    Exchange,
    Grouped,
    Item,
    Kind,
    RequestShape,
    usage_of,
)
from rerank_cli.records import CandidateList, RankedList, Row, RowError

_STATUS = {"unknown-url": 404, "bad-method": 405, "not-finite": 500}
_BAD_REQUEST = 400
_SCORED_TEXTS = (("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2"))


def _recognise(fields: Mapping[str, Any], names: FieldNames) -> int:
    is_request = "custom_id" in fields and ("body" in fields or "url" in fields)
    return 2 if is_request and not names.of_rows else 0


def _write(exchange: Exchange, ranked: RankedList, selection: Selection) -> Iterator[dict[str, Any]]:
    yield _answer(str(exchange.id), cohere.respond({}, ranked))


def _answer(custom_id: str, body: Mapping[str, Any]) -> dict[str, Any]:
    number = _number(custom_id)
    response = {"status_code": 200, "request_id": f"req_{number}", "body": body}
    return {"id": f"batch_req_{number}", "custom_id": custom_id, "response": response, "error": None}


def _number(custom_id: str) -> str:
    return blake2b(custom_id.encode(), digest_size=12).hexdigest()


def _dump_error(error: RowError) -> bytes:
    """A line of the errors file: OpenAI's fields, then ours."""
    status = _STATUS.get(error.code, _BAD_REQUEST)
    kind = "server_error" if status >= 500 else "invalid_request_error"
    ours = jsonl.error_fields(error)
    number = _number(f"{ours['file']}:{error.row}" if error.id is None else str(error.id))
    told = {"message": ours["error"]["message"], "type": kind, "param": None, "code": error.code}
    return jsonl.dump_row(
        {
            "id": f"batch_req_{number}",
            "custom_id": error.id,
            "response": {"status_code": status, "request_id": f"req_{number}", "body": {"error": told}},
            **fields_without(ours, "id"),
        }
    )


def _refuse(exchange: Exchange) -> tuple[str, str] | None:
    if exchange.id is None:
        return "no-custom-id", "the row has no id, which is its `custom_id` in an OpenAI batch"
    return None


OPENAI_BATCH = Kind(
    "openai-batch", _recognise, lambda names, texts: OpenaiBatchShape(names), _write,
    carries=frozenset(("query ids", "prob")), sigmoids=True, refuse=_refuse, dump_error=_dump_error,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class OpenaiBatchShape(RequestShape):
    """One request of a batch a row."""

    kind: ClassVar[Kind] = OPENAI_BATCH

    def group(self, items: Iterable[Item]) -> Iterator[Grouped]:
        """See `Shape`. A repeated `custom_id` is an error: nobody could tell the answers apart."""
        seen: set[int] = set()
        for found in RequestShape.group(self, items):
            if isinstance(found, CandidateList):
                key = digest_of(str(found.id))
                if key in seen:
                    yield row_error(found.rows[0], "repeated-custom-id", "its `custom_id` has stood before", found.id)
                    continue
                seen.add(key)
            yield found

    def read(self, row: Row) -> CandidateList:
        """The request in `row`; raises `RowProblem`."""
        fields = row.fields
        if not isinstance(fields.get("custom_id"), str):
            found = type_in_words(fields.get("custom_id"))
            raise RowProblem("bad-value", f"`custom_id` is {found}, not text")
        if fields.get("method", "POST") != "POST":
            raise RowProblem("bad-method", "`method` is not `POST`")
        body = fields.get("body")
        if not isinstance(body, Mapping):
            raise RowProblem("wrong-type", f"`body` is {type_in_words(body)}, not an object")
        if _endpoint(fields) == "rerank":
            return cohere.read_body(body, row, self.identity(fields), self.names)
        refuse_unfollowed(body)
        wants_logits(body)
        pair = next((pair for pair in _SCORED_TEXTS if pair[0] in body and pair[1] in body), _SCORED_TEXTS[0])
        first, second = (_texts(body.get(name), f"body.{name}") for name in pair)
        if len(first) not in (1, len(second)):
            raise RowProblem(
                "bad-value", f"`{pair[0]}` has {len(first)} texts and `{pair[1]}` {len(second)}: one, or as many"
            )
        queries = first if len(first) > 1 else ()
        limits = length_limits(body)
        return CandidateList(first[0], second, (row,), self.identity(fields), limits=limits, queries=queries)

    def identity(self, fields: Mapping[str, Any]) -> object:
        """The `custom_id`."""
        return fields.get("custom_id")

    def render(self, ranked: RankedList, selection: Selection) -> Iterator[dict[str, Any]]:
        """See `Shape`."""
        fields = ranked.source.rows[0].fields
        body = fields["body"]
        if _endpoint(fields) == "score":
            raw = wants_logits(body)
            data = [
                {"index": entry.index, "object": "score", "score": entry.logit if raw else entry.probability}
                for entry in sorted(ranked.ranking, key=lambda entry: entry.index)
            ]
            yield _answer(fields["custom_id"], {"object": "list", "data": data, "usage": usage_of(ranked)})
        else:
            yield _answer(fields["custom_id"], {**cohere.rest_of(body), **cohere.respond(body, ranked)})

    def passage_id(self, source: CandidateList, index: int) -> object:
        """See `Shape`. The passages of `/v1/score` have none."""
        fields = source.rows[0].fields
        return None if _endpoint(fields) == "score" else cohere.document_id(fields["body"], index, self.names)

    def exchange(self, source: CandidateList) -> Exchange:
        """See `Shape`."""
        fields = source.rows[0].fields
        own: dict[str, Any] = {"custom_id": source.id}
        documents: Sequence[object] = source.passages
        if _endpoint(fields) == "rerank":
            own |= cohere.rest_of(fields["body"])
            documents = fields["body"]["documents"]
        passages = list(map(own_passage, documents, source.passages))
        ids = tuple(self.passage_id(source, index) for index in range(len(passages)))
        return Exchange(source.id, source.query, own, passages, ids)


def _endpoint(fields: Mapping[str, Any]) -> str:
    url = fields.get("url")
    last = url.rstrip("/").rpartition("/")[2] if isinstance(url, str) else ""
    if last not in ("rerank", "score"):
        raise RowProblem("unknown-url", f"`url` is {text_or_type(url)}, and ends neither in `/rerank` nor in `/score`")
    return last


def _texts(value: object, where: str) -> tuple[str, ...]:
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, (list, tuple)) or not texts or not all(isinstance(text, str) for text in texts):
        raise RowProblem("wrong-type", f"`{where}` is neither a text nor a list of texts")
    return tuple(texts)
