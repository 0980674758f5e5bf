"""Finished work files get the names that the user gave them. Every step can be repeated after a crash."""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import suppress
from pathlib import Path

from rerank_cli.journal.files import Files, WorkFile, naming

_COPIED_BYTES = 2**20


def place_file(work: Path, final: Path, files: Files) -> None:
    """Give `work` the name `final`; what is no regular file, such as /dev/null, stays and takes the content.

    Where `final` lies on another file system (`--errors`, `--report`) a copy is made beside it first.
    """
    if final.exists() and not final.is_file():
        with work.open("rb") as source, final.open("wb") as target:
            shutil.copyfileobj(source, target)
        files.unlink(work)
        return
    try:
        files.rename(work, final)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _copy_and_rename(work, final, files)


def remove_file(path: Path, files: Files) -> None:
    """Remove a regular file, if there is one."""
    if path.is_file():
        files.unlink(path)


def write_whole(path: Path, data: bytes, files: Files) -> None:
    """A file with exactly these bytes, on disk."""
    target = WorkFile(files, path)
    try:
        target.cut(0)
        target.append(data)
        target.sync()
    finally:
        target.close()


def write_file(final: Path, data: bytes, files: Files) -> None:
    """Write a file that appears whole under its name or not at all."""
    part = final.with_name(f"{final.name}.{os.getpid()}.part")
    with naming(final):
        try:
            write_whole(part, data, files)
            place_file(part, final, files)
        finally:
            with suppress(OSError):
                files.unlink(part)


def _copy_and_rename(work: Path, final: Path, files: Files) -> None:
    part = final.with_name(f"{final.name}.{os.getpid()}.part")
    try:
        target = WorkFile(files, part)
        try:
            with work.open("rb") as source:
                while data := source.read(_COPIED_BYTES):
                    target.append(data)
            target.sync()
        finally:
            target.close()
        files.rename(part, final)
    except BaseException:
        with suppress(OSError):
            files.unlink(part)
        raise
    files.unlink(work)
