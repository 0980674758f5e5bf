"""`nim`: one ranking request of NVIDIA's Reranking NIM a line, and its response.

    {"query": {"text": ...}, "passages": [{"text": ..., "image": "data:..."}, ...], "truncate": "NONE" | "END", ...}
    {..., "rankings": [{"index": 0, "logit": 3.5}, ...], "usage": {"prompt_tokens": 12, "total_tokens": 12}}

`truncate` belongs to the request. With NONE, the default here and in the NIM, a pair that is too long makes its request
an error row; with END the long pairs are treated as `--truncate` says, which cuts by default, as END does. A request
may hold any number of passages, where the NIM takes 512. A passage is a text, an image, or both; images are base64 data
URIs only, as in the NIM. `model` is not followed: the model is the run's. Fields that the API does not know come back
with the response, so that an id finds its request. The rankings fall by their logit; an embedding model gives a
`cosine` in its place. `usage` counts the tokens that the model read, those of images included, after truncation.

Source: the Reranking NIM's API reference.
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
    passage_of,
    required,
    text_of,
    text_or_type,
    type_in_words,
)
from rerank_cli.formats.shapes.request_keys import refuse_unfollowed
from rerank_cli.formats.shapes.shape import Exchange, Kind, RequestShape, usage_of
from rerank_cli.records import CandidateList, ImagePassage, Limits, Passage, RankedList, Row

_OF_REQUEST = ("model", "query", "passages", "truncate")


def _recognise(fields: Mapping[str, Any], names: FieldNames) -> int:
    is_request = isinstance(fields.get("query"), Mapping) and "passages" in fields
    return 2 if is_request and not names.of_rows else 0


def _write(exchange: Exchange, ranked: RankedList, selection: Selection) -> Iterator[dict[str, Any]]:
    rankings = [{"index": entry.index, selection.score: entry.logit} for entry in ranked.ranking]
    yield {**fields_without(exchange.fields, "rankings", "usage"), "rankings": rankings, "usage": usage_of(ranked)}


NIM = Kind(
    "nim", _recognise, lambda names, texts: NimShape(names), _write,
    carries=frozenset(("query ids", "fields of rows", "logits")),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class NimShape(RequestShape):
    """One request of the Reranking NIM a row."""

    kind: ClassVar[Kind] = NIM

    def read(self, row: Row) -> CandidateList:
        """The request in `row`; raises `RowProblem`."""
        _, query = required(row, "query", "query")
        if not isinstance(query, Mapping):
            raise RowProblem("wrong-type", f"field `query` is {type_in_words(query)}, not an object with `text`")
        if query.get("image") is not None:
            raise RowProblem("not-supported", "`query.image`: a query is text")
        refuse_unfollowed(row.fields)
        truncate = row.fields.get("truncate") or "NONE"
        if truncate not in ("NONE", "END"):
            raise RowProblem("bad-value", f"`truncate` is {text_or_type(truncate)}, not `NONE` or `END`")
        passages = list_of(required(row, "passages", "passages")[1], "passages")
        found = [self._read_passage(passage, f"passages[{index}]", row) for index, passage in enumerate(passages)]
        return CandidateList(
            query=text_of(query.get("text"), "query.text"),
            passages=tuple(found),
            rows=(row,),
            id=self.identity(row.fields),
            limits=Limits(whole=truncate == "NONE"),
        )

    def _read_passage(self, passage: object, where: str, row: Row) -> Passage:
        if not isinstance(passage, Mapping):
            raise RowProblem("wrong-type", f"{where} is {type_in_words(passage)}, not an object with `text` or `image`")
        found = passage_of(passage, where, self.names, row)
        if isinstance(found, ImagePassage) and str(found.image.value)[:5].lower() != "data:":
            raise RowProblem("bad-data-uri", f"{where}.image is not of the form `data:image/png;base64,...`")
        return found

    def render(self, ranked: RankedList, selection: Selection) -> Iterator[dict[str, Any]]:
        """See `Shape`."""
        return _write(self.exchange(ranked.source), ranked, selection)

    def passage_id(self, source: CandidateList, index: int) -> object:
        """See `Shape`."""
        return first_of(source.rows[0].fields["passages"][index], self.names.id, "passage_id")

    def exchange(self, source: CandidateList) -> Exchange:
        """See `Shape`."""
        fields = source.rows[0].fields
        passages = fields["passages"]
        ids = tuple(self.passage_id(source, index) for index in range(len(passages)))
        return Exchange(source.id, source.query, fields_without(fields, *_OF_REQUEST), passages, ids)
