"""`tei`: the body of a `/rerank` request of Text Embeddings Inference a line, and its response.

    {"query": ..., "texts": [...], "raw_scores"?: true, "return_text"?: true, "truncate"?: true}
    {..., "results": [{"index": 0, "score": 0.97, "text"?: ...}, ...]}

The server answers with the bare list; here it is in `results`, beside the request's fields that the API does not know.
`score` is the sigmoid of the logit, or the logit where `raw_scores` asks for it. As with the server, a pair that is too
long is an error without `truncate`.

Source: the OpenAPI document of Text Embeddings Inference.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from rerank_cli.formats.choices import FieldNames, Selection
from rerank_cli.formats.shapes.fields import RowProblem, fields_without, list_of, required, text_of
from rerank_cli.formats.shapes.request_keys import STEERS, length_limits, refuse_unfollowed, switch, wants_logits
from rerank_cli.formats.shapes.shape import Exchange, Kind, RequestShape
from rerank_cli.records import CandidateList, RankedList, Row

_OF_REQUEST = ("query", "texts", *STEERS, "results")


def _recognise(fields: Mapping[str, Any], names: FieldNames) -> int:
    return 2 if not names.of_rows and isinstance(fields.get("texts"), list) and "query" in fields else 0


def _write(exchange: Exchange, ranked: RankedList, selection: Selection) -> Iterator[dict[str, Any]]:
    results = [{"index": entry.index, "score": entry.probability} for entry in ranked.ranking]
    yield {**fields_without(exchange.fields, "results"), "results": results}


TEI = Kind(
    "tei", _recognise, lambda names, texts: TeiShape(names), _write,
    carries=frozenset(("query ids", "fields of rows", "prob")), sigmoids=True,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class TeiShape(RequestShape):
    """One `/rerank` body of Text Embeddings Inference a row."""

    kind: ClassVar[Kind] = TEI

    def read(self, row: Row) -> CandidateList:
        """The request in `row`; raises `RowProblem`."""
        fields = row.fields
        query = text_of(required(row, "query", "query")[1], "query")
        texts = list_of(required(row, "texts", "texts")[1], "texts")
        refuse_unfollowed(fields)
        switch(fields, "return_text")
        wants_logits(fields)
        for place, text in enumerate(texts):
            if not isinstance(text, str):
                text_of(text, f"texts[{place}]")
        if not texts:
            raise RowProblem("bad-value", "`texts` is empty")
        limits = length_limits(fields, whole=True)
        return CandidateList(query, tuple(texts), (row,), self.identity(fields), limits=limits)

    def render(self, ranked: RankedList, selection: Selection) -> Iterator[dict[str, Any]]:
        """See `Shape`."""
        fields = ranked.source.rows[0].fields
        raw, back = wants_logits(fields), switch(fields, "return_text")
        results = []
        for entry in ranked.ranking:
            result: dict[str, Any] = {"index": entry.index, "score": entry.logit if raw else entry.probability}
            results.append({**result, "text": fields["texts"][entry.index]} if back else result)
        yield {**fields_without(fields, *_OF_REQUEST), "results": results}

    def passage_id(self, source: CandidateList, index: int) -> object:
        """See `Shape`. Texts have none."""
        return None

    def exchange(self, source: CandidateList) -> Exchange:
        """See `Shape`."""
        rest = fields_without(source.rows[0].fields, *_OF_REQUEST)
        passages = [{"text": text} for text in source.passages]
        return Exchange(source.id, source.query, rest, passages, (None,) * len(passages))
