"""How far a run is in its inputs: the share of their content whose rows were handed on.

Readers are ahead of what they hand on: by a buffer, by two windows, or by the whole file where the rows of a query had
to be brought together first. So the bytes of the rows that were handed on are counted, and divided by an estimate of
the bytes of all rows:

    a text file     the bytes of its rows read so far, times its size over the bytes on disk that these took. So CSV
                    and JSON documents count by their rows as they are handed on, and compressed files by their offset.
                    Decompression is ahead by some 64 KiB, so the content of a small file is counted first
    a Parquet file  its size, spread evenly over the rows that its footer counts

With `--limit` the rows are counted too, and the larger share is taken. A pipe has no size, so without a limit it has no
share.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rerank_cli.errors import InputError
from rerank_cli.formats.compression import Content, open_input
from rerank_cli.records import Gap, JsonRow, RowError
from rerank_cli.storage import UrlPath, path_of

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
        """An estimate of the bytes of all rows; None for a pipe. ratio: bytes of rows to bytes on disk so far."""
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
        return self.read * self.size / self.content.source.taken


class Position:
    """How much of the inputs has been handed on. Only the reading thread may call anything but `share`.

    Args:
        paths: Of the inputs.
        limit: How many rows are read at most.
    """

    def __init__(self, paths: Sequence[str], limit: int | None = None) -> None:
        self._files: dict[str, _File] = {}
        for path in paths:
            on_disk = path_of(path)
            is_file = (
                isinstance(on_disk, UrlPath) or on_disk.is_file()
            )  # an object was found: it is not asked for again
            self._files[path] = _File(on_disk.stat().st_size if is_file else None)
        self._limit = limit
        self._passed = 0.0
        self._skipped = 0.0
        self._rows = 0

    def begin_table(self, path: str, rows: int) -> None:
        """Say that a Parquet file of so many rows is read now."""
        if (file := self._files.get(path)) and file.size is not None:
            file.row_bytes = file.size / max(1, rows)

    def follow_text(self, path: str, stream: io.BufferedReader, items: Iterator[Item]) -> Iterator[Item]:
        """`items`, unchanged; they are read from `stream`, the content of a text file."""
        content, file = stream.raw, self._files.get(path)
        if file is None or not isinstance(content, Content):  # stdin, whose size is unknown
            yield from items
            return
        file.content, file.read, file.is_read = content, 0.0, False  # it may have been begun before, for a look
        if content.is_compressed and file.size is not None and file.size <= _COUNTED_BYTES:
            with suppress(InputError), open_input(path) as again:  # the reader will say what is wrong with it
                file.total = sum(map(len, iter(lambda: again.read(_CHUNK_BYTES), b"")))
        for item in items:
            file.read += self._content_of(item)
            yield item
        file.is_read = True

    def skip(self, item: Item) -> None:
        """Say that a row was read which is skipped."""
        self._skipped += self._content_of(item)

    def count(self, items: Iterable[Item]) -> Iterator[Item]:
        """`items`, counted as they pass."""
        for item in items:
            self._passed += self._content_of(item)
            self._rows += not isinstance(item, Gap)
            yield item

    @property
    def share(self) -> float | None:
        """From 0 to 1; None where it is unknown."""
        known = [] if self._limit is None else [self._rows / max(1, self._limit)]
        texts = [file for file in self._files.values() if file.content is not None and file.read]
        taken = sum(file.content.source.taken for file in texts if file.content)
        ratio = sum(file.read for file in texts) / taken if taken else 1.0
        expected = [file.expected(ratio) for file in self._files.values()]
        if None not in expected:
            total = sum(size for size in expected if size is not None) - self._skipped
            known += [self._passed / total] if total > 0 else []
        return min(1.0, max(known)) if known else None

    def _content_of(self, item: Item) -> float:
        if isinstance(item, Gap):
            return 1.0 if item is Gap.BLANK else 0.0
        file = self._files.get(item.file)
        if file is not None and file.row_bytes is not None:
            return file.row_bytes
        return len(item.raw) + 1.0 if isinstance(item, (JsonRow, RowError)) else 0.0
