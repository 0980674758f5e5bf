import datetime
import json
import uuid
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rerank_cli.formats.arrow_json import to_json_rows, to_values

LIST_OF_MAPS = pa.list_(pa.map_(pa.string(), pa.float32()))


@pytest.mark.parametrize(
    ("data_type", "value", "expected"),
    [
        (pa.int64(), -(2**63), -(2**63)),
        (pa.uint64(), 2**64 - 1, 2**64 - 1),
        (pa.bool_(), True, True),
        (pa.string(), "é\x00", "é\x00"),
        (pa.large_string(), "x", "x"),
        (pa.string_view(), "x", "x"),
        (pa.float64(), 0.1, 0.1),
        (pa.float64(), float("nan"), None),
        (pa.float64(), float("-inf"), None),
        (pa.float32(), 0.1, 0.1),
        (pa.float32(), 16777216.0, 16777216.0),
        (pa.float32(), float("inf"), None),
        (pa.decimal128(10, 3), Decimal("12.300"), "12.300"),
        (pa.decimal256(60, 0), Decimal(10) ** 50, "1" + "0" * 50),
        (pa.decimal128(20, 10), Decimal("1E-10"), "0.0000000001"),
        (pa.timestamp("s"), 0, "1970-01-01T00:00:00"),
        (pa.timestamp("ms", "UTC"), 1500, "1970-01-01T00:00:01.500Z"),
        (pa.timestamp("us", "Asia/Kathmandu"), -1, "1969-12-31T23:59:59.999999Z"),
        (pa.timestamp("ns", "No/Such_Zone"), 1, "1970-01-01T00:00:00.000000001Z"),
        (pa.timestamp("s"), 2**62, 2**62),
        (pa.date32(), datetime.date(2024, 2, 29), "2024-02-29"),
        (pa.time32("ms"), 1500, "00:00:01.500"),
        (pa.time64("ns"), 1, "00:00:00.000000001"),
        (pa.duration("s"), -2, "-PT2S"),
        (pa.duration("ms"), 61500, "PT61.500S"),
        (pa.duration("ns"), -1, "-PT0.000000001S"),
        (pa.binary(), b"\xff\x00", "/wA="),
        (pa.binary(2), b"\xff\x00", "/wA="),
        (pa.large_binary(), b"", ""),
        (pa.dictionary(pa.int8(), pa.string()), "word", "word"),
        (pa.list_(pa.float32()), [0.1, None], [0.1, None]),
        (pa.large_list(pa.date32()), [datetime.date(1970, 1, 1)], ["1970-01-01"]),
        (pa.list_(pa.binary(), 2), [b"a", None], ["YQ==", None]),
        (pa.list_view(pa.float32()), [0.1, None], [0.1, None]),
        (pa.large_list_view(pa.string()), [], []),
        (pa.struct([("a", pa.decimal128(3, 1)), ("b", pa.null())]), {"a": Decimal("1.5")}, {"a": "1.5", "b": None}),
        (pa.map_(pa.string(), pa.float32()), [("k", 0.1), ("l", None)], {"k": 0.1, "l": None}),
        (pa.map_(pa.string(), pa.int8()), [("k", 1), ("k", 2)], [["k", 1], ["k", 2]]),
        (pa.map_(pa.int8(), pa.int8()), [(1, 2)], [[1, 2]]),
        (LIST_OF_MAPS, [[("k", 0.1)], None, []], [{"k": 0.1}, None, {}]),
    ],
)
def test_each_type_has_its_json_value_between_nulls_and_in_slices(
    data_type: pa.DataType, value: Any, expected: Any
) -> None:
    array = pa.array([None, value, None, value], data_type)
    assert to_values(array) == [None, expected, None, expected]
    assert to_values(array.slice(1, 2)) == [expected, None]
    assert to_values(array.slice(4)) == []
    assert json.loads(json.dumps(to_values(array), allow_nan=False)) == [None, expected, None, expected]


def test_half_floats_are_numbers() -> None:
    assert to_values(pa.array([0.5, None], pa.float32()).cast(pa.float16())) == [0.5, None]


@pytest.mark.skipif(not hasattr(pa, "uuid"), reason="pyarrow 17 reads a UUID as 16 bytes")
def test_a_uuid_is_its_text() -> None:
    one = uuid.UUID("12345678-1234-5678-1234-567812345678")
    assert to_values(pa.array([one.bytes, None], pa.uuid())) == [str(one), None]


def test_other_extension_types_are_the_values_they_stand_for() -> None:
    storage = pa.array([[1, 2], None], pa.list_(pa.int32(), 2))
    tensors = pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.int32(), [2]), storage)
    assert to_values(tensors) == [[1, 2], None]


def test_a_type_that_json_has_no_form_for_is_text() -> None:
    intervals = pa.array([pa.MonthDayNano([1, 2, 3]), None], pa.month_day_nano_interval())
    assert to_values(intervals) == ["MonthDayNano(months=1, days=2, nanoseconds=3)", None]


def test_text_that_is_not_utf8_is_replaced_or_refused() -> None:
    array = pa.array([b"a\xff", None, b"b"]).view(pa.string())
    assert to_values(array) == ["a�", None, "b"]
    with pytest.raises(UnicodeDecodeError):
        to_values(array, exact=True)


def test_exact_values_keep_bytes() -> None:
    array = pa.array([{"image": b"\x00", "text": "x"}])
    assert to_values(array, exact=True) == [{"image": b"\x00", "text": "x"}]
    assert to_values(array, keep=("image", "id"), exact=True) == [{"image": b"\x00"}]
    assert to_values(array, keep=()) == [{}]


def test_rows_of_several_chunks_are_objects() -> None:
    table = pa.concat_tables([pa.table({"a": [1], "b": ["x"]}), pa.table({"a": [2], "b": pa.nulls(1, pa.string())})])
    assert to_json_rows(table) == [{"a": 1, "b": "x"}, {"a": 2, "b": None}]
    assert to_json_rows(table.slice(0, 0)) == []


def _digits(number: float) -> int:
    return len(Decimal(repr(number)).normalize().as_tuple().digits)


@example(999999995904.0)  # 1e12, which is written with more zeros
@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_a_float32_is_written_with_digits_that_give_it_back(value: float) -> None:
    array = pa.array([value], pa.float32())
    (number,) = to_values(array)
    assert pa.array([number], pa.float32()).equals(array)
    assert _digits(number) <= _digits(value)
