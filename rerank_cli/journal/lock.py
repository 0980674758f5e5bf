"""One process per output.

The lock is a flock on a file, which the operating system gives back when the process is gone, however it went: there
are no stale locks. Since the file goes away with the folder it lies in, a process that has waited may hold the lock of
a file that nobody finds any more; it sees this by the inode and tries again.

A lock can be lost: somebody removes the file, or the file system lets two processes have it (some network file systems
do). So the holder writes a name of its own into the file and looks at each commit (`check`) whether the file is still
the one that is found there, and still has that name in it. Whoever has lost it writes nothing more.
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
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # each is what some network file system says


class Lock:
    """A lock that is held. path: its file; who: what this process has written into it."""

    def __init__(self, path: Path, descriptor: int, who: bytes) -> None:
        self._path = path
        self._descriptor = descriptor
        self._who = who

    def check(self) -> None:
        """`OutputError` if another process can have the lock, or has it."""
        refuse_lost_name(self._path, os.fstat(self._descriptor))
        if os.pread(self._descriptor, _WHO_BYTES, 0) != self._who:
            raise changed(self._path, f"another run has taken it{_read(self._descriptor)}")

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """What fails inside because the lock is lost, perhaps with the folder around it, says so."""
        try:
            yield
        except (OSError, RerankError) as error:
            try:
                self.check()
            except OutputError as lost:
                raise lost from error
            raise

    def release(self) -> None:
        """Give it back."""
        os.close(self._descriptor)


def take_lock(path: Path, *, out: Path, wait: float, files: Files, clock: Callable[[], float] = time.monotonic) -> Lock:
    """Lock `path`, whose folder is made if need be.

    wait: seconds to wait for another process. Raises `LockedError`, with its pid and host, if it has not ended by then.
    """
    deadline = clock() + wait
    while True:
        files.mkdir(path.parent)
        try:
            descriptor = opened_as_own(files, path)
        except FileNotFoundError:  # the process before us has just taken the folder away
            continue
        try:
            mine = _try(descriptor, path, files)
            if mine and _is_found_at(descriptor, path):
                who = _who()
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
            continue  # the lock of a file that is gone
        if clock() >= deadline:
            raise LockedError(
                f"{out}: another process works on this output{holder}",
                hint="wait for it, or pass `--lock-wait SECONDS`",
            )
        time.sleep(_POLL_SECONDS)


def is_lock(data: bytes) -> bool:
    """Whether a file with this content is one of ours; it is empty for a moment."""
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
        _take_away(descriptor, path, files)
        raise OutputError(
            f"{path}: cannot be locked: the file system has no locks ({os.strerror(error.errno)})",
            hint="write to a file system that has them (a local disk, NFS with its lock service), and copy from there",
        ) from error
    return True


def _take_away(descriptor: int, path: Path, files: Files) -> None:
    """Remove what was just made of a lock that cannot be had: where there are no locks, nobody has this one."""
    if os.fstat(descriptor).st_size or not _is_found_at(descriptor, path):
        return  # of a run on a file system that had locks then
    with suppress(OSError):
        files.unlink(path)
        files.rmdir(path.parent)  # if nothing else is in it


def _is_found_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def _who() -> bytes:
    return json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "run": secrets.token_hex(8)}).encode()


def _read(descriptor: int) -> str:
    """Who holds the lock, in words; nothing where it has not written it yet."""
    data = os.pread(descriptor, _WHO_BYTES, 0)
    if not is_lock(data):
        return ""
    who = json.loads(data)
    return f": process {who['pid']} on {who['host']}"
