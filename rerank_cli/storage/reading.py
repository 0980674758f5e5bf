"""Read an object like a file: by ranges, in bounded memory, ahead of a sequential reader.

A sequential reader gets blocks that grow from `_FIRST_BYTES` to `_BLOCK_BYTES`. The next block is fetched while the
reader works on the last one, so at most two are in memory. A reader that jumps, such as Parquet's, gets the ranges that
it asks for. The start of an object is cached, because its format is recognised from it before it is read; so is the
end, which Parquet's reader asks for many times.
"""

from __future__ import annotations

import io
import os
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import Any

from rerank_cli.storage.opened import first_seen, open_store
from rerank_cli.storage.url import parse_url

_FIRST_BYTES = 256 * 2**10
_BLOCK_BYTES = 8 * 2**20
_TAIL_BYTES = 256 * 2**10
_JUMP_BYTES = 64 * 2**10  # the least that a jump reads


class ObjectReader(io.RawIOBase):
    """The bytes of the object at a URL, in the version that this process saw first."""

    def __init__(self, url: str) -> None:
        self.name = url
        self._url = parse_url(url)
        self._stat = first_seen(url)
        self._store = open_store(self._url)
        self._at = 0
        self._block, self._begin = b"", 0
        self._size = _FIRST_BYTES
        self._ahead: tuple[int, Future[bytes]] | None = None
        self._pool: ThreadPoolExecutor | None = None

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to another position; `tell` asks here too."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._stat.size}[whence]
        if base + offset < 0:
            raise ValueError(f"a position before the start: {base + offset}")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill all of `buffer`, or up to the end of the object: Parquet's reader takes a short read for that end."""
        whole = memoryview(buffer)[: max(0, self._stat.size - self._at)]
        done = 0
        while done < len(whole):
            if not self._begin <= self._at < self._begin + len(self._block):
                self._fetch(len(whole) - done)
            begin = self._at - self._begin
            data = memoryview(self._block)[begin : begin + len(whole) - done]
            whole[done : done + len(data)] = data
            self._at += len(data)
            done += len(data)
        return done

    def close(self) -> None:
        """Drop the blocks in memory, and the one under way."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None
        self._block, self._ahead = b"", None
        super().close()

    def _fetch(self, wanted: int) -> None:
        size = self._stat.size
        if self._at >= size - _TAIL_BYTES and self._at != self._begin + len(self._block):
            begin = max(0, size - _TAIL_BYTES)
            self._block, self._begin = _kept(self.name, self._stat.etag, begin, size), begin
            return
        is_next = self._at == self._begin + len(self._block)
        if self._at == 0:
            data = _kept(self.name, self._stat.etag, 0, min(_FIRST_BYTES, size))
        elif self._ahead is not None and self._ahead[0] == self._at:
            data = self._ahead[1].result()
        else:
            data = self._read(self._at, wanted if is_next else max(wanted, _JUMP_BYTES))
        self._block, self._begin, self._ahead = data, self._at, None
        begin = self._at + len(data)
        if is_next and begin < size:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
            self._ahead = (begin, self._pool.submit(self._read, begin, self._size))
            self._size = min(2 * self._size, _BLOCK_BYTES)

    def _read(self, begin: int, wanted: int) -> bytes:
        return self._store.read(self._url.key, begin, min(begin + wanted, self._stat.size), self._stat.etag)


@lru_cache(maxsize=16)
def _kept(name: str, etag: str, begin: int, end: int) -> bytes:
    url = parse_url(name)
    return open_store(url).read(url.key, begin, end, etag)
