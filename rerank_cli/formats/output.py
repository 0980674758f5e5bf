"""Outputs that appear under their name only when they are complete.

While a run goes on, what it writes lies in `OUT.job/`, on the same file system as `OUT`. At the end each file is
brought to disk (fsync), renamed, and the folder that names it is brought to disk too: whoever finds `OUT` finds all of
it. A run that fails or is stopped takes its folder with it and leaves an older `OUT` as it was.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from rerank_cli.errors import OutputError, UsageError
from rerank_cli.formats import jsonl
from rerank_cli.records import RowError


class JobFolder:
    """The work folder of one output. A context manager: without `commit` nothing of the run remains.

    Raises `OutputError` where `OUT` exists and may not be overwritten, or where its folder cannot be written to.
    """

    def __init__(self, out: Path, *, inputs: Iterable[str], overwrite: bool) -> None:
        self.out = out
        self._folder = out.with_name(out.name + ".job")
        for path in inputs:
            if out.exists() and Path(path).exists() and out.samefile(path):
                raise UsageError(f"{out}: is also an input", hint="write to another file")
        if out.exists() and not overwrite:
            raise OutputError(f"{out}: exists", hint="`--overwrite` replaces it when the run is complete")
        if out.is_dir():
            raise OutputError(f"{out}: is a folder")

    def __enter__(self) -> Self:
        try:
            if self._folder.exists():
                shutil.rmtree(self._folder)  # of a run that was killed
            self._folder.mkdir()
        except OSError as error:
            raise _output_error(self._folder, error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def path(self, name: str) -> Path:
        """Where a file of the run is written before it is complete."""
        return self._folder / name

    def commit(self, files: dict[str, Path]) -> None:
        """Bring the files (work name -> final path) to disk and give them their names, in the order given."""
        try:
            for name in files:
                with self.path(name).open("rb") as stream:
                    os.fsync(stream.fileno())
            for name, final in files.items():
                _move(self.path(name), final)
            for folder in {final.parent for final in files.values()}:
                _sync_folder(folder)
        except OSError as error:
            raise _output_error(self.out, error) from error


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


def _move(work: Path, final: Path) -> None:
    """Rename, through a copy beside `final` where that lies on another file system (`--errors`, `--report`)."""
    try:
        work.replace(final)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        part = final.with_name(final.name + ".part")
        shutil.copyfile(work, part)
        with part.open("rb") as stream:
            os.fsync(stream.fileno())
        part.replace(final)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _output_error(path: Path, error: OSError) -> OutputError:
    return OutputError(f"{path}: {error.strerror or error}")
