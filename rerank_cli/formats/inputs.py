"""The inputs of a run as one stream of rows, whatever each file's format.

The format follows the suffix (`.jsonl .ndjson .json`, `.tsv`, `.parquet`, `.trec .run`, each text format also `.gz
.zst`),
`--in-format` wins over it, and a file without a known suffix is looked at. The row shape is that of the first rows that
have one (`shapes.recognise`); a TREC run is a format and a shape in one.

Flat rows and run lines of a query need not be adjacent in a file: `ordered_by_group` looks at the group keys first (a
second pass over the keys costs a few microseconds a row, scoring costs milliseconds) and only where a query comes back
brings the rows of each query together, in order of first appearance, through a temporary SQLite file, so that memory
stays flat. From a pipe nothing can be read twice: there a query that comes back is an error row.
"""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Literal

from rerank_cli.errors import InputError, UsageError
from rerank_cli.formats import jsonl, tsv
from rerank_cli.formats.choices import MAX_LINE_BYTES
from rerank_cli.formats.compression import SUFFIXES, open_input, text_suffix
from rerank_cli.formats.position import Position
from rerank_cli.formats.shapes import (
    NO_TEXTS,
    SHAPES,
    FieldNames,
    FlatShape,
    Groups,
    Item,
    Kind,
    ReadsColumns,
    Shape,
    Texts,
    detect_shape,
    kind_of,
    looks_like_run,
    recognise,
)
from rerank_cli.records import Gap, JsonRow, RowError

Format = Literal["jsonl", "parquet", "text", "trec", "tsv"]

FORMATS: dict[str, Format] = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".parquet": "parquet", ".trec": "trec", ".run": "trec",
    ".tsv": "tsv",
}  # fmt: skip
"""Formats by suffix; `text` is plain lines and never guessed."""

STDIN = "-"
_MAX_GATHERED_PARQUET_BYTES = 2**30
_SPOOL_ROWS = 10_000
_SHAPE_ROWS = 100  # rows without a shape after which no further file is looked at
_HEAD_BYTES = 4096  # that are looked at to tell the format of a file
_COUNTED_BYTES = 2**18
_COUNTED_FILE_BYTES = 2**26  # of a file whose lines are counted while a user waits: 0.1 s


@dataclass(frozen=True, slots=True)
class Input:
    """One input of a run. path: as the user gave it, `-` for stdin."""

    path: str
    format: Format


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """Which rows are read, and how.

    max_line_bytes: the longest line. live: a pause of a pipe is told (`Gap.IDLE`). skip, limit: the rows left out at
    the start of the first input, and how many are read from there, bad ones included, blank lines not. position: learns
    how far reading is.
    """

    max_line_bytes: int = MAX_LINE_BYTES
    live: bool = False
    skip: int = 0
    limit: int | None = None
    position: Position | None = None

    @property
    def stop(self) -> int | None:
        """The row, counted from 0, before which reading ends; None for the last."""
        return None if self.limit is None else self.skip + self.limit


def resolve_inputs(paths: Sequence[str], in_format: str = "auto", shape: str = "auto") -> list[Input]:
    """The inputs with their formats; `InputError` for a file that is not there. shape: what `--shape` says."""
    if shape == "trec" and in_format == "auto":
        in_format = "trec"
    inputs = [Input(path=path, format=_format_of(path, in_format)) for path in paths]
    if sum(1 for item in inputs if item.path == STDIN) > 1:
        raise UsageError("stdin (`-`) can be given once")
    for item in inputs:
        if item.path == STDIN and item.format == "parquet":
            raise InputError("-: Parquet cannot be read from a pipe", hint="give the name of a file")
        if item.path != STDIN and not Path(item.path).exists():
            open_input(item.path).close()  # raises, with the reason in words
    return inputs


def _format_of(path: str, in_format: str) -> Format:
    if in_format != "auto":
        known: dict[str, Format] = {
            "jsonl": "jsonl", "parquet": "parquet", "text": "text", "trec": "trec", "tsv": "tsv"
        }  # fmt: skip
        if in_format not in known:
            hint = "known are auto, jsonl, parquet, trec, tsv"
            if in_format in SHAPES:
                hint = f"`--shape {in_format}` says what the rows are"
            raise UsageError(f"--in-format {in_format}: not known", hint=hint)
        return known[in_format]
    if path == STDIN:
        return "jsonl"
    suffix = text_suffix(path)
    if suffix in FORMATS:
        return FORMATS[suffix]
    # Not of a pipe such as `<(...)`, of which a look would take the first bytes.
    return _format_of_content(path) if Path(path).is_file() else "jsonl"


def _format_of_content(path: str) -> Format:
    try:
        with Path(path).open("rb") as stream:
            head = stream.read(_HEAD_BYTES)
    except OSError:
        return "jsonl"  # the reader says what is wrong with it
    if head.startswith(b"PAR1"):
        return "parquet"
    return "trec" if looks_like_run(head.partition(b"\n")[0].decode(errors="replace")) else "jsonl"


def count_rows(inputs: Sequence[Input], options: ReadOptions) -> int | None:
    """How many rows `read_items` gives of files, blank lines not counted; None where counting them would take long."""
    rows = 0
    for item in inputs:
        if item.path == STDIN or not (path := Path(item.path)).is_file():
            return None
        if item.format == "parquet":
            rows += _lines_of(item)
            continue
        if path.stat().st_size > (_COUNTED_FILE_BYTES >> 3 * item.path.lower().endswith(tuple(SUFFIXES))):
            return None
        with open_input(item.path) as stream:
            rows += sum(1 for line in stream if not line.isspace())
    rows = max(0, rows - options.skip)
    return rows if options.limit is None else min(rows, options.limit)


def count_lines(inputs: Sequence[Input], options: ReadOptions) -> int:
    """About how many rows and blank lines `read_items` will give; files are read or, if Parquet, asked."""
    lines = sum(_lines_of(item) for item in inputs) - options.skip
    return max(0, lines if options.limit is None else min(lines, options.limit))


def _lines_of(item: Input) -> int:
    if item.format == "parquet":
        from rerank_cli.formats import parquet

        return parquet.row_count(item.path)
    with open_input(item.path) as stream:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: stream.read1(_COUNTED_BYTES), b"")) + 1


def can_be_reread(inputs: Iterable[Input]) -> bool:
    """Whether all inputs are files; a pipe gives its rows once."""
    return all(item.path != STDIN and Path(item.path).is_file() for item in inputs)


def read_items(inputs: Sequence[Input], shape: ReadsColumns, options: ReadOptions) -> Iterator[Item]:
    """The rows of all inputs, one after another."""
    return _sliced(_all_items(inputs, shape, options), options)


def _all_items(inputs: Iterable[Input], shape: ReadsColumns, options: ReadOptions) -> Iterator[Item]:
    return chain.from_iterable(_read_one(item, shape, options) for item in inputs)


def _sliced(items: Iterator[Item], options: ReadOptions) -> Iterator[Item]:
    """The rows between `skip` and `limit`; nothing is read, or waited for, after the last of them."""
    number = 0
    while options.stop is None or number < options.stop:
        item = next(items, None)
        if item is None:
            return
        number += not isinstance(item, Gap)
        if isinstance(item, Gap) or number > options.skip:
            yield item
        elif options.position:
            options.position.skip(item)


def _read_one(item: Input, shape: ReadsColumns | None, options: ReadOptions) -> Iterator[Item]:
    if item.format == "parquet":
        # Imported here: pyarrow costs 0.2 s that JSONL need not pay.
        from rerank_cli.formats import parquet

        assert shape is not None, "the shape of a table is known from its columns"
        if columns := _columns_of(item.path):
            if options.position:
                options.position.table(item.path, parquet.row_count(item.path))
            yield from parquet.read_rows(item.path, shape.columns(columns))
        return
    read = {"jsonl": jsonl.read_rows, "tsv": tsv.read_rows}.get(item.format, jsonl.read_text_lines)
    live = options.live and item.path == STDIN
    with open_input(item.path) as stream:
        items = read(stream, file=item.path, max_line_bytes=options.max_line_bytes, live=live)
        yield from options.position.text(item.path, stream, items) if options.position else items


def _columns_of(path: str) -> list[str]:
    """The columns of a Parquet file; none where an empty run has left it."""
    from rerank_cli.formats import parquet

    return parquet.column_names(path)


def open_lists(
    inputs: Sequence[Input], names: FieldNames, options: ReadOptions, shape: str, texts: Texts = NO_TEXTS
) -> tuple[Shape, Iterator[Item]]:
    """The shape of the first rows that have one (or the one that `shape` names) and the rows of all inputs.

    texts: where those of a TREC run are.
    """
    runs = [item.path for item in inputs if item.format == "trec"]
    if runs and len(runs) < len(inputs):
        raise InputError(f"{runs[0]}: a TREC run among files of other formats", hint="give each an own run")
    if runs and shape == "auto":
        shape = "trec"
    if not runs and texts != NO_TEXTS:
        raise UsageError("--queries, --corpus: the texts of a TREC run, and no input is one", hint="`--shape trec`")
    if shape != "auto":
        kind = kind_of(shape, "--shape")
        if bool(runs) != (kind.name == "trec"):
            raise UsageError(f"--shape {shape}: {inputs[0].path} is read as {inputs[0].format}")
        named = _open_shape(kind, inputs, names, texts)
        return named, read_items(inputs, named, options)
    seen: list[Item] = []
    rows: Iterator[Item] = iter(())
    found: Kind | None = None
    later: Sequence[Input] = ()
    for place, item in enumerate(inputs):
        if item.format == "parquet":
            later = inputs[place:]
            found = _shape_of_columns(item.path, names)
        else:
            later = inputs[place + 1 :]
            rows = chain(rows, _read_one(item, None, options))
            found = recognise(rows, seen, names, stop=options.stop)
        if found or len(seen) >= _SHAPE_ROWS:
            break
    good = next((row for row in seen if isinstance(row, JsonRow)), None)
    if found is None and good is not None:
        raise _no_shape(f"{good.file}:{good.number}", good.fields)
    decided = _open_shape(found or SHAPES["list"], inputs, names, texts)
    return decided, _sliced(chain(seen, rows, _all_items(later, decided, options)), options)


def _open_shape(kind: Kind, inputs: Sequence[Input], names: FieldNames, texts: Texts) -> Shape:
    table = next((item.path for item in inputs if item.format == "parquet"), None)
    if table is not None and not kind.tables:
        raise InputError(f"{table}: rows of the shape {kind.name} are JSON lines, this is Parquet")
    return kind.open(names, texts)


def _shape_of_columns(path: str, names: FieldNames) -> Kind | None:
    """The shape of a table; None for one without columns."""
    columns = _columns_of(path)
    kind = detect_shape(columns, names)
    if kind is None and columns:
        raise _no_shape(path, columns)
    return kind


def _no_shape(where: str, fields: Iterable[str]) -> InputError:
    shown = ", ".join(f"`{name}`" for name in list(fields)[:8]) or "no fields"
    return InputError(
        f"{where}: neither a list of passages nor a passage: the row has {shown}",
        hint="name the field with `--passages-field` (a list) or `--text-field` (one passage a row)",
    )


def ordered_by_group(
    inputs: Sequence[Input], shape: Shape, items: Iterator[Item], options: ReadOptions
) -> Iterator[Item]:
    """`items`, with the rows of each group brought together where its rows are scattered and files can be reread."""
    if not isinstance(shape, Groups) or not can_be_reread(inputs):
        return items
    keys = _keys(inputs, shape, replace(options, position=None))  # a look ahead is no progress
    if not _is_scattered(islice(keys, options.skip, options.stop)):
        return items
    formats = {item.format for item in inputs}
    if "parquet" not in formats and len(formats) == 1:
        return _gather_lines(inputs, shape, options)
    if len(inputs) == 1 and isinstance(shape, FlatShape):
        return _gather_table(inputs[0].path, shape, options)
    raise InputError(
        f"{inputs[0].path}: the rows of a query are scattered over files that are not all JSON lines",
        hint="sort the rows by query first, or give each file on its own",
    )


def _keys(inputs: Sequence[Input], shape: Groups, options: ReadOptions) -> Iterator[tuple[Format, int] | None]:
    """The format and the group of each row; None for a row that cannot be read."""
    for item in inputs:
        if item.format == "parquet" and isinstance(shape, FlatShape):
            for key in _table_keys(item.path, shape):
                yield item.format, key
        else:
            for row in _read_one(item, shape, options):
                if not isinstance(row, Gap):
                    yield (item.format, shape.group_key(row.fields)) if isinstance(row, JsonRow) else None


def _table_keys(path: str, shape: FlatShape) -> Iterator[int]:
    """The group of each row of a table; only the columns that decide it are read."""
    from rerank_cli.formats import parquet

    if columns := _columns_of(path):
        wanted = shape.key_columns(columns)
        for values in zip(*(parquet.iter_column(path, name) for name in wanted), strict=True):
            yield shape.group_key(dict(zip(wanted, values, strict=True)))


def _is_scattered(keys: Iterator[tuple[Format, int] | None]) -> bool:
    """Whether a group comes back after another one, or in a file of another format."""
    finished: set[int] = set()
    current: tuple[Format, int] | None = None
    for key in keys:
        if key is None or key == current:
            continue
        if current is not None:
            finished.add(current[1])
        if key[1] in finished:
            return True
        current = key
    return False


def _gather_lines(inputs: Sequence[Input], shape: Groups, options: ReadOptions) -> Iterator[Item]:
    """Rows ordered by (first appearance of their group, place), through a temporary SQLite file."""
    parse = jsonl.parse_row if inputs[0].format in ("jsonl", "tsv") else jsonl.parse_text_line
    with tempfile.TemporaryDirectory(prefix="rerank-cli-") as folder:
        # Not bound to one thread: a run that stops may close this generator from another one than reads it.
        spool = sqlite3.connect(Path(folder) / "rows.sqlite", isolation_level=None, check_same_thread=False)
        try:
            spool.execute("PRAGMA journal_mode = OFF")
            spool.execute(
                "CREATE TABLE rows (grp INTEGER, place INTEGER PRIMARY KEY, file TEXT, number INTEGER, raw BLOB)"
            )
            yield from _fill(spool, inputs, shape, options)
            spool.execute("CREATE INDEX by_group ON rows (grp, place)")
            for file, number, raw in spool.execute("SELECT file, number, raw FROM rows ORDER BY grp, place"):
                yield parse(raw, file=file, number=number)
        except sqlite3.Error as error:
            raise InputError(
                f"{folder}: rows cannot be gathered by query: {error}", hint="set TMPDIR to a folder with room"
            ) from error
        finally:
            spool.close()


def _fill(spool: sqlite3.Connection, inputs: Sequence[Input], shape: Groups, options: ReadOptions) -> Iterator[Item]:
    """Store all good rows; the others (bad rows, blank lines) are yielded at once."""
    groups: dict[int, int] = {}
    rows: list[tuple[int, int, str, int, bytes]] = []
    place = 0
    insert = "INSERT INTO rows VALUES (?, ?, ?, ?, ?)"
    spool.execute("BEGIN")
    for item in read_items(inputs, shape, options):
        if not isinstance(item, JsonRow):
            assert isinstance(item, (RowError, Gap)), "lines give JSON rows"
            yield item
            continue
        group = groups.setdefault(shape.group_key(item.fields), len(groups))
        rows.append((group, place, item.file, item.number, item.raw))
        place += 1
        if len(rows) == _SPOOL_ROWS:
            spool.executemany(insert, rows)
            rows.clear()
    spool.executemany(insert, rows)
    spool.execute("COMMIT")


def _gather_table(path: str, shape: FlatShape, options: ReadOptions) -> Iterator[Item]:
    """Rows of one Parquet file ordered by first appearance of their group; the file is taken into memory."""
    from rerank_cli.formats import parquet

    groups: dict[int, int] = {}
    places = range(parquet.row_count(path))[options.skip : options.stop]
    keys = islice(_table_keys(path, shape), options.skip, options.stop)
    numbers = [groups.setdefault(key, len(groups)) for key in keys]
    order = sorted(places, key=lambda place: numbers[place - options.skip])
    columns = shape.columns(parquet.column_names(path))
    if options.position:
        options.position.table(path, parquet.row_count(path))
    yield from parquet.read_rows_in_order(path, columns, order, max_bytes=_MAX_GATHERED_PARQUET_BYTES)
