"""Rows from Parquet files, in bounded memory.

The sizes in a Parquet file say nothing about the memory that its rows take: through dictionary and run-length encoding
695 bytes can hold 100,000 rows of 1 MB, and the metadata may lie. So rows are decoded a few at a time, and the decoded
bytes are measured: 1, 4, 16, 64 rows, and fewer where these would pass `BATCH_BYTES`. There are never more than 64,
since the next row may be a thousand times as large as the last. A batch of 64 small rows of six columns costs about 70
µs (pyarrow 26, 2 cores, 2026), which is little beside scoring them.

Only the columns that the shape reads become Python values. All others stay Arrow data and are rearranged as such, so
they come back bit for bit.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rerank_cli.errors import InputError
from rerank_cli.formats.arrow_json import to_json_rows, to_values
from rerank_cli.formats.arrow_types import (
    MAX_DEPTH,
    child_fields,
    column_at,
    is_list,
    schema_without_views,
)
from rerank_cli.formats.input_folders import Partition
from rerank_cli.formats.parquet_footer import check_magic, refuse_joined
from rerank_cli.records import RowError
from rerank_cli.storage import is_url
from rerank_cli.storage.reading import ObjectReader

BATCH_BYTES = 16 * 2**20
"""The most memory of a decoded batch, unless a single row takes more; see the head of this file."""

BATCH_ROWS = 64
"""The most rows decoded at once: with 1 MB a row and four such columns 256 MB."""

_TABLE_BATCH_ROWS = 4096  # of a table that is in memory already
_READ_BUFFER_BYTES = 2**20
_WHOLE_CHUNKS_BYTES = 64 * 2**20
"""Files up to this size are read by whole column chunks. Larger ones need a stream, as a row group may be most of the
file. But a stream takes the memory that a damaged page header claims (2 GiB resident, pyarrow 26); chunks do not."""

_FAULTS = (pa.ArrowException, OSError, UnicodeDecodeError)


@dataclass(frozen=True, slots=True, eq=False)
class ArrowRow:
    """A row of a Parquet file; satisfies `Row`.

    fields: the columns that the shape reads, as Python values. batch: all columns of this row and its neighbours;
    index: the row's place in it.
    """

    file: str
    number: int
    fields: Mapping[str, Any]
    batch: pa.RecordBatch
    index: int

    @property
    def raw(self) -> bytes:
        """All columns as one JSON object, as `arrow_json` describes."""
        table = pa.Table.from_batches([self.batch.slice(self.index, 1)])
        return json.dumps(to_json_rows(table)[0], ensure_ascii=False, allow_nan=False).encode()


_LIST_LEVEL = re.compile(r"[.](list[.](element|item)|bag[.]array_element|array)(?=[.]|$)")


def read_schema(path: str, partition: Partition = ()) -> pa.Schema:
    """Columns, types and metadata of a file. partition: columns that the folders of its path add."""
    with _open_parquet(path) as file:
        return _with_columns(file.schema_arrow, partition)


def column_names(path: str, partition: Partition = ()) -> list[str]:
    """The top-level columns of a file; none in one that a run without rows wrote."""
    return list(read_schema(path, partition).names)


def row_count(path: str) -> int:
    """Rows of a file, by its footer."""
    with _open_parquet(path) as file:
        return int(file.metadata.num_rows)


def fields_with_values(path: str) -> set[str]:
    """The fields that have a value in some row, by the footer's statistics; dotted, without the levels of lists.

    A field without statistics counts as having one.
    """
    found = set()
    with _open_parquet(path) as file:
        for group in map(file.metadata.row_group, range(file.metadata.num_row_groups)):
            for column in map(group.column, range(group.num_columns)):
                counts = column.statistics if column.is_stats_set else None
                if counts is None or not counts.has_null_count or counts.null_count < column.num_values:
                    found.add(_LIST_LEVEL.sub("", column.path_in_schema))
    return found


def read_rows(
    path: str, columns: Mapping[str, tuple[str, ...] | None], partition: Partition = ()
) -> Iterator[ArrowRow | RowError]:
    """The rows of a file in order.

    columns: the top-level columns wanted in `ArrowRow.fields`, each with the names of the struct fields wanted (of a
    struct, or of a list of structs; a name that the structs lack is left out) or None for the whole value. partition:
    columns that the folders of its path add, where the file has none of that name.

    A row is a RowError if wanted text is not UTF-8. Raises InputError at a fault of the file, after the rows before it.
    """
    with _open_parquet(path) as file:
        wanted = _Wanted.of(_with_columns(file.schema_arrow, partition), columns, path)
        before = 0
        for batch in _batches(file, path, None):
            batch = _with_values(batch, partition)
            yield from wanted.rows(batch, before, range(batch.num_rows))
            before += batch.num_rows


def read_rows_in_order(
    path: str,
    columns: Mapping[str, tuple[str, ...] | None],
    order: Sequence[int],
    *,
    max_bytes: int,
    partition: Partition = (),
) -> Iterator[ArrowRow | RowError]:
    """The rows at the places `order` (from 0) in that order, otherwise as `read_rows`.

    The whole file is decoded into memory before the first row; InputError if that takes more than `max_bytes`.
    """
    batches: list[pa.RecordBatch] = []
    starts = [0]
    taken = 0
    with _open_parquet(path) as file:
        wanted = _Wanted.of(_with_columns(file.schema_arrow, partition), columns, path)
        for batch in _batches(file, path, None):
            batch = _with_values(batch, partition)
            taken += batch.nbytes
            if batches:  # the dictionaries that it shares with the one before are in memory once
                pairs = zip(batch.columns, batches[-1].columns, strict=True)
                both = [(a.dictionary, b.dictionary) for a, b in pairs if pa.types.is_dictionary(a.type)]
                taken -= sum(int(a.nbytes) for a, b in both if a.equals(b))
            if taken > max_bytes:
                raise InputError(
                    f"{path}: its rows cannot be put in order: they take more than {max_bytes / 2**20:.0f} MiB",
                    hint="sort the file by the column that groups its rows",
                )
            batches.append(batch)
            starts.append(starts[-1] + batch.num_rows)
    for run in _runs(order, starts):
        place = bisect_right(starts, run.start) - 1
        yield from wanted.rows(
            batches[place], starts[place], range(run.start - starts[place], run.stop - starts[place])
        )


def iter_column(path: str, name: str, partition: Partition = ()) -> Iterator[Any]:
    """The values of one column, in the order of the rows; only that column is read.

    They are those of `ArrowRow.fields`, except that bytes which are not UTF-8 become U+FFFD.
    """
    with _open_parquet(path) as file:
        of_path = dict(partition)
        if name in of_path and name not in file.schema_arrow.names:
            yield from repeat(of_path[name], file.metadata.num_rows)
            return
        _find(file.schema_arrow, name, path)
        for batch in _batches(file, path, [name]):
            array = batch.column(_find(batch.schema, name, path))
            try:
                values = to_values(array, exact=True)
            except UnicodeDecodeError:
                values = to_values(array)
            yield from values


def _with_columns(schema: pa.Schema, partition: Partition) -> pa.Schema:
    for name, value in partition:
        if name not in schema.names:
            schema = schema.append(pa.field(name, pa.scalar(value).type))
    return schema


def _with_values(batch: pa.RecordBatch, partition: Partition) -> pa.RecordBatch:
    """`batch` with the columns of `partition` that it lacks."""
    for name, value in partition:
        if name not in batch.schema.names:
            batch = batch.append_column(name, pa.repeat(pa.scalar(value), batch.num_rows))
    return batch


def table_rows(
    table: pa.Table, columns: Mapping[str, tuple[str, ...] | None], name: str
) -> Iterator[ArrowRow | RowError]:
    """The rows of a table in memory, otherwise as `read_rows`. name: of the table, for messages."""
    wanted = _Wanted.of(table.schema, columns, name)
    before = 0
    for batch in table.to_batches(max_chunksize=_TABLE_BATCH_ROWS):
        yield from wanted.rows(batch, before, range(batch.num_rows))
        before += batch.num_rows


@dataclass(frozen=True, slots=True)
class _Wanted:
    """The columns that become Python values: their places, and the struct fields wanted of each."""

    path: str
    places: Mapping[str, int]
    keep: Mapping[str, tuple[str, ...] | None]

    @classmethod
    def of(cls, schema: pa.Schema, columns: Mapping[str, tuple[str, ...] | None], path: str) -> _Wanted:
        return cls(path, {name: _find(schema, name, path) for name in columns}, columns)

    def rows(self, batch: pa.RecordBatch, before: int, part: range) -> Iterator[ArrowRow | RowError]:
        """The rows at `part` of a batch; the file has `before` rows before the batch."""
        arrays = {
            name: (batch.column(place).slice(part.start, len(part)), self.keep[name])
            for name, place in self.places.items()
        }
        for index, fields in zip(part, _fields(arrays, len(part)), strict=True):
            number = before + index + 1
            if isinstance(fields, str):
                raw = ArrowRow(self.path, number, {}, batch, index).raw
                message = f"column `{fields}` holds text that is not UTF-8"
                yield RowError(self.path, number, None, "bad-utf8", message, raw)
            else:
                yield ArrowRow(self.path, number, fields, batch, index)


def _runs(order: Sequence[int], starts: Sequence[int]) -> Iterator[range]:
    """`order` as runs of successive places, each within one batch."""
    bounds = frozenset(starts)
    begin = 0
    for end in range(1, len(order) + 1):
        if end == len(order) or order[end] != order[end - 1] + 1 or order[end] in bounds:
            yield range(order[begin], order[end - 1] + 1)
            begin = end


def _fields(wanted: Mapping[str, tuple[pa.Array, tuple[str, ...] | None]], rows: int) -> Iterator[dict[str, Any] | str]:
    """The wanted fields of each row, or the name of a column whose text is not UTF-8 there."""
    try:
        columns = [to_values(array, keep=keep, exact=True) for array, keep in wanted.values()]
    except UnicodeDecodeError:
        if rows > 1:
            for index in range(rows):
                one = {name: (array.slice(index, 1), keep) for name, (array, keep) in wanted.items()}
                yield from _fields(one, 1)
        else:
            yield next(name for name, (array, keep) in wanted.items() if not _is_utf8(array, keep))
        return
    if not columns:
        yield from ({} for _ in range(rows))
    for row in zip(*columns, strict=True):
        yield dict(zip(wanted, row, strict=True))


def _is_utf8(array: pa.Array, keep: tuple[str, ...] | None) -> bool:
    try:
        to_values(array, keep=keep, exact=True)
    except UnicodeDecodeError:
        return False
    return True


def _find(schema: pa.Schema, name: str, path: str) -> int:
    at = column_at(schema, name)
    if at is not None:
        return at
    if name in schema.names:
        raise InputError(f"{path}: column `{name}` occurs {schema.names.count(name)} times")
    found = ", ".join(f"`{column}`" for column in schema.names) or "no columns"
    raise InputError(f"{path}: column `{name}` is missing; the file has {found}")


@contextmanager
def _open_parquet(path: str) -> Iterator[pq.ParquetFile]:
    # Not the path itself: pyarrow would take one such as `s3://...` for an address and open it in its own way.
    try:
        source = pa.PythonFile(ObjectReader(path), mode="r") if is_url(path) else pa.OSFile(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {arrow_reason(error)}") from error
    with source:
        try:
            check_magic(source, path)
            buffer_size = _READ_BUFFER_BYTES if source.size() > _WHOLE_CHUNKS_BYTES else 0
            file = pq.ParquetFile(source, buffer_size=buffer_size, pre_buffer=False, page_checksum_verification=True)
            list(_names(pa.field("", pa.struct(list(file.schema_arrow)))))
            refuse_joined(source, path)
        except _FAULTS as error:
            raise InputError(f"{path}: cannot be read as Parquet: {arrow_reason(error)}") from error
        with file:
            yield file


def _names(field: pa.Field, depth: int = 0) -> Iterator[str]:
    """All names and time zones; raises UnicodeDecodeError where one is not UTF-8, early enough to name the file."""
    if depth > MAX_DEPTH:
        raise pa.ArrowInvalid(f"columns nest more than {MAX_DEPTH} levels")
    yield field.name
    if pa.types.is_timestamp(field.type):
        yield field.type.tz or ""
    for child in child_fields(field.type):
        yield from _names(child, depth + 1)


def _batches(file: pq.ParquetFile, path: str, columns: list[str] | None) -> Iterator[pa.RecordBatch]:
    """Batches whose decoded size stays near `BATCH_BYTES`, all rows in order; none spans two row groups."""
    previous: pa.RecordBatch | None = None
    rows, size = 0, 1
    for group in range(file.num_row_groups):
        reader = file.iter_batches(batch_size=size, row_groups=[group], columns=columns)
        while (batch := _next_batch(reader, path, rows)) is not None:
            batch = _with_shared_dictionaries(batch, previous)
            yield batch
            rows += batch.num_rows
            previous = batch
            fixed_bytes = sum(int(one.dictionary.nbytes) for column in batch.columns for one in _dictionaries(column))
            row_bytes = max(1, (batch.nbytes - fixed_bytes) // max(1, batch.num_rows))
            size = int(max(1, min(BATCH_BYTES // row_bytes, 4 * batch.num_rows, BATCH_ROWS)))
            # Takes effect at once: the reader looks at the size before each batch.
            file.reader.set_batch_size(size)
    if rows != file.metadata.num_rows:
        raise InputError(f"{path}: is damaged: it holds {rows} rows, its footer says {file.metadata.num_rows}")


def _next_batch(reader: Iterator[pa.RecordBatch], path: str, rows: int) -> pa.RecordBatch | None:
    try:
        batch = next(reader, None)
        if batch is not None:
            batch.validate()
            # The reader accepts an index without a word, and `take` would read past the end: this raises ArrowInvalid.
            for array in chain.from_iterable(map(_dictionaries, batch.columns)):
                pa.DictionaryArray.from_arrays(array.indices, array.dictionary, safe=True)
            plain = schema_without_views(batch.schema)
            batch = batch if plain is batch.schema else batch.cast(plain)
    except _FAULTS as error:
        raise InputError(f"{path}: cannot be read after row {rows}: {arrow_reason(error)}") from error
    return batch


def _dictionaries(array: pa.Array) -> Iterator[pa.DictionaryArray]:
    """The dictionary arrays in a column. Their words take the same memory for any number of rows."""
    if pa.types.is_dictionary(array.type):
        yield array
    elif is_list(array.type):
        yield from _dictionaries(array.values)
    elif pa.types.is_struct(array.type):
        for place in range(array.type.num_fields):
            yield from _dictionaries(array.field(place))


def _with_shared_dictionaries(batch: pa.RecordBatch, previous: pa.RecordBatch | None) -> pa.RecordBatch:
    """`batch` with the dictionaries of `previous` where they are equal, as the reader makes a copy for each batch."""
    if previous is None or not any(pa.types.is_dictionary(field.type) for field in batch.schema):
        return batch
    columns = []
    for array, before in zip(batch.columns, previous.columns, strict=True):
        if pa.types.is_dictionary(array.type) and array.dictionary.equals(before.dictionary):
            array = pa.DictionaryArray.from_arrays(
                array.indices, before.dictionary, ordered=array.type.ordered, safe=False
            )
        columns.append(array)
    return pa.RecordBatch.from_arrays(columns, schema=batch.schema)


def arrow_reason(error: BaseException) -> str:
    """What Arrow says went wrong, on one line and without error numbers of the system."""
    detail = str(getattr(error, "strerror", None) or error) or type(error).__name__
    return " ".join(re.sub(r".*Detail: (\[errno \d+\] )?", "", detail, flags=re.DOTALL).split()).rstrip(".")
