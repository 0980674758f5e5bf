"""How far the rows that were handed on are in the inputs, as a share of all their content.

Readers are ahead of what they hand on: by a buffer, by two windows, or by the whole file where the rows of a query had
to be brought together first. So the content of the rows that were handed on is counted, and divided by that of all
inputs:

    a plain file       its bytes
    a compressed file  what was decompressed so far, times its bytes over those that this took
    a Parquet file     its bytes, spread evenly over the rows that its footer counts

With `--limit` the rows are counted too, and the larger of both shares holds. A pipe has no size, hence no share, unless
there is a limit.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rerank_cli.formats.compression import SUFFIXES, Content
from rerank_cli.records import Gap, JsonRow, RowError

if TYPE_CHECKING:
    from rerank_cli.formats.inputs import Input
    from rerank_cli.formats.shapes import Item

_USUAL_RATIO = 4.0  # of content to compressed bytes, for a file that nothing is known of yet


@dataclass(slots=True)
class _File:
    """One input."""

    size: int | None  # on disk; None for a pipe
    compressed: bool
    row_bytes: float | None = None  # of a Parquet file
    content: Content | None = None  # while it is read
    found: int | None = None  # content of a text file that was read to its end

    def expected(self, ratio: float) -> float | None:
        """The content of the whole file, as far as can be told now; ratio: of other compressed files."""
        if self.found is not None:
            return self.found
        if self.size is None:
            return None
        if self.content is not None and self.compressed:
            done, taken = self.content.done, self.content.taken
            return done * self.size / taken if taken else self.size * ratio
        return self.size * ratio if self.compressed else self.size


class Position:
    """How much of the inputs has been handed on. All but `share` is for the thread that reads.

    Args:
        inputs: In the order in which they are read.
        limit: How many rows are read at most.
    """

    def __init__(self, inputs: Sequence[Input], limit: int | None = None) -> None:
        self._files = {
            item.path: _File(_size_of(item), item.path.lower().endswith(tuple(SUFFIXES))) for item in inputs
        }
        self._limit = limit
        self._passed = 0.0
        self._skipped = 0.0
        self._rows = 0

    def table(self, path: str, rows: int) -> None:
        """A Parquet file of so many rows is read."""
        if (file := self._files.get(path)) and file.size is not None:
            file.row_bytes = file.size / max(1, rows)

    def text(self, path: str, stream: io.BufferedReader, items: Iterator[Item]) -> Iterator[Item]:
        """`items`, which are read from `stream`, the content of a text file."""
        content, file = stream.raw, self._files.get(path)
        if file is None or not isinstance(content, Content):
            yield from items
            return
        file.content, file.compressed = content, content.is_compressed
        yield from items
        file.found = content.done

    def skip(self, item: Item) -> None:
        """A row was read and is none of those that were asked for."""
        self._skipped += self._content_of(item)

    def count(self, items: Iterable[Item]) -> Iterator[Item]:
        """`items`, counted as they pass."""
        for item in items:
            self._passed += self._content_of(item)
            self._rows += not isinstance(item, Gap)
            yield item

    @property
    def share(self) -> float | None:
        """From 0 to 1; None where it cannot be told."""
        by_rows = None if self._limit is None else self._rows / max(1, self._limit)
        by_content = self._share_of_content()
        known = [share for share in (by_rows, by_content) if share is not None]
        return min(1.0, max(known)) if known else None

    def _share_of_content(self) -> float | None:
        files = self._files.values()
        read = [file for file in files if file.compressed and file.content is not None and file.content.taken]
        taken = sum(file.content.taken for file in read if file.content)
        ratio = sum(file.content.done for file in read if file.content) / taken if taken else _USUAL_RATIO
        total = 0.0
        for file in files:
            content = file.expected(ratio)
            if content is None:
                return None
            total += content
        total -= self._skipped
        return self._passed / total if total > 0 else None

    def _content_of(self, item: Item) -> float:
        if isinstance(item, Gap):
            return 1.0 if item is Gap.BLANK else 0.0
        file = self._files.get(item.file)
        if file is not None and file.row_bytes is not None:
            return file.row_bytes
        return len(item.raw) + 1.0 if isinstance(item, (JsonRow, RowError)) else 0.0


def _size_of(item: Input) -> int | None:
    path = Path(item.path)
    return path.stat().st_size if path.is_file() else None
