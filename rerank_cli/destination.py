"""Where a run's rows, bad rows and report go: files that appear together when all is done, or stdout.

`FileDestination` works in `OUT.job/` and gives every file its name at the end, the output last. `StdoutDestination`
streams rows to stdout; bad rows and the report of such a run are kept only where the user names a file for them.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Protocol, Self

from rerank_cli.errors import UsageError
from rerank_cli.formats.compression import open_output, text_suffix
from rerank_cli.formats.inputs import FORMATS
from rerank_cli.formats.output import ErrorFile, JobFolder
from rerank_cli.formats.shapes import Selection, Shape
from rerank_cli.formats.sinks import JsonlSink, ParquetSink
from rerank_cli.report import sha256_of, write_json

STDOUT = "-"


@dataclass(frozen=True, slots=True)
class Names:
    """What the user calls the outputs of a run; None is the default: beside `output`, or nowhere for stdout."""

    output: str
    errors: str | None = None
    report: str | None = None
    out_format: str = "auto"


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

    def commit(self, document: dict[str, Any]) -> str | None:
        """Finish rows, bad rows and the report `document`; returns the path of the errors file, if there is one."""


def open_destination(
    names: Names, shape: Shape, selection: Selection, *, inputs: Iterable[str], overwrite: bool
) -> Destination:
    """The destination that `names` asks for; refuses what cannot be written before anything is computed."""
    if _output_format(names) == "parquet":
        _refuse_parquet_pipe(names)
    if names.output == STDOUT:
        return StdoutDestination(names, shape, selection)
    return FileDestination(names, shape, selection, inputs=inputs, overwrite=overwrite)


class FileDestination:
    """Rows to a file; satisfies `Destination`."""

    sink: JsonlSink | ParquetSink
    errors: ErrorFile

    def __init__(
        self, names: Names, shape: Shape, selection: Selection, *, inputs: Iterable[str], overwrite: bool
    ) -> None:
        self._names = names
        self._shape = shape
        self._selection = selection
        self._job = JobFolder(Path(names.output), inputs=inputs, overwrite=overwrite)

    def __enter__(self) -> Self:
        self._job.__enter__()
        path = self._job.path("output")
        if _output_format(self._names) == "parquet":
            self.sink = ParquetSink(path, self._names.output, self._shape, self._selection)
        else:
            raw = path.open("wb")
            stream = open_output(raw, self._names.output)
            closing = [stream.close, raw.close] if stream is not raw else [raw.close]
            self.sink = JsonlSink(stream, self._shape, self._selection, closing=closing)
        self.errors = ErrorFile(self._job.path("errors"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._job.__exit__(kind, error, trace)

    def commit(self, document: dict[str, Any]) -> str | None:
        """See `Destination`."""
        self.sink.close()
        output = Path(self._names.output)
        errors = Path(self._names.errors or f"{output}.errors.jsonl")
        report = Path(self._names.report or f"{output}.report.json")
        files = {"report": report, "output": output}
        if self.errors.close():
            files = {"errors": errors, **files}
        else:
            errors.unlink(missing_ok=True)  # of an earlier run, whose bad rows are good now
        digest = sha256_of(self._job.path("output"))
        write_json(self._job.path("report"), document | {"output": {"path": str(output), "sha256": digest}})
        self._job.commit(files)
        return str(errors) if "errors" in files else None


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
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="rerank-cli-"))
        self.errors = ErrorFile(Path(folder) / "errors")
        self._errors_path = Path(folder) / "errors"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def commit(self, document: dict[str, Any]) -> str | None:
        """See `Destination`."""
        self.sink.close()
        if self._names.report:
            write_json(Path(self._names.report), document)
        has_errors = self.errors.close()
        if not self._names.errors:
            return None
        if not has_errors:
            Path(self._names.errors).unlink(missing_ok=True)
            return None
        Path(self._names.errors).write_bytes(self._errors_path.read_bytes())
        return self._names.errors


def _output_format(names: Names) -> str:
    if names.out_format not in ("auto", "jsonl", "parquet"):
        raise UsageError(f"--out-format {names.out_format}: not known", hint="known are auto, jsonl, parquet")
    if names.out_format != "auto":
        return names.out_format
    found = "jsonl" if names.output == STDOUT else FORMATS.get(text_suffix(names.output))
    if found is None:
        raise UsageError(
            f"--output {names.output}: the suffix tells no format",
            hint="end the name in .jsonl or .parquet, or pass `--out-format`",
        )
    return found


def _refuse_parquet_pipe(names: Names) -> None:
    if names.output == STDOUT:
        raise UsageError("--output -: Parquet cannot be written to a pipe", hint="give the name of a file")
