"""Where a run's rows, bad rows and report go: files that get their names when the run is complete, or stdout.

`FileDestination` hands each finished window to a job (`journal/`), so that a stopped run can be resumed, and gives all
files their names at the end, the output last. Compressed rows are a gzip member or a zstd frame per window, so a
resumed run writes the same bytes as an undisturbed one. `StdoutDestination` streams rows to stdout; bad rows and the
report of such a run are kept only if the user names files for them.

Over 400 lines: the two destinations implement the same calls, and are read side by side.
"""

from __future__ import annotations

import io
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, Self

from rerank_cli.errors import InputError, OutputError
from rerank_cli.formats.compression import SUFFIXES, compress, open_input
from rerank_cli.formats.inputs import STDIN, Input
from rerank_cli.formats.jsonl import dump_document
from rerank_cli.formats.separated_sink import SEPARATORS, SeparatedSink
from rerank_cli.formats.shapes import Selection, Shape
from rerank_cli.formats.sinks import JsonlSink, ParquetSink
from rerank_cli.job.options import STDOUT, Names
from rerank_cli.job.output_format import output_format, refuse_table_pipe
from rerank_cli.job.run_paths import RunPaths, folders_of
from rerank_cli.job.stop import Stop
from rerank_cli.journal import (
    Files,
    Job,
    Terms,
    Watch,
    WorkFile,
    feed,
    is_special,
    naming,
    place_file,
    remove_file,
    write_file,
)
from rerank_cli.records import RowError
from rerank_cli.report.page import render_report
from rerank_cli.storage import is_url, path_of

if TYPE_CHECKING:
    import pyarrow as pa

_BUFFER_BYTES = 2**20
_LOOK_SECONDS = 1.0  # between two checks of what a run to stdout reads


class Destination(Protocol):
    """Where a run writes; a context manager that leaves nothing half-done.

    A run of an embedding model has more members than rows and errors (`kept_vectors.py`). next_window, state, notes and
    completed are those of `journal.Job`: what an earlier process of the run has done.
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
        """Remove what was not committed."""

    def end_window(self, window: int, state: Mapping[str, Any], note: Any, more: Mapping[str, bytes]) -> None:
        """Take a window whose rows and bad rows are all written.

        Args:
            window: Its number.
            state: Of the run, for a later process.
            note: On the window, for a later process.
            more: What the window adds to other members.
        """

    def path(self, name: str) -> Path:
        """The path of a member, or of a file that is not complete yet."""

    def reading(self) -> AbstractContextManager[None]:
        """Inside, members may be read by their paths; `OutputError` if something else has changed them."""

    def writing(self, name: str) -> AbstractContextManager[BinaryIO]:
        """A file of the run, by its name in `Names.files`, that is written in one go after the last window.

        Inside, members may be read, as in `reading`.
        """

    def commit(self, document: dict[str, Any], stop: Stop) -> dict[str, Any]:
        """Finish rows, bad rows and the report `document`; returns the report as written."""

    def give_up(self) -> str | None:
        """End a run that scored no row: keep only its bad rows. Returns the path of the errors file, if there is one.

        An older output and its report are left as they are.
        """

    @property
    def holds_rows(self) -> bool:
        """Whether an older output exists and is not empty."""

    @property
    def errors_file(self) -> str | None:
        """The path of the errors file, if the finished run has one."""


def open_destination(  # noqa: PLR0913 (all that a run has decided by then)
    names: Names,
    shape: Shape,
    selection: Selection,
    *,
    inputs: Sequence[Input],
    overwrite: bool,
    terms: Terms | None = None,
    members: Sequence[str] = (),
    paths: RunPaths | None = None,
) -> Destination:
    """The destination for `names`; refuses what cannot be written, before anything is computed.

    Args:
        names: What the run writes.
        shape: Of the rows.
        selection: What is kept of each list.
        inputs: What the run reads.
        overwrite: Existing files may be replaced.
        terms: How the job is kept; without them a stopped run keeps nothing.
        members: Of the job, besides rows and errors.
        paths: All that the run reads and writes; by default it reads only `inputs`.
    """
    refuse_table_pipe(names)
    paths = paths or paths_of_inputs(names, inputs, overwrite=overwrite)
    terms = terms or Terms()
    if names.output == STDOUT:
        paths.refuse_existing()
        return StdoutDestination(names, shape, selection, files=terms.files, paths=paths, watch=terms.watch)
    like = next((item.path for item in inputs if item.format == "parquet"), None)
    if like is not None and output_format(names) != "parquet":  # its rows become JSON objects
        # Imported here, because pyarrow takes 0.2 s, which a run on JSONL does not need.
        from rerank_cli.formats import parquet_reader

        columns = parquet_reader.column_names(like)
        twice = next((name for name in columns if columns.count(name) > 1), None)
        if twice is not None:
            raise InputError(
                f"{like}: column `{twice}` occurs {columns.count(twice)} times, but a JSON object holds a name once",
                hint="rename one of them, or write a table: `-o OUT.parquet`",
            )
    job = Job(path_of(names.output), terms, members=("rows", "errors", *members))
    return FileDestination(names, shape, selection, like=like, paths=paths, job=job, files=terms.files)


class ErrorRows:
    """Writes bad rows to a stream, a line each. written: whether there are any."""

    def __init__(self, stream: BinaryIO, shape: Shape) -> None:
        self._stream = stream
        self._dump = shape.kind.dump_error
        self.written = False

    def write(self, error: RowError) -> None:
        """Append one row."""
        self._stream.write(self._dump(error))
        self.written = True


class FileDestination:
    """Rows to a file; implements `Destination`. A window is held in memory until it is finished."""

    sink: JsonlSink | ParquetSink
    errors: ErrorRows

    def __init__(
        self,
        names: Names,
        shape: Shape,
        selection: Selection,
        *,
        like: str | None,
        paths: RunPaths,
        job: Job,
        files: Files,
    ) -> None:
        self._names = names
        self._shape = shape
        self._selection = selection
        self._like = like
        self._out = path_of(names.output)
        self._is_compressed = Path(names.output).suffix.lower() in SUFFIXES
        self._paths = paths
        self._files = files
        self._job = job
        self._rows, self._bad = io.BytesIO(), io.BytesIO()
        self._has_errors = False
        if self._out.is_dir():
            raise OutputError(f"{self._out}: is a folder", hint="name a file in it")
        try:
            self.refuse_existing()
        except OutputError:
            if not Job.is_begun(names.output):  # the files may be those of an unfinished job
                raise

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._paths.open_pipes(stack)
            stack.enter_context(self._job)
            self.next_window, self.state = self._job.next_window, self._job.state
            self.notes, self.completed = self._job.notes, self._job.completed
            if self.completed is None:
                if output_format(self._names) == "parquet":
                    with self.reading():
                        self.sink = ParquetSink(
                            self._rows, self._names.output, self._shape, self._selection,
                            earlier=self._open_parts, like=self._like,
                        )  # fmt: skip
                elif output_format(self._names) in SEPARATORS:
                    self.sink = SeparatedSink(self._rows, self._shape, self._selection)
                else:
                    self.sink = JsonlSink(self._rows, self._shape, self._selection)
                self.errors = ErrorRows(self._bad, self._shape)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def end_window(self, window: int, state: Mapping[str, Any], note: Any, more: Mapping[str, bytes]) -> None:
        """See `Destination`."""
        bad = _drain(self._bad)
        self._job.add(window, {"rows": self._take_rows(), "errors": bad, **more}, state, note)

    def path(self, name: str) -> Path:
        """See `Destination`."""
        return self._job.path(name)

    def reading(self) -> AbstractContextManager[None]:
        """See `Destination`."""
        return self._job.reading()

    @contextmanager
    def writing(self, name: str) -> Iterator[BinaryIO]:
        """See `Destination`."""
        with (
            naming(self._names.files[name]),
            self._job.writing(name) as file,
            io.BufferedWriter(_Appending(file), _BUFFER_BYTES) as stream,  # Parquet is written in small pieces
            self.reading(),
        ):
            yield stream

    def commit(self, document: dict[str, Any], stop: Stop) -> dict[str, Any]:
        """See `Destination`."""
        job = self._job
        job.checkpoint()
        job.append({"rows": self._take_rows()})  # the rows of the run as a whole (`score --top-n`)
        work = "rows"
        if isinstance(self.sink, ParquetSink):
            work = "output"
            with self.writing("output") as file:
                self.sink.finish(file, stop.check)
        elif isinstance(self.sink, SeparatedSink):
            work = "output"
            with self.writing("output") as file:
                name = self._names.output
                self.sink.finish(file, job.path("rows"), name, output_format(self._names), stop.check)
        elif not job.size("rows"):
            job.append({"rows": compress(b"", self._names.output)})  # an empty file is not valid gzip or zstd
        with naming(self._out):
            for kind in self._names.results:  # each is still a work file
                member = work if kind == "output" else kind
                size, sha256 = job.seal(member)
                document[kind] = {
                    "path": str(self._names.files[kind]), "sha256": sha256, "bytes": size,
                    "modified_ns": job.path(member).stat().st_mtime_ns,
                }  # fmt: skip
            self._write_whole("report", dump_document(document))
            if "page" in self._names.files:
                self._write_whole("page", render_report(document, self._names.title))
        with stop.held():
            job.complete({"work": work, "errors": job.size("errors") > 0, "report": document})
        self.place(self.names_to_give(), stop)
        return document

    def names_to_give(self) -> dict[str, Path]:
        """The work files of a completed job with their final paths, that of the output last.

        Raises `KeyError` or `ValueError` if the journal does not say what they are.
        """
        completed = self._job.completed
        assert completed is not None, "only a complete job gives names"
        if completed["work"] not in ("rows", "output") or completed["errors"] not in (True, False):
            raise ValueError(f"a completed job of {completed['work']!r}")
        names = {name: path for name, path in self._names.files.items() if name != "errors" or completed["errors"]}
        names[completed["work"]] = names.pop("output")
        return names

    def place(self, names: dict[str, Path], stop: Stop) -> None:
        """Give work files their names. A request to stop counts until the first file has its name."""
        self._has_errors = "errors" in names
        errors = self._names.files["errors"]
        outdated = [errors] if not self._has_errors and self._paths.was_there(errors) else []
        self._job.feed(names, self._paths.pipes, stop.check)
        stop.is_late()
        self._job.place(names, outdated=outdated, may_replace=self._paths.may_replace)

    def _write_whole(self, name: str, data: bytes) -> None:
        with self._job.writing(name) as file:
            file.append(data)

    def give_up(self) -> str | None:
        """See `Destination`."""
        self._has_errors = self._job.size("errors") > 0
        names = {"errors": self._names.files["errors"]} if self._has_errors else {}
        self._job.give_up(names, may_replace=self._paths.may_replace)
        return self.errors_file

    @property
    def holds_rows(self) -> bool:
        """See `Destination`; true also of an output that cannot be read."""
        if not self._out.is_file():
            return False
        try:
            with self._out.open("rb") as raw:
                if raw.read(4) == b"PAR1":
                    from rerank_cli.formats import parquet_reader

                    return parquet_reader.row_count(str(self._out)) > 0
            with open_input(str(self._out)) as stream:
                return stream.read(1) != b""
        except (OSError, InputError):
            return True

    @property
    def errors_file(self) -> str | None:
        """See `Destination`."""
        return str(self._names.files["errors"]) if self._has_errors else None

    def _open_parts(self) -> list[pa.NativeFile]:
        """The tables so far: those of finished windows, then those of the current one."""
        import pyarrow as pa

        return [pa.OSFile(str(self._job.path("rows"))), pa.BufferReader(self._rows.getvalue())]

    def _take_rows(self) -> bytes:
        data = _drain(self._rows)
        is_table = isinstance(self.sink, (ParquetSink, SeparatedSink))
        return compress(data, self._names.output) if self._is_compressed and data and not is_table else data

    def refuse_existing(self, *, anew: bool = False) -> None:
        """`OutputError` if an output exists and may not be replaced. anew: ask the stores once more."""
        self._paths.refuse_existing(self._job.is_mine, anew=anew)

    def was_done(self) -> None:
        """Note that another process has finished this run, so its work can be removed."""
        self._job.was_done()


class StdoutDestination:
    """Rows to stdout, flushed after each window; implements `Destination`. Nothing is kept for a later process."""

    sink: JsonlSink | ParquetSink
    errors: ErrorRows

    def __init__(
        self, names: Names, shape: Shape, selection: Selection, *, files: Files, paths: RunPaths, watch: Watch
    ) -> None:
        self._names = names
        self._paths = paths
        self._watch = watch
        self._looked = time.monotonic()
        self._files = files
        self._shape = shape
        self.sink = JsonlSink(sys.stdout.buffer, shape, selection, flush=True)
        self.next_window = 0
        self.state: dict[str, Any] | None = None
        self.notes: list[Any] = []
        self.completed: dict[str, Any] | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        # Vectors may be gigabytes, so the work folder lies beside their final path.
        beside = Path(self._names.embeddings).parent if self._names.embeddings else None
        beside = None if is_url(self._names.embeddings) else beside
        self._paths.open_pipes(self._stack)
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="rerank-cli-", dir=beside)))
        self._bad = self._stack.enter_context(io.BufferedWriter(_Named(self.path("errors"), "wb")))
        self.errors = ErrorRows(self._bad, self._shape)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def end_window(self, window: int, state: Mapping[str, Any], note: Any, more: Mapping[str, bytes]) -> None:
        """See `Destination`."""
        for name, data in more.items():
            with naming(self.path(name)), self.path(name).open("ab") as member:
                member.write(data)
        if time.monotonic() - self._looked > _LOOK_SECONDS:
            self._watch.check()
            self._looked = time.monotonic()

    def path(self, name: str) -> Path:
        """See `Destination`."""
        return self._folder / name

    def reading(self) -> AbstractContextManager[None]:
        """See `Destination`."""
        return nullcontext()  # nobody else knows the name of the temporary folder

    @contextmanager
    def writing(self, name: str) -> Iterator[BinaryIO]:
        """See `Destination`."""
        with naming(self._names.files[name]), self.path(name).open("wb") as file:
            yield file

    def commit(self, document: dict[str, Any], stop: Stop) -> dict[str, Any]:
        """See `Destination`."""
        self._watch.check()
        self._bad.close()
        files = self._names.files
        for kind in self._names.results:
            self._place(kind, files[kind], stop)
        render_page = partial(render_report, title=self._names.title)
        for kind, render in (("report", dump_document), ("page", render_page)):
            if kind in files:
                with naming(self.path(kind)):
                    self.path(kind).write_bytes(render(document))
                self._place(kind, files[kind], stop)
        if (errors := files.get("errors")) is not None:
            if self.errors.written:
                self._place("errors", errors, stop)
            elif errors.is_file() and self._paths.may_replace(errors, errors.lstat()):
                remove_file(errors, self._files)  # an earlier run left it, and this one has no bad rows
        return document

    def give_up(self) -> str | None:
        """See `Destination`."""
        self._bad.close()
        if self.errors.written and (errors := self._names.files.get("errors")) is not None:
            self._place("errors", errors, Stop())
        return self.errors_file

    @property
    def holds_rows(self) -> bool:
        """See `Destination`."""
        return False

    @property
    def errors_file(self) -> str | None:
        """See `Destination`."""
        return self._names.errors if self.errors.written else None

    def _place(self, name: str, final: Path, stop: Stop) -> None:
        with naming(final):
            if is_special(final):
                feed(self.path(name), final, self._paths.pipes.get(final), stop.check)
            else:
                place_file(self.path(name), final, self._files, may_replace=self._paths.may_replace)


def paths_of_inputs(names: Names, inputs: Sequence[Input], *, overwrite: bool) -> RunPaths:
    """The paths of a run that reads only inputs."""
    read = {f"input {number}": path_of(item.path) for number, item in enumerate(inputs, 1) if item.path != STDIN}
    return RunPaths(names, read, folders=folders_of(inputs), overwrite=overwrite)


def place_page(names: Names, document: Mapping[str, Any], paths: RunPaths, files: Files) -> None:
    """Write the HTML page of a run that had finished before, if `names` has one. document: its report."""
    if (page := names.files.get("page")) is not None:
        data = render_report(document, names.title)
        if page.is_file() and page.read_bytes() == data:
            return
        if page.exists() and not is_special(page) and not paths.may_replace(page, page.lstat()):
            raise OutputError(f"{page}: exists", hint="`--overwrite` replaces it")
        write_file(page, data, files, may_replace=paths.may_replace)


class _Appending(io.RawIOBase):
    """A work file as a writable stream."""

    def __init__(self, file: WorkFile) -> None:
        self._file = file

    def writable(self) -> bool:
        """Always."""
        return True

    def write(self, data: Any) -> int:
        """Append `data`."""
        self._file.append(data)
        return len(data)


class _Named(io.FileIO):
    """A file whose errors name it."""

    def write(self, data: Any) -> int:
        """Write; returns how many bytes were written."""
        with naming(Path(os.fsdecode(self.name))):
            return super().write(data)


def _drain(stream: io.BytesIO) -> bytes:
    """Empty a stream and return what it held."""
    data = stream.getvalue()
    stream.seek(0)
    stream.truncate()
    return data
