"""Tables into one Parquet file whose schema may grow.

A Parquet file has one schema, which is known only with the last window, and is useless without the footer at its end.
So windows wait as Arrow streams (`ParquetParts`), and one pass at the end makes the file: a row group for each window,
with one window in memory. When a later window widens the schema, the values of earlier ones are checked again, as they
must fit too; fields and types rarely change after the first windows.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from rerank_cli.errors import OutputError
from rerank_cli.formats.arrow_types import (
    TRUNCATION_FIELDS,
    TypesDiffer,
    child_fields,
    conform,
    conform_table,
    infer_type,
    list_parts,
    make_list,
    make_struct,
    scored_fields,
    storable,
    widen_schema,
)
from rerank_cli.formats.parquet_reader import arrow_reason

_PART_LENGTH = struct.Struct("<Q")


class ParquetParts:
    """The tables of one output: parts that wait, one for each window, and a Parquet file when all are there.

    A part is the length of an Arrow stream (8 bytes, little-endian) and the stream, which holds a table. Arrow streams
    keep every type as it is and say where they end, so parts can be appended, cut off and read one at a time.

    All parts so far have a common schema. A part that does not fit is refused when it is made, not when the file is
    written hours later.

    name: of the output, for messages. earlier: opens the files with the parts so far, in order. score: the name of the
    score field.
    """

    def __init__(self, name: str, earlier: Callable[[], Sequence[pa.NativeFile]], *, score: str = "logit") -> None:
        self._name = name
        self._earlier = earlier
        self._scored = {
            field.name: field for field in scored_fields(score, prob=True, probability=True, scored_by=True, tiles=True)
        }
        self._score = score
        self.schema: pa.Schema | None = None

    def of_table(self, table: pa.Table) -> bytes:
        """A row group as a part. A table without rows only adds its columns to the schema; without columns it is empty.

        Raises OutputError where a column fits no type together with the parts before.
        """
        if not table.num_columns:
            return b""
        try:
            # The schema widens to hold this table too, and every earlier part must fit it as well.
            schema = table.schema if self.schema is None else widen_schema(self.schema, table.schema)
            if self.schema is None or not schema.equals(self.schema, check_metadata=True):
                with self._naming_output():
                    pq.ParquetWriter(pa.BufferOutputStream(), schema).close()
                for part in self._open_part_streams():
                    conform_table(pa.ipc.open_stream(part).read_all(), schema)
            conform_table(table, schema)
        except TypesDiffer as error:
            raise self._mixed_types_error(error) from error
        self.schema = schema
        stream = pa.BufferOutputStream()
        with pa.ipc.new_stream(stream, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
            writer.write_table(table)
        data: bytes = stream.getvalue().to_pybytes()
        return _PART_LENGTH.pack(len(data)) + data

    def of_rows(self, rows: Sequence[dict[str, Any]], *, passages: str | None = None) -> bytes:
        """A row group of rows from a JSON parser; types are inferred, except for our own fields.

        passages: the list column with the scored passages; None if each row is one. Raises OutputError for a field
        whose values have no common type, and for integers beyond 64 bit.
        """
        if not rows:
            return b""
        names = dict.fromkeys(name for row in rows for name in row)
        try:
            columns = {name: self._column([row.get(name) for row in rows], name, passages) for name in names}
        except TypesDiffer as error:
            raise self._mixed_types_error(error) from error
        if passages is None and self._score in columns:
            columns |= _missing_truncation(columns, len(rows))
        return self.of_table(pa.table(columns))

    def restore(self) -> None:
        """Learn the schema of the parts that an earlier process wrote."""
        for part in self._open_part_streams():
            schema = pa.ipc.open_stream(part).schema
            self.schema = schema if self.schema is None else widen_schema(self.schema, schema)

    def write_file(self, stream: BinaryIO, check: Callable[[], None] = lambda: None) -> None:
        """All parts as one Parquet file, a row group each; without parts a file without columns.

        check: called before each row group. Disk errors propagate as OSError.
        """
        schema = pa.schema([]) if self.schema is None else self.schema
        with (
            pa.PythonFile(stream, mode="w") as sink,
            self._naming_output(),
            pq.ParquetWriter(sink, schema, compression="zstd", write_statistics=True) as writer,
        ):
            for part in self._open_part_streams():
                check()
                table = conform_table(pa.ipc.open_stream(part).read_all(), schema)
                if table.num_rows:
                    writer.write_table(table, row_group_size=table.num_rows)

    def _column(self, values: list[Any], name: str, passages: str | None) -> pa.Array:
        data_type = infer_type(values, name)
        try:
            array = pa.array(values, data_type)
        except UnicodeEncodeError as error:
            raise TypesDiffer(name, "text", "half of a surrogate pair, which is no character") from error
        if isinstance(array, pa.ChunkedArray):
            raise TypesDiffer(name, "text", "more than 2 GiB of it in one window")
        array = conform(array, storable(data_type), name)
        if passages is None:
            return self._cast_to_fixed(array, name)
        if name != passages or not pa.types.is_list(array.type):
            return array
        offsets, items = list_parts(array)
        if not pa.types.is_struct(items.type):
            return array
        # The scored passages: our own fields in their fixed types, and if there is a score, all about truncation.
        names = [field.name for field in child_fields(items.type)]
        columns = {n: self._cast_to_fixed(child, n) for n, child in zip(names, items.flatten(), strict=True)}
        if self._score in columns:
            columns |= _missing_truncation(columns, len(items))
        fields = [pa.field(n, column.type) for n, column in columns.items()]
        objects = make_struct(list(columns.values()), fields, items)
        return make_list(offsets, objects, pa.list_(array.type.value_field.with_type(objects.type)), array)

    def _cast_to_fixed(self, array: pa.Array, name: str) -> pa.Array:
        """`array` in the fixed type of our field `name`; unchanged if it is a user's field that does not fit it."""
        field = self._scored.get(name)
        if field is None or pa.types.is_boolean(array.type) != pa.types.is_boolean(field.type):
            return array if field is None or not pa.types.is_null(array.type) else pa.nulls(len(array), field.type)
        try:
            return array.cast(field.type)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            return array

    def _open_part_streams(self) -> Iterator[pa.NativeFile]:
        """The Arrow stream of each part so far."""
        for source in self._earlier():
            with source:
                while head := source.read(_PART_LENGTH.size):
                    (length,) = _PART_LENGTH.unpack(head)
                    begin = source.tell()
                    yield source
                    source.seek(begin + length)

    def _mixed_types_error(self, error: TypesDiffer) -> OutputError:
        message = f"{self._name}: field `{error.field}` cannot be a Parquet column: it holds {error.first} and "
        return OutputError(message + error.second, hint="write `.jsonl`, where each row has its own types")

    @contextmanager
    def _naming_output(self) -> Iterator[None]:
        """Arrow's errors become an OutputError that names the output; OSError passes."""
        try:
            yield
        except (pa.ArrowNotImplementedError, pa.ArrowInvalid) as error:
            message = f"{self._name}: cannot be written as Parquet: {arrow_reason(error)}"
            raise OutputError(message, hint="write `.jsonl`") from error


def _missing_truncation(columns: Mapping[str, pa.Array], rows: int) -> dict[str, pa.Array]:
    return {field.name: pa.nulls(rows, field.type) for field in TRUNCATION_FIELDS if field.name not in columns}
