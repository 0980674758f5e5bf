"""The one loop: windows of whole queries in, ranked windows out, one after the other.

    rows -> candidate lists -> windows   thread `read` (`windows.py`)
    windows -> token ids                 thread `tokenise`; page images ahead of it (`encoding/images/ahead.py`)
    token ids -> logits                  the engine: in this process, or in processes of its own
    logits -> ranks                      the caller's thread, which gets each window when it is ranked

The input and the options alone cut windows, and batches never cross windows: the same run computes the same batches. A
window with many images is encoded and scored in parts (`image_parts.py`). An engine of several processes, or on a GPU,
has some parts under way at a time (`Engine.depth`) and computes while the caller writes; their logits are taken in the
order of the input. Pairs with the same texts and image are scored once in a window.

Memory holds four windows and those under way, whatever the size of the file: a stage that waits holds one, and so does
a stage that is finished and finds no room in the next queue. With images there is one more, whose images are read
before its turn.

Every row ends in exactly one place: `rows in = rows out + rows in errors + blank lines`. A row that cannot be scored
becomes a `RowError`. In a list it takes the whole list with it (one row in, one row out), in a flat group only itself.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy.typing as npt

from rerank_cli.encoding.choices import Pool
from rerank_cli.encoding.encoder import Encoder, ReadsImages
from rerank_cli.encoding.pairs import EncodedWindow
from rerank_cli.engine.protocols import NeedsCalibration
from rerank_cli.evaluation.blend import Blend
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
from rerank_cli.job.ranking import pairs_of, pooled, rank_window, with_problems
from rerank_cli.job.read_ahead import Ahead
from rerank_cli.job.stop import Stop
from rerank_cli.job.windows import Windows
from rerank_cli.records import EncodedPair, RankedList, RowError, Timing, Window

if TYPE_CHECKING:
    import numpy as np

    from rerank_cli.engine import Engine, Pending, Scores

_WAIT_SECONDS = 0.05  # for the engine, before the loop looks whether there is more for it to do


@dataclass(frozen=True, slots=True)
class ScoredWindow:
    """A window whose pairs are scored and ranked."""

    encoded: EncodedWindow  # its distinct pairs, without pixels; those that have no logit are problems
    logits: npt.NDArray[np.float32]  # of the distinct pairs
    ranked: list[RankedList]  # the complete rankings: no selection has dropped anything
    errors: list[RowError]  # all bad rows of the window; those of one file in the order of the file
    counts: Mapping[str, int]  # what the engine and the images add to `Counts`, by name


def score_windows(  # noqa: PLR0913 (a run and the Python API each need some)
    windows: Windows,
    encoder: Encoder | ReadsImages,
    engine: Engine,
    *,
    pool: Pool = "max",
    blend: Blend | None = None,
    image_processes: int = 0,
    stop: Stop | None = None,
    timing: Timing | None = None,
    on_submit: Callable[[int, float | None], None] | None = None,
    on_batch: Callable[[int, int], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> Generator[ScoredWindow]:
    """Score `windows` in their order. To be closed, which ends its threads.

    Args:
        windows: Those to score. An engine that must be calibrated sees the first of the whole input.
        encoder: Makes token ids of pairs.
        engine: Makes logits of token ids.
        pool: Joins the logits of the chunks of a pair.
        blend: Joins the order of the logits with the given one.
        image_processes: How many processes may read page images.
        stop: Asked after each batch and while nothing comes. The caller holds it where it must not interrupt.
        timing: Grows by what each stage takes.
        on_submit: Told the tokens that the engine gets, and the share of the input when they are done.
        on_batch: Told the pairs and tokens of each batch that the device gets.
        on_note: Told when a process that reads images is lost, in the thread `tokenise`.
    """
    stop, timing = stop or Stop(), timing or Timing()

    def batch_done(pairs: int, tokens: int) -> None:
        if on_batch:
            on_batch(pairs, tokens)
        stop.check()

    stages = _Stages(windows, encoder, engine, pool, image_processes, stop, timing, on_submit, batch_done, on_note)
    done: list[ScoredPart] = []
    with closing(Ahead(stages.encode(), name="tokenise", check=stop.check)) as parts:
        for part, scored in stages.compute(parts):
            done.append(scored)
            if part.places is not None:
                encoded, logits = join_parts(part.window, done, part.places)
                ranked, errors = rank_window(encoded, logits, blend)
                counts: Counter[str] = Counter()
                for one in done:
                    counts.update(one.counts)
                yield ScoredWindow(encoded, logits, ranked, _in_order([*part.window.errors, *errors]), counts)
                done = []


@dataclass(frozen=True, slots=True)
class _UnderWay:
    """A part that the engine has, and the pairs it was given of it."""

    part: EncodedPart
    pairs: Sequence[EncodedPair]
    pending: Pending


@dataclass(slots=True)
class _Stages:
    """The stages between a window and its logits; see `score_windows` for the fields."""

    windows: Windows
    encoder: Encoder | ReadsImages
    engine: Engine
    pool: Pool
    image_processes: int
    stop: Stop
    timing: Timing
    on_submit: Callable[[int, float | None], None] | None
    on_batch: Callable[[int, int], None]
    on_note: Callable[[str], None] | None
    sample: list[EncodedPair] = field(default_factory=list)  # of the first window, for an engine to be calibrated
    share: float = 0.0  # of the input, when all parts that the engine was given are done

    def read(self) -> Iterator[Window]:
        """The windows, timed; runs in the thread `read`."""
        if not self.must_calibrate:
            self.windows.keep_first, self.windows.first = False, None
        while True:
            began = time.perf_counter()
            window = next(self.windows, None)
            self.timing.read += time.perf_counter() - began
            if window is None:
                return
            yield window

    def encode(self) -> Iterator[EncodedPart]:
        """The parts of the windows with their token ids; runs in the thread `tokenise`."""
        # A run that stops here stops the reader too.
        with (
            closing(Ahead(self.read(), name="read")) as windows,
            images_ahead(self.encoder, self.image_processes, self.on_note) as encoder,
        ):
            for window in one_ahead(windows, encoder) if isinstance(encoder, ReadsImages) else windows:
                began, of_images = time.perf_counter(), image_seconds(encoder)
                if (first := self.windows.first) and not self.sample and self.must_calibrate:
                    self.sample = pairs_of(next(encode_parts(first, encoder)).encoded)
                for part in encode_parts(window, encoder):
                    spent = image_seconds(encoder) - of_images
                    self.timing.images += spent
                    self.timing.tokenise += time.perf_counter() - began - spent
                    yield part
                    began, of_images = time.perf_counter(), image_seconds(encoder)

    def compute(self, parts: Ahead[EncodedPart]) -> Iterator[tuple[EncodedPart, ScoredPart]]:
        """The parts with their logits, in order. The engine has as many as it wants, and never waits for another."""
        under_way: deque[_UnderWay] = deque()
        is_more = True
        busy_since = 0.0
        while is_more or under_way:
            if under_way and (scores := under_way[0].pending.scores()):
                first = under_way.popleft()
                now = time.perf_counter()
                self.timing.compute += now - busy_since
                busy_since = now
                yield first.part, self.take(first, scores)
            elif is_more and len(under_way) < self.engine.depth and (not under_way or parts.is_ready):
                began = time.perf_counter()
                part = next(parts, None)
                if not under_way:
                    busy_since = time.perf_counter()
                    self.timing.wait += busy_since - began
                if part is None:
                    is_more = False
                else:
                    under_way.append(self.submit(part))
            else:
                with self.stop.released():
                    self.engine.wait(_WAIT_SECONDS)

    def submit(self, part: EncodedPart) -> _UnderWay:
        """Give the engine a part, and before the first one what it must see to be calibrated.

        It sees the first window of the input, not of what this run does of it: so every shard, and a run that goes on,
        has the scores of a run of the whole. Only where that window has no pair that can be scored, those of `part`
        serve.
        """
        pairs = pairs_of(part.encoded)
        sample = self.sample or pairs
        if sample and self.must_calibrate:
            assert isinstance(self.engine, NeedsCalibration), "else it need not be calibrated"
            self.engine.calibrate(sample)
            self.windows.keep_first, self.windows.first, self.sample = False, None, []
        if self.on_submit:
            self.on_submit(sum(len(pair.input_ids) for pair in pairs), self.share_after(part))
        with self.stop.released():
            return _UnderWay(part, pairs, self.engine.submit(pairs, on_batch=self.on_batch))

    def share_after(self, part: EncodedPart) -> float | None:
        """The share of the input that is done with `part`; a part of a window is its share of what is left of it."""
        until = part.window.share
        if until is None:
            return None
        if part.places is None:  # more parts of the window come; how many is not known
            pairs = sum(len(item.passages) for item in part.window.lists)
            until = self.share + (until - self.share) * len(part.members) / max(len(part.members), pairs)
        self.share = until
        return until

    @property
    def must_calibrate(self) -> bool:
        """The engine can score nothing before it has seen some pairs."""
        return isinstance(self.engine, NeedsCalibration) and self.engine.needs_calibration

    def take(self, done: _UnderWay, scores: Scores) -> ScoredPart:
        """The logits of a part, and what it counts for."""
        part, trouble = done.part, scores.trouble
        counts = {
            **image_counts(part.encoded),
            "out_of_memory_splits": trouble.splits,
            "fp32_reruns": trouble.reruns,
            "engine_deaths": trouble.deaths,
            "computed_tokens": trouble.computed,
            "tokens": sum(len(pair.input_ids) for pair in done.pairs),
        }
        logits = pooled(part.encoded, scores.logits, self.pool)
        encoded = with_problems(part.encoded, trouble.failed)
        return ScoredPart(part.members, [without_pixels(entry) for entry in encoded], logits, counts)


def _in_order(errors: list[RowError]) -> list[RowError]:
    """Bad rows in the order of their file, whenever each was found out; those of several files as they come."""
    return sorted(errors, key=lambda error: error.row) if len({error.file for error in errors}) == 1 else errors
