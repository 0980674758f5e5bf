"""Ranked lists as Arrow tables: the rows of the input rearranged by `take`, with the columns of the scores.

The user's values never become Python objects here, so types, nulls, dictionaries, nested values and metadata come back
as they were. Python handles one number for each passage: its place.

    list shape      the passages column is rebuilt: its values are taken in rank order and get our fields; nulls stay
    flat shape      the rows are taken in rank order and get our columns
    lists in step   the values of each list are taken in rank order, and our lists stand beside them

The passages may be inside of structs. Lists beside them that are in step are taken in the same order. Only a list that
is written as a JSON text is read by Python.

Our fields come last. A user's field with the name of one of ours is renamed (`kept_name`). Only if a table has all of
our fields with our types, this program wrote it, and they are replaced. A passage that was text becomes a struct. In
the list shape, where structs could be null their fields become nullable, because the structs themselves no longer are.

Over 400 lines: the two shapes share every step but the last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, cast

import pyarrow as pa

from rerank_cli.errors import InputError
from rerank_cli.formats.arrow_types import (
    TypesDiffer,
    child_fields,
    column_at,
    conform_table,
    is_list,
    list_parts,
    make_list,
    make_struct,
    scored_fields,
    widen_schema,
)
from rerank_cli.formats.choices import Selection
from rerank_cli.formats.parquet_reader import ArrowRow
from rerank_cli.formats.shapes.shape import kept_name
from rerank_cli.records import RankedList, RankedPassage


def rank_lists(
    ranked: Sequence[RankedList], selection: Selection, *, passages: str, text: str, siblings: Sequence[str] = ()
) -> pa.Table:
    """A row for each list, as it was but with the passages of `ranking` in their order (list shape).

    selection: which of our fields a passage gets. passages: the column with the lists of strings or of structs, or its
    path in structs; a null list has no passages and stays null. siblings: the lists that are in step with it. text: the
    field that a string passage becomes.

    Each `source.rows` is one ArrowRow. Without lists the table has no columns. Raises InputError if rows come from
    files whose columns do not fit together.
    """
    if not ranked:
        return pa.table({})
    rows = [cast(ArrowRow, one.source.rows[0]) for one in ranked]
    table = _gather(rows)
    scores = _Scores(selection, tiles=_any_retiled(ranked))

    def rank(lists: pa.Array, some: Sequence[RankedList]) -> pa.Array:
        if not is_list(lists.type):
            raise InputError(f"{rows[0].file}: column `{passages}` is not a column of lists")
        return _ranked_chunk(lists, some, text, scores)

    table = _change_at_path(table, passages, ranked, rank, rows[0].file)
    for sibling in siblings:
        table = _change_at_path(table, sibling, ranked, _reorder_lists, rows[0].file)
    return table


def rank_columns(
    ranked: Sequence[RankedList], selection: Selection, *, container: str, in_step: Sequence[str]
) -> pa.Table:
    """A row for each list, as it was but with its lists in step in rank order and our lists beside them.

    container: the path of the struct that holds the lists; empty where they are columns. in_step: their names.
    Otherwise as `rank_lists`.
    """
    if not ranked:
        return pa.table({})
    rows = [cast(ArrowRow, one.source.rows[0]) for one in ranked]
    table = _gather(rows)
    scores = _Scores(selection, tiles=_any_retiled(ranked))
    if container:
        return _change_at_path(
            table, container, ranked, lambda held, some: _ranked_struct(held, some, scores), rows[0].file
        )
    for name in in_step:
        table = _change_at_path(table, name, ranked, _reorder_lists, rows[0].file)
    kept = _keep_fields([(field, column) for field, column in zip(table.schema, table.columns, strict=True)], scores)
    ours = scores.lists(ranked)
    schema = pa.schema([*(f for f, _ in kept), *(f for f, _ in ours)], table.schema.metadata)
    return pa.Table.from_arrays([*(c for _, c in kept), *(c for _, c in ours)], schema=schema)


def replace_texts(ranked: Sequence[RankedList], column: str, texts: Sequence[object]) -> pa.Table:
    """A row for each list, as it was but with `texts` in a column: the lists, written as JSON."""
    rows = [cast(ArrowRow, one.source.rows[0]) for one in ranked]
    table = _gather(rows)
    place = column_at(table.schema, column)
    assert place is not None, "its values were read"
    field = table.schema.field(place)
    plain = pa.large_string() if pa.types.is_large_string(field.type) else pa.string()
    return table.set_column(place, field.with_type(plain), pa.array(texts, plain))


def rank_rows(ranked: Sequence[RankedList], selection: Selection, *, ranks: bool = True) -> pa.Table:
    """A row for each passage of each `ranking`, in that order, as it was and with our columns (flat shape).

    ranks: False leaves out `rank` and `index`, for scores in input order.

    `source.rows[i]` is the ArrowRow of passage i. Without lists the table has no columns; with lists of which nothing
    is left it has columns and no rows. Raises InputError if rows come from files whose columns do not fit together.
    """
    rows = [cast(ArrowRow, one.source.rows[place.index]) for one in ranked for place in one.ranking]
    some = next((row for one in ranked for row in one.source.rows), None)
    if some is None:
        return pa.table({})
    table = _gather(rows) if rows else pa.Table.from_batches([cast(ArrowRow, some).batch.slice(0, 0)])
    scores = _Scores(selection, tiles=_any_retiled(ranked), ranks=ranks)
    fields = scores.fields
    columns = scores.columns([place for one in ranked for place in one.ranking])
    kept = _keep_fields(list(zip(table.schema, table.columns, strict=True)), scores)
    schema = pa.schema([*(field for field, _ in kept), *fields], table.schema.metadata)
    return pa.Table.from_arrays([*(column for _, column in kept), *columns], schema=schema)


def score_table(places: Sequence[RankedPassage], selection: Selection) -> pa.Table:
    """A row for each of `places`, of our columns alone."""
    scores = _Scores(selection, tiles=any(place.retiled for place in places))
    return pa.Table.from_arrays(scores.columns(places), schema=pa.schema(scores.fields))


# Rows


def _gather(rows: Sequence[ArrowRow]) -> pa.Table:
    """The rows, all columns, in the order given; chunks as they come from the batches where that order allows."""
    places: dict[int, int] = {}
    batches: list[ArrowRow] = []
    indices: list[list[int]] = []
    order: list[tuple[int, int]] = []
    for row in rows:
        place = places.setdefault(id(row.batch), len(batches))
        if place == len(batches):
            batches.append(row)
            indices.append([])
        order.append((place, len(indices[place])))
        indices[place].append(row.index)
    taken = []
    for row, chosen in zip(batches, indices, strict=True):
        is_run = chosen == list(range(chosen[0], chosen[0] + len(chosen)))
        part = row.batch.slice(chosen[0], len(chosen)) if is_run else row.batch.take(pa.array(chosen, pa.int64()))
        taken.append(pa.Table.from_batches([part]))
    table = pa.concat_tables(_same_schema(taken, [row.file for row in batches]))
    if all(a <= b for (a, _), (b, _) in pairwise(order)):
        return table
    starts = list(accumulate(map(len, indices), initial=0))
    try:  # chunks become one only where they share their dictionaries
        alike = table.unify_dictionaries()
    except pa.ArrowInvalid:  # more words than the index type can count
        wide = [
            field.with_type(pa.dictionary(pa.int32(), field.type.value_type, ordered=field.type.ordered))
            if pa.types.is_dictionary(field.type)
            else field
            for field in table.schema
        ]
        alike = table.cast(pa.schema(wide, table.schema.metadata)).unify_dictionaries()
    return alike.combine_chunks().take(pa.array([starts[place] + index for place, index in order], pa.int64()))


def _same_schema(tables: list[pa.Table], files: list[str]) -> list[pa.Table]:
    schemas = dict(zip(files, (table.schema for table in tables), strict=True))
    schema = tables[0].schema
    for file, table in zip(files, tables, strict=True):
        with _naming_files(file, schemas):
            schema = widen_schema(schema, table.schema)
    conformed = []
    for file, table in zip(files, tables, strict=True):
        with _naming_files(file, schemas):
            conformed.append(conform_table(table, schema))
    return conformed


@contextmanager
def _naming_files(file: str, schemas: Mapping[str, pa.Schema]) -> Iterator[None]:
    """TypesDiffer becomes an InputError that names `file` and another one whose column has a different type."""
    try:
        yield
    except TypesDiffer as error:
        name = next(name for name in schemas[file].names if f"{error.field}.".startswith(f"{name}."))
        types = {one: [field.type for field in schema if field.name == name] for one, schema in schemas.items()}
        others = [other for other in schemas if other != file]
        differ = [other for other in others if types[other] not in ([], types[file])]
        message = f"{file}: column `{error.field}` does not fit together with that of {(differ or others)[0]}"
        hint = "rerank the files one by one"
        raise InputError(f"{message}: {error.first} and {error.second}", hint=hint) from error


# Passages

_Change = Callable[[pa.Array, Sequence[RankedList]], pa.Array]


def _change_at_path(table: pa.Table, path: str, ranked: Sequence[RankedList], change: _Change, file: str) -> pa.Table:
    """`table` with the column at `path`, or the part of it there, changed chunk by chunk."""
    head, _, rest = (path, "", "") if column_at(table.schema, path) is not None else path.partition(".")
    place = column_at(table.schema, head)
    if place is None:
        raise InputError(f"{file}: column `{head}` is missing")
    chunks = []
    done = 0
    for chunk in table.column(place).chunks:
        chunks.append(_change_below(chunk, rest, ranked[done : done + len(chunk)], change, f"{file}: column `{path}`"))
        done += len(chunk)
    field = table.schema.field(place).with_type(chunks[0].type)
    return table.set_column(place, field, pa.chunked_array(chunks, field.type))


def _change_below(array: pa.Array, path: str, ranked: Sequence[RankedList], change: _Change, where: str) -> pa.Array:
    if not path:
        return change(array, ranked)
    fields = child_fields(array.type) if pa.types.is_struct(array.type) else []
    names = [field.name for field in fields]
    head, _, rest = (path, "", "") if path in names else path.partition(".")
    if head not in names:
        raise InputError(f"{where} is not a column of lists")
    children = array.flatten()
    place = names.index(head)
    children[place] = _change_below(children[place], rest, ranked, change, where)
    fields[place] = fields[place].with_type(children[place].type).with_nullable(True)
    return make_struct(children, [field.with_nullable(True) for field in fields], array)


def _reorder_lists(lists: pa.Array, ranked: Sequence[RankedList]) -> pa.Array:
    """Lists in step, in the order of the rankings; a null list stays null."""
    if not is_list(lists.type):
        return lists
    offsets, values = list_parts(lists)
    valid = lists.is_valid().to_pylist()
    starts = offsets.to_pylist()
    lie, ends = [], [0]
    for start, good, one in zip(starts, valid, ranked, strict=False):
        lie += [start + place.index for place in one.ranking] if good else []
        ends.append(len(lie))
    taken = values.take(pa.array(lie, pa.int64()))
    item = lists.type.value_field
    data_type = pa.large_list(item) if pa.types.is_large_list(lists.type) else pa.list_(item)
    return make_list(pa.array(ends, pa.int64()), taken, data_type, lists)


def _ranked_struct(held: pa.Array, ranked: Sequence[RankedList], scores: _Scores) -> pa.Array:
    """A struct whose lists are in step, in rank order, with ours beside them."""
    fields = child_fields(held.type)
    columns = [_reorder_lists(child, ranked) for child in held.flatten()]
    changed = [field.with_type(column.type).with_nullable(True) for field, column in zip(fields, columns, strict=True)]
    kept = _keep_fields(list(zip(changed, columns, strict=True)), scores)
    ours = scores.lists(ranked)
    both = [*kept, *ours]
    return make_struct([column for _, column in both], [field for field, _ in both], held)


def _keep_fields(fields: list[tuple[pa.Field, Any]], scores: _Scores) -> list[tuple[pa.Field, Any]]:
    """The user's fields, none with a name of ours; those that this program wrote before are left out."""
    ours = {field.name: field.type for field in scores.fields}
    names = [field.name for field, _ in fields]
    theirs = {field.name: field.type for field, _ in fields if field.name in ours}
    always = {field.name for field in scored_fields(scores.selection.score, ranks=scores.ranks)}
    if (
        scores.ranks
        and always <= theirs.keys()
        and all(ours[name] == (kind.value_type if is_list(kind) else kind) for name, kind in theirs.items())
    ):
        return [pair for pair in fields if pair[0].name not in ours]
    return [
        (field.with_name(kept_name(field.name, {*names, *ours})), column) if field.name in ours else (field, column)
        for field, column in fields
    ]


def _ranked_chunk(lists: pa.Array, ranked: Sequence[RankedList], text: str, scores: _Scores) -> pa.Array:
    offsets, values = list_parts(lists)
    starts = offsets.to_pylist()
    places = [place for one in ranked for place in one.ranking]
    lie = [start + place.index for start, one in zip(starts, ranked, strict=False) for place in one.ranking]
    taken = values.take(pa.array(lie, pa.int64()))
    item = lists.type.value_field
    theirs = [(pa.field(text, taken.type, nullable=item.nullable), taken)]  # a passage that is text becomes a field
    if pa.types.is_struct(taken.type):
        inner = zip(child_fields(taken.type), taken.flatten(), strict=True)
        theirs = [(field.with_nullable(field.nullable or item.nullable), array) for field, array in inner]
    kept = _keep_fields(theirs, scores)
    fields = [*(field for field, _ in kept), *scores.fields]
    structs = pa.StructArray.from_arrays([*(array for _, array in kept), *scores.columns(places)], fields=fields)
    item = item.with_type(structs.type)
    data_type = pa.large_list(item) if pa.types.is_large_list(lists.type) else pa.list_(item)
    ends = accumulate((len(one.ranking) for one in ranked), initial=0)
    return make_list(pa.array(list(ends), pa.int64()), structs, data_type, lists)


# Scores


@dataclass(frozen=True, slots=True)
class _Scores:
    """Which fields a scored passage gets, and their columns."""

    selection: Selection
    tiles: bool
    ranks: bool = True

    @property
    def fields(self) -> list[pa.Field]:
        chosen = self.selection
        return scored_fields(
            chosen.score, prob=chosen.prob, probability=chosen.probability is not None, scored_by=chosen.scored_by,
            ranks=self.ranks, tiles=self.tiles,
        )  # fmt: skip

    def lists(self, ranked: Sequence[RankedList]) -> list[tuple[pa.Field, pa.Array]]:
        """A column of lists for each of `fields`, one list for each of `ranked`."""
        columns = self.columns([place for one in ranked for place in one.ranking])
        ends = pa.array(list(accumulate((len(one.ranking) for one in ranked), initial=0)), pa.int32())
        lists = [pa.ListArray.from_arrays(ends, column) for column in columns]
        return [(pa.field(field.name, one.type), one) for field, one in zip(self.fields, lists, strict=True)]

    def columns(self, places: Sequence[RankedPassage]) -> list[pa.Array]:
        """One column for each of `fields`; null where a passage has no score (rank 0)."""
        calibrated = self.selection.probability
        values: dict[str, Callable[[RankedPassage], object]] = {
            "rank": lambda place: place.rank,
            self.selection.score: lambda place: place.logit if place.is_scored else None,
            "index": lambda place: place.index,
            "prob": lambda place: place.probability if place.is_scored else None,
            "probability": lambda place: calibrated(place.logit) if calibrated and place.is_scored else None,
            "scored_by": lambda place: place.scored_by or None,
            "truncated": lambda place: place.truncated or None,
            "tokens": lambda place: place.tokens if place.truncated else None,
            "kept_tokens": lambda place: place.kept_tokens if place.truncated else None,
            "tiles": lambda place: place.tiles if place.retiled else None,
            "kept_tiles": lambda place: place.kept_tiles if place.retiled else None,
        }
        return [
            pa.array([values[field.name](place) if place.rank else None for place in places], field.type)
            for field in self.fields
        ]


def _any_retiled(ranked: Sequence[RankedList]) -> bool:
    return any(place.retiled for one in ranked for place in one.ranking)
