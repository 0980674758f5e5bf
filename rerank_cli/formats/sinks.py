"""Ranked lists to output rows, for every pair of input and output format.

JSON rows  -> JSONL      the row's own object with our fields put in
JSON rows  -> Parquet    the same objects, their types inferred; numbers as the doubles nearest to them
Parquet    -> Parquet    Arrow data rearranged as it is: foreign columns come back bit for bit
Parquet    -> JSONL      the rearranged table as JSON objects

Rows that are written in another shape than they were read in follow the rules of that shape, for every input format.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any, BinaryIO

from rerank_cli.formats.shapes import (
    PASSAGES,
    Conversion,
    FlatShape,
    KnownListShape,
    ListShape,
    Selection,
    Shape,
    lookup,
)
from rerank_cli.formats.shapes.shape import OF_A_CUT
from rerank_cli.records import CandidateList, JsonRow, RankedList, RankedPassage, Window

if TYPE_CHECKING:
    import pyarrow as pa

_TILES = ("tiles", "kept_tiles")


class JsonlSink:
    """Writes JSON lines to a stream.

    flush: after every window, for readers at the other end of a pipe.
    """

    def __init__(
        self,
        stream: BinaryIO,
        shape: Shape,
        selection: Selection,
        *,
        flush: bool = False,
    ) -> None:
        self._stream = stream
        self._shape = shape
        self._dump = shape.kind.dump
        self._selection = selection
        self._flush = flush

    def write(self, ranked: Sequence[RankedList]) -> int:
        """Write the lists; returns the number of lines."""
        lines = 0
        for by_shape, group in groupby(ranked, key=partial(_is_written_by, self._shape)):
            if by_shape:
                rows = (row for item in group for row in self._shape.render(item, self._selection))
            else:
                tables = (same for _, same in _by_field(list(group), self._shape))
                rows = (row for same in tables for row in _json_of_table(self._shape, same, self._selection))
            for row in rows:
                self._stream.write(self._dump(row))
                lines += 1
        if self._flush:
            self._stream.flush()
        return lines


class ParquetSink:
    """Writes one part for each window to a stream (`ParquetParts`); `finish` makes the file of all parts.

    name: of the output, for messages. earlier: opens the files with what was written to the stream so far. like: a
    Parquet input, whose columns the output has if no row is written.
    """

    def __init__(
        self,
        stream: BinaryIO,
        name: str,
        shape: Shape,
        selection: Selection,
        *,
        earlier: Callable[[], Sequence[pa.NativeFile]],
        like: str | None = None,
    ) -> None:
        # Imported here: pyarrow costs 0.2 s that JSONL need not pay.
        from rerank_cli.formats.parquet_writer import ParquetParts

        self._stream = stream
        self._shape = shape
        self._selection = selection
        self._like = like
        self._parts = ParquetParts(name, earlier, score=selection.score)
        self._parts.restore()

    def write(self, ranked: Sequence[RankedList]) -> int:
        """Write the lists; returns the number of rows."""
        written = 0
        for passages, group in _by_field(ranked, self._shape):
            if _is_written_by(self._shape, group[0]):
                rows = [_in_doubles(row) for item in group for row in self._shape.render(item, self._selection)]
                self._stream.write(self._parts.of_rows(rows, passages=passages))
                written += len(rows)
            else:
                table = ranked_table(self._shape, group, self._selection)
                self._stream.write(self._parts.of_table(table))
                written += table.num_rows
        return written

    def finish(self, file: BinaryIO, check: Callable[[], None] = lambda: None) -> None:
        """Write the file; without rows it is a table without columns, or with those of `like` and ours.

        check: called before each row group.
        """
        if self._parts.schema is None and self._like is not None and not isinstance(self._shape, Conversion):
            from rerank_cli.formats.parquet_reader import read_schema

            self._parts.schema = empty_table(read_schema(self._like), self._shape, self._selection).schema
        self._parts.write_file(file, check)


class BestSink:
    """Keeps the best rows of a whole run and writes them at the end, best first (`score --top-n`).

    dropped: how many scored rows were not among the best. note: what `restore` needs to keep the rows of the last
    `write` again: the row number of each that was kept, and the numbers of its `RankedPassage` from `logit` on.
    """

    def __init__(self, sink: JsonlSink | ParquetSink, *, top_n: int) -> None:
        self._sink = sink
        self._top_n = top_n
        self._best: list[RankedList] = []
        self.dropped = 0
        self.note: list[tuple[float, ...]] = []

    def write(self, ranked: Sequence[RankedList]) -> int:
        """Keep the rows that are among the best so far; nothing is written yet, so the result is 0."""
        self.dropped += self._keep(ranked)
        new = {id(item) for item in ranked}
        self.note = [
            (item.source.rows[0].number, *astuple(entry)[2:])
            for item in self._best
            if id(item) in new
            for entry in item.ranking[:1]
        ]
        return 0

    def restore(self, window: Window, note: Sequence[Sequence[Any]]) -> None:
        """Keep again what `write` kept of a window in an earlier process."""
        lists = {item.rows[0].number: item for item in window.lists}
        entries = [(number, RankedPassage(1, 0, *numbers)) for number, *numbers in note]
        self._keep([RankedList(lists[number], (entry,)) for number, entry in entries])

    def _keep(self, ranked: Sequence[RankedList]) -> int:
        """Keep the best of those kept so far and `ranked`; returns how many are left out."""
        scored = [item for item in [*self._best, *ranked] if item.ranking]
        scored.sort(key=lambda item: -item.ranking[0].logit)  # stable: earlier rows first
        self._best = scored[: self._top_n]
        return len(scored) - len(self._best)

    def finish(self) -> int:
        """Write the best rows; returns their number."""
        return self._sink.write(self._best)


def _in_doubles(value: Any) -> Any:
    """`value` with plain floats in place of `ExactFloat` numbers such as 1.10, except those too large for a float."""
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else value
    if isinstance(value, dict):
        return {name: _in_doubles(item) for name, item in value.items()}
    return [_in_doubles(item) for item in value] if isinstance(value, (list, tuple)) else value


def _is_written_by(shape: Shape, item: RankedList) -> bool:
    """Whether a list is written by its shape, and not as a table."""
    return isinstance(item.source.rows[0], JsonRow) or isinstance(shape, Conversion)


def _by_field(ranked: Sequence[RankedList], shape: Shape) -> Iterator[tuple[str | None, list[RankedList]]]:
    """Groups of neighbours that are written alike, with the field of their passages; None in a shape without a list."""

    def origin(item: RankedList) -> tuple[bool, str | None]:
        if isinstance(shape, Conversion):
            return True, PASSAGES if shape.kind.name == "list" else None
        path = shape.passages_path(item.source.rows[0].fields) if isinstance(shape, ListShape) else None
        return _is_written_by(shape, item), path

    for (_, path), group in groupby(ranked, key=origin):
        yield path, list(group)


def ranked_table(shape: Shape, ranked: Sequence[RankedList], selection: Selection) -> pa.Table:
    """The output rows of lists that came from Parquet."""
    from rerank_cli.formats import arrow_ranking

    if isinstance(shape, ListShape):
        fields = ranked[0].source.rows[0].fields
        passages = shape.passages_path(fields)
        if isinstance(shape, KnownListShape) and shape.in_columns:
            held = lookup(fields, passages) if passages else fields
            in_step = shape.columns_in_step(held) if isinstance(held, Mapping) else ()
            return arrow_ranking.rank_columns(ranked, selection, container=passages, in_step=in_step)
        if isinstance(lookup(fields, passages), str):
            texts = [lookup(row, passages) for item in ranked for row in shape.render(item, selection)]
            return arrow_ranking.replace_texts(ranked, passages, texts)
        return arrow_ranking.rank_lists(ranked, selection, passages=passages, text="text", siblings=shape.siblings)
    return arrow_ranking.rank_rows(ranked, selection, ranks=isinstance(shape, FlatShape))


def empty_table(schema: pa.Schema, shape: Shape, selection: Selection) -> pa.Table:
    """The output table without rows for an input of `schema`: that of a row of nulls, without the row."""
    import pyarrow as pa

    from rerank_cli.formats.arrow_types import is_list
    from rerank_cli.formats.parquet_reader import ArrowRow

    nulls = pa.RecordBatch.from_arrays([pa.nulls(1, field.type) for field in schema], schema=schema)
    row = ArrowRow("", 1, dict.fromkeys(schema.names, ()), nulls, 0)
    if isinstance(shape, KnownListShape):
        return schema.empty_table()
    if isinstance(shape, ListShape):
        place = schema.get_field_index(shape.passages_path(row.fields)) if schema.names else -1
        if place < 0 or not is_list(schema.field(place).type):
            return schema.empty_table()
    return ranked_table(shape, [RankedList(CandidateList("", (), (row,)), ())], selection).slice(0, 0)


def _json_of_table(shape: Shape, ranked: Sequence[RankedList], selection: Selection) -> list[dict[str, Any]]:
    """The rows as JSON objects; as in JSON rows, the fields about truncation are left out where nothing was cut."""
    from rerank_cli.formats.arrow_json import to_json_rows

    rows = to_json_rows(ranked_table(shape, ranked, selection))
    for row in rows:
        if isinstance(shape, KnownListShape) and shape.in_columns:
            _drop_empty_lists(row, shape)
            continue
        scored: Any = lookup(row, shape.passages_path(row)) if isinstance(shape, ListShape) else [row]
        for passage in scored if isinstance(scored, list) else ():
            if passage.get("truncated") is None:
                for name in OF_A_CUT:
                    passage.pop(name, None)
            if passage.get("kept_tiles", 0) is None:
                for name in _TILES:
                    passage.pop(name, None)
    return rows


def _drop_empty_lists(row: dict[str, Any], shape: KnownListShape) -> None:
    """Delete those of our lists about truncation that hold no value, from the object with the lists in step."""
    path = shape.passages_path(row)
    held = lookup(row, path) if path else row
    if isinstance(held, dict):
        for name in (*OF_A_CUT, *_TILES):
            if name in held and not any(held[name] or ()):
                del held[name]
