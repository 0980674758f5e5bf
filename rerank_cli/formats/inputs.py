"""The inputs of a run as one stream of rows, whatever each file's format.

The format follows the suffix (`.jsonl .ndjson .json`, `.parquet`, each text format also `.gz .zst`), `--in-format` wins
over it, and a file without a known suffix is looked at. The row shape is decided by the first rows that have one.

Flat rows of a query need not be adjacent in a file: `ordered_by_group` looks at the group keys first (a second pass
over the keys costs a few microseconds a row, scoring costs milliseconds) and only where a query comes back brings the
rows of each query together, in order of first appearance, through a temporary SQLite file, so that memory stays flat.
From a pipe nothing can be read twice: there a query that comes back is an error row.
"""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from rerank_cli.errors import InputError, UsageError
from rerank_cli.formats import jsonl
from rerank_cli.formats.compression import open_input, text_suffix
from rerank_cli.formats.shapes import FieldNames, FlatShape, Item, ListShape, Shape, detect_shape, group_key
from rerank_cli.records import Gap, JsonRow, RowError

Format = Literal["jsonl", "parquet", "text"]

FORMATS: dict[str, Format] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".parquet": "parquet"}
"""Formats by suffix; `text` is plain lines and never guessed."""

STDIN = "-"
_SHAPE_ROWS = 100  # rows that are looked at for one that has a shape
_MAX_GATHERED_PARQUET_BYTES = 2**30
_SPOOL_ROWS = 10_000


@dataclass(frozen=True, slots=True)
class Input:
    """One input of a run. path: as the user gave it, `-` for stdin."""

    path: str
    format: Format


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How rows are read: the longest line, and whether a pause of a pipe should be told (`Gap.IDLE`)."""

    max_line_bytes: int = jsonl.MAX_LINE_BYTES
    live: bool = False


def resolve_inputs(paths: Sequence[str], in_format: str = "auto") -> list[Input]:
    """The inputs with their formats; `InputError` for a file that is not there."""
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
        known: dict[str, Format] = {"jsonl": "jsonl", "parquet": "parquet", "text": "text"}
        if in_format not in known:
            raise UsageError(f"--in-format {in_format}: not known", hint="known are auto, jsonl, parquet")
        return known[in_format]
    if path == STDIN:
        return "jsonl"
    suffix = text_suffix(path)
    if suffix in FORMATS:
        return FORMATS[suffix]
    try:
        with Path(path).open("rb") as stream:
            return "parquet" if stream.read(4) == b"PAR1" else "jsonl"
    except OSError:
        return "jsonl"  # resolve_inputs says what is wrong with it


def input_bytes(inputs: Iterable[Input]) -> int | None:
    """Bytes of all inputs on disk, or None where one is a pipe."""
    sizes = [Path(item.path).stat().st_size for item in inputs if item.path != STDIN and Path(item.path).is_file()]
    return sum(sizes) if len(sizes) == len(list(inputs)) else None


def read_items(inputs: Sequence[Input], shape: Shape, options: ReadOptions) -> Iterator[Item]:
    """The rows of all inputs, one after another."""
    for item in inputs:
        yield from _read_one(item, shape, options)


def _read_one(item: Input, shape: Shape | None, options: ReadOptions) -> Iterator[Item]:
    if item.format == "parquet":
        # Imported here: pyarrow costs 0.2 s that JSONL need not pay.
        from rerank_cli.formats import parquet

        assert shape is not None, "the shape of a table is known from its columns"
        yield from parquet.read_rows(item.path, shape.columns(parquet.column_names(item.path)))
        return
    read = jsonl.read_text_lines if item.format == "text" else jsonl.read_rows
    live = options.live and item.path == STDIN
    with open_input(item.path) as stream:
        yield from read(stream, file=item.path, max_line_bytes=options.max_line_bytes, live=live)


def open_lists(
    inputs: Sequence[Input], names: FieldNames, options: ReadOptions, shape: str
) -> tuple[Shape, Iterator[Item]]:
    """The shape of the first input (or the one that `shape` names) and the rows of all inputs."""
    first = inputs[0]
    known: dict[str, Any] = {"list": ListShape, "flat": FlatShape}
    if shape in known:
        return known[shape](names), read_items(inputs, known[shape](names), options)
    if shape != "auto":
        raise UsageError(f"--shape {shape}: not known", hint="known are auto, list, flat")
    if first.format == "parquet":
        from rerank_cli.formats import parquet

        columns = parquet.column_names(first.path)
        found = _detected(detect_shape(columns, names), first.path, columns)
        return found(names), read_items(inputs, found(names), options)
    rows = _read_one(first, None, options)
    seen: list[Item] = []
    kind = None
    for item in rows:
        seen.append(item)
        if not isinstance(item, (RowError, Gap)):
            kind = kind or detect_shape(item.fields, names)
        if kind or len(seen) >= _SHAPE_ROWS:
            break
    good = next((item for item in seen if not isinstance(item, (RowError, Gap))), None)
    decided = _detected(kind, f"{first.path}:{good.number}", good.fields) if good else ListShape
    return decided(names), chain(seen, rows, read_items(inputs[1:], decided(names), options))


def _detected(kind: type[Any] | None, where: str, fields: Iterable[str]) -> type[Any]:
    if kind is None:
        shown = ", ".join(f"`{name}`" for name in list(fields)[:8]) or "no fields"
        raise InputError(
            f"{where}: neither a list of passages nor a passage: the row has {shown}",
            hint="name the field with `--passages-field` (a list) or `--text-field` (one passage a row)",
        )
    return kind


def ordered_by_group(
    inputs: Sequence[Input], shape: Shape, items: Iterator[Item], options: ReadOptions
) -> Iterator[Item]:
    """`items`, with the rows of each group brought together where its rows are scattered and files can be reread."""
    if not isinstance(shape, FlatShape) or any(item.path == STDIN or not Path(item.path).is_file() for item in inputs):
        return items
    formats = {item.format for item in inputs}
    if not _is_scattered(_keys(inputs, shape, options)):
        return items
    if formats == {"jsonl"}:
        return _gather_json(inputs, shape, options)
    if formats == {"parquet"} and len(inputs) == 1:
        return _gather_table(inputs[0].path, shape)
    raise InputError(
        f"{inputs[0].path}: the rows of a query are scattered over files of different formats",
        hint="sort them by query first, or give each file on its own",
    )


def _keys(inputs: Sequence[Input], shape: FlatShape, options: ReadOptions) -> Iterator[object]:
    for item in inputs:
        if item.format == "parquet":
            from rerank_cli.formats import parquet

            yield from parquet.iter_column(item.path, _key_column(item.path, shape))
        else:
            for row in _read_one(item, shape, options):
                if not isinstance(row, (RowError, Gap)):
                    yield group_key(row, shape.names)


def _key_column(path: str, shape: FlatShape) -> str:
    """The column that `group_key` reads: the group's id, else the query's text."""
    from rerank_cli.formats import parquet

    names = parquet.column_names(path)
    wanted = list(shape.columns(names))
    query, _, *ids = wanted
    group = shape.names.group_by or next((name for name in ("query_id", "qid") if name in ids), None)
    return group if group in names else query


def _is_scattered(keys: Iterator[object]) -> bool:
    finished: set[int] = set()
    current: object = None
    for key in keys:
        if key != current:
            finished.add(hash(repr(current)))
            if hash(repr(key)) in finished:
                return True
            current = key
    return False


def _gather_json(inputs: Sequence[Input], shape: FlatShape, options: ReadOptions) -> Iterator[Item]:
    """Rows ordered by (first appearance of their group, place), through a temporary SQLite file."""
    with tempfile.TemporaryDirectory(prefix="rerank-cli-") as folder:
        spool = sqlite3.connect(Path(folder) / "rows.sqlite", isolation_level=None)
        try:
            spool.execute("PRAGMA journal_mode = OFF")
            spool.execute(
                "CREATE TABLE rows (grp INTEGER, place INTEGER PRIMARY KEY, file TEXT, number INTEGER, raw BLOB)"
            )
            yield from _fill(spool, inputs, shape, options)
            spool.execute("CREATE INDEX by_group ON rows (grp, place)")
            for file, number, raw in spool.execute("SELECT file, number, raw FROM rows ORDER BY grp, place"):
                yield jsonl.parse_row(raw, file=file, number=number)
        except sqlite3.Error as error:
            raise InputError(
                f"{folder}: rows cannot be gathered by query: {error}", hint="set TMPDIR to a folder with room"
            ) from error
        finally:
            spool.close()


def _fill(spool: sqlite3.Connection, inputs: Sequence[Input], shape: FlatShape, options: ReadOptions) -> Iterator[Item]:
    """Store all good rows; the others (bad rows, blank lines) are yielded at once."""
    groups: dict[int, int] = {}
    rows: list[tuple[int, int, str, int, bytes]] = []
    place = 0
    insert = "INSERT INTO rows VALUES (?, ?, ?, ?, ?)"
    spool.execute("BEGIN")
    for item in read_items(inputs, shape, options):
        if not isinstance(item, JsonRow):
            assert isinstance(item, (RowError, Gap)), "JSON inputs give JSON rows"
            yield item
            continue
        group = groups.setdefault(hash(repr(group_key(item, shape.names))), len(groups))
        rows.append((group, place, item.file, item.number, item.raw))
        place += 1
        if len(rows) == _SPOOL_ROWS:
            spool.executemany(insert, rows)
            rows.clear()
    spool.executemany(insert, rows)
    spool.execute("COMMIT")


def _gather_table(path: str, shape: FlatShape) -> Iterator[Item]:
    """Rows of one Parquet file ordered by first appearance of their group; the file is taken into memory."""
    from rerank_cli.formats import parquet

    groups: dict[str, int] = {}
    keys = parquet.iter_column(path, _key_column(path, shape))
    numbers = [groups.setdefault(repr(key), len(groups)) for key in keys]
    order = sorted(range(len(numbers)), key=lambda place: numbers[place])
    yield from parquet.read_rows_in_order(
        path, shape.columns(parquet.column_names(path)), order, max_bytes=_MAX_GATHERED_PARQUET_BYTES
    )
