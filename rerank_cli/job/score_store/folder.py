"""The folder of a store: whether it can have one, which processes use it, and what happens to a damaged one.

    DIR/scores.sqlite3       the database; SQLite keeps -wal and -shm beside it while it is in use
    DIR/lock                 each process holds it shared (flock); to set a damaged database aside, it must be exclusive
    DIR/scores.damaged-*     a damaged database that was set aside, to be examined or deleted

SQLite needs locks, and its write-ahead log (WAL) needs memory that all processes of a database share. So there is no
store on a file system without locks: if `flock` or `fcntl` fails, or if its mount keeps locks to one machine (NFS with
`nolock` or `local_lock`). On a network file system with locks, SQLite works without WAL.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rerank_cli.job.score_store.database import ForeignError, ScoreStore, is_damaged, why_it_failed

DATABASE = "scores.sqlite3"
_LOCK_SECONDS, _POLL_SECONDS = 10.0, 0.05

_NETWORKS = re.compile(
    r"nfs\d?|cifs|smb\w*|9p|afs|ceph|gfs2|glusterfs|lustre|ncpfs|ocfs2|gpfs|beegfs|virtiofs|fuse\..*"
)
_OWN_LOCKS = re.compile(r"(^|,)(nolock|local_lock=(all|flock|posix)|nobrl)(,|$)")
_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Unusable:
    """Why a folder cannot have a store, in a sentence."""

    reason: str


def open_store(
    folder: Path, *, limit_bytes: int | None = None, on_fault: Callable[[str], None] | None = None
) -> ScoreStore | Unusable:
    """Open the store in `folder`; it is made if it does not exist.

    Args:
        folder: Of the store.
        limit_bytes: The largest size of its database.
        on_fault: See `ScoreStore`; also gets a message if a damaged database was set aside.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        return Unusable(f"{folder}: {why_it_failed(error, folder)}")
    try:
        shared_memory, locks = file_system(folder)
        if not locks:
            raise OSError(errno.ENOLCK, "its file system keeps locks to this machine")
        _hold(lock, alone=False)
        store = _open(folder, lock, limit_bytes, shared_memory=shared_memory, on_fault=on_fault)
    except (OSError, sqlite3.Error) as error:
        os.close(lock)
        reason = why_it_failed(error, folder)
        locking = isinstance(error, OSError) and error.errno in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
        return Unusable(f"{folder}: " + ("the file system does not lock" + f" ({reason})" if locking else reason))
    return store


def _open(
    folder: Path,
    lock: int,
    limit_bytes: int | None,
    *,
    shared_memory: bool,
    on_fault: Callable[[str], None] | None,
) -> ScoreStore:
    def opened() -> ScoreStore:
        return ScoreStore(
            folder / DATABASE, limit_bytes=limit_bytes, shared_memory=shared_memory, on_fault=on_fault,
            set_aside=lambda: _set_aside(folder, lock), release=lambda: os.close(lock),
        )  # fmt: skip

    fcntl.lockf(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # fails on a file system without record locks, which SQLite uses
    fcntl.lockf(lock, fcntl.LOCK_UN)
    try:
        return opened()
    except ForeignError:
        raise
    except sqlite3.DatabaseError as error:
        if not is_damaged(error):
            raise
        aside = _set_aside(folder, lock)
        if aside is None:
            raise sqlite3.DatabaseError(f"{error}, and other processes use it") from error
        if on_fault:
            on_fault(
                f"warning: the store {folder / DATABASE} is damaged ({error}): renamed to {aside}; a new one is started"
            )
        return opened()


def _set_aside(folder: Path, lock: int) -> str | None:
    """Rename a damaged database; None if other processes use it."""
    try:
        _hold(lock, alone=True)
    except BlockingIOError:
        return None
    name = f"scores.damaged-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    for suffix in ("-wal", "-shm", ""):
        with suppress(FileNotFoundError):
            (folder / f"{DATABASE}{suffix}").rename(folder / f"{name}{suffix}")
    _hold(lock, alone=False)
    return name


def _hold(lock: int, *, alone: bool) -> None:
    """Take the lock. To share it, wait while another process renames three files, but not for a program of others."""
    if alone:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                raise OSError(errno.EAGAIN, "another program holds its file `lock`") from error
        time.sleep(_POLL_SECONDS)


def file_system(folder: Path, mounts: str | None = None) -> tuple[bool, bool]:
    """Whether processes can share memory in `folder`, and whether its locks hold for all machines that mount it.

    mounts: the text of /proc/self/mountinfo.
    """
    if mounts is None:
        try:
            mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
        except OSError:
            return True, True
    path, found, longest = folder.resolve(), ("", ""), -1
    for line in mounts.splitlines():
        own, _, rest = line.partition(" - ")
        fields, more = own.split(" "), rest.split(" ")
        if len(fields) < 6 or len(more) < 3:
            continue
        point = Path(_OCTAL.sub(lambda code: chr(int(code[1], 8)), fields[4]))
        if path.is_relative_to(point) and len(point.parts) >= longest:
            longest, found = len(point.parts), (more[0], f"{fields[5]},{more[2]}")
    kind, options = found
    if not _NETWORKS.fullmatch(kind):
        return True, True
    return False, not _OWN_LOCKS.search(options)
