"""Whether a folder that is called `OUT.job` is one that this program has made; another one is left as it is.

Ours is an empty folder (a run was killed before its first file), one with a lock that names a process, or one whose
journal begins with a record of a job. While a process takes the lock, the lock is empty, or torn where the process is
killed: then a journal lies beside it, or nothing that has content. The folder belongs to the user of this process;
where the mount says otherwise of all files (CIFS with `uid=`), to whom a new file there belongs.
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
    """`OutputError` if `folder` is there and was not made by a run of this user."""
    try:
        found = folder.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(found.st_mode):
        what = "is a link" if stat.S_ISLNK(found.st_mode) else "is no folder"
        raise OutputError(
            f"{folder}: {what}, and the work on this output needs that name",
            hint="move it away, or name another output",
        )
    if found.st_uid != os.geteuid() and found.st_uid != _owner_of_new_files(folder.parent):
        raise _foreign(folder, f"belongs to another user (uid {found.st_uid})")
    names = sorted(path.name for path in folder.iterdir())
    if names and not _is_work_folder(folder, names):
        shown = ", ".join(f"`{name}`" for name in names[:5]) + " ..." * (len(names) > 5)
        raise _foreign(folder, f"is no work folder of this program: it holds {shown}")


def _is_work_folder(folder: Path, names: list[str]) -> bool:
    lock, journal = _head(folder / "lock"), _head(folder / "journal")
    if is_lock(lock) or (journal.startswith(_JOURNAL_BEGINS) and _JOB in journal):
        return True
    if journal or "lock" not in names or not _is_torn(lock):
        return False
    return "journal" in names or all((folder / name).lstat().st_size == 0 for name in names if name != "lock")


def _is_torn(lock: bytes) -> bool:
    """Whether a lock is empty, or what a process had written of its own when it was killed."""
    return lock.startswith(_LOCK_BEGINS[: len(lock)]) and len(lock) <= _TORN_BYTES


def _head(path: Path) -> bytes:
    """The first bytes of a regular file; none of anything else."""
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
        f"{folder}: {what}, and the work on this output needs that name", hint="move it away, or name another output"
    )
