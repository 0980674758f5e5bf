from typing import Any

import pyarrow as pa
import pytest

from rerank_cli.formats.arrow_types import (
    TypesDiffer,
    conform,
    conform_table,
    infer_type,
    list_parts,
    storable,
    widen_schema,
    widen_type,
)

WORDS = pa.dictionary(pa.int8(), pa.string())


def struct(**fields: pa.DataType) -> pa.DataType:
    return pa.struct(list(fields.items()))


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (pa.null(), pa.string(), pa.string()),
        (pa.string(), pa.null(), pa.string()),
        (pa.int64(), pa.float64(), pa.float64()),
        (pa.int32(), pa.int64(), pa.int64()),
        (pa.string(), pa.large_string(), pa.large_string()),
        (WORDS, pa.large_string(), pa.large_string()),
        (pa.string(), WORDS, pa.string()),
        (WORDS, pa.dictionary(pa.int32(), pa.string()), pa.dictionary(pa.int32(), pa.string())),
        (pa.list_(pa.null()), pa.list_(pa.string()), pa.list_(pa.string())),
        (pa.list_(pa.int8()), pa.large_list(pa.int16()), pa.large_list(pa.int16())),
        (pa.list_(pa.int8(), 2), pa.list_(pa.int8(), 3), pa.list_(pa.int8())),
        (struct(b=pa.int64()), struct(a=pa.null(), b=pa.float64()), struct(b=pa.float64(), a=pa.null())),
        (
            pa.list_(struct(a=struct(x=pa.int64()))),
            pa.list_(struct(a=struct(y=pa.string()))),
            pa.list_(struct(a=struct(x=pa.int64(), y=pa.string()))),
        ),
    ],
)
def test_the_wider_type_holds_both(first: pa.DataType, second: pa.DataType, expected: pa.DataType) -> None:
    wider = widen_type(first, second, "x")
    assert wider == expected
    for data_type in (first, second):
        nulls = pa.nulls(2, data_type)
        assert conform(nulls, wider, "x").equals(pa.nulls(2, wider))


@pytest.mark.parametrize(
    ("first", "second", "field"),
    [
        (pa.string(), pa.int64(), "x"),
        (pa.bool_(), pa.int64(), "x"),
        (pa.string(), pa.list_(pa.string()), "x"),
        (pa.timestamp("us"), pa.timestamp("us", "UTC"), "x"),
        (struct(a=pa.list_(pa.int8())), struct(a=pa.list_(pa.string())), "x.a"),
        (pa.list_(struct(a=WORDS)), pa.list_(struct(a=pa.int64())), "x.a"),
    ],
)
def test_types_without_a_common_one_are_named(first: pa.DataType, second: pa.DataType, field: str) -> None:
    with pytest.raises(TypesDiffer) as caught:
        widen_type(first, second, "x")
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("array", "data_type"),
    [
        (pa.array([{"a": 1}, None, {"a": None}]), struct(b=pa.string(), a=pa.float64())),
        (pa.array([[1], None, [], [2, None]]), pa.large_list(pa.float64())),
        (pa.array([[1, 2], None, [3, 4]], pa.list_(pa.int8(), 2)), pa.list_(pa.int16())),
        (pa.array(["a", None, "a"]).dictionary_encode(), pa.large_string()),
        (pa.array([[{"a": [1]}], [None], None]), pa.list_(struct(a=pa.list_(pa.float64()), b=pa.null()))),
    ],
)
def test_a_conformed_array_has_the_type_and_the_same_values(array: pa.Array, data_type: pa.DataType) -> None:
    for part in (array, array.slice(1), array.slice(0, 0), array.slice(1, 1)):
        found = conform(part, data_type, "x")
        found.validate(full=True)
        assert found.type == data_type
        assert without_added(found.to_pylist()) == without_added(part.to_pylist())


def without_added(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_added(item) for name, item in value.items() if item is not None}
    return [without_added(item) for item in value] if isinstance(value, list) else value


def test_a_null_list_made_of_a_fixed_size_owns_no_values() -> None:
    found = conform(pa.array([None, [1, 2]], pa.list_(pa.int8(), 2)), pa.list_(pa.int8()), "x")
    assert found.offsets.to_pylist() == [0, 0, 2]


def test_a_value_that_would_change_is_refused() -> None:
    with pytest.raises(TypesDiffer, match=r"`x.a` .* not each value is exact"):
        conform(pa.array([{"a": 2**53 + 1}]), struct(a=pa.float64()), "x")


def test_the_parts_of_lists_start_at_zero_for_slices_and_fixed_sizes() -> None:
    values = [[1, 2], None, [3, 4], [5, 6]]
    for data_type in (pa.list_(pa.int8()), pa.large_list(pa.int8()), pa.list_(pa.int8(), 2)):
        array = pa.array(values, data_type).slice(2)
        offsets, items = list_parts(array)
        assert (offsets.to_pylist(), items.to_pylist()) == ([0, 2, 4], [3, 4, 5, 6])
        assert list_parts(array.slice(0, 0))[0].to_pylist() == [0]


def test_a_wider_schema_keeps_metadata_and_admits_nulls_where_a_column_lacked() -> None:
    first = pa.schema([pa.field("a", pa.int8(), nullable=False, metadata={"k": "first"})], {"m": "first"})
    second = pa.schema([pa.field("b", pa.int8(), nullable=False)], {"m": "second", "n": "second"})
    wider = widen_schema(first, second)
    expected = [pa.field("a", pa.int8(), metadata={"k": "first"}), pa.field("b", pa.int8())]
    assert wider.equals(pa.schema(expected, {"m": "first", "n": "second"}), check_metadata=True)
    table = conform_table(pa.table({"b": pa.array([1], pa.int8())}), wider)
    assert table.schema.equals(wider, check_metadata=True)
    assert table.to_pylist() == [{"a": None, "b": 1}]


def test_fields_are_inferred_in_the_order_of_appearance() -> None:
    assert infer_type([{"b": 1}, None, {"a": [None, {"c": "x"}]}], "x") == struct(
        b=pa.int64(), a=pa.list_(struct(c=pa.string()))
    )


def test_objects_without_fields_are_stored_as_null() -> None:
    data_type = infer_type([{"a": {}, "b": [{}]}], "x")
    assert storable(data_type) == struct(a=pa.null(), b=pa.list_(pa.null()))
    array = pa.array([{"a": {}, "b": [{}, {}]}], data_type)
    assert conform(array, storable(data_type), "x").to_pylist() == [{"a": None, "b": [None, None]}]
