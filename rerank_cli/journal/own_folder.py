"""Whether this program made a folder called `OUT.job`; any other folder is left alone.

A folder is ours if it is empty (a run was killed before its first file), if its lock names a process, or if its journal
begins with the record of a job. The lock itself may be empty or torn, if a process was killed while it took the lock:
then a journal lies beside it, or only empty files. The folder must belong to the user of this process, or to whoever
owns a new file there: some mounts give all files one owner (CIFS with `uid=`).
"""

from __future__ import annotations

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from rerank_cli.errors import OutputError
from rerank_cli.journal.lock import is_lock

_HEAD_BYTES = 4096
_JOURNAL_BEGINS = b'["'
_LOCK_BEGINS = b'{"pid": '
_TORN_BYTES = 400  # a lock is some 100 bytes, and a host's name at most 255
_JOB = b'"kind":"job"'


def refuse_foreign_folder(folder: Path) -> None:
    """`OutputError` if `folder` exists and was not made by a run of this user."""
    try:
        found = folder.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(found.st_mode):
        raise _foreign(folder, "is a link" if stat.S_ISLNK(found.st_mode) else "is not a folder")
    if found.st_uid != os.geteuid() and found.st_uid != _owner_of_new_files(folder.parent):
        raise _foreign(folder, f"belongs to another user (uid {found.st_uid})")
    names = sorted(path.name for path in folder.iterdir())
    if names and not _is_work_folder(folder, names):
        shown = ", ".join(f"`{name}`" for name in names[:5]) + " ..." * (len(names) > 5)
        raise _foreign(folder, f"is not a work folder of this program: it holds {shown}")


def _is_work_folder(folder: Path, names: list[str]) -> bool:
    lock, journal = _head(folder / "lock"), _head(folder / "journal")
    if is_lock(lock) or (journal.startswith(_JOURNAL_BEGINS) and _JOB in journal):
        return True
    is_torn = len(lock) <= _TORN_BYTES and lock.startswith(_LOCK_BEGINS[: len(lock)])
    if journal or "lock" not in names or not is_torn:  # torn: empty, or the beginning of what a process writes into it
        return False
    return "journal" in names or all((folder / name).lstat().st_size == 0 for name in names if name != "lock")


def _head(path: Path) -> bytes:
    """The first bytes of a regular file; empty for anything else."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            return os.pread(descriptor, _HEAD_BYTES, 0) if stat.S_ISREG(os.fstat(descriptor).st_mode) else b""
        finally:
            os.close(descriptor)
    return b""


def _owner_of_new_files(folder: Path) -> int:
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            return os.fstat(probe.fileno()).st_uid
    except OSError:
        return os.geteuid()


def _foreign(folder: Path, what: str) -> OutputError:
    return OutputError(
        f"{folder}: {what}, but this output's work folder needs the name", hint="move it away, or name another output"
    )
