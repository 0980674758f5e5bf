"""The queries of a run that gained and lost most, with the first passages before and after, kept as lists come.

A list is gone when the next window comes, so what is shown of it is taken when its change is known: of the queries that
are among the `EXTREMES` best or worst so far. Of a hundred thousand queries in any order some two hundred are. What is
taken goes into the note of its window, and a later process takes the same again (`measures.Evaluator.restore`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rerank_cli.evaluation.limits import EXTREMES

Shown = Mapping[str, Any]
"""`text` of the query, `given` and `new`: the first passages (`shown_lists.first_passages`)."""


class ChangedMost:
    """The queries that changed most, by the first measure."""

    def __init__(self) -> None:
        self._gained: list[dict[str, Any]] = []
        self._lost: list[dict[str, Any]] = []

    def add(self, query: str, change: float | None, show: Callable[[], Shown | None]) -> Shown | None:
        """Take a query in if it is among those that changed most; returns what is shown of it then.

        show: its lists; None where nothing is known of them, and then it is not taken.
        """
        if not change:
            return None
        kept, factor = (self._gained, -1) if change > 0 else (self._lost, 1)
        if len(kept) == EXTREMES and abs(change) <= abs(kept[-1]["change"]):
            return None
        shown = show()
        if shown is None:
            return None
        kept.append({"query": query, "change": change, **shown})
        kept.sort(key=lambda one: factor * one["change"])  # equal ones in the order in which they came
        del kept[EXTREMES:]
        return shown

    def document(self) -> dict[str, Any]:
        """What a report has of them, the largest change first."""
        return {"gained": list(self._gained), "lost": list(self._lost)}
