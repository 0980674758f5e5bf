"""What a finished work file must be when it gets its name: the bytes that were written, and nothing else."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from rerank_cli.journal.fingerprint import sha256_of


class Seal:
    """Size and SHA-256 of a work file, as its run has counted them while it wrote.

    seen: what the file was when its bytes were found to be these.
    """

    def __init__(self, size: int, sha256: str) -> None:
        self._size = size
        self._sha256 = sha256
        self.seen: os.stat_result | None = None

    def is_of(self, path: Path) -> bool:
        """Whether the file at `path` has these bytes. One that was looked at before is not read again."""
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
        """Whether the file at `path` is as it was when its bytes were found to be these."""
        if self.seen is None:
            return False
        now = path.lstat()
        return is_same_content(now, self.seen) and now.st_ctime_ns == self.seen.st_ctime_ns

    def is_of_bytes(self, size: int, sha256: str) -> bool:
        """Whether these are the bytes that were written."""
        return (size, sha256) == (self._size, self._sha256)


def is_same_content(now: os.stat_result, before: os.stat_result) -> bool:
    """Whether a file that had `before` has not been written to; a name or a mode may be another one."""
    return os.path.samestat(now, before) and (now.st_size, now.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
