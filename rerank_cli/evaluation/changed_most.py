"""Keeps the queries of a run that gained and lost most, with their first passages before and after.

A list is gone when the next window comes. So what will be shown of it is taken as soon as its change is known, if the
query is among the `EXTREMES` best or worst so far; in a random order, some two hundred of a hundred thousand queries
are. What is taken goes into the note of its window, from which a resumed run takes it again
(`measures.Evaluator.restore`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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

    def add(self, query: str, change: float | None, show: Callable[[], Shown | None]) -> Shown | None:
        """Keep a query if it is among those that changed most; returns what is shown of it, or None.

        show: makes what is shown; returns None where that is not known, and then the query is not kept.
        """
        if not change:
            return None
        kept, factor = (self.gained, -1) if change > 0 else (self.lost, 1)
        if len(kept) == EXTREMES and abs(change) <= abs(kept[-1]["change"]):
            return None
        shown = show()
        if shown is None:
            return None
        kept.append({"query": query, "change": change, **shown})
        kept.sort(key=lambda one: factor * one["change"])  # stable: equal changes stay in the order they came in
        del kept[EXTREMES:]
        return shown
