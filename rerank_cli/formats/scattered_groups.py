"""Bring the rows of each query together, where an input scatters them.

Flat rows and run lines of a query need not be adjacent in a file. `ordered_by_group` first looks at the group keys
only: this costs a few microseconds a row, where scoring costs milliseconds. If a query comes back after another one,
it brings the rows of each query together, in order of first appearance. They go through a temporary SQLite file, so
that memory does not grow. A pipe cannot be read twice: there a query that comes back is an error row.
"""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from rerank_cli.errors import InputError
from rerank_cli.formats import jsonl
from rerank_cli.formats.inputs import (
    SEPARATED,
    Format,
    Input,
    ReadOptions,
    can_be_reread,
    read_input,
    read_items,
)
from rerank_cli.formats.shapes import (
    FlatShape,
    GroupShape,
    Item,
    Shape,
)
from rerank_cli.records import Gap, JsonRow, RowError

_MAX_GATHERED_PARQUET_BYTES = 2**30
_SPOOL_ROWS = 10_000


def ordered_by_group(
    inputs: Sequence[Input], shape: Shape, items: Iterator[Item], options: ReadOptions
) -> Iterator[Item]:
    """`items`, with the rows of each group brought together where they are scattered and files can be reread."""
    if not isinstance(shape, GroupShape) or not can_be_reread(inputs):
        return items
    keys = _keys(inputs, shape, replace(options, position=None))  # a look ahead is no progress
    if not _is_scattered(islice(keys, options.skip, options.stop)):
        return items
    formats = {item.format for item in inputs}
    if "parquet" not in formats and len(formats) == 1:
        return _gather_lines(inputs, shape, options)
    if len(inputs) == 1 and isinstance(shape, FlatShape):
        return _gather_table(inputs[0], shape, options)
    raise InputError(
        f"{inputs[0].path}: the rows of a query are scattered over files that are not all JSON lines",
        hint="sort the rows by query first, or give each file on its own",
    )


def _keys(inputs: Sequence[Input], shape: GroupShape, options: ReadOptions) -> Iterator[tuple[Format, int] | None]:
    """The format and the group of each row; None for a row that cannot be read."""
    for item in inputs:
        if item.format == "parquet" and isinstance(shape, FlatShape):
            for key in _table_keys(item, shape):
                yield item.format, key
        else:
            for row in read_input(item, shape, options):
                if not isinstance(row, Gap):
                    yield (item.format, shape.group_key(row.fields)) if isinstance(row, JsonRow) else None


def _table_keys(item: Input, shape: FlatShape) -> Iterator[int]:
    """The group of each row of a table; only the columns that decide it are read."""
    from rerank_cli.formats import parquet_reader

    if columns := parquet_reader.column_names(item.path, item.partition):
        wanted = shape.key_columns(columns)
        for values in zip(
            *(parquet_reader.iter_column(item.path, name, item.partition) for name in wanted), strict=True
        ):
            yield shape.group_key(dict(zip(wanted, values, strict=True)))


def _is_scattered(keys: Iterator[tuple[Format, int] | None]) -> bool:
    """Whether a group comes back after another one, or continues in a file of another format."""
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


def _gather_lines(inputs: Sequence[Input], shape: GroupShape, options: ReadOptions) -> Iterator[Item]:
    """The rows ordered by first appearance of their group, then by place, through a temporary SQLite file.

    Bad rows and blank lines come first, as they are read.
    """
    plain = inputs[0].format not in ("jsonl", *SEPARATED)
    groups: dict[int, int] = {}
    rows: list[tuple[int, int, str, int, bytes]] = []
    place = 0
    insert = "INSERT INTO rows VALUES (?, ?, ?, ?, ?)"
    with tempfile.TemporaryDirectory(prefix="rerank-cli-") as folder:
        # Not bound to one thread: a run that stops may close this generator in another thread than the reading one.
        spool = sqlite3.connect(Path(folder) / "rows.sqlite", isolation_level=None, check_same_thread=False)
        try:
            spool.execute("PRAGMA journal_mode = OFF")
            spool.execute(
                "CREATE TABLE rows (grp INTEGER, place INTEGER PRIMARY KEY, file TEXT, number INTEGER, raw BLOB)"
            )
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
            spool.execute("CREATE INDEX by_group ON rows (grp, place)")
            for file, number, raw in spool.execute("SELECT file, number, raw FROM rows ORDER BY grp, place"):
                yield jsonl.parse_row(raw, file=file, number=number, plain=plain)
        except sqlite3.Error as error:
            raise InputError(
                f"{folder}: rows cannot be gathered by query: {error}", hint="set TMPDIR to a folder with room"
            ) from error
        finally:
            spool.close()


def _gather_table(item: Input, shape: FlatShape, options: ReadOptions) -> Iterator[Item]:
    """The rows of a Parquet file ordered by first appearance of their group; the whole file is held in memory."""
    from rerank_cli.formats import parquet_reader

    groups: dict[int, int] = {}
    rows = parquet_reader.row_count(item.path)
    places = range(rows)[options.skip : options.stop]
    keys = islice(_table_keys(item, shape), options.skip, options.stop)
    numbers = [groups.setdefault(key, len(groups)) for key in keys]
    order = sorted(places, key=lambda place: numbers[place - options.skip])
    if options.position:
        options.position.begin_table(item.path, rows)
    columns = shape.columns(parquet_reader.column_names(item.path, item.partition))
    most = _MAX_GATHERED_PARQUET_BYTES
    yield from parquet_reader.read_rows_in_order(item.path, columns, order, max_bytes=most, partition=item.partition)
