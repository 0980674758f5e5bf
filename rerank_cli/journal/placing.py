"""Give finished work files the names that the user chose, with the owner and mode of the files they replace.

Every step can be repeated after a crash.

An existing file is replaced only if `may_replace` allows it for that very file; what something else made during the
run is never replaced. The new file gets the owner, group and mode of the one that it replaces, as far as the user may
set them. It is checked once more under its new name: if it was changed at the last moment, it loses the name again.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import select
import stat
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

from rerank_cli.errors import OutputError
from rerank_cli.journal.files import Files, WorkFile, changed, naming
from rerank_cli.journal.seal import Seal, is_same_content
from rerank_cli.storage import UrlPath
from rerank_cli.storage.upload import put_together, upload

_COPIED_BYTES = 2**20
_FED_BYTES = 2**16
_POLL_MILLISECONDS = 200
_READER_SECONDS = 3.0  # a shell may start a pipe's reader a moment after us
_ACCESS_LIST = "system.posix_acl_access"

MayReplace = Callable[[Path, os.stat_result], bool]


def any_file(_path: Path, _found: os.stat_result) -> bool:
    """A `MayReplace` that allows everything."""
    return True


def place_file(
    work: Path,
    final: Path,
    files: Files,
    *,
    may_replace: MayReplace = any_file,
    seal: Seal | None = None,
    job: str | None = None,
) -> None:
    """Rename `work` to `final`; if that is a pipe or a device (/dev/null), write the content into it.

    Args:
        work: the finished file.
        final: its final path. If it is on another file system (`--errors`, `--report`), a copy is made beside it first.
        files: the calls that write.
        may_replace: whether an existing file may be replaced.
        seal: the bytes that `work` must have, if they are known.
        job: the job that uploads an object.
    """
    if isinstance(final, UrlPath):
        try:
            upload(work, final, may_replace=may_replace, job=job)
        except FileExistsError as error:
            raise _made_by_others(final) from error
        files.unlink(work)
        return
    if is_special(final):
        feed(work, final, seal=seal)
        files.unlink(work)
        return
    try:
        _rename(work, final, files, may_replace, None if seal is None else seal.seen)
    except OSError as error:
        if error.errno == errno.ENOENT and not os.path.lexists(work):
            raise changed(work, "it is gone") from error
        if error.errno != errno.EXDEV:
            raise
        _copy_and_rename(work, final, files, may_replace, seal)


def is_special(path: Path) -> bool:
    """Whether `path` is a pipe or a device. A URL never is, and no store is asked."""
    return not isinstance(path, UrlPath) and path.exists() and not path.is_file()


def feed(
    work: Path,
    final: Path,
    descriptor: int | None = None,
    check: Callable[[], None] = lambda: None,
    *,
    seal: Seal | None = None,
) -> None:
    """Write the content of `work` into the pipe or device `final`.

    Raises `OutputError` for a pipe that nobody reads, and at the end if the bytes were not those of `seal`.

    Args:
        work: the finished file.
        final: the pipe or device.
        descriptor: of `final`, if it is open already.
        check: called again and again while the reader is slow.
        seal: the bytes that `work` must have, if they are known.
    """
    size, digest = 0, hashlib.sha256()
    with ExitStack() as stack:
        if descriptor is None:
            descriptor = open_special(final)
            stack.callback(os.close, descriptor)
        poll = select.poll()
        poll.register(descriptor, select.POLLOUT)
        with work.open("rb") as source:
            while data := source.read(_FED_BYTES):
                size += len(data)
                digest.update(data)
                left = memoryview(data)
                while left:
                    check()
                    try:
                        left = left[os.write(descriptor, left) :]
                    except BlockingIOError:
                        poll.poll(_POLL_MILLISECONDS)
    if seal and not seal.is_of_bytes(size, digest.hexdigest()):
        raise changed(work, f"other bytes went into {final}")


def open_special(path: Path) -> int:
    """A descriptor to write into a pipe or a device. A pipe must get a reader within `_READER_SECONDS`."""
    deadline = time.monotonic() + _READER_SECONDS
    while True:
        try:
            return os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            if not path.is_fifo():
                raise OutputError(f"{path}: cannot be written: is a socket, or a device that is missing") from error
            if time.monotonic() > deadline:
                raise OutputError(f"{path}: nobody reads this pipe", hint="start its reader first") from error
        time.sleep(_POLL_MILLISECONDS / 4000)


def remove_file(path: Path, files: Files) -> None:
    """Remove a regular file, if there is one."""
    if path.is_file():
        files.unlink(path)


def write_whole(path: Path, data: bytes, files: Files) -> None:
    """Write a file with exactly these bytes, and return when they are on disk."""
    target = WorkFile(files, path)
    try:
        target.cut(0)
        target.append(data)
        target.sync()
    finally:
        target.close()


def write_file(final: Path, data: bytes, files: Files, *, may_replace: MayReplace = any_file) -> None:
    """Write a file that appears whole under its name or not at all."""
    with ExitStack() as stack:
        stack.enter_context(naming(final))
        if isinstance(final, UrlPath):
            part = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rerank-cli-"))) / final.name
        else:
            part = _part_of(final)
        try:
            write_whole(part, data, files)
            place_file(part, final, files, may_replace=may_replace)
        finally:
            with suppress(OSError):
                files.unlink(part)


def place_together(works: Mapping[Path, UrlPath], files: Files, may_replace: MayReplace) -> None:
    """Put files into data sets of the Hub, one commit per data set."""
    try:
        put_together(works, may_replace)
    except FileExistsError as error:
        raise _made_by_others(next(iter(works.values()))) from error
    for work in works:
        files.unlink(work)


def _part_of(final: Path) -> Path:
    """An unused name beside `final`."""
    return final.with_name(f"{final.name}.{secrets.token_hex(4)}.part")


def _rename(work: Path, final: Path, files: Files, may_replace: MayReplace, seen: os.stat_result | None = None) -> None:
    """Rename `work` to `final`. seen: the stat of `work` when its bytes were compared."""
    seen = seen or work.lstat()
    try:
        found = final.lstat()
    except FileNotFoundError:
        found = None
    if found is not None and os.path.samestat(found, work.lstat()):
        files.unlink(work)  # a crash left it with both names
        return
    if found is not None and not may_replace(final, found):
        raise _made_by_others(final)
    try:
        if found is None:
            files.place(work, final)
        else:
            _keep_owner_and_mode(work, final)
            files.rename(work, final)
    except FileExistsError as error:
        raise _made_by_others(final) from error
    if not is_same_content(final.lstat(), seen):
        files.rename(final, work)
        raise changed(work, "it was touched while it got its name")


def _keep_owner_and_mode(work: Path, final: Path) -> None:
    """Give `work` the owner, mode and access control list of the file that it replaces."""
    old, new = final.stat() if final.exists() else final.lstat(), work.lstat()
    if not stat.S_ISREG(old.st_mode):  # a link to nothing
        return
    for owner, group in ((old.st_uid, old.st_gid), (-1, old.st_gid)):
        if (new.st_uid if owner < 0 else owner, group) == (new.st_uid, new.st_gid):
            break
        try:
            os.chown(work, owner, group, follow_symlinks=False)
            break
        except PermissionError:
            continue  # only root may change the owner
    work.chmod(stat.S_IMODE(old.st_mode) & 0o777)
    with suppress(OSError):
        os.setxattr(work, _ACCESS_LIST, os.getxattr(final, _ACCESS_LIST))


def _copy_and_rename(work: Path, final: Path, files: Files, may_replace: MayReplace, seal: Seal | None) -> None:
    part = _part_of(final)
    try:
        target = WorkFile(files, part, is_new=True)
        try:
            with work.open("rb") as source:
                while data := source.read(_COPIED_BYTES):
                    target.append(data)
            target.sync()
            if seal and not seal.is_of_bytes(*target.seal()):
                raise changed(work, "it was touched while it got its name")
            seen = target.stat()
        finally:
            target.close()
        _rename(part, final, files, may_replace, seen)
    except BaseException:
        with suppress(OSError):
            files.unlink(part)
        raise
    files.unlink(work)


def _made_by_others(final: Path) -> OutputError:
    return OutputError(
        f"{final}: was made or changed by something else during the run, and is not replaced",
        hint="move it away, or add `--overwrite`, and run the same command again: nothing is computed twice",
    )
