"""The calls that write: the one seam between a run's outputs and the operating system.

Nothing else in the program writes to an output. Tests replace `Files` by one that fails, or kills the process, at its
n-th call, and so test a fault at every step of a run.

No call follows a link: the files lie in a folder of ours, where only somebody else can have made a link.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from rerank_cli.errors import OutputError
from rerank_cli.journal.room import FULL, room_left
from rerank_cli.storage import UrlPath
from rerank_cli.storage.copies import copies_folder

if TYPE_CHECKING:
    from hashlib import _Hash as Digest  # typeshed's name of it

_APPENDING = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_AT_FDCWD = -100
_RENAME_NOREPLACE = 1
_NOT_SUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM}  # a file system cannot do the call
_READ_BYTES = 2**20


class Files:
    """Real files. Each method is one system call, or a few that act as one."""

    def mkdir(self, path: Path) -> None:
        """Make a folder if it does not exist."""
        path.mkdir(exist_ok=True)

    def open(self, path: Path) -> int:
        """A descriptor to read, append to and truncate `path`, which is made if it does not exist."""
        return os.open(path, _APPENDING, 0o666)

    def create(self, path: Path) -> int:
        """Like `open`, but `FileExistsError` if the file exists."""
        return os.open(path, _APPENDING | os.O_EXCL, 0o666)

    def write(self, descriptor: int, data: bytes | memoryview) -> int:
        """Append; returns how many bytes were written."""
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
        """Rename `old` to `new`, which is replaced."""
        old.rename(new)

    def place(self, old: Path, new: Path) -> None:
        """Rename `old` to `new`; `FileExistsError` if `new` exists."""
        try:
            _rename_without_replacing(old, new)
        except OSError as error:
            if error.errno not in _NOT_SUPPORTED:
                raise
            _link_and_unlink(old, new)

    def unlink(self, path: Path) -> None:
        """Delete a file if it exists."""
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


def _rename_without_replacing(old: Path, new: Path) -> None:
    renameat2 = _renameat2()
    if renameat2 is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), str(new))
    if renameat2(_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), _RENAME_NOREPLACE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(new))


@cache
def _renameat2() -> Callable[..., int] | None:
    """`renameat2` of the C library (glibc 2.28); None if the library does not have it."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is not None:
        call.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    return call


def _link_and_unlink(old: Path, new: Path) -> None:
    """Rename without replacing on a file system that cannot (NFS); without hard links (FAT), check and rename."""
    try:
        new.hardlink_to(old)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno not in _NOT_SUPPORTED:
            raise
        if os.path.lexists(new):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(new)) from error
        old.rename(new)
    else:
        old.unlink()


class WorkFile:
    """An append-only file of a run, made if it does not exist.

    size: bytes so far. digest: the running SHA-256 of these bytes; None if some were not written here. is_new: refuse a
    file that exists.
    """

    def __init__(self, files: Files, path: Path, *, is_new: bool = False) -> None:
        self._files = files
        self._descriptor = opened_as_own(files, path, is_new=is_new)
        self.path = path
        self.size = os.fstat(self._descriptor).st_size
        self.digest = None if self.size else hashlib.sha256()
        self._on_disk = False

    def append(self, data: bytes) -> None:
        """Write all of `data` at the end."""
        left = memoryview(data)
        while left:
            written = self._files.write(self._descriptor, left)
            if self.digest:
                self.digest.update(left[:written])
            self.size += written
            self._on_disk = False
            left = left[written:]

    def cut(self, size: int) -> None:
        """Cut the file to `size` bytes."""
        if size != self.size:
            self._files.truncate(self._descriptor, size)
            self.size = size
            self.digest = None if size else hashlib.sha256()

    def sync(self) -> None:
        """Return when all bytes are on disk. Does nothing if nothing was appended since the last time."""
        if not self._on_disk:
            self._files.fsync(self._descriptor)
            self._on_disk = True

    def check(self) -> None:
        """`OutputError` if the file has lost its name to another file, or has another size than was appended."""
        found = os.fstat(self._descriptor)
        refuse_lost_name(self.path, found)
        if found.st_size != self.size:
            raise changed(self.path, f"it has {found.st_size} bytes, but {self.size} were written")

    def refuse_other_bytes(self, before: os.stat_result) -> None:
        """`OutputError` if the file has other bytes than were appended, or was touched since the stat `before`."""
        self.check()
        if self.digest is not None and self._read_digest().digest() != self.digest.digest():
            raise changed(self.path, "its bytes are not those that were written")
        now = self.stat()
        if (now.st_mtime_ns, now.st_ctime_ns) != (before.st_mtime_ns, before.st_ctime_ns):
            raise changed(self.path, "it was touched while it was read")

    def stat(self) -> os.stat_result:
        """The stat of the open file, even if another file has its name by now."""
        return os.fstat(self._descriptor)

    def seal(self) -> tuple[int, str]:
        """Size and SHA-256 of the content; the file is read if its SHA-256 is not known."""
        if self.digest is None:
            self.digest = self._read_digest()
        return self.size, self.digest.hexdigest()

    def _read_digest(self) -> Digest:
        digest, place = hashlib.sha256(), 0
        while data := os.pread(self._descriptor, _READ_BYTES, place):
            digest.update(data)
            place += len(data)
        return digest

    def reading(self) -> BinaryIO:
        """A stream of the open file's bytes from the start, even if another file has its name by now."""
        stream = os.fdopen(os.dup(self._descriptor), "rb")
        stream.seek(0)
        return stream

    def close(self) -> None:
        """Close; what was written stays."""
        self._files.close(self._descriptor)


def opened_as_own(files: Files, path: Path, *, is_new: bool = False) -> int:
    """Open `path` like `Files.open`, or like `Files.create` if `is_new`.

    Raises `OutputError` for what a run cannot have made: a link, a file with a second name, a pipe, a device, or a file
    whose owner is not that of its folder.
    """
    try:
        descriptor = files.create(path) if is_new else files.open(path)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _not_ours_error(path, "is a link") from error
        raise
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise _not_ours_error(path, "is not a regular file")
        if found.st_nlink > 1:
            raise _not_ours_error(path, "has a second name (a hard link)")
        if not is_new and found.st_uid != path.parent.stat().st_uid:
            raise _not_ours_error(path, "does not belong to the owner of its folder")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def refuse_lost_name(path: Path, found: os.stat_result) -> None:
    """`OutputError` if `path` does not name the open file whose stat is `found`."""
    try:
        named = path.lstat()
    except OSError as error:
        raise changed(path, "it is gone") from error
    if not os.path.samestat(named, found):
        raise changed(path, "another file has its name")


def changed(path: Path, how: str, *, restart: bool = False) -> OutputError:
    """The error for a work file that something other than its run has changed. restart: the job cannot be resumed."""
    hint = "keep other programs away from it, and run the same command again: it resumes from what is whole"
    if restart:
        hint = "start over with `--restart`"
    return OutputError(f"{path}: was changed by something other than this run: {how}", hint=hint)


def _not_ours_error(path: Path, what: str) -> OutputError:
    return OutputError(f"{path}: {what}, and was not made by this program", hint="move it away, or name another output")


Identity = tuple[int, int] | str
"""Which file a path names: device and inode, or the resolved path if there is no file yet."""


def identity_of(path: Path) -> Identity:
    """Which file a path names; for a URL, the URL."""
    if isinstance(path, UrlPath):
        return str(path)
    try:
        found = path.stat()
    except OSError:
        return str(path.resolve())
    return found.st_dev, found.st_ino


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Inside, an `OSError` becomes an `OutputError` that names `path`, the file that the user knows."""
    try:
        yield
    except OSError as error:
        raise output_error(path, error) from error


def output_error(path: Path, error: OSError) -> OutputError:
    """The error for a failure to write `path`."""
    hint = f"make the folder `{path.parent}` first" if error.errno == errno.ENOENT else None
    what = error.strerror or str(error)
    # The full file system may be another one than that of `path`: work on an object lies in this machine's cache.
    full = error.filename or (copies_folder() if isinstance(path, UrlPath) else path)
    if error.errno in FULL and (room := room_left(Path(os.fsdecode(full)))):
        what += f": {room}"
    return OutputError(f"{path}: cannot be written: {what}", hint=hint)
