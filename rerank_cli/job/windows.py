"""Cuts rows into windows of whole queries, and selects the windows of a shard.

Only the input and the options decide which window a row is in: a shard cuts all windows up to its own last one, and
drops those of other shards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Self

from rerank_cli.formats.shapes import Grouped
from rerank_cli.job.duplicates import without_duplicates
from rerank_cli.records import CandidateList, Gap, ImagePassage, RowError, Window

_WINDOW_BYTES = 32 * 2**20  # of text: long documents must not make windows of gigabytes
_IMAGE_WEIGHT = 8  # a pair with an image counts as so many: its 1,800 tokens are those of 8 to 10 texts


@dataclass(frozen=True, slots=True)
class Share:
    """The windows of an input that a shard does; those of all shards together are all windows, in order."""

    shard: int = 1  # from 1
    shards: int = 1
    lines: int = 1  # rows and blank lines of the input, perhaps estimated; only decides how even the shares are

    def of(self, windows: Iterable[Window]) -> Iterator[Window]:
        """The windows of this share; a window belongs to the share of its first line."""
        line = 0
        for window in windows:
            shard = 1 + min(self.shards - 1, line * self.shards // max(1, self.lines))
            line += window.rows + window.blank
            if shard > self.shard:
                return
            if shard == self.shard:
                yield window


class Windows:
    """The windows of a share, one after the other.

    Args:
        items: The rows of the input.
        max_pairs: See `cut_windows`.
        share: Selects the windows; None for all.
        position: Tells how far reading is, as a share of the input.
        look: Gets each window with images before it is given out; those of other shards too.
    """

    def __init__(
        self,
        items: Iterable[Grouped],
        *,
        max_pairs: int,
        share: Share | None = None,
        position: Callable[[], float | None] = lambda: None,
        look: Callable[[Window], None] | None = None,
    ) -> None:
        self.keep_first = True
        """Whether `first` may still be needed."""
        self.first: Window | None = None
        """The first window of the whole input that has lists, once it is read."""
        self.on_first: Callable[[Window], None] | None = None
        """Gets that window when it is read."""
        self.passed: float | None = None
        """How much of the share is read with the last window that was given out."""
        self._has_begun = False
        self._look = look
        share = share or Share()
        self._own = share.of(self._of_all_shares(cut_windows(items, max_pairs=max_pairs), share, position))

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Window:
        window = next(self._own)
        self.passed = window.share
        return window

    def _of_all_shares(
        self, windows: Iterator[Window], share: Share, position: Callable[[], float | None]
    ) -> Iterator[Window]:
        """`windows`, each with how much of `share` is read with it; the first one is remembered."""
        for found in windows:
            read = position()  # of the whole input
            if read is not None:
                read = min(1.0, max(0.0, read * share.shards - (share.shard - 1)))
            window = replace(found, share=read)
            if self._look and window.has_images:
                self._look(window)
            if self.keep_first and self.first is None and window.lists:
                self.first = window
            if window.lists and not self._has_begun:
                self._has_begun = True
                if self.on_first:
                    self.on_first(window)
            yield window


def wanted_of(items: Iterable[Grouped], depth: int | None, *, drop_duplicates: bool) -> Iterable[Grouped]:
    """`items` with only the passages to score: the first `depth` of each list, without duplicates if asked."""
    items = without_duplicates(items) if drop_duplicates else items
    return items if depth is None else (_head_of(item, depth) for item in items)


def _head_of(item: Grouped, depth: int) -> Grouped:
    if not isinstance(item, CandidateList) or len(item.passages) <= depth:
        return item
    return replace(
        item, passages=item.passages[:depth], queries=item.queries[:depth], places=item.places[:depth], whole=item
    )


SCORE_WINDOW_PAIRS = 64
"""Small, because `score` streams: the reader of a pipe waits for a window."""


def cut_windows(items: Iterable[Grouped], *, max_pairs: int, max_bytes: int = _WINDOW_BYTES) -> Iterator[Window]:
    """Group whole candidate lists into windows of at least `max_pairs` pairs or `max_bytes` of text."""
    lists: list[CandidateList] = []
    errors: list[RowError] = []
    blank = pairs = size = images = number = 0

    def close() -> Window:
        rows = sum(len(item.rows) for item in lists) + sum(error.passage is None for error in errors)
        return Window(number, tuple(lists), tuple(errors), rows, blank, has_images=images > 0)

    for item in items:
        if isinstance(item, RowError):
            errors.append(item)
            size += len(item.raw)
        elif isinstance(item, CandidateList):
            lists.append(item)
            pairs += len(item.passages)
            size += len(item.query) + sum(map(len, item.queries))
            for one in item.passages:
                if isinstance(one, ImagePassage):
                    images += 1
                    pairs += _IMAGE_WEIGHT - 1
                    size += len(one.text) + len(one.image.value)
                else:
                    size += len(one)
        elif item is Gap.BLANK:
            blank += 1
        paused = item is Gap.IDLE and bool(lists or errors)
        if pairs >= max_pairs or size >= max_bytes or len(errors) + len(lists) >= max_pairs or paused:
            yield close()
            number += 1
            lists, errors = [], []
            blank = pairs = size = images = 0
    if lists or errors or blank:
        yield close()
