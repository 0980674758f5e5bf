"""Ranked lists to output rows, in any pairing of input and output format.

JSON rows  -> JSONL      the row's own object with our fields put in
JSON rows  -> Parquet    the same objects, their types inferred; numbers as the doubles nearest to them
Parquet    -> Parquet    Arrow data rearranged as it is: foreign columns come back bit for bit
Parquet    -> JSONL      the rearranged table as JSON objects

Rows that come out in another shape than they came in are written by that shape's own rules, whatever they came from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple
from itertools import groupby
from typing import TYPE_CHECKING, Any, BinaryIO

from rerank_cli.formats.shapes import PASSAGES, Conversion, FlatShape, ListShape, PathShape, Selection, Shape, lookup
from rerank_cli.records import CandidateList, JsonRow, RankedList, RankedPassage, Window

if TYPE_CHECKING:
    import pyarrow as pa

_TRUNCATION = ("truncated", "tokens", "kept_tokens")
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
        self._selection = selection
        self._flush = flush

    def write(self, ranked: Sequence[RankedList]) -> int:
        """Write the lists; returns the number of lines."""
        lines = 0
        for is_json, group in _by_origin(ranked, self._shape):
            rows: Iterable[dict[str, Any]]
            if is_json:
                rows = _render_rows(self._shape, group, self._selection)
            else:
                rows = _json_of_table(self._shape, group, self._selection)
            for row in rows:
                self._stream.write(self._shape.kind.dump(row))
                lines += 1
        if self._flush:
            self._stream.flush()
        return lines


class ParquetSink:
    """Writes a part a window to a stream (`TableParts`); `finish` makes the file of all parts.

    name: what messages call it. earlier: opens the files that hold what the stream has taken. like: a Parquet input,
    whose columns the output has if no row is written.
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
        from rerank_cli.formats.table_parts import TableParts

        self._stream = stream
        self._shape = shape
        self._selection = selection
        self._like = like
        self._parts = TableParts(name, earlier, score=selection.score)
        self._parts.restore()

    def write(self, ranked: Sequence[RankedList]) -> int:
        """Write the lists; returns the number of rows."""
        written = 0
        for is_json, group in _by_origin(ranked, self._shape):
            if is_json:
                rows = [_in_doubles(row) for row in _render_rows(self._shape, group, self._selection)]
                self._stream.write(self._parts.of_rows(rows, passages=_passages_path(group[0], self._shape)))
                written += len(rows)
            else:
                table = ranked_table(self._shape, group, self._selection)
                self._stream.write(self._parts.of_table(table))
                written += table.num_rows
        return written

    def finish(self, file: BinaryIO, check: Callable[[], None] = lambda: None) -> None:
        """Write the file; without any row it is a table without columns, or with those of `like` and ours.

        check: called before each row group.
        """
        if self._parts.schema is None and self._like is not None and not isinstance(self._shape, Conversion):
            from rerank_cli.formats.parquet import read_schema

            self._parts.schema = empty_table(read_schema(self._like), self._shape, self._selection).schema
        self._parts.write_file(file, check)


class BestSink:
    """Keeps the best rows of a whole run and hands them on at the end, best first (`score --top-n`).

    dropped: how many scored rows were not among the best. note: of the lists written last, what `restore` must be told
    to keep them again: the row number of each that was kept, and the numbers of its `RankedPassage` from `logit` on.
    """

    def __init__(self, sink: JsonlSink | ParquetSink, *, top_n: int) -> None:
        self._sink = sink
        self._top_n = top_n
        self._best: list[RankedList] = []
        self.dropped = 0
        self.note: list[tuple[float, ...]] = []

    def write(self, ranked: Sequence[RankedList]) -> int:
        """Keep what is among the best so far; nothing is written yet."""
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
        """Keep again what `write` has kept of a window in an earlier process."""
        lists = {item.rows[0].number: item for item in window.lists}
        entries = [(number, RankedPassage(1, 0, *numbers)) for number, *numbers in note]
        self._keep([RankedList(lists[number], (entry,)) for number, entry in entries])

    def _keep(self, ranked: Sequence[RankedList]) -> int:
        """Keep the best of what is kept and `ranked`; returns how many that leaves out."""
        scored = [item for item in [*self._best, *ranked] if item.ranking]
        scored.sort(key=lambda item: -item.ranking[0].logit)  # stable: earlier rows first
        self._best = scored[: self._top_n]
        return len(scored) - len(self._best)

    def finish(self) -> int:
        """Write the best rows; returns their number."""
        return self._sink.write(self._best)


def _passages_path(ranked: RankedList, shape: Shape) -> str | None:
    """The field of the passages, in a shape that has them in one."""
    if isinstance(shape, Conversion):
        return PASSAGES if shape.kind.name == "list" else None
    return shape.passages_path(ranked.source.rows[0].fields) if isinstance(shape, ListShape) else None


def _render_rows(shape: Shape, ranked: Iterable[RankedList], selection: Selection) -> Iterator[dict[str, Any]]:
    return (row for item in ranked for row in shape.render(item, selection))


def _in_doubles(value: Any) -> Any:
    """`value` with plain floats in place of numbers that JSON wrote differently (1.10), except those beyond a float."""
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else value
    if isinstance(value, dict):
        return {name: _in_doubles(item) for name, item in value.items()}
    return [_in_doubles(item) for item in value] if isinstance(value, (list, tuple)) else value


def _by_origin(ranked: Sequence[RankedList], shape: Shape) -> Iterator[tuple[bool, list[RankedList]]]:
    """Neighbours whose rows are written by their shape (True) or as a table (False), passages in the same field."""

    def origin(item: RankedList) -> tuple[bool, str | None]:
        by_shape = isinstance(item.source.rows[0], JsonRow) or isinstance(shape, Conversion)
        return by_shape, _passages_path(item, shape)

    for (is_json, _), group in groupby(ranked, key=origin):
        yield is_json, list(group)


def ranked_table(shape: Shape, ranked: Sequence[RankedList], selection: Selection) -> pa.Table:
    """The output rows of lists that came from Parquet."""
    from rerank_cli.formats import arrow_ranking

    ours: dict[str, Any] = {
        "score": selection.score, "prob": selection.prob, "probability": selection.probability,
        "scored_by": selection.scored_by,
    }  # fmt: skip
    if isinstance(shape, ListShape):
        fields = ranked[0].source.rows[0].fields
        passages = shape.passages_path(fields)
        if isinstance(shape, PathShape) and shape.in_columns:
            held = lookup(fields, passages) if passages else fields
            in_step = shape.columns_in_step(held) if isinstance(held, Mapping) else ()
            return arrow_ranking.rank_columns(ranked, container=passages, in_step=in_step, **ours)
        if isinstance(lookup(fields, passages), str):
            texts = [lookup(row, passages) for row in _render_rows(shape, ranked, selection)]
            return arrow_ranking.replace_texts(ranked, passages, texts)
        return arrow_ranking.rank_lists(ranked, passages=passages, text="text", siblings=shape.siblings, **ours)
    return arrow_ranking.rank_rows(ranked, **ours, ranks=isinstance(shape, FlatShape))


def empty_table(schema: pa.Schema, shape: Shape, selection: Selection) -> pa.Table:
    """The table of no rows that a ranked one of `schema` has: that of one row of nulls, without this row."""
    import pyarrow as pa

    from rerank_cli.formats.arrow_types import is_list
    from rerank_cli.formats.parquet import ArrowRow

    nulls = pa.RecordBatch.from_arrays([pa.nulls(1, field.type) for field in schema], schema=schema)
    row = ArrowRow("", 1, dict.fromkeys(schema.names, ()), nulls, 0)
    if isinstance(shape, PathShape):
        return schema.empty_table()
    if isinstance(shape, ListShape):
        place = schema.get_field_index(shape.passages_path(row.fields)) if schema.names else -1
        if place < 0 or not is_list(schema.field(place).type):
            return schema.empty_table()
    return ranked_table(shape, [RankedList(CandidateList("", (), (row,)), ())], selection).slice(0, 0)


def _json_of_table(shape: Shape, ranked: Sequence[RankedList], selection: Selection) -> list[dict[str, Any]]:
    """The rows as JSON objects; where nothing was cut, the truncation fields are left out, as in JSON rows."""
    from rerank_cli.formats.arrow_json import to_json_rows

    rows = to_json_rows(ranked_table(shape, ranked, selection))
    for row in rows:
        scored: Any = lookup(row, shape.passages_path(row)) if isinstance(shape, ListShape) else [row]
        if isinstance(shape, PathShape) and shape.in_columns:
            scored = _drop_silent_lists(row, shape)
        for passage in scored if isinstance(scored, list) else ():
            if passage.get("truncated") is None:
                for name in _TRUNCATION:
                    passage.pop(name, None)
            if passage.get("kept_tiles", 0) is None:
                for name in _TILES:
                    passage.pop(name, None)
    return rows


def _drop_silent_lists(row: dict[str, Any], shape: PathShape) -> list[dict[str, Any]]:
    """The object with the lists in step, without the lists of ours that tell nothing."""
    path = shape.passages_path(row)
    held = lookup(row, path) if path else row
    if isinstance(held, dict):
        for name in (*_TRUNCATION, *_TILES):
            if name in held and not any(held[name] or ()):
                del held[name]
    return []
