"""Writes the rows of a scored window to the output, and its bad rows to the errors file."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

from rerank_cli.formats.shapes import Selection
from rerank_cli.formats.sinks import BestSink
from rerank_cli.job.output import Destination
from rerank_cli.job.ranking import select
from rerank_cli.job.stop import Stop
from rerank_cli.records import Counts, RowError

if TYPE_CHECKING:
    from rerank_cli.job.scoring_loop import ScoredWindow


class WindowWriter:
    """Writes what the selection keeps of each window, and counts it.

    Args:
        destination: Where rows and bad rows go.
        selection: What is kept of each list, or with `whole` of the whole run (`score --top-n`).
        counts: What is written is added here.
        whole: Rows are pairs, not lists; with `top_n` the best ones of the run are kept until the end.
        released: The `Stop` of a run to stdout: a request to stop must not wait for a reader that is busy or asleep.
        on_error: Gets each bad row.
        count_empty: Count lists that give no row (rows to train on).
    """

    def __init__(
        self,
        destination: Destination,
        selection: Selection,
        counts: Counts,
        *,
        whole: bool = False,
        released: Stop | None = None,
        on_error: Callable[[RowError], None] | None = None,
        count_empty: bool = False,
    ) -> None:
        self._count_empty, self._whole = count_empty, whole
        self._destination, self._counts, self._on_error = destination, counts, on_error
        self.best: BestSink | None = None
        """Keeps the best rows of the whole run."""
        if whole and selection.top_n is not None:
            self.best = BestSink(destination.sink, top_n=selection.top_n)
        self._selection = replace(selection, top_n=None) if whole else selection
        self._selects = self._selection.threshold is not None or self._selection.top_n is not None
        self._released = None if self.best else released

    def write(self, window: ScoredWindow) -> None:
        """Write a window: its rows, then its bad rows."""
        kept = [
            select(item, self._selection) if self._selects or item.source.top_n is not None else item
            for item in window.ranked
        ]
        self._counts.dropped += sum(
            len(item.ranking) - len(less.ranking) for item, less in zip(window.ranked, kept, strict=True)
        )
        if not self._whole:
            self._counts.empty_lists += sum(not item.ranking for item in kept)
        sink = self.best or self._destination.sink
        with self._released.released() if self._released else nullcontext():
            if self._count_empty:
                rows = [sink.write([item]) for item in kept]
                self._counts.lists_without_rows += rows.count(0)
                self._counts.output_rows += sum(rows)
            else:
                self._counts.output_rows += sink.write(kept)
        for error in window.errors:
            self._destination.errors.write(error)
            if self._on_error:
                self._on_error(error)

    def finish(self, note: Callable[[str], None] = lambda text: None) -> None:
        """Write the best rows of the whole run, if they were kept; note how many lists gave no row or are empty."""
        if empty := self._counts.lists_without_rows:
            note(f"note: {empty:,} lists gave no row: too few negatives lie below their positives by the margins")
        if empty := self._counts.empty_lists:
            reason = "" if self._selection.threshold is None else ", or none that reaches --threshold"
            note(
                f"note: {empty:,} of {self._counts.lists:,} lists are empty in the output: they have no passage{reason}"
            )
        if self.best:
            self._counts.output_rows += self.best.finish()
            self._counts.dropped += self.best.dropped
