import datetime
import io
import math
import random
from collections.abc import Sequence
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rerank_cli.errors import InputError
from rerank_cli.formats.arrow_ranking import rank_lists, rank_rows
from rerank_cli.formats.choices import Selection
from rerank_cli.formats.parquet_reader import ArrowRow, read_rows
from rerank_cli.records import CandidateList, RankedList, RankedPassage, sigmoid
from tests.conftest import TableFile

OURS = ["rank", "logit", "index", "truncated", "tokens", "kept_tokens"]


def rows_of(*batches: pa.RecordBatch, file: str = "in.parquet") -> list[ArrowRow]:
    places = [(batch, index) for batch in batches for index in range(batch.num_rows)]
    return [ArrowRow(file, number, {}, batch, index) for number, (batch, index) in enumerate(places, 1)]


def ranked_list(rows: Sequence[ArrowRow], order: Sequence[int], passages: int | None = None) -> RankedList:
    """The passages `order` of one query, best first; every third one was cut."""
    ranking = [
        RankedPassage(rank, index, 1.5 - rank, 600 if index % 3 == 2 else 20, 512 if index % 3 == 2 else 20)
        for rank, index in enumerate(order, 1)
    ]
    count = len(rows) if passages is None else passages
    return RankedList(CandidateList("q", ("p",) * count, tuple(rows)), tuple(ranking))


def scored(place: RankedPassage) -> dict[str, Any]:
    cut = place.truncated
    return {
        "rank": place.rank,
        "logit": place.logit,
        "index": place.index,
        "truncated": True if cut else None,
        "tokens": place.tokens if cut else None,
        "kept_tokens": place.kept_tokens if cut else None,
    }


def fixed_lists() -> pa.Array:
    """Lists of fixed size, with a null one if this pyarrow can write it (17 cannot)."""
    array = pa.array([[0.5, None], None, [1.5, 2.5]], pa.list_(pa.float32(), 2))
    try:
        pq.write_table(pa.table({"a": array}), io.BytesIO())
    except pa.ArrowNotImplementedError:
        return array.drop_null()
    return array


FIXED_LISTS = fixed_lists()


def foreign_columns(rows: int) -> pa.Table:
    """Columns of each kind that Parquet can give back, with nulls, and with metadata of fields and schema."""
    numbers = [None if i % 5 == 4 else i * 7919 % 1000 for i in range(rows)]

    def column(data_type: pa.DataType, make: Any = lambda i: i) -> pa.Array:
        return pa.array([None if i is None else make(i) for i in numbers], data_type)

    zone = datetime.UTC
    start = datetime.datetime(2024, 5, 1, tzinfo=zone)
    columns = {
        "int8": column(pa.int8(), lambda i: i % 100),
        "uint64": column(pa.uint64(), lambda i: 2**64 - 1 - i),
        "half": column(pa.float32(), float).cast(pa.float16()),
        "float": column(pa.float32(), lambda i: i / 3),
        "double": column(pa.float64(), lambda i: math.nan if i % 2 else i / 3),
        "bool": column(pa.bool_(), lambda i: i % 2 == 0),
        "string": column(pa.string(), lambda i: f"é{i}\x00"),
        "large_string": column(pa.large_string(), str),
        "binary": column(pa.binary(), lambda i: bytes([i % 256, 255])),
        "large_binary": column(pa.large_binary(), lambda i: bytes(i % 4)),
        "fixed_binary": column(pa.binary(3), lambda i: i.to_bytes(3, "big")),
        "not_utf8": column(pa.binary(), lambda i: b"\xff%d" % i).view(pa.string()),
        "decimal128": column(pa.decimal128(20, 4), lambda i: Decimal(i) / 16),
        "decimal256": column(pa.decimal256(60, 2), lambda i: Decimal(i)),
        "date32": column(pa.date32(), lambda i: i),
        "time32": column(pa.time32("ms")),
        "time64": column(pa.time64("ns")),
        "ms": column(pa.timestamp("ms")),
        "us_zone": column(pa.timestamp("us", "Asia/Kathmandu"), lambda i: start + datetime.timedelta(hours=i)),
        "ns": column(pa.timestamp("ns", "UTC"), lambda i: i * 10**15 + 1),
        "duration": column(pa.duration("us")),
        "nothing": pa.nulls(rows),
        "dictionary": column(pa.string(), lambda i: f"word {i % 4}").dictionary_encode(),
        "list": column(pa.list_(pa.int32()), lambda i: [i, None] * (i % 3)),
        "large_list": column(pa.large_list(pa.string()), lambda i: [str(i)] * (i % 3)),
        "fixed_list": FIXED_LISTS.take(pa.array([i % len(FIXED_LISTS) for i in range(rows)])),
        "struct": column(pa.struct([("a", pa.int64()), ("b", pa.list_(pa.string()))]), lambda i: {"a": i, "b": ["x"]}),
        "map": column(pa.map_(pa.string(), pa.int8()), lambda i: [("k", i % 100), ("l", None)]),
        "nested": column(
            pa.list_(pa.struct([("m", pa.map_(pa.string(), pa.timestamp("us")))])),
            lambda i: [{"m": [("k", i)]}, None, {"m": None}],
        ),
        "required": pa.array(range(rows), pa.int16()),
        "unicode name ☃ . x": column(pa.string(), str),
    }
    fields = [
        pa.field(name, array.type, nullable=name != "required", metadata={"note": f"of {name}"})
        for name, array in columns.items()
    ]
    return pa.Table.from_arrays(list(columns.values()), schema=pa.schema(fields, {"made by": "a test", "pandas": "{}"}))


def stored(path: Path, table: pa.Table) -> tuple[pa.Table, list[ArrowRow]]:
    """A table as Parquet gives it back, and its rows."""
    pq.write_table(table, path, row_group_size=17)
    rows = [row for row in read_rows(str(path), {}) if isinstance(row, ArrowRow)]
    return pq.read_table(path), rows


def same(first: pa.ChunkedArray, second: pa.ChunkedArray) -> bool:
    """Equal to the bit; NaN by what it is written as, since it equals nothing."""
    if pa.types.is_floating(first.type):
        width = pa.int64() if first.type == pa.float64() else pa.int32()
        as_float = first.type if first.type != pa.float16() else pa.float32()
        first, second = (column.cast(as_float).combine_chunks().view(width) for column in (first, second))
    return bool(first.equals(second))


def assert_same_columns(found: pa.Table, expected: pa.Table) -> None:
    assert found.schema.metadata == expected.schema.metadata
    for name in expected.schema.names:
        assert found.schema.field(name).equals(expected.schema.field(name), check_metadata=True), name
        assert same(found.column(name), expected.column(name)), name


# Foreign columns


def test_foreign_columns_of_each_type_come_back_bit_for_bit_in_the_flat_shape(tmp_path: Path) -> None:
    table, rows = stored(tmp_path / "in.parquet", foreign_columns(100))
    order = list(range(100))
    random.Random(1).shuffle(order)
    members = [list(range(100))[k::7] for k in range(7)]
    shuffled = [sorted(range(len(member)), key=lambda i, m=member: order[m[i]]) for member in members]
    groups = [ranked_list(rows[k::7], best) for k, best in enumerate(shuffled)]
    expected = table.take(pa.array([member[i] for member, best in zip(members, shuffled, strict=True) for i in best]))

    writer = TableFile(tmp_path / "out.parquet")
    writer.write_table(rank_rows(groups[:3], Selection()))
    writer.write_table(rank_rows(groups[3:], Selection()))
    writer.close()
    found = pq.read_table(tmp_path / "out.parquet")

    assert found.schema.names == [*table.schema.names, *OURS]
    assert_same_columns(found, expected)
    assert found.column("rank").to_pylist() == [place.rank for group in groups for place in group.ranking]


def test_foreign_columns_and_fields_come_back_bit_for_bit_in_the_list_shape(tmp_path: Path) -> None:
    inner = foreign_columns(100)
    structs = pa.StructArray.from_arrays([c.combine_chunks() for c in inner.columns], fields=list(inner.schema))
    ends = pa.array([*range(0, 100, 3), 100], pa.int32())
    item = pa.field("element", structs.type, nullable=False)
    passages = pa.ListArray.from_arrays(ends, structs, type=pa.list_(item))
    outer = foreign_columns(len(passages))
    table, rows = stored(tmp_path / "in.parquet", outer.add_column(3, "passages", passages))
    lengths = [len(value) for value in table.column("passages")]
    ranked = [ranked_list([row], range(n - 1, -1, -1), n) for row, n in zip(rows, lengths, strict=True)]

    writer = TableFile(tmp_path / "out.parquet")
    writer.write_table(rank_lists(ranked[:20], Selection(), passages="passages", text="text"))
    writer.write_table(rank_lists(ranked[20:], Selection(), passages="passages", text="text"))
    writer.close()
    found = pq.read_table(tmp_path / "out.parquet")

    assert found.schema.names == table.schema.names
    assert_same_columns(found.drop_columns(["passages"]), table.drop_columns(["passages"]))
    before = pa.Table.from_struct_array(table.column("passages").combine_chunks().flatten())
    after = pa.Table.from_struct_array(found.column("passages").combine_chunks().flatten())
    starts = [sum(lengths[:k]) for k in range(len(lengths))]
    order = [start + i for start, n in zip(starts, lengths, strict=True) for i in reversed(range(n))]
    assert after.schema.names == [*before.schema.names, *OURS]
    assert_same_columns(after, before.take(pa.array(order)))


def test_extension_types_are_kept(tmp_path: Path) -> None:
    tensors = pa.ExtensionArray.from_storage(
        pa.fixed_shape_tensor(pa.int32(), [2, 2]),
        pa.array([[1, 2, 3, 4], [0, 0, 0, 0], [5, 6, 7, 8]], pa.list_(pa.int32(), 4)),
    )
    table, rows = stored(tmp_path / "in.parquet", pa.table({"t": tensors, "x": [1, 2, 3]}))
    found = rank_rows([ranked_list(rows, [2, 0, 1])], Selection())
    assert found.schema.field("t").type == tensors.type
    assert found.column("t").equals(table.column("t").take(pa.array([2, 0, 1])))


# Rank order against plain Python

texts = st.sampled_from(["", "a", "b", "é"])
passage_lists = st.lists(st.none() | st.lists(st.none() | texts, max_size=5), min_size=1, max_size=12)
string_types = st.sampled_from([pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])


@st.composite
def rankings(draw: st.DrawFn, length: int) -> list[int]:
    return draw(st.permutations(range(length)))[: draw(st.integers(0, length))]


def batches_of(draw: Any, table: pa.Table) -> list[pa.RecordBatch]:
    """The table cut into batches, some of them slices that do not start at 0."""
    cuts = sorted({0, table.num_rows, *draw(st.lists(st.integers(0, table.num_rows), max_size=3))})
    whole = table.combine_chunks().to_batches()[0]
    return [whole.slice(a, b - a) for a, b in pairwise(cuts)]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_lists_are_ranked_as_plain_python_ranks_them(data: st.DataObject) -> None:
    lists = data.draw(passage_lists)
    text_type = data.draw(string_types)
    as_struct = data.draw(st.booleans())
    large = data.draw(st.booleans())
    values = lists
    item: pa.DataType = text_type
    if as_struct:
        values = [
            None if one is None else [None if text is None else {"text": text, "rank": "old"} for text in one]
            for one in lists
        ]
        item = pa.struct([("text", text_type), ("rank", pa.string())])
    column = pa.array(values, pa.large_list(item) if large else pa.list_(item))
    rows = rows_of(*batches_of(data.draw, pa.table({"id": range(len(lists)), "passages": column})))
    chosen = data.draw(st.lists(st.sampled_from(range(len(lists))), unique=True, min_size=1))
    if data.draw(st.booleans()):
        chosen.sort()
    ranked = []
    expected = []
    for at in chosen:
        one = lists[at]
        result = ranked_list([rows[at]], data.draw(rankings(len(one or []))), len(one or []))
        ranked.append(result)
        own = {"input_rank": "old"} if as_struct else {}  # a field of the user's that has a name of ours
        texts_of = [None if text is None else own for text in one or []]
        best = [
            {"text": (one or [])[place.index], **({"input_rank": None} | (texts_of[place.index] or {}) if own else {}),
             **scored(place)}
            for place in result.ranking
        ]  # fmt: skip
        expected.append({"id": at, "passages": None if one is None else best})
    table = rank_lists(ranked, Selection(), passages="passages", text="text")
    assert table.to_pylist() == expected
    table.validate(full=True)
    kept_type = table.schema.field("passages").type
    assert pa.types.is_large_list(kept_type) == large
    assert kept_type.value_type.field("text").type == text_type


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_rows_are_ranked_as_plain_python_ranks_them(data: st.DataObject) -> None:
    values = data.draw(st.lists(st.none() | texts, min_size=1, max_size=20))
    column = pa.array(values, data.draw(string_types))
    rows = rows_of(*batches_of(data.draw, pa.table({"passage": column, "index": ["old"] * len(values)})))
    group_of = [data.draw(st.integers(0, 3)) for _ in values]
    ranked = []
    expected = []
    for group in dict.fromkeys(group_of):
        members = [at for at, other in enumerate(group_of) if other == group]
        result = ranked_list([rows[at] for at in members], data.draw(rankings(len(members))))
        ranked.append(result)
        old = {"input_index": "old"}  # a column of the user's that has a name of ours
        expected += [{"passage": values[members[place.index]], **old, **scored(place)} for place in result.ranking]
    table = rank_rows(ranked, Selection())
    assert table.to_pylist() == expected
    assert table.schema.names == ["passage", "input_index", *OURS]


@pytest.mark.parametrize("kind", [pa.list_(pa.string(), 2), pa.list_view(pa.string()), pa.large_list_view(pa.string())])
def test_a_list_of_another_layout_becomes_a_list_and_its_nulls_stay(kind: pa.DataType) -> None:
    column = pa.array([["a", "b"], None, ["c", "d"]], kind)
    rows = rows_of(pa.record_batch({"passages": column}).slice(1))
    table = rank_lists(
        [ranked_list([rows[0]], [], 0), ranked_list([rows[1]], [1, 0])], Selection(), passages="passages", text="body"
    )
    found = table.column("passages").to_pylist()
    assert found[0] is None
    assert [passage["body"] for passage in found[1]] == ["d", "c"]
    assert pa.types.is_list(table.schema.field("passages").type)


# Scores


def test_scores_have_the_types_of_the_contract() -> None:
    rows = rows_of(pa.record_batch({"passages": [["a"]], "passage": ["a"]}))
    lists = rank_lists([ranked_list(rows, [0])], Selection(prob=True), passages="passages", text="text")
    flat = rank_rows([ranked_list(rows, [0])], Selection(prob=True))
    expected = {
        "rank": pa.int32(),
        "logit": pa.float32(),
        "index": pa.int32(),
        "prob": pa.float64(),
        "truncated": pa.bool_(),
        "tokens": pa.int32(),
        "kept_tokens": pa.int32(),
    }
    item = lists.schema.field("passages").type.value_type
    assert {field.name: field.type for field in (item.field(i) for i in range(item.num_fields))} == {
        "text": pa.string(),
        **expected,
    }
    assert {name: flat.schema.field(name).type for name in flat.schema.names[2:]} == expected


def test_scores_in_input_order_have_no_rank_and_leave_foreign_ones_alone() -> None:
    rows = rows_of(pa.record_batch({"rank": ["mine"], "logit": ["old"], "prob": ["mine"]}))
    table = rank_rows([ranked_list(rows, [0])], Selection(score="cosine"), ranks=False)
    assert table.to_pylist() == [
        {"rank": "mine", "logit": "old", "prob": "mine", "cosine": 0.5}
        | {"truncated": None, "tokens": None, "kept_tokens": None}
    ]


@pytest.mark.parametrize("logit", [-1e30, -750.0, -40.0, -0.5, 0.0, 0.5, 40.0, 750.0, 1e30])
def test_the_sigmoid_does_not_overflow_and_agrees_with_decimals(logit: float) -> None:
    exact = 1 / (1 + (-Decimal(logit)).exp()) if abs(logit) < 1e4 else Decimal(logit > 0)
    assert sigmoid(logit) == pytest.approx(float(exact), rel=1e-15, abs=0)


def test_the_probability_is_that_of_the_written_logit() -> None:
    rows = rows_of(pa.record_batch({"x": range(3)}))
    table = rank_rows([ranked_list(rows, [2, 0, 1])], Selection(prob=True))
    assert table.column("prob").to_pylist() == [sigmoid(logit) for logit in table.column("logit").to_pylist()]


# Nothing to rank


def test_no_lists_are_a_table_without_columns() -> None:
    assert rank_lists([], Selection(), passages="passages", text="text").num_columns == 0
    assert rank_rows([], Selection()).num_columns == 0


def test_lists_of_which_nothing_is_left_keep_the_columns() -> None:
    rows = rows_of(pa.record_batch({"passages": [["a"], []]}))
    lists = [ranked_list([rows[0]], [], 1), ranked_list([rows[1]], [], 0)]
    full = rank_lists([ranked_list([rows[0]], [0])], Selection(), passages="passages", text="text")
    table = rank_lists(lists, Selection(), passages="passages", text="text")
    assert table.schema == full.schema
    assert table.to_pylist() == [{"passages": []}, {"passages": []}]
    flat = rank_rows([ranked_list(rows, [])], Selection())
    assert flat.num_rows == 0
    assert flat.schema == rank_rows([ranked_list(rows, [0])], Selection()).schema


def test_nulls_in_windows_do_not_change_the_schema() -> None:
    item = pa.struct([pa.field("text", pa.string(), nullable=False)])
    some = rows_of(pa.record_batch({"passages": pa.array([[{"text": "a"}]], pa.list_(item))}))
    none = rows_of(pa.record_batch({"passages": pa.array([[None]], pa.list_(item))}))
    tables = [
        rank_lists([ranked_list(rows, [0])], Selection(), passages="passages", text="text") for rows in (some, none)
    ]
    assert tables[0].schema == tables[1].schema
    assert tables[1].column("passages").to_pylist()[0][0]["text"] is None


# Several files


def test_rows_of_files_with_other_columns_and_types_come_together() -> None:
    first = rows_of(pa.record_batch({"id": pa.array([1], pa.int32()), "s": ["x"]}), file="a.parquet")
    second = rows_of(pa.record_batch({"s": pa.array(["y"], pa.large_string()), "id": [2.5], "new": [True]}))
    table = rank_rows([ranked_list([*first, *second], [1, 0])], Selection())
    assert table.select(["id", "s", "new"]).to_pylist() == [
        {"id": 2.5, "s": "y", "new": True},
        {"id": 1.0, "s": "x", "new": None},
    ]


def test_files_that_do_not_fit_are_named_with_the_column() -> None:
    first = rows_of(pa.record_batch({"meta": [{"id": 1}]}), file="a.parquet")
    second = rows_of(pa.record_batch({"meta": [{"id": "x"}]}), file="b.parquet")
    with pytest.raises(InputError, match=r"a.parquet: column `meta.id` .* b.parquet: string and int64"):
        rank_rows([ranked_list([*first, *second], [1, 0])], Selection())


def test_a_name_that_occurs_twice_in_one_of_the_files_is_refused() -> None:
    first = rows_of(pa.record_batch([pa.array([1]), pa.array([2])], names=["x", "x"]), file="a.parquet")
    second = rows_of(pa.record_batch({"x": [1]}), file="b.parquet")
    with pytest.raises(InputError, match=r"b.parquet: column `x` .* a.parquet: two values in one row"):
        rank_rows([ranked_list([*first, *second], [0, 1])], Selection())


def test_a_number_that_the_common_type_cannot_hold_is_refused() -> None:
    first = rows_of(pa.record_batch({"id": [2**53 + 1]}), file="a.parquet")
    second = rows_of(pa.record_batch({"id": [0.5]}), file="b.parquet")
    with pytest.raises(InputError, match=r"a.parquet: column `id` .* b.parquet: int64 and double"):
        rank_rows([ranked_list([*first, *second], [1, 0])], Selection())


def test_dictionaries_of_several_files_are_joined_also_beyond_their_index_type() -> None:
    def words(file: str) -> list[ArrowRow]:
        column = pa.array([f"{file} {i}" for i in range(100)]).dictionary_encode()
        narrow = column.cast(pa.dictionary(pa.int8(), pa.string()))
        return rows_of(pa.record_batch({"w": narrow}), file=file)

    rows = [*words("a"), *words("b")]
    order = [*range(150, 200), *range(150)]
    table = rank_rows([ranked_list(rows, order)], Selection())
    names = [f"{file} {i}" for file in "ab" for i in range(100)]
    assert table.column("w").to_pylist() == [names[i] for i in order]
    assert table.schema.field("w").type == pa.dictionary(pa.int32(), pa.string())


def test_a_column_without_lists_is_refused() -> None:
    rows = rows_of(pa.record_batch({"passages": ["a"]}))
    with pytest.raises(InputError, match="column `passages` is not a column of lists"):
        rank_lists([ranked_list(rows, [0])], Selection(), passages="passages", text="text")
