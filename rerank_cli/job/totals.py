"""The numbers of a run over all processes that have worked on it: what each takes over from the one before."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from rerank_cli.job.duplicates import count_duplicates
from rerank_cli.machine.this_process import peak_rss_bytes
from rerank_cli.records import Counts, Timing
from rerank_cli.report.observations import Observations

if TYPE_CHECKING:
    from rerank_cli.job.scoring_loop import ScoredWindow


_MANY_RERUNS = 0.01  # of the pairs of a window


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
        self._tell_reruns: Callable[[int, int], None] | None = None
        if state is not None:
            self.counts, self.timing = Counts(**state["counts"]), Timing(**state["timing"])
            self.observed = Observations(state["observed"])
            self._seconds_before = state["seconds"]
            self.observed.add_continued(self._seconds_before)
            self.continued = state["continued"] + 1
            self.first_error = tuple(state["first_error"]) if state["first_error"] else None
            self._peak_rss_before = state["peak_rss_bytes"]

    @property
    def state(self) -> dict[str, Any]:
        """What the next process must know, for a JSON file."""
        return {
            "counts": asdict(self.counts),
            "timing": asdict(self.timing),
            "seconds": round(self.seconds, 3),
            "peak_rss_bytes": self.peak_rss,
            "observed": self.observed.state,
            "continued": self.continued,
            "first_error": self.first_error,
        }

    @property
    def seconds(self) -> float:
        """Wall time of all processes together."""
        return self._seconds_before + time.perf_counter() - self._began

    @property
    def peak_rss(self) -> int:
        """The most bytes that one of the processes has had resident."""
        return max(self._peak_rss_before, peak_rss_bytes())

    def begin_scoring(self, precision: str, note: Callable[[str], None]) -> None:
        """The model is loaded, in this precision. note: told once, if many results of a window are computed twice."""

        def tell(again: int, scored: int) -> None:
            better = "; `--precision bf16` has the range of fp32" if precision == "fp16" else ""
            share = f"{again:,} of the {scored:,} results of a window in {precision}"
            note(f"warning: {share} were no numbers and were computed again in fp32{better}")
            self._tell_reruns = None

        self._tell_reruns = tell
        self.timing.load += time.perf_counter() - self._began
        self.observed.timeline.at = self.seconds  # the first batch begins now

    def add(self, scored: ScoredWindow) -> None:
        """Count a window and its bad rows; what is written of it is counted by who writes it."""
        encoded, window, counts = scored.encoded, scored.encoded.window, self.counts
        counts.add(scored.counts)
        counts.rows_in += window.rows
        bad = sum(error.passage is None for error in scored.errors)
        counts.rows_error += bad
        counts.passages_error += len(scored.errors) - bad
        counts.rows_out += window.rows - bad
        counts.blank += window.blank
        counts.lists += len(scored.ranked)
        counts.near_duplicates += count_duplicates(window.lists)
        counts.dropped += sum(item.duplicates for item in window.lists)
        counts.pairs += len(encoded.places)
        counts.pairs_scored += (newly := len(encoded.encoded) - len(scored.known))
        again = scored.counts.get("fp32_reruns", 0)
        if self._tell_reruns and again > _MANY_RERUNS * newly:
            self._tell_reruns(again, newly)
        counts.chunked += sum(1 for entry in encoded.encoded if isinstance(entry, tuple) and len(entry) > 1)
        counts.empty_queries += sum(1 for item in window.lists if not all(item.queries or [item.query]))
        counts.empty_passages += sum(1 for item in window.lists for passage in item.passages if not passage)
        for item in scored.ranked:
            counts.truncated += sum(1 for entry in item.ranking if entry.truncated)
            counts.retiled += sum(1 for entry in item.ranking if entry.retiled)
            counts.ties += sum(1 for a, b in pairwise(item.ranking) if (a.logit, a.scored_by) == (b.logit, b.scored_by))
        self.observed.add(encoded, scored.ranked, scored.known | scored.repeated)
        for error in scored.errors:
            self.first_error = self.first_error or (error.file, error.row, error.message)
            self.observed.add_error(error)
