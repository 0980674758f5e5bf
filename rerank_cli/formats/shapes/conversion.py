"""From one shape to another: rows are read by the rules of one shape and written by those of another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rerank_cli.formats.choices import FieldNames, Selection
from rerank_cli.formats.shapes.fields import row_error
from rerank_cli.formats.shapes.shape import ALL_OUTCOMES, Exchange, Grouped, Item, Kind, Shape
from rerank_cli.records import CandidateList, RankedList


@dataclass(frozen=True, slots=True)
class Conversion:
    """A shape that reads as `source` and writes as `kind`; satisfies `Shape`."""

    source: Shape
    kind: Kind

    @property
    def names(self) -> FieldNames:
        """See `Shape`."""
        return self.source.names

    def group(self, items: Iterable[Item]) -> Iterator[Grouped]:
        """See `Shape`. A list that cannot be written is a bad row before anything is computed for it."""
        for found in self.source.group(items):
            if not isinstance(found, CandidateList):
                yield found
                continue
            refusal = self.kind.refuse(self.source.exchange(found)) if self.kind.refuse else None
            if found.queries:
                refusal = ("several-queries", f"its pairs have different queries, which {self.kind.name} cannot carry")
            if refusal is None:
                yield found
            else:
                for row in found.rows:
                    yield row_error(row, *refusal, found.id)

    def render(self, ranked: RankedList, selection: Selection) -> Iterator[dict[str, Any]]:
        """See `Shape`."""
        return self.kind.write(self.source.exchange(ranked.source), ranked, selection)

    def columns(self, names: Sequence[str]) -> Mapping[str, tuple[str, ...] | None]:
        """See `Shape`."""
        return self.source.columns(names)

    def passage_id(self, source: CandidateList, index: int) -> object:
        """See `Shape`."""
        return self.source.passage_id(source, index)

    def exchange(self, source: CandidateList) -> Exchange:
        """See `Shape`."""
        return self.source.exchange(source)


def written_as(shape: Shape, kind: Kind) -> Shape:
    """`shape`, written as `kind`."""
    return shape if kind.name == shape.kind.name else Conversion(shape, kind)


def not_carried(shape: Shape, selection: Selection) -> tuple[str, ...]:
    """What of the input and of the run's results the output has no place for, by name.

    An answer in the shape of its request counts as no loss: the API itself repeats no texts and gives no other scores.
    """
    asked = {"prob": selection.prob, "probability": selection.probability is not None}
    has: list[str] = [name for name, wanted in asked.items() if wanted]
    if isinstance(shape, Conversion):
        has += [*shape.source.kind.has, *(name for name in ALL_OUTCOMES if name not in asked)]
    return tuple(sorted(name for name in has if name not in shape.kind.carries))
