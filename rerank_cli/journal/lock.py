"""One process per output, by a lock on a file; an output in an object store is locked by `store_log.py`.

The lock is a flock on a file. The operating system releases it when the process ends, however it ends, so no lock is
ever stale. Because the file is deleted with its folder, a process that waited may get the lock of a deleted file; it
sees this by the inode and tries again.

A lock can be lost: somebody deletes the file, or the file system grants it twice (some network file systems do). So the
holder writes a unique name into the file. At each commit `check` compares the inode and the name; a process that has
lost the lock writes nothing more.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rerank_cli.errors import LockedError, OutputError, RerankError
from rerank_cli.journal.files import Files, changed, opened_as_own, refuse_lost_name

_POLL_SECONDS = 0.05
_WHO_BYTES = 4096
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # the answers of network file systems without locks


class Lock:
    """A lock that is held. path: its file; who: the content that this process wrote into it."""

    def __init__(self, path: Path, descriptor: int, who: bytes) -> None:
        self._path = path
        self._descriptor = descriptor
        self._who = who

    def check(self) -> None:
        """`OutputError` if another process has the lock, or could get it."""
        refuse_lost_name(self._path, os.fstat(self._descriptor))
        if os.pread(self._descriptor, _WHO_BYTES, 0) != self._who:
            raise changed(self._path, f"another run has taken it{_read(self._descriptor)}")

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Inside, a failure that the loss of the lock explains is reported as that loss."""
        try:
            yield
        except (OSError, RerankError) as error:
            try:
                self.check()
            except OutputError as lost:
                raise lost from error
            raise

    def release(self) -> None:
        """Release the lock."""
        os.close(self._descriptor)


def take_lock(path: Path, *, out: Path, wait: float, files: Files, clock: Callable[[], float] = time.monotonic) -> Lock:
    """Lock the file `path`; its folder is made if need be.

    Raises `LockedError`, with pid and host of the holder, if another process still has the lock after `wait` seconds.
    out: the output, for the message.
    """
    deadline = clock() + wait
    while True:
        files.mkdir(path.parent)
        try:
            descriptor = opened_as_own(files, path)
        except FileNotFoundError:  # the process before us has just removed the folder
            continue
        try:
            mine = _try(descriptor, path, files)
            if mine and _is_found_at(descriptor, path):
                who = json.dumps(
                    {"pid": os.getpid(), "host": socket.gethostname(), "run": secrets.token_hex(8)}
                ).encode()
                files.truncate(descriptor, 0)
                left = who
                while left:
                    left = left[files.write(descriptor, left) :]
                return Lock(path, descriptor, who)
            holder = "" if mine else _read(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        if mine:
            continue  # the lock of a deleted file
        if clock() >= deadline:
            raise LockedError(
                f"{out}: another process works on this output{holder}",
                hint="wait for it, or pass `--lock-wait SECONDS`",
            )
        time.sleep(_POLL_SECONDS)


def is_lock(data: bytes) -> bool:
    """Whether `data` is the content of a lock file of this program."""
    try:
        who = json.loads(data)
    except ValueError:
        return False
    return isinstance(who, dict) and {"pid", "host"} <= who.keys()


def _try(descriptor: int, path: Path, files: Files) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        # Nobody can hold the file that was just made. One with content is of an earlier run, when there were locks.
        if not os.fstat(descriptor).st_size and _is_found_at(descriptor, path):
            with suppress(OSError):
                files.unlink(path)
                files.rmdir(path.parent)  # fails if anything else is in it
        raise OutputError(
            f"{path}: cannot be locked: the file system has no locks ({os.strerror(error.errno)})",
            hint="write to a file system with locks (a local disk, NFS with its lock service), and copy from there",
        ) from error
    return True


def _is_found_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def _read(descriptor: int) -> str:
    """The holder of the lock, in words; empty if it has not written its name yet."""
    data = os.pread(descriptor, _WHO_BYTES, 0)
    if not is_lock(data):
        return ""
    who = json.loads(data)
    return f": process {who['pid']} on {who['host']}"
