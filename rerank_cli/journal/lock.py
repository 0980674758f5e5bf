"""One process per output.

The lock is a flock on a file, which the operating system gives back when the process is gone, however it went: there
are no stale locks. Since the file goes away with the folder it lies in, a process that has waited may hold the lock of
a file that nobody finds any more; it sees this by the inode and tries again.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

from rerank_cli.errors import LockedError, OutputError
from rerank_cli.journal.files import Files

_POLL_SECONDS = 0.05
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # each is what some network file system says


def take_lock(path: Path, *, out: Path, wait: float, files: Files, clock: Callable[[], float] = time.monotonic) -> int:
    """Lock `path`, whose folder is made if need be; returns the descriptor that holds the lock.

    wait: seconds to wait for another process. Raises `LockedError`, with its pid and host, if it has not ended by then.
    """
    deadline = clock() + wait
    while True:
        files.mkdir(path.parent)
        try:
            descriptor = files.open(path)
        except FileNotFoundError:  # the process before us has just taken the folder away
            continue
        try:
            mine = _try(descriptor, path)
            if mine and _is_found_at(descriptor, path):
                files.truncate(descriptor, 0)
                files.write(descriptor, _who().encode())
                return descriptor
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


def _try(descriptor: int, path: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        raise OutputError(
            f"{path}: cannot be locked: the file system has no locks ({os.strerror(error.errno)})",
            hint="write to a file system that has them (a local disk, NFS with its lock service), and copy from there",
        ) from error
    return True


def _is_found_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _who() -> str:
    return json.dumps({"pid": os.getpid(), "host": socket.gethostname()})


def _read(descriptor: int) -> str:
    """Who holds the lock, in words; nothing where it has not written it yet."""
    try:
        who = json.loads(os.pread(descriptor, 4096, 0))
    except ValueError:
        return ""
    return f": process {who['pid']} on {who['host']}"
