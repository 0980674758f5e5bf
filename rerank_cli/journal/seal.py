"""Proof that a finished work file still has the bytes that were written, before it gets its name."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from rerank_cli.journal.fingerprint import sha256_of


class Seal:
    """Size and SHA-256 of a work file, computed while it was written.

    seen: the stat of the file when its bytes were last compared.
    """

    def __init__(self, size: int, sha256: str) -> None:
        self._size = size
        self._sha256 = sha256
        self.seen: os.stat_result | None = None

    def is_of(self, path: Path) -> bool:
        """Whether the file at `path` has these bytes. It is read only if its stat has changed since the last time."""
        with suppress(OSError):
            found = path.stat()
            if not stat.S_ISREG(found.st_mode) or found.st_size != self._size:
                return False
            if self.is_untouched(path):
                return True
            if sha256_of(path) == self._sha256:
                self.seen = found
                return self.is_untouched(path)
        return False

    def is_untouched(self, path: Path) -> bool:
        """Whether the stat of the file at `path` is unchanged since its bytes were compared."""
        if self.seen is None:
            return False
        now = path.lstat()
        return is_same_content(now, self.seen) and now.st_ctime_ns == self.seen.st_ctime_ns

    def is_of_bytes(self, size: int, sha256: str) -> bool:
        """Whether these are the bytes that were written."""
        return (size, sha256) == (self._size, self._sha256)


def is_same_content(now: os.stat_result, before: os.stat_result) -> bool:
    """Whether a file has not been written to between two stats. Its name or mode may have changed."""
    return os.path.samestat(now, before) and (now.st_size, now.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
