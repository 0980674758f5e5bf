"""Rows that a Python program holds: data frames, Arrow tables and lists, in and out.

    pandas.DataFrame    a list a row, or a pair a row     comes back as a data frame
    pyarrow.Table       likewise                          comes back as a table
    an Arrow C stream   likewise                          polars and datasets come back as they came, others (a
                                                          relation of DuckDB, a record batch) as a table
    iterable of rows    dicts, or (query, passages)       comes back as a list of dicts

The columns that a shape reads become rows as if they came from a file, and the shapes and the Arrow code for files make
the answer. All other columns of a frame or a table are only rearranged, so their types stay.

The rows of a query need not be adjacent, as in a file. On request a row that cannot be scored is kept behind the others
of its query, with null for its rank and score and with the reason in `rerank_error`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from rerank_cli.errors import InputError, UsageError
from rerank_cli.formats.shapes import (
    FIRST_ROWS,
    NO_TEXTS,
    FieldNames,
    FlatShape,
    Item,
    ListShape,
    Selection,
    Shape,
    detect_shape,
    lookup,
    recognise,
    row_error,
    settle_shape,
)
from rerank_cli.formats.shapes.fields import ALIASES
from rerank_cli.formats.shapes.shape import OF_A_CUT
from rerank_cli.records import CandidateList, JsonRow, RankedList, RankedPassage, Row, RowError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

ERROR = "rerank_error"
"""The column or field with the reason why a kept row has no score."""

_NAME = "rows"


@dataclass(frozen=True, slots=True)
class RankedRows:
    """What a run found. lists: those with scores. errors: of rows without a score, by their number."""

    lists: Sequence[RankedList]
    errors: Mapping[int, RowError]


class Given(Protocol):
    """Rows in one of the three forms; `shape` comes first."""

    shape: Shape

    def rows(self) -> list[Row]:
        """The rows, with the fields that the shape reads."""

    def answer(self, ranked: Sequence[RankedList], reasons: Mapping[int, str] | None, selection: Selection) -> Any:
        """The ranked rows in the form of the given ones. reasons: of kept rows by number; None where none are kept."""


def given_rows(data: object, names: FieldNames) -> Given:
    """`data` as rows of the shape that its columns or its first rows have."""
    # A program that did not import a library cannot hold an object of it.
    pandas, arrow = sys.modules.get("pandas"), sys.modules.get("pyarrow")
    if pandas is not None and isinstance(data, pandas.DataFrame):
        return _Frame(data, names)
    if arrow is not None and isinstance(data, arrow.Table):
        return _Table(data, names)
    if (stream := _stream_of(data)) is not None:
        return _Stream(stream, type(data), names)
    if isinstance(data, (str, bytes, Mapping)) or not isinstance(data, Iterable):
        hint = "give a query and its passages, a data frame, an Arrow table or a list of rows, "
        hint += "such as `[(query, passages)]`"
        if hasattr(data, "collect"):
            hint = "`.collect()` gives its rows"
        elif isinstance(data, Mapping) and hasattr(data, "with_format"):
            hint = f"give one of its splits: {', '.join(f'`data[{str(name)!r}]`' for name in data)}"
        raise UsageError(f"{type(data).__name__}: not rows that can be reranked", hint=hint)
    return _Rows(data, names)


def _stream_of(data: object) -> pa.Table | None:
    """The table of an object with the Arrow C stream interface (PyCapsule); None for other objects."""
    import_arrow = hasattr(data, "__arrow_c_stream__") or hasattr(data, "__arrow_c_array__")
    # A data set without a length is read row by row, and one of several splits is a mapping.
    is_dataset = type(data).__module__.startswith("datasets.") and hasattr(data, "with_format")
    is_dataset = is_dataset and hasattr(data, "__len__") and not isinstance(data, Mapping)
    if not import_arrow and not is_dataset:
        return None
    import pyarrow as pa

    from rerank_cli.formats.arrow_types import schema_without_views

    # `data` has no type that mypy knows: `datasets` need not be installed.
    table = data.with_format("arrow")[:] if is_dataset else pa.table(data)  # type: ignore[attr-defined]
    return table.cast(schema_without_views(table.schema))


def refuse_lone_surrogates(rows: Iterable[Row]) -> Iterator[Item]:
    """`rows`, with a `RowError` for one that no file could hold: Python's texts may have half a surrogate pair."""
    for row in rows:
        try:
            if isinstance(row, JsonRow):
                _encode(row.fields)
            yield row
        except UnicodeEncodeError as error:
            half = ascii(error.object[error.start])
            yield row_error(row, "lone-surrogate", f"lone surrogate {half}, which no UTF-8 text can hold", None)


def _encode(value: Any) -> None:
    if isinstance(value, str):
        value.encode()
    elif isinstance(value, Mapping):
        for inner in value.values():
            _encode(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            _encode(inner)


def in_groups(given: Given, rows: Sequence[Row]) -> list[Row]:
    """`rows` with those of each query together, in order of first appearance."""
    groups = _groups(given.shape, rows)
    return sorted(rows, key=lambda row: groups[row.number])


def answer_rows(given: Given, rows: Sequence[Row], ranked: RankedRows, selection: Selection, *, keep: bool) -> Any:
    """The answer for `given`. keep: also the rows that have no score."""
    if not keep:
        return given.answer(ranked.lists, None, selection)
    groups = _groups(given.shape, rows)
    bad = [_without_scores(row, given.shape) for row in rows if row.number in ranked.errors]
    lists = sorted([*ranked.lists, *bad], key=lambda item: groups[item.source.rows[0].number])  # stable: bad ones last
    reasons = {number: f"{error.message} ({error.code})" for number, error in ranked.errors.items()}
    return given.answer(lists, reasons, selection)


def _groups(shape: Shape, rows: Iterable[Row]) -> dict[int, int]:
    """For each row, by its number, the place of its query among all queries."""
    if not isinstance(shape, FlatShape):
        return {row.number: row.number for row in rows}
    places: dict[int, int] = {}
    return {row.number: places.setdefault(shape.group_key(row.fields), len(places)) for row in rows}


def _without_scores(row: Row, shape: Shape) -> RankedList:
    """A row without scores as a list: its passages, if it has any, in the given order."""
    count = 1
    if not isinstance(shape, FlatShape):
        passages = lookup(row.fields, shape.names.passages or "")
        count = len(passages) if isinstance(passages, (list, tuple)) else 0
    ranking = tuple(RankedPassage(0, index, math.nan, 0, 0) for index in range(count))
    return RankedList(CandidateList("", ("",) * count, (row,)), ranking)


def _shape_of(columns: Sequence[str], names: FieldNames) -> Shape:
    """The shape of a table. If several columns could hold the passages, the first alias does, for every row."""
    kind = detect_shape(columns, names)
    if kind is None:
        shown = ", ".join(f"`{name}`" for name in columns[:8]) or "no columns"
        raise InputError(
            f"neither a list of passages nor a passage a row: there are {shown}",
            hint="name the column by `passages_field` (lists) or `text_field` (a passage a row)",
        )
    if kind.name == "list" and names.passages is None:
        names = replace(names, passages=next(name for name in ALIASES["passages"] if name in columns))
    return kind.open(names, NO_TEXTS)


def _without_empty(table: pa.Table, given: Sequence[str]) -> pa.Table:
    """The table without our fields about truncation where no passage was cut. given: the columns of the user."""
    import pyarrow as pa

    for name in OF_A_CUT:
        if name in table.column_names and name not in given and table[name].null_count == len(table):
            table = table.drop_columns([name])
    for place, field in enumerate(table.schema):
        kind = field.type
        if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)) or not pa.types.is_struct(kind.value_type):
            continue
        passages = pa.chunked_array([chunk.flatten() for chunk in table[place].chunks], kind.value_type)
        inner = pa.Table.from_struct_array(passages)
        kept = [one for one in kind.value_type if one.name not in OF_A_CUT or inner[one.name].null_count < len(inner)]
        if "rank" in inner.column_names and len(kept) < kind.value_type.num_fields:
            of = pa.list_ if pa.types.is_list(kind) else pa.large_list
            fewer = of(kind.value_field.with_type(pa.struct(kept)))
            table = table.set_column(place, field.with_type(fewer), table[place].cast(fewer))
    return table


class _Frame:
    """A pandas.DataFrame."""

    def __init__(self, frame: pd.DataFrame, names: FieldNames) -> None:
        self._frame = frame
        self._columns = [name for name in frame.columns if isinstance(name, str)]
        shape = _shape_of(self._columns, names)
        once = [name for name in self._columns if self._columns.count(name) == 1]
        self.shape = settle_shape(shape, _rows_of_frame(frame.head(FIRST_ROWS), once))

    def rows(self) -> list[Row]:
        """See `Given`."""
        read = self.shape.columns(self._columns)
        for name in read:
            if self._columns.count(name) != 1:
                found = ", ".join(f"`{column}`" for column in self._columns) or "no columns"
                times = "occurs several times" if name in self._columns else "is missing"
                raise InputError(
                    f"column `{name}` {times}; the frame has {found}",
                    hint="`query_field`, `passages_field` (lists) and `text_field` (a passage a row) name the columns",
                )
        return list(_rows_of_frame(self._frame, list(read)))

    def answer(self, ranked: Sequence[RankedList], reasons: Mapping[int, str] | None, selection: Selection) -> Any:
        """See `Given`."""
        if not isinstance(self.shape, FlatShape):
            return self._lists(ranked, reasons, selection)
        import pandas as pd
        import pyarrow as pa

        from rerank_cli.formats.arrow_ranking import score_table

        places = [(one.source.row_of(entry.index).number, entry) for one in ranked for entry in one.ranking]
        scores = score_table([entry for _, entry in places], selection)
        nullable = {pa.int32(): pd.Int32Dtype(), pa.bool_(): pd.BooleanDtype()}
        ours = _without_empty(scores, ()).to_pandas(types_mapper=nullable.get)
        if reasons is not None:
            ours[ERROR] = pd.array([reasons.get(number) for number, _ in places], dtype="string")
        found = self._frame.iloc[[number - 1 for number, _ in places]]
        found = found.drop(columns=[name for name in ours.columns if name in found.columns])
        return pd.concat([found, ours.set_axis(found.index)], axis=1)

    def _lists(self, ranked: Sequence[RankedList], reasons: Mapping[int, str] | None, selection: Selection) -> Any:
        import pandas as pd

        numbers = [one.source.rows[0].number for one in ranked]
        found = self._frame.iloc[[number - 1 for number in numbers]].copy()
        path = self.shape.names.passages or ""
        scored = [
            one.source.rows[0].fields[path]
            if reasons and number in reasons
            else next(iter(self.shape.render(one, selection)))[path]
            for number, one in zip(numbers, ranked, strict=True)
        ]
        found[path] = pd.Series(scored, index=found.index, dtype=object)
        for sibling in self.shape.siblings if isinstance(self.shape, ListShape) else ():
            ours = [
                None if (values := lookup(one.source.rows[0].fields, sibling)) is None
                else [values[entry.index] for entry in one.ranking]
                for one in ranked
            ]  # fmt: skip
            if sibling in found.columns:
                found[sibling] = pd.Series(ours, index=found.index, dtype=object)
        if reasons is not None:
            found[ERROR] = pd.array([reasons.get(number) for number in numbers], dtype="string")
        return found


def _rows_of_frame(frame: pd.DataFrame, names: Sequence[str]) -> list[JsonRow]:
    """The rows of a frame, with the columns `names`."""
    columns = [[_json_value(value) for value in frame[name].tolist()] for name in names]
    fields: Iterable[tuple[Any, ...]] = zip(*columns, strict=True) if columns else [()] * len(frame)
    return [JsonRow(_NAME, n, dict(zip(names, values, strict=True)), b"") for n, values in enumerate(fields, 1)]


def _json_value(value: Any) -> Any:
    """A cell as a value of JSON: a list for an array, None for what pandas calls missing."""
    if hasattr(value, "tolist"):  # numpy's arrays and scalars
        value = value.tolist()
    missing = value != value if isinstance(value, float) else type(value).__name__ in ("NAType", "NaTType")
    return None if missing else value


class _Table:
    """A pyarrow.Table."""

    def __init__(self, table: pa.Table, names: FieldNames) -> None:
        from rerank_cli.formats.parquet_reader import table_rows

        self._table = table
        once = [name for name in table.column_names if table.column_names.count(name) == 1]
        some = table_rows(table.slice(0, FIRST_ROWS), dict.fromkeys(once), _NAME)
        first = [JsonRow(row.file, row.number, row.fields, b"") for row in some if not isinstance(row, RowError)]
        self.shape = settle_shape(_shape_of(table.column_names, names), first)

    def rows(self) -> list[Row]:
        """See `Given`."""
        from rerank_cli.formats.parquet_reader import table_rows

        found: list[Row] = []
        for row in table_rows(self._table, self.shape.columns(self._table.column_names), "the table"):
            if isinstance(row, RowError):
                raise InputError(f"row {row.row}: {row.message}")
            found.append(row)
        return found

    def answer(self, ranked: Sequence[RankedList], reasons: Mapping[int, str] | None, selection: Selection) -> Any:
        """See `Given`."""
        import pyarrow as pa

        from rerank_cli.formats.sinks import empty_table, ranked_table

        if not ranked:
            table = empty_table(self._table.schema, self.shape, selection)
        else:
            table = ranked_table(self.shape, ranked, selection)
        table = _without_empty(table, self._table.column_names)
        if reasons is None:
            return table
        if isinstance(self.shape, FlatShape):
            numbers = [one.source.row_of(entry.index).number for one in ranked for entry in one.ranking]
        else:
            numbers = [one.source.rows[0].number for one in ranked]
        if ERROR in table.column_names:
            table = table.drop_columns([ERROR])
        return table.append_column(ERROR, pa.array([reasons.get(number) for number in numbers], pa.string()))


class _Stream(_Table):
    """A table that came through the Arrow C stream interface, from an object of the type `came_as`."""

    def __init__(self, table: pa.Table, came_as: type, names: FieldNames) -> None:
        super().__init__(table, names)
        self._came_as = came_as

    def answer(self, ranked: Sequence[RankedList], reasons: Mapping[int, str] | None, selection: Selection) -> Any:
        """See `Given`."""
        table = super().answer(ranked, reasons, selection)
        library = self._came_as.__module__.partition(".")[0]
        if library == "polars":
            return sys.modules["polars"].from_arrow(table)
        if library == "datasets":
            return self._came_as(table)
        return table


class _Rows:
    """Dicts in any shape of JSON rows, or tuples of a query and its passages."""

    def __init__(self, data: Iterable[object], names: FieldNames) -> None:
        self._rows: list[Row] = [_row(number, value) for number, value in enumerate(data, 1)]
        seen: list[Item] = []
        if kind := recognise(iter(self._rows), seen, names):
            self.shape = settle_shape(kind.open(names, NO_TEXTS), self._rows[:FIRST_ROWS])
        elif self._rows:
            self.shape = _shape_of(list(self._rows[0].fields), names)
        else:
            self.shape = ListShape(names)

    def rows(self) -> list[Row]:
        """See `Given`."""
        return self._rows

    def answer(self, ranked: Sequence[RankedList], reasons: Mapping[int, str] | None, selection: Selection) -> Any:
        """See `Given`."""
        found: list[dict[str, Any]] = []
        for one in ranked:
            row = one.source.rows[0]
            if reasons and row.number in reasons and len(one.source.rows) == 1:
                nulls = {"rank": None, selection.score: None} if isinstance(self.shape, FlatShape) else {}
                found.append({**row.fields, **nulls, ERROR: reasons[row.number]})
            else:
                found += self.shape.render(one, selection)
        return found


def _row(number: int, value: object) -> JsonRow:
    if isinstance(value, Mapping):
        return JsonRow(_NAME, number, value, b"")
    if isinstance(value, tuple) and len(value) == 2:
        query, passages = value
        return JsonRow(_NAME, number, {"query": query, "passages": _json_value(passages)}, b"")
    raise UsageError(f"row {number} is a {type(value).__name__}, neither a dict nor (query, passages)")
