"""`cohere`: the body of a `/rerank` request of Cohere, Jina or vLLM a line, and its response.

    {"query": ..., "documents": [..., {"text": ...}], "top_n"?: 3, "return_documents"?: true, "max_tokens_per_doc"?: 9}
    {..., "results": [{"index": 0, "relevance_score": 0.97, "document"?: {"text": ...}}, ...], "usage": {...}}

`relevance_score` is the sigmoid of the logit, in float64; the order is that of the logits, which still differ where
their sigmoids round to the same number. An embedding model has no logit and is refused. `top_n` of 0 means all
documents, as in vLLM. A document is a string, or an object with `text`, `image` or both. With `truncation` of false a
pair that is too long is an error, as at Jina. `max_tokens_per_doc` counts tokens of the run's model; without it only
the model's limit holds (Cohere's own default is 4096). `raw_scores` (infinity) and `use_activation: false` (vLLM) ask
for logits. `request_keys.py` says what each key does: one that would change the scores and cannot be followed makes the
request an error row. Fields that the APIs do not know come back with the response.

Sources: the API references of Cohere (v1 and v2), Jina, vLLM, infinity and Voyage.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from rerank_cli.formats.choices import FieldNames, Selection
from rerank_cli.formats.shapes.fields import (
    RowProblem,
    fields_without,
    first_of,
    list_of,
    own_passage,
    passage_of,
    required,
    text_of,
)
from rerank_cli.formats.shapes.request_keys import (
    MARKS,
    STEERS,
    length_limits,
    most_results,
    refuse_unfollowed,
    switch,
    wants_logits,
)
from rerank_cli.formats.shapes.shape import Exchange, Kind, RequestShape, usage_of
from rerank_cli.records import CandidateList, RankedList, Row

_OF_REQUEST = ("query", "documents", *STEERS)


def read_body(fields: Mapping[str, Any], row: Row, identity: object, names: FieldNames) -> CandidateList:
    """The request with this body, which is the row itself or a field of it; raises `RowProblem`."""
    for name in ("query", "documents"):
        if fields.get(name) is None:
            raise RowProblem("missing-field", f"field `{name}` is missing")
    refuse_unfollowed(fields)
    switch(fields, "return_documents")
    wants_logits(fields)
    found = tuple(
        passage_of(document, f"documents[{index}]", names, row)
        for index, document in enumerate(list_of(fields["documents"], "documents"))
    )
    where, query = "query", fields["query"]
    if isinstance(query, Mapping):  # Jina also takes an object with `text`, or with an `image`
        if query.get("image") is not None:
            raise RowProblem("not-supported", "`query.image`: a query is text")
        where, query = "query.text", query.get("text")
    return CandidateList(
        query=text_of(query, where),
        passages=found,
        rows=(row,),
        id=identity,
        limits=length_limits(fields),
        top_n=most_results(fields),
    )


def respond(fields: Mapping[str, Any], ranked: RankedList) -> dict[str, Any]:
    """The response to the request with this body."""
    results = []
    raw = wants_logits(fields)
    for entry in ranked.ranking:
        score = entry.logit if raw else entry.probability
        result: dict[str, Any] = {"index": entry.index, "relevance_score": score}
        if fields.get("return_documents"):
            document = fields["documents"][entry.index]
            result["document"] = {"text": document} if isinstance(document, str) else document
        results.append(result)
    return {"results": results, "usage": usage_of(ranked)}


def document_id(fields: Mapping[str, Any], index: int, names: FieldNames) -> object:
    """The id that a document has as an object."""
    document = fields["documents"][index]
    return first_of(document, names.id, "passage_id") if isinstance(document, Mapping) else None


def rest_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that the APIs do not know: they come back with the response."""
    return fields_without(fields, *_OF_REQUEST, "results", "usage")


def _recognise(fields: Mapping[str, Any], names: FieldNames) -> int:
    if names.of_rows or "documents" not in fields or "query" not in fields:
        return 0
    return 2 if any(mark in fields for mark in MARKS) else 1


def _write(exchange: Exchange, ranked: RankedList, selection: Selection) -> Iterator[dict[str, Any]]:
    yield {**fields_without(exchange.fields, "results", "usage"), **respond({}, ranked)}


COHERE = Kind(
    "cohere", _recognise, lambda names, texts: CohereShape(names), _write,
    carries=frozenset(("query ids", "fields of rows", "prob")), sigmoids=True,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class CohereShape(RequestShape):
    """One `/rerank` body a row."""

    kind: ClassVar[Kind] = COHERE

    def read(self, row: Row) -> CandidateList:
        """The request in `row`; raises `RowProblem`."""
        required(row, "documents", "documents")
        return read_body(row.fields, row, self.identity(row.fields), self.names)

    def render(self, ranked: RankedList, selection: Selection) -> Iterator[dict[str, Any]]:
        """See `Shape`."""
        fields = ranked.source.rows[0].fields
        yield {**rest_of(fields), **respond(fields, ranked)}

    def passage_id(self, source: CandidateList, index: int) -> object:
        """See `Shape`."""
        return document_id(source.rows[0].fields, index, self.names)

    def exchange(self, source: CandidateList) -> Exchange:
        """See `Shape`."""
        fields = source.rows[0].fields
        ids = tuple(self.passage_id(source, index) for index in range(len(source.passages)))
        passages = list(map(own_passage, fields["documents"], source.passages))
        return Exchange(source.id, source.query, rest_of(fields), passages, ids)
