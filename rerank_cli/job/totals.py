"""The numbers of a run over all processes that have worked on it: what each takes over from the one before."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rerank_cli.machine.this_process import peak_rss_bytes
from rerank_cli.records import Counts, RowError, Timing
from rerank_cli.report.observations import Observations


class Totals:
    """Counts, times and observations so far; grows with the run.

    state: of an earlier process, as `state` gave it. continued: how often a process has taken the run over.
    first_error: the first bad row, as file, row and message.
    """

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        self._began = time.perf_counter()
        self.counts, self.timing = Counts(), Timing()
        self.observed = Observations()
        self.continued = 0
        self.first_error: tuple[str, int, str] | None = None
        self._seconds_before = 0.0
        self._peak_rss_before = 0
        if state is not None:
            self._take_over(state)

    @property
    def state(self) -> dict[str, Any]:
        """What the next process must know, for a JSON file."""
        return {
            "counts": asdict(self.counts),
            "timing": asdict(self.timing),
            "observed": self.observed.state,
            "seconds": round(self.seconds, 3),
            "continued": self.continued,
            "first_error": self.first_error,
            "peak_rss_bytes": self.peak_rss,
        }

    @property
    def seconds(self) -> float:
        """Wall time of all processes together."""
        return self._seconds_before + time.perf_counter() - self._began

    @property
    def peak_rss(self) -> int:
        """The most bytes that one of the processes has had resident."""
        return max(self._peak_rss_before, peak_rss_bytes())

    def begin_scoring(self) -> None:
        """The model is loaded."""
        self.timing.load += time.perf_counter() - self._began
        self.observed.begin_scoring(self.seconds)

    def add_error(self, error: RowError) -> None:
        """A bad row of this process."""
        self.first_error = self.first_error or (error.file, error.row, error.message)
        self.observed.add_error(error)

    def _take_over(self, state: Mapping[str, Any]) -> None:
        self.counts, self.timing = Counts(**state["counts"]), Timing(**state["timing"])
        self.observed = Observations(state["observed"])
        self._seconds_before = state["seconds"]
        self.observed.add_continued(self._seconds_before)
        self.continued = state["continued"] + 1
        self.first_error = tuple(state["first_error"]) if state["first_error"] else None
        self._peak_rss_before = state["peak_rss_bytes"]
