"""Keeps the queries of a run that gained and lost most, with their first passages before and after.

A list is gone when the next window comes. So what will be shown of it is taken as soon as its change is known, if the
query is among the `EXTREMES` best or worst so far; in a random order, some two hundred of a hundred thousand queries
are. What is taken goes into the note of its window, from which a resumed run takes it again
(`measures.Evaluator.restore`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rerank_cli.evaluation.failure_analysis import EXTREMES

Shown = Mapping[str, Any]
"""`text` of the query; `given` and `new`: the first passages of both orders (`shown_lists.show_list`)."""


class ChangedMost:
    """The queries that changed most, by the first measure.

    gained, lost: as in a report, the largest change first.
    """

    def __init__(self) -> None:
        self.gained: list[dict[str, Any]] = []
        self.lost: list[dict[str, Any]] = []

    def wants(self, change: float) -> bool:
        """Whether a query with this change is among those that changed most so far."""
        kept = self.gained if change > 0 else self.lost
        return change != 0 and (len(kept) < EXTREMES or abs(change) > abs(kept[-1]["change"]))

    def add(self, query: str, change: float, shown: Shown) -> None:
        """Keep a query that is wanted."""
        kept, factor = (self.gained, -1) if change > 0 else (self.lost, 1)
        kept.append({"query": query, "change": change, **shown})
        kept.sort(key=lambda one: factor * one["change"])  # stable: equal changes stay in the order they came in
        del kept[EXTREMES:]
