"""Rows cut into windows of whole queries, by the input and the options alone, and which of them a run does.

Which window a row is in does not depend on the part of a run: all windows are cut, and those that an earlier process
has committed or that another shard does go no further.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from rerank_cli.formats.shapes import Grouped
from rerank_cli.records import CandidateList, Gap, ImagePassage, Passage, RowError, Window

_WINDOW_BYTES = 32 * 2**20  # of text: long documents must not make a window of gigabytes
_IMAGE_WEIGHT = 8  # pairs that one with an image counts as in a window: 1,800 tokens are those of 8 to 10 texts


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
