"""Read, encode, score, rank, write: the one loop, a window of whole queries at a time.

    rows -> candidate lists -> windows   thread `read`
    windows -> token ids                 thread `tokenise`; page images ahead of it (`encoding/images/ahead.py`)
    token ids -> logits                  the engine: here, or in processes of its own
    logits -> ranks -> sink              the caller's thread

A window is cut by the input and the options alone, and batches never cross windows, so the same run computes the same
batches. One with many images is encoded and scored in parts (`image_parts.py`). An engine of several processes, or on a
GPU, has some parts under way at a time (`Engine.depth`), and computes while the caller's thread ranks and writes; they
are taken from it in the order of the input. Memory holds four windows and those under way, whatever the size of the
file: between two stages one that waits and one that is finished and finds no room; and with images the one whose images
are read before its turn. Pairs with the same texts and image are scored once in a window.

Every row ends in exactly one place: `rows in = rows out + rows in errors + blank lines`. A row that cannot be scored
becomes a `RowError`; in a list it takes the whole list with it (one row in, one row out), in a flat group only itself.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from rerank_cli.encoding.encoder import Encoder, ReadsImages
from rerank_cli.encoding.pairs import EncodedWindow
from rerank_cli.engine.protocols import NeedsCalibration
from rerank_cli.formats.shapes import Grouped, Selection
from rerank_cli.job.image_parts import (
    EncodedPart,
    ScoredPart,
    encode_parts,
    image_counts,
    image_seconds,
    images_ahead,
    join_parts,
    one_ahead,
    without_pixels,
)
from rerank_cli.job.options import ErrorLimit
from rerank_cli.job.ranking import Pool, pairs_of, pooled, rank_window, select, with_problems
from rerank_cli.job.read_ahead import Ahead
from rerank_cli.job.stop import Stop
from rerank_cli.job.windows import Share, cut_windows
from rerank_cli.records import Counts, EncodedPair, RankedList, RowError, Timing, Window

if TYPE_CHECKING:
    from rerank_cli.engine import Engine, Pending, Scores

_WAIT_SECONDS = 0.05  # for the engine, before it is looked whether there is more for it to do


class Sink(Protocol):
    """Where ranked lists go."""

    def write(self, ranked: Sequence[RankedList]) -> int:
        """Take the lists of one window; returns how many output rows they made."""


@dataclass(frozen=True, slots=True)
class _UnderWay:
    """A part that the engine has, and the pairs it was given of it."""

    part: EncodedPart
    pairs: Sequence[EncodedPair]
    pending: Pending


@dataclass(slots=True)
class Run:
    """One pass over an input. `execute` does it; the counts and times grow meanwhile.

    on_scored: called with each window when its pairs have been scored; on_logits: with the logits of its distinct pairs
    too. on_calibrated: the engine has been calibrated (`_calibrate`). on_ranked: called with the complete rankings of
    each window, before the selection drops anything. on_window: a window is written and counted. on_done: a window that
    `share` leaves out because an earlier process has done it; it is called in the reader's thread, before the first
    window is done. image_processes: how many may read page images. on_note: told when one of them is lost, in the
    thread `tokenise`.
    """

    encoder: Encoder
    engine: Engine
    sink: Sink
    on_error: Callable[[RowError], None]
    selection: Selection = field(default_factory=Selection)
    pool: Pool = "max"
    error_limit: ErrorLimit = field(default_factory=ErrorLimit)
    on_scored: Callable[[EncodedWindow], None] | None = None
    on_logits: Callable[[EncodedWindow, npt.NDArray[np.float32]], None] | None = None
    on_calibrated: Callable[[Mapping[str, Any]], None] | None = None
    on_ranked: Callable[[Sequence[RankedList]], None] | None = None
    on_batch: Callable[[int, int], None] | None = None
    on_window: Callable[[Window, Counts], None] | None = None
    on_done: Callable[[Window], None] | None = None
    on_note: Callable[[str], None] | None = None
    image_processes: int = 0
    share: Share = field(default_factory=Share)
    stop: Stop = field(default_factory=Stop)
    counts: Counts = field(default_factory=Counts)
    timing: Timing = field(default_factory=Timing)
    _computing_since: float | None = field(default=None, init=False)
    _first: Window | None = field(default=None, init=False)
    _sample: list[EncodedPair] = field(default_factory=list, init=False)

    def execute(self, items: Iterable[Grouped], *, window_pairs: int) -> None:
        """Score all of `items`, a window of about `window_pairs` pairs at a time."""
        cut = self.share.of(self._seen(cut_windows(items, max_pairs=window_pairs)), self.on_done)
        windows = Ahead(self._timed_read(cut), name="read")
        parts = Ahead(self._encode(windows), name="tokenise", check=self.stop.check)
        scored: list[ScoredPart] = []
        try:
            with self.stop.held():
                for part, scores in self._computed(parts):
                    scored.append(scores)
                    if part.places is not None:
                        self._finish_window(*join_parts(part.window, scored, part.places))
                        scored = []
                        self.error_limit.check(self.counts, last=False)
        finally:
            parts.close()
        self.error_limit.check(self.counts, last=True)

    def _seen(self, windows: Iterator[Window]) -> Iterator[Window]:
        """All windows, whichever of them this run does; the first that has lists is kept for `_calibrate`."""
        for window in windows:
            if self._first is None and window.lists and self._must_calibrate():
                self._first = window
            yield window

    def _timed_read(self, windows: Iterator[Window]) -> Iterator[Window]:
        while True:
            began = time.perf_counter()
            window = next(windows, None)
            self.timing.read += time.perf_counter() - began
            if window is None:
                return
            yield window

    def _encode(self, windows: Ahead[Window]) -> Iterator[EncodedPart]:
        # A run that stops here stops the reader too.
        with closing(windows), images_ahead(self.encoder, self.image_processes, self.on_note) as encoder:
            for window in one_ahead(windows, encoder) if isinstance(encoder, ReadsImages) else windows:
                began, of_images = time.perf_counter(), image_seconds(encoder)
                first = self._first
                if not self._sample and first and self._must_calibrate():
                    self._sample = pairs_of(next(encode_parts(first, encoder)).encoded)
                for part in encode_parts(window, encoder):
                    spent = image_seconds(encoder) - of_images
                    self.timing.images += spent
                    self.timing.tokenise += time.perf_counter() - began - spent
                    yield part
                    began, of_images = time.perf_counter(), image_seconds(encoder)

    def _computed(self, parts: Ahead[EncodedPart]) -> Iterator[tuple[EncodedPart, ScoredPart]]:
        """The parts with their logits, in order; the engine has as many as it wants, and never waits for another."""
        under_way: deque[_UnderWay] = deque()
        is_more = True
        while is_more or under_way:
            if under_way and (scores := under_way[0].pending.scores()):
                first = under_way.popleft()
                self._stop_clock(more=bool(under_way))
                yield first.part, self._take(first, scores)
            elif is_more and len(under_way) < self.engine.depth and (not under_way or parts.is_ready):
                began = time.perf_counter()
                part = next(parts, None)
                if not under_way:
                    self.timing.wait += time.perf_counter() - began
                if part is None:
                    is_more = False
                else:
                    under_way.append(self._submit(part))
            else:
                with self.stop.released():
                    self.engine.wait(_WAIT_SECONDS)

    def _submit(self, part: EncodedPart) -> _UnderWay:
        if self._computing_since is None:
            self._computing_since = time.perf_counter()
        pairs = pairs_of(part.encoded)
        self._calibrate(pairs)
        with self.stop.released():
            return _UnderWay(part, pairs, self.engine.submit(pairs, on_batch=self._on_batch))

    def _stop_clock(self, *, more: bool) -> None:
        """Count the time since the engine was last idle or this was last called; it goes on if it has more to do."""
        assert self._computing_since is not None, "it was set when the engine was given something"
        now = time.perf_counter()
        self.timing.compute += now - self._computing_since
        self._computing_since = now if more else None

    def _take(self, scored: _UnderWay, scores: Scores) -> ScoredPart:
        part, trouble = scored.part, scores.trouble
        self.counts.add(image_counts(part.encoded))
        self.counts.add(
            {
                "out_of_memory_splits": trouble.splits,
                "fp32_reruns": trouble.reruns,
                "engine_deaths": trouble.deaths,
                "computed_tokens": trouble.computed,
            }
        )
        self.counts.tokens += sum(len(pair.input_ids) for pair in scored.pairs)
        logits = pooled(part.encoded, scores.logits, self.pool)
        encoded = with_problems(part.encoded, trouble.failed)
        return ScoredPart(part.members, [without_pixels(entry) for entry in encoded], logits)

    def _must_calibrate(self) -> bool:
        return isinstance(self.engine, NeedsCalibration) and self.engine.needs_calibration

    def _calibrate(self, own: Sequence[EncodedPair]) -> None:
        """Let the engine see the first window of the input, if it must see any before it scores `own`.

        Of the input, not of what this run does of it: so every shard, and a run that goes on, has the same scores as a
        run of the whole. Only where that window has no pair that can be scored, `own` serve.
        """
        if not isinstance(self.engine, NeedsCalibration) or not self.engine.needs_calibration:
            return
        if pairs := self._sample or own:
            found = self.engine.calibrate(pairs)
            self._first, self._sample = None, []
            if self.on_calibrated:
                self.on_calibrated(found)

    def _on_batch(self, pairs: int, tokens: int) -> None:
        if self.on_batch:
            self.on_batch(pairs, tokens)
        self.stop.check()

    def _finish_window(self, encoded: EncodedWindow, logits: npt.NDArray[np.float32]) -> None:
        if self.on_scored:
            self.on_scored(encoded)
        if self.on_logits:
            self.on_logits(encoded, logits)
        ranked, errors = rank_window(encoded, logits)
        if self.on_ranked:
            self.on_ranked(ranked)
        selected = [select(item, self.selection) for item in ranked]
        began = time.perf_counter()
        self.counts.output_rows += self.sink.write(selected)
        for error in _in_order([*encoded.window.errors, *errors]):
            self.on_error(error)
        self.timing.write += time.perf_counter() - began
        self._count(encoded, ranked, errors)
        self.counts.dropped += sum(
            len(whole.ranking) - len(kept.ranking) for whole, kept in zip(ranked, selected, strict=True)
        )
        if self.on_window:
            began = time.perf_counter()
            self.on_window(encoded.window, self.counts)
            self.timing.write += time.perf_counter() - began

    def _count(
        self,
        encoded: EncodedWindow,
        ranked: Sequence[RankedList],
        errors: Sequence[RowError],
    ) -> None:
        window, counts = encoded.window, self.counts
        bad = sum(error.passage is None for error in (*window.errors, *errors))
        counts.rows_in += window.rows
        counts.rows_error += bad
        counts.passages_error += len(window.errors) + len(errors) - bad
        counts.rows_out += window.rows - bad
        counts.blank += window.blank
        counts.lists += len(ranked)
        counts.pairs += len(encoded.places)
        counts.pairs_scored += len(encoded.encoded)
        counts.chunked += sum(1 for entry in encoded.encoded if isinstance(entry, tuple) and len(entry) > 1)
        counts.empty_queries += sum(1 for item in window.lists if not all(item.queries or [item.query]))
        counts.empty_passages += sum(1 for item in window.lists for passage in item.passages if not passage)
        for item in ranked:
            counts.truncated += sum(1 for entry in item.ranking if entry.truncated)
            counts.retiled += sum(1 for entry in item.ranking if entry.retiled)
            counts.ties += sum(1 for a, b in pairwise(item.ranking) if a.logit == b.logit)


def _in_order(errors: list[RowError]) -> list[RowError]:
    """Bad rows in the order of their file, whenever each was found out; those of several files as they come."""
    return sorted(errors, key=lambda error: error.row) if len({error.file for error in errors}) == 1 else errors
