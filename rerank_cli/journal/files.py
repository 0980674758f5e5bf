"""The calls that write: the one seam between a run's outputs and the operating system.

Tests put a `Files` in its place that fails, or kills the process, at its n-th call. Nothing else in the program writes
to an output, so what holds for each of these calls holds for a run.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rerank_cli.errors import OutputError


class Files:
    """Real files. Each method is one system call, or a few that cannot be told apart from outside."""

    def mkdir(self, path: Path) -> None:
        """Make a folder, if it is not there."""
        path.mkdir(exist_ok=True)

    def open(self, path: Path) -> int:
        """A descriptor to read, append to and cut `path`, which is made if it is not there."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)

    def write(self, descriptor: int, data: bytes | memoryview) -> int:
        """Append; returns how many bytes were taken."""
        return os.write(descriptor, data)

    def fsync(self, descriptor: int) -> None:
        """Return when all bytes are on disk."""
        os.fsync(descriptor)

    def truncate(self, descriptor: int, size: int) -> None:
        """Cut to `size` bytes."""
        os.ftruncate(descriptor, size)

    def close(self, descriptor: int) -> None:
        """Close."""
        os.close(descriptor)

    def rename(self, old: Path, new: Path) -> None:
        """Give `old` the name `new`, in place of what has it."""
        old.rename(new)

    def unlink(self, path: Path) -> None:
        """Remove a name, if it is there."""
        path.unlink(missing_ok=True)

    def rmdir(self, path: Path) -> None:
        """Remove an empty folder."""
        path.rmdir()

    def sync_folder(self, path: Path) -> None:
        """Return when the names in a folder are on disk."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class WorkFile:
    """An append-only file of a run; made if it is not there. size: its bytes, with what was appended here."""

    def __init__(self, files: Files, path: Path) -> None:
        self._files = files
        self._descriptor = files.open(path)
        self.path = path
        self.size = os.fstat(self._descriptor).st_size
        self._on_disk = False

    def append(self, data: bytes) -> None:
        """Write all of `data` behind what is there."""
        left = memoryview(data)
        while left:
            written = self._files.write(self._descriptor, left)
            self.size += written
            self._on_disk = False
            left = left[written:]

    def cut(self, size: int) -> None:
        """Drop what is behind `size` bytes."""
        if size != self.size:
            self._files.truncate(self._descriptor, size)
            self.size = size

    def sync(self) -> None:
        """Return when all bytes are on disk; nothing is done where nothing was appended since the last time."""
        if not self._on_disk:
            self._files.fsync(self._descriptor)
            self._on_disk = True

    def close(self) -> None:
        """Close; what was written stays."""
        self._files.close(self._descriptor)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """What the operating system says inside becomes an `OutputError` that names `path`, the file the user knows."""
    try:
        yield
    except OSError as error:
        raise output_error(path, error) from error


def output_error(path: Path, error: OSError) -> OutputError:
    """What the operating system says against writing `path`."""
    hint = f"make the folder `{path.parent}` first" if error.errno == errno.ENOENT else None
    return OutputError(f"{path}: cannot be written: {error.strerror or error}", hint=hint)
