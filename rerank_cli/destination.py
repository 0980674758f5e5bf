"""Where a run's rows, bad rows and report go: files that appear together when all is done, or stdout.

`FileDestination` hands each finished window to a job (`commit`), so a run that stops can be continued, and gives every
file its name at the end, the output last. Compressed rows are a gzip member or a zstd frame a window, so the output of
a continued run is that of an undisturbed one. `StdoutDestination` streams rows to stdout; bad rows and the report of
such a run are kept only where the user names a file for them.
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, Self, cast

from rerank_cli.commit import Files, Job, Terms, WorkFile, naming, place_file, remove_file, sha256_of, write_whole
from rerank_cli.errors import OutputError, UsageError
from rerank_cli.formats import jsonl
from rerank_cli.formats.compression import SUFFIXES, compressed, text_suffix
from rerank_cli.formats.inputs import FORMATS, STDIN, Input
from rerank_cli.formats.shapes import Selection, Shape
from rerank_cli.formats.sinks import JsonlSink, ParquetSink
from rerank_cli.records import RowError
from rerank_cli.stop import Stop

if TYPE_CHECKING:
    import pyarrow as pa

STDOUT = "-"


@dataclass(frozen=True, slots=True)
class Names:
    """What the user calls the outputs of a run; None is the default: beside `output`, or nowhere for stdout."""

    output: str
    errors: str | None = None
    report: str | None = None
    out_format: str = "auto"

    @property
    def files(self) -> dict[str, Path]:
        """The files by what they hold, the output last; stdout is none."""
        beside = "" if self.output == STDOUT else self.output
        paths = {
            "errors": self.errors or (beside and f"{beside}.errors.jsonl"),
            "report": self.report or (beside and f"{beside}.report.json"),
            "output": beside,
        }
        return {kind: Path(path) for kind, path in paths.items() if path}


class Destination(Protocol):
    """Where a run writes; a context manager that leaves nothing half-done.

    next_window, state, notes, completed: what an earlier process has done of the run, as `commit.Job` has them.
    """

    sink: JsonlSink | ParquetSink
    errors: ErrorRows
    next_window: int
    state: dict[str, Any] | None
    notes: list[Any]
    completed: dict[str, Any] | None

    def __enter__(self) -> Self:
        """Open what is written to."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take away what was not committed."""

    def end_window(self, window: int, state: Mapping[str, Any], note: Any) -> None:
        """All rows and bad rows of a window are written; `state` and `note` are for a later process."""

    def commit(self, document: dict[str, Any], stop: Stop) -> dict[str, Any]:
        """Finish rows, bad rows and the report `document`; returns the report as it was written."""

    @property
    def errors_file(self) -> str | None:
        """The path of the errors file, if the finished run has one."""


def open_destination(
    names: Names,
    shape: Shape,
    selection: Selection,
    *,
    inputs: Sequence[Input],
    overwrite: bool,
    terms: Terms | None = None,
) -> Destination:
    """The destination that `names` asks for; refuses what cannot be written before anything is computed.

    terms: how the job of a file is kept; without them nothing is left of a run that stops.
    """
    if output_format(names) == "parquet":
        _refuse_parquet_pipe(names)
    _refuse_clashes(names, inputs)
    terms = terms or Terms()
    if names.output == STDOUT:
        return StdoutDestination(names, shape, selection, files=terms.files)
    return FileDestination(names, shape, selection, inputs=inputs, overwrite=overwrite, terms=terms)


class ErrorRows:
    """Bad rows as lines of a stream. written: whether there are any."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.written = False

    def write(self, error: RowError) -> None:
        """Append one row."""
        self._stream.write(jsonl.error_row(error))
        self.written = True


class FileDestination:
    """Rows to a file; satisfies `Destination`. A window is held in memory until it is finished."""

    sink: JsonlSink | ParquetSink
    errors: ErrorRows

    def __init__(
        self,
        names: Names,
        shape: Shape,
        selection: Selection,
        *,
        inputs: Sequence[Input],
        overwrite: bool,
        terms: Terms,
    ) -> None:
        self._names = names
        self._shape = shape
        self._selection = selection
        self._like = next((item.path for item in inputs if item.format == "parquet"), None)
        self._out = Path(names.output)
        self._overwrite = overwrite
        self._terms = terms
        self._job = Job(self._out, terms)
        self._rows, self._bad = io.BytesIO(), io.BytesIO()
        self._has_errors = False
        if self._out.is_dir():
            raise OutputError(f"{self._out}: is a folder", hint="name a file in it")
        if self._out.exists() and not self._out.is_file():
            raise OutputError(f"{self._out}: is no regular file", hint="`--output -` writes to stdout")
        if not self._job.folder.exists():
            self.refuse_existing()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self._job)
            self.next_window, self.state = self._job.next_window, self._job.state
            self.notes, self.completed = self._job.notes, self._job.completed
            if self.completed is None:
                self._open_sink()
                self.errors = ErrorRows(self._bad)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def end_window(self, window: int, state: Mapping[str, Any], note: Any) -> None:
        """See `Destination`."""
        self._job.add(window, self._taken_rows(), _taken(self._bad), state, note)

    def commit(self, document: dict[str, Any], stop: Stop) -> dict[str, Any]:
        """See `Destination`."""
        job = self._job
        job.checkpoint()
        job.append(self._taken_rows())  # what belongs to the run as a whole (`score --top-n`)
        with naming(self._out):
            work = "rows"
            if isinstance(self.sink, ParquetSink):
                work = "output"
                self._write_table(self.sink, stop)
            elif not job.sizes[0]:
                job.append(compressed(b"", self._names.output))  # an empty file is no gzip and no zstd file
            found = job.path(work).stat()
            document |= {
                "output": {
                    "path": self._names.output,
                    "sha256": sha256_of(job.path(work)),
                    "bytes": found.st_size,
                    "modified_ns": found.st_mtime_ns,
                }
            }
            write_whole(job.path("report"), json_document(document), self._terms.files)
        with stop.held():
            job.complete({"work": work, "errors": job.sizes[1] > 0, "report": document})
            self.place()
        return document

    def place(self) -> None:
        """Give the files of a completed job their names."""
        completed = self._job.completed
        assert completed is not None, "nothing is placed before it is complete"
        files = self._names.files
        outdated = [] if completed["errors"] else [files["errors"]]
        names = {"errors": files["errors"]} if completed["errors"] else {}
        self._job.place({**names, "report": files["report"], completed["work"]: self._out}, outdated=outdated)
        self._has_errors = completed["errors"]

    @property
    def errors_file(self) -> str | None:
        """See `Destination`."""
        return str(self._names.files["errors"]) if self._has_errors else None

    def _open_sink(self) -> None:
        if output_format(self._names) == "parquet":
            self.sink = ParquetSink(
                self._rows, self._names.output, self._shape, self._selection, earlier=self._open_parts, like=self._like
            )
        else:
            self.sink = JsonlSink(self._rows, self._shape, self._selection)

    def _open_parts(self) -> list[pa.NativeFile]:
        """The tables so far, those of the running window behind the others."""
        import pyarrow as pa

        return [pa.OSFile(str(self._job.path("rows"))), pa.BufferReader(self._rows.getvalue())]

    def _taken_rows(self) -> bytes:
        data = _taken(self._rows)
        is_table = isinstance(self.sink, ParquetSink)
        return data if is_table or not data else compressed(data, self._names.output)

    def _write_table(self, sink: ParquetSink, stop: Stop) -> None:
        file = WorkFile(self._terms.files, self._job.path("output"))
        try:
            sink.finish(cast("BinaryIO", _Appending(file)), stop.check)
            file.sync()
        finally:
            file.close()

    def refuse_existing(self) -> None:
        """Raise `OutputError` if OUT is there and may not be replaced."""
        if self._out.exists() and not self._overwrite:
            raise OutputError(f"{self._out}: exists", hint="`--overwrite` replaces it when the run is complete")


class StdoutDestination:
    """Rows to stdout, flushed after each window; satisfies `Destination`. Nothing is kept for a later process."""

    sink: JsonlSink | ParquetSink
    errors: ErrorRows

    def __init__(self, names: Names, shape: Shape, selection: Selection, *, files: Files) -> None:
        self._names = names
        self._files = files
        self.sink = JsonlSink(sys.stdout.buffer, shape, selection, flush=True)
        self.next_window = 0
        self.state: dict[str, Any] | None = None
        self.notes: list[Any] = []
        self.completed: dict[str, Any] | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="rerank-cli-")))
        self._bad = self._stack.enter_context((self._folder / "errors").open("wb"))
        self.errors = ErrorRows(self._bad)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def end_window(self, window: int, state: Mapping[str, Any], note: Any) -> None:
        """See `Destination`."""

    def commit(self, document: dict[str, Any], stop: Stop) -> dict[str, Any]:
        """See `Destination`."""
        self._bad.close()
        files = self._names.files
        if report := files.get("report"):
            (self._folder / "report").write_bytes(json_document(document))
            self._place(self._folder / "report", report)
        if (errors := files.get("errors")) is not None:
            if self.errors.written:
                self._place(self._folder / "errors", errors)
            else:
                remove_file(errors, self._files)  # of an earlier run, whose bad rows are good now
        return document

    @property
    def errors_file(self) -> str | None:
        """See `Destination`."""
        return self._names.errors if self.errors.written else None

    def _place(self, work: Path, final: Path) -> None:
        with naming(final):
            place_file(work, final, self._files)


def json_document(document: Mapping[str, Any]) -> bytes:
    """A document, readable by people too; the bytes of a file name that is not UTF-8 stand as `\\udcff`."""
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode("utf-8", "backslashreplace")


class _Appending(io.RawIOBase):
    """A work file as a stream to write to."""

    def __init__(self, file: WorkFile) -> None:
        self._file = file

    def writable(self) -> bool:
        """Always."""
        return True

    def write(self, data: Any) -> int:
        """Append `data`."""
        self._file.append(data)
        return len(data)


def _taken(stream: io.BytesIO) -> bytes:
    """What a stream holds, which is empty then."""
    data = stream.getvalue()
    stream.seek(0)
    stream.truncate()
    return data


def output_format(names: Names) -> str:
    """`jsonl` or `parquet`."""
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
        raise UsageError(f"{twice}: two outputs in one file", hint="--output, --errors and --report differ")
