"""The one loop: windows of whole queries in, ranked windows out, one after the other.

    rows -> candidate lists -> windows   thread `read` (`windows.py`)
    windows -> token ids                 thread `tokenise`; page images are read before (`encoding/images/ahead.py`)
    token ids -> logits                  the engine: in this process, or in processes of its own
    logits -> ranks                      the caller's thread, which gets each window when it is ranked

Windows are cut by the input and the options alone, and batches never cross windows: so the same run computes the same
batches. A window with many images is encoded and scored in parts (`image_parts.py`). An engine of several processes, or
on a GPU, has several parts at a time (`Engine.depth`) and computes while the caller writes; their logits are taken in
the order of the input. Equal pairs are scored once in a window; with `KnownScores`, once in a run (as far as its table
reaches), or once in all runs that share a store.

The stages are joined by short queues (`Ahead`). Their heavy parts release Python's global interpreter lock (reading and
decompression, the Rust tokenizer, torch), so three threads are enough to hide reading and tokenising behind the engine.

Memory holds four windows and those that the engine has, whatever the size of the file: each queue holds one, and each
thread holds one that it works on or that waits for a place in the queue. With images there is one more, whose images
are read before its turn.

Each row ends in exactly one place: `rows in = rows out + rows in errors + blank lines`. A row that cannot be scored
becomes a `RowError`. A bad passage of a list makes the whole list a bad row (one row in, one row out); in a flat group
only the row itself is bad.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, Self, TypeVar

import numpy.typing as npt

from rerank_cli.encoding.choices import Pool
from rerank_cli.encoding.encoder import Encoder, ReadsImages
from rerank_cli.encoding.images.ahead import ImagesAhead
from rerank_cli.encoding.pairs import EncodedWindow
from rerank_cli.engine.protocols import NeedsCalibration
from rerank_cli.evaluation.blend import Blend
from rerank_cli.job.image_parts import EncodedPart, encode_parts
from rerank_cli.job.ranking import ScoredPart, finish_window, rank_window, score_part
from rerank_cli.job.score_store.known_scores import KnownScores
from rerank_cli.job.stop import Stop
from rerank_cli.job.windows import Windows
from rerank_cli.records import EncodedPair, ImagePassage, Passage, RankedList, RowError, Timing, Window

if TYPE_CHECKING:
    import numpy as np

    from rerank_cli.engine import Engine, Pending

T = TypeVar("T")

_POLL_SECONDS = 0.1  # between two checks whether the other end of a queue has closed
_WAIT_SECONDS = 0.05  # for the engine, before the loop checks whether another part is ready for it


@dataclass(frozen=True, slots=True)
class ScoredWindow:
    """A window whose pairs are scored and ranked."""

    encoded: EncodedWindow  # its distinct pairs, without pixels; a pair without a logit is a problem
    logits: npt.NDArray[np.float32]  # of the distinct pairs
    ranked: list[RankedList]  # complete rankings, before any selection
    errors: list[RowError]  # all bad rows of the window; those of one file in the order of the file
    counts: Mapping[str, int]  # what the engine and the images add to `Counts`, by name
    known: frozenset[int] = frozenset()  # the distinct pairs whose scores came from a store
    repeated: frozenset[int] = frozenset()  # the distinct pairs that an earlier window of this process had


def score_windows(  # noqa: PLR0913 (the command line and the Python API need different ones)
    windows: Windows,
    encoder: Encoder | ReadsImages,
    engine: Engine,
    *,
    pool: Pool = "max",
    blend: Blend | None = None,
    known: KnownScores | None = None,
    image_processes: int = 0,
    stop: Stop | None = None,
    timing: Timing | None = None,
    on_submit: Callable[[int, float | None], None] | None = None,
    on_batch: Callable[[int, int], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> Generator[ScoredWindow]:
    """Score `windows` in their order; the caller closes the generator, which ends its threads.

    Args:
        windows: To score. An engine that needs calibration gets the first window of the whole input.
        encoder: Turns pairs into token ids.
        engine: Turns token ids into logits.
        pool: Joins the logits of a pair's chunks.
        blend: Joins the order by logit with the given order.
        known: Scores that need not be computed.
        image_processes: How many processes may read page images.
        stop: Asked after each batch, and while the loop waits. The caller holds it where it must not interrupt.
        timing: Each stage adds its time.
        on_submit: Gets the tokens that the engine gets, and the share of the input that is finished with them.
        on_batch: Gets the pairs and tokens of each batch.
        on_note: Gets a message if a process that reads images is lost; called in the thread `tokenise`.
    """
    stop, timing = stop or Stop(), timing or Timing()

    def batch_done(pairs: int, tokens: int) -> None:
        if on_batch:
            on_batch(pairs, tokens)
        stop.check()

    must_calibrate = isinstance(engine, NeedsCalibration) and engine.needs_calibration
    stages = _Stages(
        windows, encoder, engine, pool, image_processes, stop, timing, on_submit, batch_done, on_note, must_calibrate,
        known,
    )  # fmt: skip
    done: list[ScoredPart] = []
    with (
        closing(known) if known else nullcontext(),
        closing(Ahead(stages.encode(), name="tokenise", check=stop.check)) as parts,
    ):
        for part, scored in stages.compute(parts):
            done.append(scored)
            if part.places is None:
                continue
            encoded, logits, counts, not_computed = finish_window(part, done, known)
            done = []
            ranked, errors = rank_window(encoded, logits, blend)
            errors = in_order([*part.window.errors, *errors])
            none: frozenset[int] = frozenset()
            of_store, of_run = (none, not_computed) if part.found and part.found.repeats else (not_computed, none)
            yield ScoredWindow(encoded, logits, ranked, errors, counts, known=of_store, repeated=of_run)


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
    must_calibrate: bool  # the engine cannot score before it has seen some pairs
    known: KnownScores | None
    sample: list[EncodedPair] = field(default_factory=list)  # pairs of the first window, to calibrate the engine
    share: float = 0.0  # of the input that is finished when the engine has done all parts it was given

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
            if self.known:
                self.known.look_up(window)
            yield window

    def encode(self) -> Iterator[EncodedPart]:
        """The parts of the windows with their token ids; runs in the thread `tokenise`."""
        # Closing this stage also stops the reader.
        with (
            closing(Ahead(self.read(), name="read")) as windows,
            images_ahead(self.encoder, self.image_processes, self.on_note) as encoder,
        ):
            images = encoder.images if isinstance(encoder, ReadsImages) else None
            for window in one_ahead(windows, images, self.known) if images else windows:
                began, of_images = time.perf_counter(), images.seconds if images else 0.0
                if (first := self.windows.first) and not self.sample and self.must_calibrate:
                    self.sample = next(encode_parts(first, encoder)).pairs
                for part in encode_parts(window, encoder, self.known):
                    spent = images.seconds - of_images if images else 0.0
                    self.timing.images += spent
                    self.timing.tokenise += time.perf_counter() - began - spent
                    yield part
                    began, of_images = time.perf_counter(), images.seconds if images else 0.0

    def compute(self, parts: Ahead[EncodedPart]) -> Iterator[tuple[EncodedPart, ScoredPart]]:
        """The parts with their logits, in order. The engine has up to `depth` parts, and does not wait for more."""
        under_way: deque[tuple[EncodedPart, Pending]] = deque()
        is_more = True
        busy_since = 0.0
        while is_more or under_way:
            if under_way and (scores := under_way[0][1].scores()):
                part, _ = under_way.popleft()
                now = time.perf_counter()
                self.timing.compute += now - busy_since
                busy_since = now
                yield part, score_part(part, scores.logits, scores.trouble, self.pool)
            elif is_more and len(under_way) < self.engine.depth and (not under_way or parts.is_ready):
                began = time.perf_counter()
                more = next(parts, None)
                if not under_way:
                    busy_since = time.perf_counter()
                    self.timing.wait += busy_since - began
                if more is None:
                    is_more = False
                else:
                    under_way.append((more, self.submit(more)))
            else:
                with self.stop.released():
                    self.engine.wait(_WAIT_SECONDS)

    def submit(self, part: EncodedPart) -> Pending:
        """Give the engine a part; before the first one, calibrate the engine if it needs that.

        It is calibrated on the first window of the whole input, so shards and resumed runs have the scores of one run.
        Only if no pair of that window can be scored, it is calibrated on `part`.
        """
        had_no_keys = self.must_calibrate
        sample = self.sample or part.pairs
        if sample and self.must_calibrate:
            assert isinstance(self.engine, NeedsCalibration), "`must_calibrate` is set for such engines only"
            self.engine.calibrate(sample)
            self.must_calibrate = False
            self.windows.keep_first, self.windows.first, self.sample = False, None, []
        if self.on_submit:
            self.on_submit(sum(len(pair.input_ids) for pair in part.pairs), self.share_after(part))
        with self.stop.released():
            pending = self.engine.submit(part.pairs, on_batch=self.on_batch)
        if self.known and had_no_keys:
            self.known.see(self.engine)
        return pending

    def share_after(self, part: EncodedPart) -> float | None:
        """The share of the input that is finished with `part`."""
        until = part.window.share
        if until is None:
            return None
        if part.places is None:  # the window has more parts; how many is not known, so estimate from the pairs
            pairs = sum(len(item.passages) for item in part.window.lists)
            until = self.share + (until - self.share) * len(part.members) / max(len(part.members), pairs)
        self.share = until
        return until


def in_order(errors: list[RowError]) -> list[RowError]:
    """Bad rows in the order of their file; those of several files stay as they are."""
    return sorted(errors, key=lambda error: error.row) if len({error.file for error in errors}) == 1 else errors


@dataclass(frozen=True, slots=True)
class _End:
    """Follows the last item."""

    error: BaseException | None = None  # of the source, if it raised one


class Ahead(Generic[T]):
    """The items of a source, produced by a thread: `depth` items wait in a queue, and the thread holds one more.

    An exception of the source is raised here, after the items before it. The thread starts when the first item is asked
    for. Closing this stops the thread at its next item; a generator is closed in the thread that runs it.

    Args:
        source: Yields the items.
        depth: How many items wait. Few, to bound memory.
        name: Of the thread.
        check: Called while this waits for an item; an exception of it ends the wait.
    """

    def __init__(
        self, source: Iterable[T], *, depth: int = 1, name: str, check: Callable[[], None] = lambda: None
    ) -> None:
        self._items: queue.Queue[T | _End] = queue.Queue(maxsize=depth)
        self._thread = threading.Thread(target=self._fill, args=(source,), name=name, daemon=True)
        self._is_closed = threading.Event()
        self._check = check
        self._is_started = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        if self._is_closed.is_set():
            raise StopIteration
        if not self._is_started:
            self._is_started = True
            self._thread.start()
        try:
            while True:
                with suppress(queue.Empty):
                    item = self._items.get(timeout=_POLL_SECONDS)
                    break
                self._check()
        except BaseException:
            self.close()
            raise
        if isinstance(item, _End):
            self.close()
            raise item.error or StopIteration
        return item

    @property
    def is_ready(self) -> bool:
        """Whether `next` returns, or ends, without waiting."""
        return self._is_closed.is_set() or not self._items.empty()

    def close(self) -> None:
        """Stop the thread."""
        self._is_closed.set()

    def _fill(self, source: Iterable[T]) -> None:
        """Put all items of `source` and its end into the queue; runs in the thread."""
        try:
            if all(self._put(item) for item in source):
                self._put(_End())
        except BaseException as error:  # noqa: BLE001 (raised again in the consumer's thread)
            self._put(_End(error))
        finally:
            if isinstance(source, Generator):
                source.close()

    def _put(self, item: T | _End) -> bool:
        """Put an item as soon as the queue has a place; False if this was closed."""
        while not self._is_closed.is_set():
            try:
                self._items.put(item, timeout=_POLL_SECONDS)
            except queue.Full:
                continue
            return True
        return False


@contextmanager
def images_ahead(
    encoder: Encoder | ReadsImages, processes: int, on_note: Callable[[str], None] | None
) -> Iterator[Encoder | ReadsImages]:
    """The encoder for one pass over an input; up to `processes` processes read its images ahead."""
    if isinstance(encoder, ReadsImages):
        with closing(encoder.images.ahead(processes, on_note)) as images:
            yield encoder.with_images(images)
    else:
        yield encoder


def expect_images(window: Window, images: ImagesAhead, known: KnownScores | None = None) -> None:
    """Start reading the images of a window, in the order in which `encode_parts` asks for them."""
    passages: Iterable[Passage] = (passage for item in window.lists for passage in item.passages)
    if known:
        passages = known.asked_of(window)
    images.expect(list(dict.fromkeys(one.image for one in passages if isinstance(one, ImagePassage))))


def one_ahead(windows: Ahead[Window], images: ImagesAhead, known: KnownScores | None = None) -> Iterator[Window]:
    """`windows`; the images of each are expected with the window before it, if that is ready by then."""
    seen: Window | None = None
    fault: Exception | None = None
    while window := seen or next(windows, None):
        if window is not seen:
            expect_images(window, images, known)
        seen = None
        if windows.is_ready:
            try:
                seen = next(windows, None)
            except Exception as error:  # noqa: BLE001 (it is raised again, after the current window)
                fault = error
            if seen:
                expect_images(seen, images, known)
        yield window
        if fault:
            raise fault
