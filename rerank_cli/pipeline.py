"""Read, encode, score, rank, write: the one loop, a window of whole queries at a time.

    rows -> candidate lists -> windows   thread `read`
    windows -> token ids                 thread `tokenise`
    token ids -> logits -> ranks         the caller's thread
    ranked lists -> sink                 the caller's thread

A window is cut by the input and the options alone, and batches never cross windows, so the same run computes the same
batches. One with many images is encoded and scored in parts (`parts.py`). Memory holds five windows at most, whatever
the size of the file: one that is scored, and between two stages one that waits and one that is finished and finds no
room. Pairs with the same texts and image are scored once in a window.

Every row ends in exactly one place: `rows in = rows out + rows in errors + blank lines`. A row that cannot be scored
becomes a `RowError`; in a list it takes the whole list with it (one row in, one row out), in a flat group only itself.

A run may do a part of the windows only: those behind the ones that an earlier process has committed, or those of one
shard. Which window a row is in does not depend on it, so all windows are cut and the others go no further.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import numpy.typing as npt

from rerank_cli.encoding import Encoded, EncodingProblem
from rerank_cli.engine.stages import run_ahead
from rerank_cli.errors import TooManyBadRowsError
from rerank_cli.formats.shapes import Grouped, Selection, row_error
from rerank_cli.parts import (
    EncodedPart,
    EncodedWindow,
    Encoder,
    ScoredPart,
    encode_parts,
    image_counts,
    join_parts,
    without_pixels,
)
from rerank_cli.records import (
    CandidateList,
    EncodedPair,
    Gap,
    ImagePassage,
    Passage,
    RankedList,
    RankedPassage,
    RowError,
    Window,
)
from rerank_cli.stop import Stop

if TYPE_CHECKING:
    from rerank_cli.engine import Engine

Pool = Literal["max", "mean", "first"]

_POOLS: dict[Pool, Callable[[npt.NDArray[np.float32]], np.float32]] = {
    "max": np.max,
    "mean": np.mean,
    "first": lambda chunks: chunks[0],
}
_WINDOW_BYTES = 32 * 2**20  # of text: long documents must not make a window of gigabytes
_IMAGE_WEIGHT = 8  # pairs that one with an image counts as in a window: 1,800 tokens are those of 8 to 10 texts
_RATE_IS_MEANINGFUL_FROM = 1000  # rows; a percentage of fewer rows stops a run for a bad first line


class Sink(Protocol):
    """Where ranked lists go."""

    def write(self, ranked: Sequence[RankedList]) -> int:
        """Take the lists of one window; returns how many output rows they made."""


@dataclass(frozen=True, slots=True)
class ErrorLimit:
    """How many bad rows a run bears: `rows`, or `share` of all rows, or any number (both None)."""

    rows: int | None = None
    share: float | None = None

    def check(self, counts: Counts, *, last: bool) -> None:
        """Raise `TooManyBadRowsError` if `counts` is over the limit."""
        if self.rows is not None and counts.rows_error > self.rows:
            raise TooManyBadRowsError(f"{counts.rows_error} rows failed, --max-errors allows {self.rows}")
        if self.share is not None and (last or counts.rows_in >= _RATE_IS_MEANINGFUL_FROM):
            allowed = self.share * counts.rows_in
            if counts.rows_error > allowed:
                share = f"{100 * counts.rows_error / counts.rows_in:.3g} %"
                raise TooManyBadRowsError(
                    f"{counts.rows_error} of {counts.rows_in} rows failed ({share}), "
                    f"--max-errors allows {100 * self.share:g} %"
                )


@dataclass(slots=True)
class Counts:
    """What a run has done so far.

    rows_in: rows read, bad ones included, blank lines not. rows_out: of these, the ones that were scored. output_rows:
    rows written. pairs_scored: distinct pairs that a model saw. tokens: what it read of these, after truncation; an
    embedder reads what several pairs share once. dropped: passages that the user's selection left out. ties: neighbours
    in rank order with equal logits. images, tiles: what a vision tower saw; image_tokens: of the tokens, those that
    stand for images; retiled: passages whose image was cut in fewer tiles to fit. out_of_memory_splits: batches that
    did not fit and were cut. fp32_reruns: pairs (of an embedding model texts) whose result was no number and that were
    computed again in fp32.
    """

    rows_in: int = 0
    rows_out: int = 0
    rows_error: int = 0
    blank: int = 0
    output_rows: int = 0
    lists: int = 0
    pairs: int = 0
    pairs_scored: int = 0
    tokens: int = 0
    truncated: int = 0
    chunked: int = 0
    dropped: int = 0
    ties: int = 0
    empty_queries: int = 0
    empty_passages: int = 0
    images: int = 0
    tiles: int = 0
    image_tokens: int = 0
    retiled: int = 0
    out_of_memory_splits: int = 0
    fp32_reruns: int = 0

    def add(self, more: Mapping[str, int]) -> None:
        """Count `more`, by name."""
        for name, number in more.items():
            setattr(self, name, getattr(self, name) + number)

    def put(self, whole: Mapping[str, int]) -> None:
        """Have these numbers, by name, in place of those that were counted."""
        for name, number in whole.items():
            setattr(self, name, number)


@dataclass(slots=True)
class Timing:
    """Seconds that each stage worked; reading and tokenising run beside computing."""

    read: float = 0.0
    tokenise: float = 0.0
    compute: float = 0.0
    write: float = 0.0


@dataclass(frozen=True, slots=True)
class Share:
    """Which windows of an input a run does: share `shard` (from 1) of `shards`, of these the ones from `first` on.

    lines: rows and blank lines of the input, as far as it is known; it decides how even the shares are, nothing else.
    A window is in the share that its first line is in, so the shares are neighbouring and cover all windows.
    """

    first: int = 0
    shard: int = 1
    shards: int = 1
    lines: int = 1

    def of(self, windows: Iterable[Window], on_done: Callable[[Window], None] | None = None) -> Iterator[Window]:
        """The windows to do. on_done: told of each one of the share before `first`."""
        line = 0
        for window in windows:
            shard = 1 + min(self.shards - 1, line * self.shards // max(1, self.lines))
            line += window.rows + window.blank
            if shard > self.shard:
                return
            if shard == self.shard and window.number >= self.first:
                yield window
            elif shard == self.shard and on_done:
                on_done(window)


@dataclass(slots=True)
class Run:
    """One pass over an input. `execute` does it; the counts and times grow meanwhile.

    on_scored: called with each window when its pairs have been scored. on_ranked: called with the complete rankings of
    each window, before the selection drops anything. on_window: a window is written and counted. on_done: a window that
    `share` leaves out because an earlier process has done it; it is called in the reader's thread, before the first
    window is done.
    """

    encoder: Encoder
    engine: Engine
    sink: Sink
    on_error: Callable[[RowError], None]
    selection: Selection = field(default_factory=Selection)
    pool: Pool = "max"
    error_limit: ErrorLimit = field(default_factory=ErrorLimit)
    on_scored: Callable[[EncodedWindow], None] | None = None
    on_ranked: Callable[[Sequence[RankedList]], None] | None = None
    on_batch: Callable[[int, int], None] | None = None
    on_window: Callable[[Window, Counts], None] | None = None
    on_done: Callable[[Window], None] | None = None
    share: Share = field(default_factory=Share)
    stop: Stop = field(default_factory=Stop)
    counts: Counts = field(default_factory=Counts)
    timing: Timing = field(default_factory=Timing)

    def execute(self, items: Iterable[Grouped], *, window_pairs: int) -> None:
        """Score all of `items`, a window of about `window_pairs` pairs at a time."""
        cut = self.share.of(cut_windows(items, max_pairs=window_pairs), self.on_done)
        windows = run_ahead(self._timed_read(cut), name="read")
        parts = run_ahead(self._encode(windows), name="tokenise", check=self.stop.check)
        scored: list[ScoredPart] = []
        try:
            with self.stop.held():
                for part in parts:
                    scored.append(self._score(part))
                    if part.places is not None:
                        self._finish_window(*join_parts(part.window, scored, part.places))
                        scored = []
                        self.error_limit.check(self.counts, last=False)
        finally:
            parts.close()
        self.error_limit.check(self.counts, last=True)

    def _timed_read(self, windows: Iterator[Window]) -> Iterator[Window]:
        while True:
            began = time.perf_counter()
            window = next(windows, None)
            self.timing.read += time.perf_counter() - began
            if window is None:
                return
            yield window

    def _encode(self, windows: Generator[Window, None, None]) -> Iterator[EncodedPart]:
        with closing(windows):  # a run that stops here stops the reader too
            for window in windows:
                began = time.perf_counter()
                for part in encode_parts(window, self.encoder):
                    self.timing.tokenise += time.perf_counter() - began
                    yield part
                    began = time.perf_counter()

    def _score(self, part: EncodedPart) -> ScoredPart:
        began = time.perf_counter()
        with self.stop.released():
            logits, pairs = score_pairs(part.encoded, self.engine, pool=self.pool, on_batch=self._on_batch)
        self.timing.compute += time.perf_counter() - began
        trouble = self.engine.trouble
        self.counts.add(image_counts(part.encoded))
        self.counts.add({"out_of_memory_splits": trouble.splits, "fp32_reruns": trouble.reruns})
        self.counts.tokens += sum(len(pair.input_ids) for pair in pairs)
        encoded = _with_problems(part.encoded, trouble.failed)
        return ScoredPart(part.members, [without_pixels(entry) for entry in encoded], logits)

    def _on_batch(self, pairs: int, tokens: int) -> None:
        if self.on_batch:
            self.on_batch(pairs, tokens)
        self.stop.check()

    def _finish_window(self, encoded: EncodedWindow, logits: npt.NDArray[np.float32]) -> None:
        if self.on_scored:
            self.on_scored(encoded)
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
            self.on_window(encoded.window, self.counts)

    def _count(
        self,
        encoded: EncodedWindow,
        ranked: Sequence[RankedList],
        errors: Sequence[RowError],
    ) -> None:
        window, counts = encoded.window, self.counts
        bad = len(window.errors) + len(errors)
        counts.rows_in += window.rows
        counts.rows_error += bad
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


def cut_windows(items: Iterable[Grouped], *, max_pairs: int, max_bytes: int = _WINDOW_BYTES) -> Iterator[Window]:
    """Group whole candidate lists into windows of at least `max_pairs` pairs or `max_bytes` of text."""
    lists: list[CandidateList] = []
    errors: list[RowError] = []
    blank = pairs = size = number = 0

    def close() -> Window:
        rows = sum(len(item.rows) for item in lists) + len(errors)
        return Window(number=number, lists=tuple(lists), errors=tuple(errors), rows=rows, blank=blank)

    for item in items:
        if isinstance(item, RowError):
            errors.append(item)
            size += len(item.raw)
        elif isinstance(item, CandidateList):
            lists.append(item)
            pairs += sum(_IMAGE_WEIGHT if isinstance(passage, ImagePassage) else 1 for passage in item.passages)
            size += len(item.query) + sum(map(_size, item.passages)) + sum(map(len, item.queries))
        elif item is Gap.BLANK:
            blank += 1
        paused = item is Gap.IDLE and bool(lists or errors)
        if pairs >= max_pairs or size >= max_bytes or len(errors) + len(lists) >= max_pairs or paused:
            yield close()
            number += 1
            lists, errors = [], []
            blank = pairs = size = 0
    if lists or errors or blank:
        yield close()


def _in_order(errors: list[RowError]) -> list[RowError]:
    """Bad rows in the order of their file, whenever each was found out; those of several files as they come."""
    return sorted(errors, key=lambda error: error.row) if len({error.file for error in errors}) == 1 else errors


def _size(passage: Passage) -> int:
    return passage.size if isinstance(passage, ImagePassage) else len(passage)


def score_pairs(
    encoded: Sequence[Encoded], engine: Engine, *, pool: Pool, on_batch: Callable[[int, int], None] | None = None
) -> tuple[npt.NDArray[np.float32], list[EncodedPair]]:
    """The logit of each encoded pair (NaN where it has a problem), and the pairs that the engine saw.

    A pair in chunks gets its chunks' logits pooled: the best, their mean, or the first chunk's.
    """
    pairs: list[EncodedPair] = []
    spans: list[tuple[int, int]] = []
    for entry in encoded:
        chunks = () if isinstance(entry, EncodingProblem) else entry
        spans.append((len(pairs), len(pairs) + len(chunks)))
        pairs += chunks
    flat = engine.score(pairs, on_batch=on_batch)
    combine = _POOLS[pool]
    logits = np.array([combine(flat[begin:end]) if end > begin else np.nan for begin, end in spans], dtype=np.float32)
    return logits, pairs


def _with_problems(encoded: list[Encoded], failed: Mapping[int, EncodingProblem]) -> list[Encoded]:
    """`encoded` with a problem for each entry of which a pair has no score. failed: by place among all pairs."""
    if not failed:
        return encoded
    out: list[Encoded] = []
    begin = 0
    for entry in encoded:
        end = begin + (0 if isinstance(entry, EncodingProblem) else len(entry))
        out.append(next((failed[place] for place in range(begin, end) if place in failed), entry))
        begin = end
    return out


def rank_window(encoded: EncodedWindow, logits: npt.NDArray[np.float32]) -> tuple[list[RankedList], list[RowError]]:
    """The window's lists in rank order, nothing left out, and the rows that have no score."""
    ranked: list[RankedList] = []
    errors: list[RowError] = []
    begin = 0
    for item in encoded.window.lists:
        places = encoded.places[begin : begin + len(item.passages)]
        begin += len(item.passages)
        entries = [encoded.encoded[place] for place in places]
        scores = [_shortest(logits[place]) for place in places]
        bad = {index: problem for index in range(len(places)) if (problem := _problem(entries[index], scores[index]))}
        if bad and len(item.rows) == 1:
            index, problem = next(iter(bad.items()))
            where = f"passages[{index}]: " if len(item.passages) > 1 else ""
            errors.append(row_error(item.rows[0], problem.code, f"{where}{problem.message}", item.id))
            continue
        errors += [row_error(item.rows[i], problem.code, problem.message, item.id) for i, problem in bad.items()]
        good = [index for index in range(len(places)) if index not in bad]
        if good or not item.passages:
            ranked.append(_rank(item, good, entries, scores))
    return ranked, errors


def _problem(entry: Encoded, score: float) -> EncodingProblem | None:
    if isinstance(entry, EncodingProblem):
        return entry
    if not np.isfinite(score):
        return EncodingProblem("not-finite", f"the model gave {score} as its score")
    return None


def _rank(item: CandidateList, good: Sequence[int], entries: Sequence[Encoded], scores: Sequence[float]) -> RankedList:
    """Best logit first, equal logits in input order."""
    ranking = []
    read = 0
    for rank, index in enumerate(sorted(good, key=lambda index: (-scores[index], index)), start=1):
        chunks = entries[index]
        assert isinstance(chunks, tuple), "pairs with problems are not ranked"
        tokens, kept = (chunks[0].tokens, chunks[0].kept_tokens) if len(chunks) == 1 else (0, 0)
        read += sum(chunk.kept_tokens for chunk in chunks)
        block = chunks[0].block
        tiles, kept_tiles = (block.full_tiles, block.tiles) if block else (0, 0)
        ranking.append(RankedPassage(rank, index, scores[index], tokens, kept, tiles=tiles, kept_tiles=kept_tiles))
    return RankedList(source=item, ranking=tuple(ranking), tokens=read)


def select(ranked: RankedList, selection: Selection) -> RankedList:
    """What the user and the request want of a ranking; the ranks stay as they were given."""
    least = -np.inf if selection.threshold is None else selection.threshold
    kept = (entry for entry in ranked.ranking if entry.logit >= least)
    wanted = [limit for limit in (selection.top_n, ranked.source.top_n) if limit is not None]
    return replace(ranked, ranking=tuple(islice(kept, min(wanted, default=None))))


def _shortest(logit: np.float32) -> float:
    """The float that prints with the fewest digits that still name this float32 (9.267, not 9.26700019836)."""
    return float(str(logit))
