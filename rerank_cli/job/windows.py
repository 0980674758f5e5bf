"""Rows cut into windows of whole queries, and which of the windows a run does.

The input and the options alone decide which window a row is in: a shard cuts all windows up to its own last one, and
drops those of other shards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Self

from rerank_cli.formats.shapes import Grouped
from rerank_cli.job.duplicates import without_duplicates
from rerank_cli.records import CandidateList, Gap, ImagePassage, Passage, RowError, Window

_WINDOW_BYTES = 32 * 2**20  # of text: long documents must not make a window of gigabytes
_IMAGE_WEIGHT = 8  # pairs that one with an image counts as in a window: 1,800 tokens are those of 8 to 10 texts


@dataclass(frozen=True, slots=True)
class Share:
    """Which windows of an input a run does. The shares are neighbouring and together they are all windows."""

    shard: int = 1  # from 1
    shards: int = 1
    lines: int = 1  # rows and blank lines of the input, as far as known: how even the shares are, nothing else

    def of(self, windows: Iterable[Window]) -> Iterator[Window]:
        """The windows of the share: each is in the one that its first line is in."""
        line = 0
        for window in windows:
            shard = 1 + min(self.shards - 1, line * self.shards // max(1, self.lines))
            line += window.rows + window.blank
            if shard > self.shard:
                return
            if shard == self.shard:
                yield window

    def within(self, read: float | None) -> float | None:
        """How much of this share is read when so much of the input is."""
        return None if read is None else min(1.0, max(0.0, read * self.shards - (self.shard - 1)))


class Windows:
    """The windows of a share, one after the other.

    Args:
        items: What the input holds.
        max_pairs: See `cut_windows`.
        share: Which windows of the input these are.
        position: How far reading is, as a share of the input.
    """

    def __init__(
        self,
        items: Iterable[Grouped],
        *,
        max_pairs: int,
        share: Share | None = None,
        position: Callable[[], float | None] = lambda: None,
    ) -> None:
        self.keep_first = True
        """Somebody may still ask for `first`."""
        self.first: Window | None = None
        """The first window of the whole input that has lists, once it is read."""
        self.on_first: Callable[[Window], None] | None = None
        """Told of that window when it is read."""
        self.passed: float | None = None
        """The share of the input that is read with the last window that was given."""
        self._has_begun = False
        share = share or Share()
        windows = (
            replace(window, share=share.within(position())) for window in cut_windows(items, max_pairs=max_pairs)
        )
        self._own = share.of(self._remember_first(windows))

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Window:
        window = next(self._own)
        self.passed = window.share
        return window

    def _remember_first(self, windows: Iterator[Window]) -> Iterator[Window]:
        for window in windows:
            if self.keep_first and self.first is None and window.lists:
                self.first = window
            if window.lists and not self._has_begun:
                self._has_begun = True
                if self.on_first:
                    self.on_first(window)
            yield window


def wanted_of(items: Iterable[Grouped], depth: int | None, *, drop_duplicates: bool) -> Iterator[Grouped]:
    """What is to be scored of `items`: heads of so many passages, without those that say what others say."""
    return heads_of(without_duplicates(items) if drop_duplicates else items, depth)


def heads_of(items: Iterable[Grouped], depth: int | None) -> Iterator[Grouped]:
    """`items` with the first `depth` passages of each list alone, which are those that are scored."""
    for item in items:
        if depth is None or not isinstance(item, CandidateList) or len(item.passages) <= depth:
            yield item
        else:
            yield replace(
                item,
                passages=item.passages[:depth],
                queries=item.queries[:depth],
                places=item.places[:depth],
                whole=item,
            )


SCORE_WINDOW_PAIRS = 64
"""`score` streams: a window is what a reader at the other end of a pipe waits for."""


def cut_windows(items: Iterable[Grouped], *, max_pairs: int, max_bytes: int = _WINDOW_BYTES) -> Iterator[Window]:
    """Group whole candidate lists into windows of at least `max_pairs` pairs or `max_bytes` of text."""
    lists: list[CandidateList] = []
    errors: list[RowError] = []
    blank = pairs = size = number = 0

    def close() -> Window:
        rows = sum(len(item.rows) for item in lists) + sum(error.passage is None for error in errors)
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


def _size(passage: Passage) -> int:
    return passage.size if isinstance(passage, ImagePassage) else len(passage)
