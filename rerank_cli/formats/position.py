"""How far the rows that were handed on are in the inputs, as a share of all their content.

Readers are ahead of what they hand on: by a buffer, by two windows, or by the whole file where the rows of a query had
to be brought together first. So the bytes of the rows that were handed on are counted, and divided by those of all
rows:

    a text file     the bytes of the rows that were read of it, times its size over the bytes on disk that these took:
                    so CSV and JSON documents count as what their rows are, and compressed files by their offset.
                    Decompression is ahead by some 64 KiB: the content of a small file is counted first
    a Parquet file  its size, spread evenly over the rows that its footer counts

With `--limit` the rows are counted too, and the larger of both shares holds. A pipe has no size, hence no share, unless
there is a limit.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rerank_cli.errors import InputError
from rerank_cli.formats.compression import Content, open_input
from rerank_cli.records import Gap, JsonRow, RowError
from rerank_cli.storage import path_of

if TYPE_CHECKING:
    from rerank_cli.formats.shapes import Item

_COUNTED_BYTES = 2**21  # of a compressed file whose content is counted first: some 50 ms
_CHUNK_BYTES = 2**18


@dataclass(slots=True)
class _File:
    """One input."""

    size: int | None  # on disk; None for a pipe
    row_bytes: float | None = None  # of a Parquet file
    content: Content | None = None  # of a text file, once it is read
    total: int | None = None  # bytes of `content`, if they were counted
    read: float = 0.0  # bytes of its rows so far
    is_read: bool = False  # to its end

    def expected(self, ratio: float) -> float | None:
        """The bytes of all rows, as far as can be told now; ratio: of rows to size in the files that were read."""
        if self.is_read:
            return self.read
        if self.size is None:
            return None
        if self.row_bytes is not None:
            return self.size
        if self.content is None or not self.read:
            return self.size * ratio
        if self.total is not None:
            return self.read * self.total / self.content.done
        return self.read * self.size / self.content.taken


class Position:
    """How much of the inputs has been handed on. All but `share` is for the thread that reads.

    Args:
        paths: Of the inputs.
        limit: How many rows are read at most.
    """

    def __init__(self, paths: Sequence[str], limit: int | None = None) -> None:
        self._files = {path: _File(_size_of(path_of(path))) for path in paths}
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
        if file is None or not isinstance(content, Content):  # stdin, of which nothing can be told
            yield from items
            return
        file.content, file.read, file.is_read = content, 0.0, False  # it may have been begun before, for a look
        if content.is_compressed and file.size is not None and file.size <= _COUNTED_BYTES:
            with suppress(InputError), open_input(path) as again:  # what is wrong with it the reader says
                file.total = sum(map(len, iter(lambda: again.read(_CHUNK_BYTES), b"")))
        for item in items:
            file.read += self._content_of(item)
            yield item
        file.is_read = True

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
        texts = [file for file in files if file.content is not None and file.read]
        taken = sum(file.content.taken for file in texts if file.content)
        ratio = sum(file.read for file in texts) / taken if taken else 1.0
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


def _size_of(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None
