"""Outputs that appear under their name only when they are complete.

While a run goes on, what it writes lies in `OUT.job/`, on the same file system as `OUT`. At the end each file is
brought to disk (fsync), renamed, and the folder that names it is brought to disk too: whoever finds `OUT` finds all of
it. A run that fails or is stopped takes its folder with it and leaves an older `OUT` as it was.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from rerank_cli.errors import OutputError
from rerank_cli.formats import jsonl
from rerank_cli.records import RowError


class JobFolder:
    """The work folder of one output. A context manager: without `commit` nothing of the run remains.

    Raises `OutputError` where `OUT` exists and may not be overwritten, or where its folder cannot be written to.
    """

    def __init__(self, out: Path, *, overwrite: bool) -> None:
        self.out = out
        self._folder = out.with_name(out.name + ".job")
        if out.is_dir():
            raise OutputError(f"{out}: is a folder", hint="name a file in it")
        if out.exists() and not out.is_file():
            raise OutputError(f"{out}: is no regular file", hint="`--output -` writes to stdout")
        if out.exists() and not overwrite:
            raise OutputError(f"{out}: exists", hint="`--overwrite` replaces it when the run is complete")

    def __enter__(self) -> Self:
        try:
            if self._folder.exists():
                shutil.rmtree(self._folder)  # of a run that was killed
            self._folder.mkdir()
        except OSError as error:
            raise output_error(self.out, error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def path(self, name: str) -> Path:
        """Where a file of the run is written before it is complete."""
        return self._folder / name

    def commit(self, files: dict[str, Path], *, outdated: Sequence[Path] = ()) -> None:
        """Bring the files (work name -> final path) to disk and give them their names, in the order given.

        outdated: files of an earlier run that this one has not; they go when nothing is left to do but the renames.
        """
        path = self.out
        try:
            for name in files:
                with self.path(name).open("rb") as stream:
                    os.fsync(stream.fileno())
            for path in outdated:
                remove_file(path)
            for name, path in files.items():
                move_file(self.path(name), path)
            for folder in {final.parent for final in files.values()}:
                _sync_folder(folder)
        except OSError as error:
            raise output_error(path, error) from error


class ErrorFile:
    """Collects error rows in a file that exists only if there are any."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stream: BinaryIO | None = None
        self.first: RowError | None = None

    def write(self, error: RowError) -> None:
        """Append one row."""
        if self._stream is None:
            self._stream = self._path.open("wb")
            self.first = error
        self._stream.write(jsonl.error_row(error))

    def close(self) -> bool:
        """Finish the file; returns whether there is one."""
        if self._stream is None:
            return False
        self._stream.close()
        return True


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write a document, readable by people too; the bytes of a file name that is not UTF-8 stand as `\\udcff`."""
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    path.write_text(text, encoding="utf-8", errors="backslashreplace")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def move_file(work: Path, final: Path) -> None:
    """Give `work` the name `final`; what is no regular file, such as /dev/null, stays and takes the content.

    Where `final` lies on another file system (`--errors`, `--report`) a copy is made beside it first.
    """
    if final.exists() and not final.is_file():
        with work.open("rb") as source, final.open("wb") as target:
            shutil.copyfileobj(source, target)
        return
    try:
        work.replace(final)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _copy_and_rename(work, final)


def remove_file(path: Path) -> None:
    """Remove a regular file, if there is one."""
    if path.is_file():
        path.unlink()


def output_error(path: Path, error: OSError) -> OutputError:
    """What the operating system says against writing `path`."""
    hint = f"make the folder `{path.parent}` first" if error.errno == errno.ENOENT else None
    return OutputError(f"{path}: cannot be written: {error.strerror or error}", hint=hint)


def _copy_and_rename(work: Path, final: Path) -> None:
    part = final.with_name(final.name + ".part")
    try:
        shutil.copyfile(work, part)
        with part.open("rb") as stream:
            os.fsync(stream.fileno())
        part.replace(final)
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
