"""Where a run's rows, bad rows and report go: files that appear together when all is done, or stdout.

`FileDestination` works in `OUT.job/` and gives every file its name at the end, the output last. `StdoutDestination`
streams rows to stdout; bad rows and the report of such a run are kept only where the user names a file for them.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Protocol, Self

from rerank_cli.errors import OutputError, UsageError
from rerank_cli.formats.compression import SUFFIXES, open_output, text_suffix
from rerank_cli.formats.inputs import FORMATS, STDIN, Input
from rerank_cli.formats.output import (
    ErrorFile,
    JobFolder,
    move_file,
    output_error,
    remove_file,
    sha256_of,
    write_json,
)
from rerank_cli.formats.shapes import Selection, Shape
from rerank_cli.formats.sinks import JsonlSink, ParquetSink

STDOUT = "-"


@dataclass(frozen=True, slots=True)
class Names:
    """What the user calls the outputs of a run; None is the default: beside `output`, or nowhere for stdout."""

    output: str
    errors: str | None = None
    report: str | None = None
    out_format: str = "auto"
    embeddings: str | None = None

    @property
    def files(self) -> dict[str, Path]:
        """The files by what they hold, the output last; stdout is none."""
        beside = "" if self.output == STDOUT else self.output
        paths = {
            "errors": self.errors or (beside and f"{beside}.errors.jsonl"),
            "report": self.report or (beside and f"{beside}.report.json"),
            "embeddings": self.embeddings,
            "output": beside,
        }
        return {kind: Path(path) for kind, path in paths.items() if path}


class Destination(Protocol):
    """Where a run writes; a context manager that leaves nothing half-done."""

    sink: JsonlSink | ParquetSink
    errors: ErrorFile

    def __enter__(self) -> Self:
        """Open what is written to."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take away what was not committed."""

    def path(self, kind: str) -> Path:
        """Where a file of the run, named by `Names.files`, is written before it is complete."""

    def commit(self, document: dict[str, Any]) -> str | None:
        """Finish rows, bad rows and the report `document`; returns the path of the errors file, if there is one."""


def open_destination(
    names: Names, shape: Shape, selection: Selection, *, inputs: Sequence[Input], overwrite: bool
) -> Destination:
    """The destination that `names` asks for; refuses what cannot be written before anything is computed."""
    if _output_format(names) == "parquet":
        _refuse_parquet_pipe(names)
    _refuse_clashes(names, inputs)
    if names.embeddings and Path(names.embeddings).exists() and not overwrite:
        raise OutputError(f"{names.embeddings}: exists", hint="`--overwrite` replaces it when the run is complete")
    if names.output == STDOUT:
        return StdoutDestination(names, shape, selection)
    return FileDestination(names, shape, selection, inputs=inputs, overwrite=overwrite)


class FileDestination:
    """Rows to a file; satisfies `Destination`."""

    sink: JsonlSink | ParquetSink
    errors: ErrorFile

    def __init__(
        self, names: Names, shape: Shape, selection: Selection, *, inputs: Sequence[Input], overwrite: bool
    ) -> None:
        self._names = names
        self._shape = shape
        self._selection = selection
        self._like = next((item.path for item in inputs if item.format == "parquet"), None)
        self._job = JobFolder(Path(names.output), overwrite=overwrite)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self._job)
            path = self._job.path("output")
            if _output_format(self._names) == "parquet":
                self.sink = ParquetSink(path, self._names.output, self._shape, self._selection, like=self._like)
            else:
                raw = stack.enter_context(path.open("wb"))
                stream = open_output(raw, self._names.output)
                stack.callback(_close_quietly, stream)
                self.sink = JsonlSink(stream, self._shape, self._selection, closing=[stream.close, raw.close])
            self.errors = ErrorFile(self._job.path("errors"))
            stack.callback(self.errors.close)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def path(self, kind: str) -> Path:
        """See `Destination`."""
        return self._job.path(kind)

    def commit(self, document: dict[str, Any]) -> str | None:
        """See `Destination`."""
        self.sink.close()
        files = self._names.files
        digest = sha256_of(self._job.path("output"))
        write_json(self._job.path("report"), document | {"output": {"path": self._names.output, "sha256": digest}})
        errors = files["errors"]
        if not self.errors.close():
            del files["errors"]
            self._job.commit(files, outdated=[errors])
            return None
        self._job.commit(files)
        return str(errors)


class StdoutDestination:
    """Rows to stdout, flushed after each window; satisfies `Destination`."""

    sink: JsonlSink | ParquetSink
    errors: ErrorFile

    def __init__(self, names: Names, shape: Shape, selection: Selection) -> None:
        self._names = names
        stream: BinaryIO = sys.stdout.buffer
        self.sink = JsonlSink(stream, shape, selection, flush=True, closing=[stream.flush])
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        # Vectors may be gigabytes: they are written where they will lie.
        beside = Path(self._names.embeddings).parent if self._names.embeddings else None
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="rerank-cli-", dir=beside)))
        self.errors = ErrorFile(self._folder / "errors")
        self._stack.callback(self.errors.close)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def path(self, kind: str) -> Path:
        """See `Destination`."""
        return self._folder / kind

    def commit(self, document: dict[str, Any]) -> str | None:
        """See `Destination`."""
        self.sink.close()
        files = self._names.files
        if embeddings := files.get("embeddings"):
            _place(self.path("embeddings"), embeddings)
        has_errors = self.errors.close()
        if report := files.get("report"):
            write_json(self._folder / "report", document)
            _place(self._folder / "report", report)
        if (errors := files.get("errors")) is None:
            return None
        if has_errors:
            _place(self._folder / "errors", errors)
            return str(errors)
        remove_file(errors)  # of an earlier run, whose bad rows are good now
        return None


def _place(work: Path, final: Path) -> None:
    try:
        move_file(work, final)
    except OSError as error:
        raise output_error(final, error) from error


def _close_quietly(stream: BinaryIO) -> None:
    """Close a stream whose file goes away, or that has been closed; what cannot be written then does not matter."""
    with suppress(OSError, ValueError):
        stream.close()


def _output_format(names: Names) -> str:
    if names.out_format not in ("auto", "jsonl", "parquet"):
        raise UsageError(f"--out-format {names.out_format}: not known", hint="known are auto, jsonl, parquet")
    if names.out_format != "auto":
        return names.out_format
    found = "jsonl" if names.output == STDOUT else FORMATS.get(text_suffix(names.output))
    if found == "parquet" and Path(names.output.lower()).suffix in SUFFIXES:
        raise UsageError(f"--output {names.output}: Parquet compresses itself", hint="end the name in .parquet")
    if found is None:
        raise UsageError(
            f"--output {names.output}: the suffix tells no format",
            hint="end the name in .jsonl or .parquet, or pass `--out-format`",
        )
    return found


def _refuse_parquet_pipe(names: Names) -> None:
    if names.output == STDOUT:
        raise UsageError("--output -: Parquet cannot be written to a pipe", hint="give the name of a file")


def _refuse_clashes(names: Names, inputs: Sequence[Input]) -> None:
    """Two outputs in one file, an output that is an input, or one in no folder."""
    taken = [Path(item.path) for item in inputs if item.path != STDIN]
    for kind, path in reversed(names.files.items()):
        if not path.parent.is_dir():
            raise OutputError(f"{path}: cannot be written: its folder does not exist")
        if kind != "output" and path.is_dir():
            raise OutputError(f"{path}: is a folder")
        if path.is_file() and any(other.is_file() and path.samefile(other) for other in taken):
            raise UsageError(f"{path}: would replace an input", hint="write to another file")
    written = [path.resolve() for path in names.files.values() if path.is_file() or not path.exists()]
    twice = next((path for path in written if written.count(path) > 1), None)
    if twice is not None:
        raise UsageError(
            f"{twice}: two outputs in one file", hint="--output, --errors, --report and --embeddings differ"
        )
