"""What a run reads, looked at again at each commit: a file that was changed meanwhile stops the run.

A file is the one that was read while its device, inode, size and times are those of the first look, which is taken
before anything is read. So what was read before a look that finds them unchanged was read from one file, and a commit
that comes behind such a look holds nothing else. Where only the time of the inode differs (a mode, a second name, a
backup that links) the content decides, if its SHA-256 was taken before.

What a look cannot see: a change within the same tick of the file system's clock as the one before it (4 ms on Linux,
2 s on FAT), and writes through a memory map on a file system that keeps no time of them (tmpfs).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rerank_cli.errors import InputError, StoppedError
from rerank_cli.journal.fingerprint import sha256_of

_HINT = "what was read before is kept; once the file is as it was, the same command goes on, `--restart` starts over"


class _ChangedError(InputError):
    """What `Watch.check` raises."""


class Watch:
    """The files that a run reads. Pipes and devices have nothing to be looked at.

    known: the SHA-256 of a file as it was at the first look, or None.
    """

    def __init__(self, known: Callable[[Path], str | None] = lambda _: None) -> None:
        self.known = known
        self._seen: dict[Path, os.stat_result] = {}
        self._names: dict[Path, str] = {}

    def look(self, files: Mapping[str, Path]) -> None:
        """Watch these files too. files: what each is called in messages, and its path.

        A file that is watched already counts as it was when it was first looked at.
        """
        for name, path in files.items():
            if path not in self._seen:
                try:
                    found = path.stat()
                except OSError:
                    continue  # who reads it says what is wrong
                if stat.S_ISREG(found.st_mode):
                    self._seen[path] = found
            self._names.setdefault(path, name)

    def only(self, files: Mapping[str, Path]) -> None:
        """From here on only these are watched, each as it was when it was first looked at."""
        self._seen = {path: self._seen[path] for path in files.values() if path in self._seen}
        self._names = {path: name for name, path in files.items()}

    def check(self) -> None:
        """`InputError` for the first file that is not what it was."""
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
        """What fails inside because a file was changed says so: any library may read it again at any time."""
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
        return f"it had {before.st_size} bytes, has {now.st_size}"
    return "it was written to"
