"""`pair`: one pair a row, each by itself and in input order. `score` reads and writes it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from rerank_cli.formats.choices import Selection
from rerank_cli.formats.shapes.fields import columns_of, first_of, id_columns_of, passage_columns_of
from rerank_cli.formats.shapes.flat import FLAT, FlatShape, read_pair
from rerank_cli.formats.shapes.shape import Exchange, Kind, RowShape, with_scores
from rerank_cli.records import CandidateList, RankedList, Row

PAIR = Kind("pair", lambda fields, names: 0, lambda names, texts: PairShape(names), FLAT.write, tables=True)


@dataclass(frozen=True, slots=True)
class PairShape(RowShape):
    """One pair a row, each by itself. query: the user's one query for all rows, if given."""

    kind: ClassVar[Kind] = PAIR
    query: str | None = None

    def read(self, row: Row) -> CandidateList:
        """The pair in `row`; raises `RowProblem`."""
        return read_pair(row, self.names, query=self.query, identity=self.identity(row.fields))

    def render(self, ranked: RankedList, selection: Selection) -> Iterator[dict[str, Any]]:
        """See `Shape`."""
        for entry in ranked.ranking:
            yield with_scores(ranked.source.rows[0].fields, entry, selection, ranks=False)

    def columns(self, names: Sequence[str]) -> Mapping[str, tuple[str, ...] | None]:
        """See `Shape`."""
        wanted = passage_columns_of(names, self.names)
        if self.query is None:
            wanted += columns_of(names, self.names.query, "query")
        return dict.fromkeys(wanted + id_columns_of(names, self.names.id, "list_id"))

    def passage_id(self, source: CandidateList, index: int) -> object:
        """See `Shape`."""
        return first_of(source.row_of(index).fields, self.names.id, "passage_id")

    def exchange(self, source: CandidateList) -> Exchange:
        """See `Shape`."""
        return FlatShape(self.names).exchange(source)
