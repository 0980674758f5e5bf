"""Arrow values as Python values that JSON can hold.

    integers, booleans, text, null      as they are
    double                              number; NaN and infinities are null
    float, half float                   the shortest digits that give the same float32 (0.1, not 0.10000000149011612)
    decimal                             text with all its digits ("12.30"): a JSON number would be read as a double
    timestamp                           ISO 8601, with a zone in UTC ("2024-05-01T10:00:00.000Z"), else without suffix
    date, time                          ISO 8601
    duration                            ISO 8601 in seconds ("PT1.500S", "-PT2S")
    binary                              base64 text
    uuid                                its usual text form
    list, struct                        list, object
    map                                 object if the keys are text and differ, else list of [key, value]
    dictionary, other extension types   the values they stand for

In text that is not UTF-8 (Parquet does not check) bad bytes become U+FFFD; `exact` raises UnicodeDecodeError instead.
A timestamp outside of the years that Arrow can print becomes the integer that is stored.
"""

from __future__ import annotations

import base64
import uuid
from collections.abc import Callable, Collection
from decimal import Decimal
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from rerank_cli.formats.arrow_types import is_list, list_parts

_DIGITS = {"s": 0, "ms": 3, "us": 6, "ns": 9}
_TEXTS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
_BINARIES = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view)


def to_json_rows(table: pa.Table) -> list[dict[str, Any]]:
    """The rows of `table` as objects for JSON; of columns with the same name the last one wins."""
    columns = [[value for chunk in column.chunks for value in to_values(chunk)] for column in table.columns]
    names = table.schema.names
    if not names:
        return [{} for _ in range(table.num_rows)]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def to_values(array: pa.Array, *, keep: Collection[str] | None = None, exact: bool = False) -> list[Any]:
    """The values of `array`, one for each place.

    keep: names of the struct fields wanted, for the outermost structs; None for all.
    exact: binary stays bytes, and text that is not UTF-8 raises UnicodeDecodeError.
    """
    data_type = array.type
    if is_list(data_type):
        offsets, inner = list_parts(array)
        return _cut(array, offsets, to_values(inner, keep=keep, exact=exact))
    if pa.types.is_struct(data_type):
        children = [
            (data_type.field(i).name, child)
            for i, child in enumerate(array.flatten())
            if keep is None or data_type.field(i).name in keep
        ]
        names = [name for name, _ in children]
        columns = [to_values(child, exact=exact) for _, child in children]
        rows = zip(*columns, strict=True) if columns else [()] * len(array)
        return _set_nulls(array, [dict(zip(names, row, strict=True)) for row in rows])
    if pa.types.is_map(data_type):
        first, last = array.offsets[0].as_py(), array.offsets[-1].as_py()
        keys = to_values(array.keys.slice(first, last - first), exact=exact)
        items = to_values(array.items.slice(first, last - first), exact=exact)
        pairs = [list(pair) for pair in zip(keys, items, strict=True)]
        return _map_valid(_cut(array, pc.subtract(array.offsets, first), pairs), _object_or_pairs)
    if pa.types.is_dictionary(data_type):
        words = to_values(array.dictionary, exact=exact)
        return [None if at is None else words[at] for at in array.indices.to_pylist()]
    if isinstance(data_type, pa.BaseExtensionType):
        is_uuid = getattr(data_type, "extension_name", "") == "arrow.uuid"
        values = to_values(array.storage, exact=exact or is_uuid)
        return _map_valid(values, lambda value: str(uuid.UUID(bytes=value))) if is_uuid else values
    return _leaves(array, exact=exact)


def _leaves(array: pa.Array, *, exact: bool) -> list[Any]:
    for matches, convert in _LEAVES:
        if matches(array.type):
            return convert(array)
    if any(is_kind(array.type) for is_kind in _TEXTS):
        try:
            texts: list[Any] = array.to_pylist()
        except UnicodeDecodeError:
            if exact:
                raise
            data = array.cast(pa.large_binary()).to_pylist()
            texts = _map_valid(data, lambda value: value.decode(errors="replace"))
        return texts
    if any(is_kind(array.type) for is_kind in _BINARIES):
        values = array.to_pylist()
        return values if exact else _map_valid(values, lambda value: base64.b64encode(value).decode("ascii"))
    return [str(value) if value.is_valid else None for value in array]


def _cut(array: pa.Array, offsets: pa.Array, values: list[Any]) -> list[Any]:
    places = offsets.to_pylist()
    return _set_nulls(array, [values[a:b] for a, b in pairwise(places)])


def _set_nulls(array: pa.Array, values: list[Any]) -> list[Any]:
    if not array.null_count:
        return values
    return [value if valid else None for value, valid in zip(values, array.is_valid().to_pylist(), strict=True)]


def _map_valid(values: list[Any], convert: Callable[[Any], Any]) -> list[Any]:
    return [None if value is None else convert(value) for value in values]


def _object_or_pairs(pairs: list[list[Any]]) -> Any:
    by_key = {key: item for key, item in pairs if isinstance(key, str)}
    return by_key if len(by_key) == len(pairs) else pairs


def _as_they_are(array: pa.Array) -> list[Any]:
    values: list[Any] = array.to_pylist()
    return values


def _floats(array: pa.Array) -> list[Any]:
    if not pa.types.is_float64(array.type):
        # Arrow prints the shortest digits that give the float32 back; read as a double they print the same in JSON.
        array = array.cast(pa.float32()).cast(pa.string()).cast(pa.float64())
    return _as_they_are(pc.if_else(pc.is_finite(array), array, pa.scalar(None, array.type)))


def _times(array: pa.Array) -> list[Any]:
    suffix = ""
    if pa.types.is_timestamp(array.type) and array.type.tz is not None:
        # Stored as UTC whatever the zone; without the zone no time zone database is needed.
        array, suffix = array.view(pa.timestamp(array.type.unit)), "Z"
    texts = array.cast(pa.string()).to_pylist()
    times = _map_valid(texts, lambda text: text.replace(" ", "T") + suffix)
    if any(text is not None and text.startswith("<") for text in texts):  # `<value out of range: ...>`
        integers = array.view(pa.int32() if array.type.bit_width == 32 else pa.int64()).to_pylist()
        for place, text in enumerate(texts):
            if text is not None and text.startswith("<"):
                times[place] = integers[place]
    return times


def _durations(array: pa.Array) -> list[Any]:
    digits = _DIGITS[array.type.unit]

    def in_seconds(value: int) -> str:
        whole, part = divmod(abs(value), 10**digits)
        return f"{'-' if value < 0 else ''}PT{whole}{f'.{part:0{digits}d}' if digits else ''}S"

    return _map_valid(array.view(pa.int64()).to_pylist(), in_seconds)


_LEAVES: tuple[tuple[Callable[[pa.DataType], bool], Callable[[pa.Array], list[Any]]], ...] = (
    (pa.types.is_null, _as_they_are),
    (pa.types.is_boolean, _as_they_are),
    (pa.types.is_integer, _as_they_are),
    (pa.types.is_floating, _floats),
    (pa.types.is_decimal, lambda array: _map_valid(array.to_pylist(), lambda value: format(Decimal(value), "f"))),
    (pa.types.is_timestamp, _times),
    (pa.types.is_date, _times),
    (pa.types.is_time, _times),
    (pa.types.is_duration, _durations),
)
