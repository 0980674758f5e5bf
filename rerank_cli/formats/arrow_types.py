"""Arrow types that can hold what two windows hold, and arrays brought to such a type.

Windows of one run are written one after another, so a column gets its type before all of its values are seen: the first
window may hold only nulls, whole numbers or objects with two fields, a later one text, fractions or a third field.
`widen_type` gives the type for both. `conform` brings an array to it without changing a value, or raises `TypesDiffer`.
`infer_type` gives the type of Python values as a JSON parser makes them.

    null + T                  T
    int64 + double            double, if every integer is exact in it
    struct + struct           the fields of both
    list + list               list of the widened values
    dictionary + plain        plain
    text + number, ...        `TypesDiffer`

Struct fields keep the order of first appearance, which the inference of pyarrow does only since release 18.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, chain
from types import NoneType
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

MAX_DEPTH = 64
"""How many levels of objects and lists are read: far more than real rows have, far below Python's recursion limit."""

_EXACT_IN_DOUBLE = 2**53


class TypesDiffer(Exception):  # noqa: N818  not a failure of its own: the callers know the file and make it one
    """Two values of one field that no single Arrow type holds; `field` is a dotted path."""

    def __init__(self, field: str, first: str, second: str) -> None:
        super().__init__(f"field `{field}` holds {first} and {second}")
        self.field = field
        self.first = first
        self.second = second


def scored_fields(
    score: str = "logit",
    *,
    prob: bool = False,
    probability: bool = False,
    scored_by: bool = False,
    ranks: bool = True,
    tiles: bool = False,
) -> list[pa.Field]:
    """The fields that a scored passage gets, in the order of the output. tiles: also those of `TILE_FIELDS`."""
    fields = [pa.field(score, pa.float32())]
    if ranks:
        fields = [pa.field("rank", pa.int32()), *fields, pa.field("index", pa.int32())]
    if prob:
        fields.append(pa.field("prob", pa.float64()))
    if probability:
        fields.append(pa.field("probability", pa.float64()))
    if scored_by:
        fields.append(pa.field("scored_by", pa.string()))
    return [*fields, *TRUNCATION_FIELDS, *(TILE_FIELDS if tiles else ())]


TRUNCATION_FIELDS = (
    pa.field("truncated", pa.bool_()),
    pa.field("tokens", pa.int32()),
    pa.field("kept_tokens", pa.int32()),
)
"""Always there and null unless the pair was cut, so that every window has the same schema."""

TILE_FIELDS = (pa.field("tiles", pa.int32()), pa.field("kept_tiles", pa.int32()))
"""There from the first window with an image that was cut in fewer tiles; null for all other passages."""


def is_list(data_type: pa.DataType) -> bool:
    """Lists of any offset width, of fixed size, and views of lists; maps are not lists here."""
    kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(kind(data_type) for kind in kinds) or _is_list_view(data_type)


def _is_list_view(data_type: pa.DataType) -> bool:
    return bool(pa.types.is_list_view(data_type) or pa.types.is_large_list_view(data_type))


def list_parts(array: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Offsets (int64, from 0, one more than the lists) and the values they point into; also for fixed sizes and views.

    A null list may own values, as Arrow allows.
    """
    if pa.types.is_fixed_size_list(array.type):
        size = array.type.list_size
        offsets = pa.array([size * i for i in range(len(array) + 1)], pa.int64())
        return offsets, array.values.slice(array.offset * size, len(array) * size)
    if _is_list_view(array.type):  # its lists may lie in any order, and overlap
        ends = pc.cumulative_sum(pc.fill_null(pc.list_value_length(array), 0).cast(pa.int64()))
        return pa.concat_arrays([pa.array([0], pa.int64()), ends]), array.flatten()
    offsets = array.offsets.cast(pa.int64())
    first, last = offsets[0].as_py(), offsets[-1].as_py()
    return pc.subtract(offsets, first), array.values.slice(first, last - first)


def child_fields(data_type: pa.DataType) -> list[pa.Field]:
    """The fields below a struct, list or map."""
    if pa.types.is_struct(data_type):
        return [data_type.field(i) for i in range(data_type.num_fields)]
    if pa.types.is_map(data_type):
        return [data_type.key_field, data_type.item_field]
    return [data_type.value_field] if is_list(data_type) else []


def column_at(schema: pa.Schema, name: str) -> int | None:
    """Place of the one column `name`; None if there is none, or more than one."""
    at: int = schema.get_field_index(name)
    return None if at < 0 else at


# Widening


def widen_schema(first: pa.Schema, second: pa.Schema) -> pa.Schema:
    """The schema that holds the rows of both, columns by name, metadata of `first` before that of `second`.

    Raises TypesDiffer.
    """
    if first.equals(second, check_metadata=True):
        return first
    metadata = {**(second.metadata or {}), **(first.metadata or {})}
    return pa.schema(_widen_fields(list(first), list(second), ""), metadata or None)


def _widen_fields(first: list[pa.Field], second: list[pa.Field], path: str) -> list[pa.Field]:
    for fields in (first, second):
        names = [field.name for field in fields]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise TypesDiffer(_joined(path, twice), "two values in one row", "one in another file")
    others = {field.name: field for field in second}
    known = {field.name for field in first}
    both = []
    for field in first:
        other = others.get(field.name)
        kind = field.type if other is None else widen_type(field.type, other.type, _joined(path, field.name))
        both.append(field.with_type(kind).with_nullable(field.nullable or other is None or other.nullable))
    return both + [field.with_nullable(True) for field in second if field.name not in known]


def widen_type(first: pa.DataType, second: pa.DataType, path: str) -> pa.DataType:
    """The type that holds values of both; `path` names the field in TypesDiffer."""
    if first.equals(second) or pa.types.is_null(second):
        return first
    if pa.types.is_null(first):
        return second
    if pa.types.is_struct(first) and pa.types.is_struct(second):
        return pa.struct(_widen_fields(child_fields(first), child_fields(second), path))
    if is_list(first) and is_list(second):
        item = first.value_field.with_type(widen_type(first.value_type, second.value_type, path))
        item = item.with_nullable(first.value_field.nullable or second.value_field.nullable)
        large = pa.types.is_large_list(first) or pa.types.is_large_list(second)
        return pa.large_list(item) if large else pa.list_(item)
    if pa.types.is_dictionary(first) != pa.types.is_dictionary(second):
        one, other = (kind.value_type if pa.types.is_dictionary(kind) else kind for kind in (first, second))
        return widen_type(one, other, path)
    schemas = [pa.schema([pa.field("", leaf)]) for leaf in (first, second)]
    try:
        return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise TypesDiffer(path, str(first), str(second)) from error


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


# Views


def schema_without_views(schema: pa.Schema) -> pa.Schema:
    """The schema with plain texts in place of views; itself where it has none."""
    fields = [field.with_type(_without_views(field.type)) for field in schema]
    return schema if fields == list(schema) else pa.schema(fields, schema.metadata)


def _without_views(kind: pa.DataType) -> pa.DataType:
    """The type with plain strings in place of views, which Arrow's kernels cannot take from."""
    if pa.types.is_string_view(kind):
        return pa.large_string()
    if pa.types.is_binary_view(kind):
        return pa.large_binary()
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_without_views(field.type)) for field in kind])
    lists = (
        (pa.types.is_list, pa.list_), (pa.types.is_large_list, pa.large_list),
        (pa.types.is_list_view, pa.list_view), (pa.types.is_large_list_view, pa.large_list_view),
    )  # fmt: skip
    if of := next((of for is_kind, of in lists if is_kind(kind)), None):
        return of(kind.value_field.with_type(_without_views(kind.value_type)))
    return kind


# Conforming


def conform_table(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """`table` with exactly the columns and types of `schema`, itself if it has them; missing columns are null.

    Raises TypesDiffer where a value would change.
    """
    if table.schema.equals(schema, check_metadata=True):
        return table
    by_place = table.schema.names == schema.names  # names may occur twice
    columns = []
    for place, field in enumerate(schema):
        at = place if by_place else column_at(table.schema, field.name)
        if at is None:
            columns.append(pa.chunked_array([pa.nulls(table.num_rows, field.type)]))
        else:
            chunks = [conform(chunk, field.type, field.name) for chunk in table.column(at).chunks]
            columns.append(pa.chunked_array(chunks, field.type))
    return pa.Table.from_arrays(columns, schema=schema)


def conform(array: pa.Array, data_type: pa.DataType, path: str) -> pa.Array:
    """`array` as `data_type`, which `widen_type` gave; itself if it is already.

    Raises TypesDiffer where a value would change.
    """
    if array.type.equals(data_type):
        return array
    if pa.types.is_null(data_type) or pa.types.is_null(array.type):
        return pa.nulls(len(array), data_type)
    if pa.types.is_struct(data_type) and pa.types.is_struct(array.type):
        children = dict(zip((field.name for field in child_fields(array.type)), array.flatten(), strict=True))
        columns = [
            conform(children[field.name], field.type, _joined(path, field.name))
            if field.name in children
            else pa.nulls(len(array), field.type)
            for field in child_fields(data_type)
        ]
        return make_struct(columns, child_fields(data_type), array)
    if is_list(data_type) and is_list(array.type) and not pa.types.is_fixed_size_list(data_type):
        offsets, values = list_parts(array)
        if pa.types.is_fixed_size_list(array.type) and array.null_count:
            # Without the values that its null lists own, which pyarrow 17 cannot write.
            lengths = [array.type.list_size if valid else 0 for valid in array.is_valid().to_pylist()]
            offsets, values = pa.array(list(accumulate(lengths, initial=0)), pa.int64()), array.flatten()
        return make_list(offsets, conform(values, data_type.value_type, path), data_type, array)
    try:
        return array.cast(data_type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise TypesDiffer(path, str(array.type), f"{data_type}, and not each value is exact in it") from error


def make_struct(columns: Sequence[pa.Array], fields: Sequence[pa.Field], nulls_of: pa.Array) -> pa.Array:
    """A struct array that is null where `nulls_of` is; at least one field."""
    mask = pc.is_null(nulls_of) if nulls_of.null_count else None
    return pa.StructArray.from_arrays(columns, fields=list(fields), mask=mask)


def make_list(offsets: pa.Array, values: pa.Array, data_type: pa.DataType, nulls_of: pa.Array) -> pa.Array:
    """A list or large list array that is null where `nulls_of` is; `offsets` int64 from 0."""
    mask = pc.is_null(nulls_of) if nulls_of.null_count else None
    if pa.types.is_large_list(data_type):
        return pa.LargeListArray.from_arrays(offsets, values, type=data_type, mask=mask)
    return pa.ListArray.from_arrays(offsets.cast(pa.int32()), values, type=data_type, mask=mask)


# Inference


def infer_type(values: Sequence[Any], path: str, depth: int = 0) -> pa.DataType:
    """The type of JSON values of one field; raises TypesDiffer, also for integers beyond 64 bit.

    An object without fields has the type `struct<>`, which Parquet cannot store: see `storable`.
    """
    kinds = set(map(type, values)) - {NoneType}
    if depth > MAX_DEPTH:
        raise TypesDiffer(path, f"{MAX_DEPTH} levels of objects and lists", "more below them")
    if not kinds:
        return pa.null()
    if kinds == {int, float}:
        beyond = next((value for value in values if type(value) is int and abs(value) > _EXACT_IN_DOUBLE), None)
        if beyond is not None:
            raise TypesDiffer(path, "fractions", f"an integer that is not exact in double: {_show_integer(beyond)}")
        return pa.float64()
    if len(kinds) > 1 or not kinds <= _INFERENCE.keys():
        names = dict.fromkeys(
            _JSON_NAMES.get(type(value), f"a Python {type(value).__name__}") for value in values if value is not None
        )
        first, second = [*names, "values that JSON does not have"][:2]
        raise TypesDiffer(path, first, second)
    return _INFERENCE[kinds.pop()]([value for value in values if value is not None], path, depth)


def _infer_integer(values: list[int], path: str, _depth: int) -> pa.DataType:
    least, most = min(values), max(values)
    if least >= -(2**63) and most < 2**63:
        return pa.int64()
    if least >= 0 and most < 2**64:
        return pa.uint64()
    raise TypesDiffer(path, "int64", f"an integer beyond 64 bit: {_show_integer(most if most >= 2**63 else least)}")


def _show_integer(integer: int) -> str:
    # Python refuses to print integers of more than 4300 digits.
    return str(integer) if integer.bit_length() < 256 else f"of {integer.bit_length()} bits"


def _infer_object(values: list[dict[str, Any]], path: str, depth: int) -> pa.DataType:
    names = dict.fromkeys(chain.from_iterable(values))
    types = {n: infer_type([value.get(n) for value in values], _joined(path, n), depth + 1) for n in names}
    return pa.struct([pa.field(name, data_type) for name, data_type in types.items()])


def _infer_list(values: list[list[Any]], path: str, depth: int) -> pa.DataType:
    return pa.list_(infer_type(list(chain.from_iterable(values)), path, depth + 1))


_INFERENCE: dict[type, Callable[[list[Any], str, int], pa.DataType]] = {
    bool: lambda _values, _path, _depth: pa.bool_(),
    int: _infer_integer,
    float: lambda _values, _path, _depth: pa.float64(),
    str: lambda _values, _path, _depth: pa.string(),
    dict: _infer_object,
    list: _infer_list,
    tuple: _infer_list,
}

_JSON_NAMES = {bool: "a boolean", int: "a number", float: "a number", str: "text", dict: "an object", list: "a list"}


def storable(data_type: pa.DataType) -> pa.DataType:
    """`data_type` with null in place of each struct without fields, which Parquet cannot store."""
    if pa.types.is_struct(data_type):
        fields = [field.with_type(storable(field.type)) for field in child_fields(data_type)]
        return pa.struct(fields) if fields else pa.null()
    if pa.types.is_list(data_type):
        return pa.list_(data_type.value_field.with_type(storable(data_type.value_type)))
    return data_type
