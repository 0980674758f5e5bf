"""Check at each commit that the files a run reads are unchanged; a changed file stops the run.

A file is unchanged while its device, inode, size and times are those of the first check, which comes before the first
read. So a check that finds a file unchanged proves that everything read before came from that one version, and the
commit after it holds nothing else. If only the inode's time differs (a new mode, a hard link made by a backup), the
content decides, provided that its SHA-256 was taken before.

A check cannot see a change within the same tick of the file system's clock as the change before it (4 ms on Linux, 2 s
on FAT), nor a write through a memory map on a file system that keeps no time of it (tmpfs).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rerank_cli.errors import InputError, StoppedError
from rerank_cli.journal.fingerprint import sha256_of

_HINT = "restore the file and run the same command again to resume, or start over with `--restart`"


class _ChangedError(InputError):
    """Raised by `Watch.check`."""


class Watch:
    """The regular files that a run reads; pipes and devices cannot be checked.

    known: gives the SHA-256 of a file as it was at the first check, or None.
    """

    def __init__(self, known: Callable[[Path], str | None] = lambda _: None) -> None:
        self.known = known
        self._seen: dict[Path, os.stat_result] = {}
        self._names: dict[Path, str] = {}

    def look(self, files: Mapping[str, Path]) -> None:
        """Watch these files too. files: name for messages -> path. The first look at a file counts."""
        for name, path in files.items():
            if path not in self._seen:
                try:
                    found = path.stat()
                except OSError:
                    continue  # its reader will say what is wrong
                if stat.S_ISREG(found.st_mode):
                    self._seen[path] = found
            self._names.setdefault(path, name)

    def only(self, files: Mapping[str, Path]) -> None:
        """Watch only these files from now on. The first look at each still counts."""
        self._seen = {path: self._seen[path] for path in files.values() if path in self._seen}
        self._names = {path: name for name, path in files.items()}

    def check(self) -> None:
        """`InputError` for the first file that has changed."""
        for path, before in self._seen.items():
            try:
                now = path.stat()
            except OSError as error:
                raise self._changed_error(path, "it is gone") from error
            if _identity(now) != _identity(before):
                raise self._changed_error(path, _difference(before, now))
            if now.st_ctime_ns != before.st_ctime_ns:
                known = self.known(path)
                if known is None or known != sha256_of(path):
                    raise self._changed_error(path, "its content or its mode was changed")
                self._seen[path] = now

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Inside, a failure that a changed file explains is reported as that change.

        A library may read a file again at any time, and fail in its own way if the file has changed.
        """
        try:
            yield
        except (StoppedError, _ChangedError):
            raise
        except Exception as error:
            try:
                self.check()
            except _ChangedError as found:
                raise found from error
            raise

    def _changed_error(self, path: Path, how: str) -> InputError:
        return _ChangedError(f"{path}: was changed while it was read ({self._names[path]}): {how}", hint=_HINT)


def _identity(found: os.stat_result) -> tuple[int, int, int, int]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _difference(before: os.stat_result, now: os.stat_result) -> str:
    if not os.path.samestat(before, now):
        return "another file has its name"
    if before.st_size != now.st_size:
        return f"it had {before.st_size} bytes and now has {now.st_size}"
    return "it was written to"
