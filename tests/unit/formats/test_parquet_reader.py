import base64
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pe
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rerank_cli.errors import InputError, OutputError
from rerank_cli.formats.parquet_reader import (
    BATCH_BYTES,
    BATCH_ROWS,
    ArrowRow,
    column_names,
    iter_column,
    read_rows,
    read_rows_in_order,
    read_schema,
    row_count,
)
from rerank_cli.formats.parquet_writer import ParquetParts
from rerank_cli.records import RowError
from tests.conftest import TableFile, run_files, write_table


def written(folder: Path, table: pa.Table, **options: Any) -> str:
    path = str(folder / "in.parquet")
    pq.write_table(table, path, **options)
    return path


def struct_fields(data_type: pa.DataType) -> list[pa.Field]:
    return [data_type.field(i) for i in range(data_type.num_fields)]


def rows_of(path: str, *columns: str) -> list[ArrowRow]:
    rows = list(read_rows(path, dict.fromkeys(columns)))
    assert all(isinstance(row, ArrowRow) for row in rows)
    return rows


@pytest.fixture
def small(tmp_path: Path) -> str:
    table = pa.table({"query": [f"q{i}" for i in range(300)], "id": pa.array(range(300), pa.int16())})
    return written(tmp_path, table, row_group_size=130)


# Reading


def test_rows_come_in_order_with_their_numbers_and_all_their_columns(small: str) -> None:
    rows = rows_of(small, "query")
    assert [row.number for row in rows] == list(range(1, 301))
    assert [row.fields for row in rows] == [{"query": f"q{i}"} for i in range(300)]
    assert [row.batch.column(1)[row.index].as_py() for row in rows] == list(range(300))
    assert {row.file for row in rows} == {small}


def test_the_footer_answers_for_columns_types_and_rows(small: str) -> None:
    assert column_names(small) == ["query", "id"]
    assert read_schema(small).field("id").type == pa.int16()
    assert row_count(small) == 300


def test_a_column_is_scanned_alone(small: str) -> None:
    assert list(iter_column(small, "id")) == list(range(300))


def test_a_column_named_like_a_path_is_not_taken_for_the_nested_one(tmp_path: Path) -> None:
    path = written(tmp_path, pa.table({"a": pa.array([{"b": "nested"}]), "a.b": ["flat"]}))
    assert list(iter_column(path, "a.b")) == ["flat"]
    assert list(iter_column(path, "a")) == [{"b": "nested"}]


def test_of_structs_only_the_wanted_fields_become_python_values(tmp_path: Path) -> None:
    passages = pa.array([[{"text": "a", "id": 1, "big": "x"}], None, []])
    query = pa.array([{"text": "q", "lang": "en"}] * 3)
    path = written(tmp_path, pa.table({"query": query, "passages": passages}))
    rows = list(read_rows(path, {"query": ("text",), "passages": ("text", "id", "image")}))
    assert [row.fields for row in rows if isinstance(row, ArrowRow)] == [
        {"query": {"text": "q"}, "passages": [{"text": "a", "id": 1}]},
        {"query": {"text": "q"}, "passages": None},
        {"query": {"text": "q"}, "passages": []},
    ]


def test_bytes_of_a_wanted_column_stay_bytes_and_are_base64_in_the_raw_row(tmp_path: Path) -> None:
    path = written(tmp_path, pa.table({"image": [b"\x89PNG"]}))
    (row,) = rows_of(path, "image")
    assert row.fields == {"image": b"\x89PNG"}
    assert json.loads(row.raw) == {"image": base64.b64encode(b"\x89PNG").decode()}


def test_the_raw_row_is_one_json_object_with_all_columns(small: str) -> None:
    assert [json.loads(row.raw) for row in rows_of(small, "id")[100:102]] == [
        {"query": "q100", "id": 100},
        {"query": "q101", "id": 101},
    ]


def test_batches_grow_from_one_row_and_stay_small(small: str) -> None:
    sizes = {id(row.batch): row.batch.num_rows for row in rows_of(small, "query")}.values()
    assert list(sizes)[:4] == [1, 4, 16, 64]
    assert max(sizes) == BATCH_ROWS


def test_batches_of_long_rows_stay_within_the_bytes(tmp_path: Path) -> None:
    texts = [f"{i}" * (BATCH_BYTES // 4) for i in range(9)]
    rows = rows_of(written(tmp_path, pa.table({"query": texts})), "query")
    sizes = {id(row.batch): row.batch.num_rows for row in rows}
    assert list(sizes.values())[:2] == [1, 3]
    assert all(row.batch.nbytes <= BATCH_BYTES for row in rows)


def test_batches_of_one_file_share_their_dictionary(tmp_path: Path) -> None:
    column = pa.array([f"word {i % 50}" for i in range(1000)]).dictionary_encode()
    rows = rows_of(written(tmp_path, pa.table({"query": column, "id": range(1000)})), "query")
    assert [row.fields["query"] for row in rows] == column.to_pylist()
    assert len({row.batch.column(0).dictionary.buffers()[2].address for row in rows}) == 1


def test_a_large_dictionary_does_not_make_the_batches_small(tmp_path: Path) -> None:
    words = pa.array(["x" * 100_000 + str(i) for i in range(200)])
    column = pa.DictionaryArray.from_arrays(pa.array(range(200), pa.int32()), words)
    nested = pa.ListArray.from_arrays(pa.array(range(201), pa.int32()), column)
    assert column.dictionary.nbytes > BATCH_BYTES
    # Dictionary pages beyond 1 MiB would be written as plain text.
    path = written(tmp_path, pa.table({"a": column, "b": nested}), dictionary_pagesize_limit=2**30)
    assert max(row.batch.num_rows for row in read_rows(path, {}) if isinstance(row, ArrowRow)) == BATCH_ROWS


def test_text_that_is_not_utf8_is_a_row_error_and_its_neighbours_are_rows(tmp_path: Path) -> None:
    texts = pa.array([b"a", b"b", b"\xff\xfe", None, b"e", b"f"]).view(pa.string())
    path = written(tmp_path, pa.table({"query": texts, "n": range(6)}))
    rows = list(read_rows(path, {"n": None, "query": None}))
    assert [row.fields["query"] for row in rows if isinstance(row, ArrowRow)] == ["a", "b", None, "e", "f"]
    (bad,) = [row for row in rows if isinstance(row, RowError)]
    assert (bad.row, bad.code, bad.file) == (3, "bad-utf8", path)
    assert "`query`" in bad.message
    assert json.loads(bad.raw) == {"query": "��", "n": 2}
    assert list(iter_column(path, "query")) == ["a", "b", "��", None, "e", "f"]


def test_bad_text_in_a_column_that_nobody_reads_is_no_error(tmp_path: Path) -> None:
    path = written(tmp_path, pa.table({"query": ["q"], "other": pa.array([b"\xff"]).view(pa.string())}))
    assert [row.fields for row in rows_of(path, "query")] == [{"query": "q"}]


def test_a_file_without_rows_has_none(tmp_path: Path) -> None:
    path = written(tmp_path, pa.table({"query": pa.array([], pa.string())}))
    assert list(read_rows(path, {"query": None})) == []


# Reading in another order


@pytest.mark.parametrize(
    "order", [[], [299], [*range(200, 300), *range(200)], list(range(299, -1, -1)), [5, 6, 5, 6, 7]]
)
def test_rows_come_in_the_order_asked_for_with_the_numbers_they_have(small: str, order: list[int]) -> None:
    rows = list(read_rows_in_order(small, {"query": None}, order, max_bytes=2**20))
    assert [row.number for row in rows if isinstance(row, ArrowRow)] == [place + 1 for place in order]
    assert [row.fields for row in rows if isinstance(row, ArrowRow)] == [{"query": f"q{place}"} for place in order]
    assert [json.loads(row.raw)["id"] for row in rows] == order


def test_any_order_gives_what_reading_in_file_order_gives(tmp_path: Path) -> None:
    texts = [None if i % 7 == 3 else f"text {i}" for i in range(200)]
    path = written(tmp_path, pa.table({"passage": pa.array(texts).dictionary_encode(), "n": range(200)}))
    plain = [row for row in read_rows(path, {"n": None, "passage": None}) if isinstance(row, ArrowRow)]
    order = random.Random(5).sample(range(200), 150)
    rows = read_rows_in_order(path, {"n": None, "passage": None}, order, max_bytes=2**20)
    assert [(r.number, r.fields, r.raw) for r in rows if isinstance(r, ArrowRow)] == [
        (plain[place].number, plain[place].fields, plain[place].raw) for place in order
    ]


def test_bad_text_is_a_row_error_in_any_order(tmp_path: Path) -> None:
    path = written(tmp_path, pa.table({"query": pa.array([b"a", b"\xff", b"c"]).view(pa.string())}))
    rows = list(read_rows_in_order(path, {"query": None}, [2, 1, 0], max_bytes=2**20))
    assert [type(row) for row in rows] == [ArrowRow, RowError, ArrowRow]


def test_a_file_beyond_the_memory_given_is_not_put_in_order(tmp_path: Path) -> None:
    path = written(tmp_path, pa.table({"query": ["x" * 100_000] * 1000}))
    with pytest.raises(InputError, match="cannot be put in order: they take more than 8 MiB"):
        next(read_rows_in_order(path, {}, range(1000), max_bytes=8 * 2**20))


# Faults of files


def test_a_missing_column_is_named_with_those_that_exist(small: str) -> None:
    with pytest.raises(InputError, match=r"column `passages` is missing; the file has `query`, `id`"):
        next(read_rows(small, {"passages": None}))
    with pytest.raises(InputError, match="column `x` is missing"):
        next(iter_column(small, "x"))


def test_a_column_that_occurs_twice_cannot_be_read_and_can_be_passed_through(tmp_path: Path) -> None:
    table = pa.table([pa.array(["q"]), pa.array([1]), pa.array([2])], names=["query", "x", "x"])
    path = written(tmp_path, table)
    with pytest.raises(InputError, match="column `x` occurs 2 times"):
        next(read_rows(path, {"x": None}))
    (row,) = rows_of(path, "query")
    assert row.batch.column(2).to_pylist() == [2]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file"),
        (b"", "is not a Parquet file"),
        (b'{"query": "q", "passages": []}\n', "is not a Parquet file"),
        (b"PAR1" + bytes(100), "is cut short"),
        (b"PARE" + bytes(100) + b"PARE", "is encrypted"),
        (b"PAR1" + bytes(100) + b"PAR1", "cannot be read as Parquet"),
    ],
)
def test_a_file_that_is_no_parquet_says_why(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "in.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=words) as caught:
        next(read_rows(str(path), {}))
    assert caught.value.message.startswith(f"{path}: ")


def test_a_directory_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="directory"):
        row_count(str(tmp_path))


class PlainKms(pe.KmsClient):
    """Keeps keys in the clear."""

    def __init__(self, _config: pe.KmsConnectionConfig) -> None:
        pe.KmsClient.__init__(self)

    def wrap_key(self, key_bytes: bytes, _master_key_identifier: str) -> bytes:
        return base64.b64encode(key_bytes)

    def unwrap_key(self, wrapped_key: bytes, _master_key_identifier: str) -> bytes:
        return base64.b64decode(wrapped_key)


@pytest.mark.parametrize("plaintext_footer", [True, False])
def test_an_encrypted_file_is_an_input_error(tmp_path: Path, plaintext_footer: bool) -> None:
    settings = pe.EncryptionConfiguration("key", column_keys={"key": ["query"]}, plaintext_footer=plaintext_footer)
    properties = pe.CryptoFactory(PlainKms).file_encryption_properties(pe.KmsConnectionConfig(), settings)
    table = pa.table({"query": ["q"]})
    path = str(tmp_path / "in.parquet")
    with pq.ParquetWriter(path, table.schema, encryption_properties=properties) as writer:
        writer.write_table(table)
    with pytest.raises(InputError, match="crypt"):
        next(read_rows(path, {"query": None}))


def test_rows_before_a_damaged_page_stay_usable(tmp_path: Path) -> None:
    texts = [os.urandom(1000).hex() for _ in range(400)]
    path = Path(written(tmp_path, pa.table({"query": texts}), row_group_size=200, use_dictionary=False))
    second = pq.read_metadata(path).row_group(1).column(0).data_page_offset
    content = bytearray(path.read_bytes())
    content[second : second + 40] = b"\xff" * 40
    path.write_bytes(content)
    reader = read_rows(str(path), {"query": None})
    assert [next(reader).fields["query"] for _ in range(200)] == texts[:200]
    with pytest.raises(InputError, match=f"{path}: cannot be read after row 200: "):
        next(reader)


def test_a_dictionary_index_without_a_word_is_an_input_error(tmp_path: Path) -> None:
    words = pa.array([f"word {i}" for i in range(5)] * 40)
    table = pa.table({"query": words.dictionary_encode()})
    path = Path(written(tmp_path, table, compression="none", write_statistics=False))
    column = pq.read_metadata(path).row_group(0).column(0)
    content = bytearray(path.read_bytes())
    # The last bytes of the page are the indices, three bits each: 7 has no word.
    end = column.dictionary_page_offset + column.total_compressed_size
    content[end - 3 : end] = b"\xff" * 3
    path.write_bytes(content)
    with pytest.raises(InputError, match="cannot be read after row"):
        list(read_rows(str(path), {}))


def test_a_name_within_a_column_that_is_not_utf8_is_an_input_error(tmp_path: Path) -> None:
    table = pa.table({"q": pa.array([{"name": 1}])})
    path = Path(written(tmp_path, table, store_schema=False))
    content = path.read_bytes()
    path.write_bytes(content.replace(b"name", b"na\xffe"))
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        column_names(str(path))


@pytest.fixture(scope="module")
def nested_files(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    table = pa.table(
        {
            "query": [f"query {i % 7}" for i in range(120)],
            "passages": [[{"text": f"text {i} {k}", "n": k} for k in range(i % 4)] for i in range(120)],
            "key": pa.array([f"k{i % 3}" for i in range(120)]).dictionary_encode(),
            "when": pa.array(range(120), pa.timestamp("us", "UTC")),
        }
    )
    path = tmp_path_factory.mktemp("files") / "in.parquet"
    contents = []
    for compression in ("zstd", "none", "snappy"):
        pq.write_table(table, path, compression=compression, row_group_size=50)
        contents.append(path.read_bytes())
    return contents


def read_all(path: Path) -> Iterator[bytes]:
    for row in read_rows(str(path), {"query": None, "passages": ("text",)}):
        yield row.raw


def test_a_file_cut_short_anywhere_is_an_input_error(tmp_path: Path, nested_files: list[bytes]) -> None:
    path = tmp_path / "cut.parquet"
    for content in nested_files:
        for size in [*range(0, len(content), 97), len(content) - 1]:
            path.write_bytes(content[:size])
            with pytest.raises(InputError):
                list(read_all(path))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_damaged_file_raises_nothing_but_input_error(
    tmp_path: Path, nested_files: list[bytes], data: st.DataObject
) -> None:
    content = bytearray(data.draw(st.sampled_from(nested_files)))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged.parquet"
    path.write_bytes(content)
    try:
        count = sum(1 for _ in read_all(path))
    except InputError as error:
        assert error.message.startswith(f"{path}: ")
    else:
        assert count == row_count(str(path))


# Memory

BOMB = """
import pathlib, re, sys
import pyarrow as pa
from rerank_cli.formats.parquet_reader import read_rows
rows = length = 0
for row in read_rows(sys.argv[1], {"query": None, "passage": None}):
    rows += 1
    length += len(row.fields["query"]) + len(row.fields["passage"])
peak = pa.default_memory_pool().max_memory()
# Not ru_maxrss: a process starts with that of its parent.
resident = int(re.search(r"VmHWM:\\s+(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1]) * 1024
print(rows, length, peak, resident)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak from /proc")
@pytest.mark.parametrize("small_rows_first", [0, 5000])
def test_a_small_file_with_gigabytes_of_rows_is_read_in_bounded_memory(tmp_path: Path, small_rows_first: int) -> None:
    indices = pa.array([0] * small_rows_first + [1] * 3000, pa.int32())
    column = pa.DictionaryArray.from_arrays(indices, pa.array(["short", "x" * 1_000_000]))
    table = pa.table({"query": column, "passage": column})
    path = written(tmp_path, table, compression="zstd", store_schema=False)
    assert Path(path).stat().st_size < 2000
    answer = subprocess.run([sys.executable, "-c", BOMB, path], capture_output=True, text=True, check=True)
    rows, length, peak, resident = map(int, answer.stdout.split())
    assert rows == small_rows_first + 3000
    assert length == 2 * (5 * small_rows_first + 3000 * 1_000_000)
    assert peak < 300 * 2**20
    assert resident < 700 * 2**20


# Writing


def read_back(path: Path) -> pa.Table:
    return pq.read_table(path)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.parquet"


def test_each_table_is_a_row_group_with_zstd_and_statistics(out: Path) -> None:
    table = pa.table({"a": [1, 2, 3]}).replace_schema_metadata({"made by": "a test"})
    writer = TableFile(out)
    writer.write_table(table)
    writer.write_table(table.slice(0, 2))
    writer.close()
    metadata = pq.read_metadata(out)
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [3, 2]
    column = metadata.row_group(1).column(0)
    assert (column.compression, column.statistics.max) == ("ZSTD", 2)
    assert read_back(out).schema.equals(table.schema, check_metadata=True)


def test_an_empty_result_is_a_valid_file(out: Path) -> None:
    writer = TableFile(out)
    writer.write_rows([])
    writer.close()
    assert read_back(out).shape == (0, 0)


def test_an_empty_result_has_the_columns_that_are_known(out: Path) -> None:
    writer = TableFile(out)
    writer.write_table(pa.table({"a": pa.array([], pa.string())}))
    writer.close()
    assert read_back(out).schema == pa.schema([("a", pa.string())])
    assert row_count(str(out)) == 0


def write_windows(out: Path, *windows: list[dict[str, Any]], **options: Any) -> pa.Table:
    writer = TableFile(out, **options)
    for window in windows:
        writer.write_rows(window)
    writer.close()
    assert sorted(path.name for path in out.parent.iterdir()) == [out.name]
    return read_back(out)


def test_rows_from_json_come_back_as_they_were(out: Path) -> None:
    rows = [
        {"id": 1, "s": "é\u0000", "f": 0.1, "b": True, "n": None, "l": [1, None], "o": {"x": {"y": ["z"]}}},
        {"id": -(2**63), "s": None, "f": 2, "b": None, "n": None, "l": None, "o": {"x": None}},
    ]
    assert write_windows(out, rows).to_pylist() == rows


def test_the_schema_grows_with_fields_and_types_of_later_windows(out: Path) -> None:
    table = write_windows(
        out,
        [{"a": None, "n": 1, "o": {"x": 1}, "l": [], "e": {}}],
        [{"a": "text", "n": 2, "o": {"y": [1]}, "l": [{"k": 1}]}],
        [{"new": True, "n": 0.5, "o": None, "l": [{"k": 1.5, "m": "x"}], "e": {"late": 1}}],
        [{"n": 4}],
    )
    assert table.to_pylist() == [
        {"a": None, "n": 1.0, "o": {"x": 1, "y": None}, "l": [], "e": None, "new": None},
        {"a": "text", "n": 2.0, "o": {"x": None, "y": [1]}, "l": [{"k": 1.0, "m": None}], "e": None, "new": None},
        {"a": None, "n": 0.5, "o": None, "l": [{"k": 1.5, "m": "x"}], "e": {"late": 1}, "new": True},
        {"a": None, "n": 4.0, "o": None, "l": None, "e": None, "new": None},
    ]
    assert pq.read_metadata(out).num_row_groups == 4


def test_a_schema_that_grows_keeps_the_metadata_and_the_types_written(out: Path) -> None:
    first = pa.table({"d": pa.array(["x"]).dictionary_encode(), "t": pa.array([1], pa.timestamp("us", "Asia/Tokyo"))})
    first = first.replace_schema_metadata({"k": "v"})
    writer = TableFile(out)
    writer.write_table(first)
    writer.write_table(first.append_column("more", pa.array([1.5])))
    writer.close()
    table = read_back(out)
    assert table.schema.metadata == {b"k": b"v"}
    assert table.schema.types == [*first.schema.types, pa.float64()]
    assert table.to_pylist()[0] == {**first.to_pylist()[0], "more": None}


def test_parts_of_an_earlier_process_bind_the_later_ones(out: Path) -> None:
    first = TableFile(out)
    held = first.parts.of_rows([{"a": 1}]) + first.parts.of_rows([{"b": "x"}])
    again = ParquetParts("out.parquet", lambda: [pa.BufferReader(held)])
    again.restore()
    assert again.schema.equals(first.parts.schema, check_metadata=True)
    with pytest.raises(OutputError, match=r"field `a` .* it holds int64 and string"):
        again.of_rows([{"a": "x"}])


def test_a_file_can_be_abandoned_between_two_row_groups(out: Path) -> None:
    file = TableFile(out)
    file.write_rows([{"a": 1}])
    file.write_rows([{"a": 2}])
    calls: list[int] = []

    def check() -> None:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), out.open("wb") as stream:
        file.parts.write_file(stream, check)


@pytest.mark.parametrize(
    ("windows", "words"),
    [
        ([[{"a": 1}, {"a": "x"}]], "field `a` cannot be a Parquet column: it holds a number and text"),
        ([[{"a": 1}], [{"a": "x"}]], "field `a` .* it holds int64 and string"),
        ([[{"o": {"l": [{"k": True}, {"k": 1}]}}]], r"field `o.l.k` .* it holds a boolean and a number"),
        ([[{"o": {"k": "x"}}], [{"o": ["x"]}]], "field `o` .* holds struct"),
        ([[{"a": 2**64}]], "an integer beyond 64 bit: 18446744073709551616"),
        ([[{"a": -1}, {"a": 2**63}]], "an integer beyond 64 bit"),
        ([[{"a": 10**5000}]], "an integer beyond 64 bit: of 16610 bits"),
        ([[{"a": 0.5}, {"a": 2**53 + 1}]], "not exact in double"),
        ([[{"a": 2**53 + 1}], [{"a": 0.5}]], "not each value is exact"),
        ([[{"a": "\ud800"}]], "surrogate"),
        ([[{"a": b"x"}, {"a": "x"}]], "a Python bytes and text"),
    ],
)
def test_values_without_a_common_type_name_the_field_and_both(out: Path, windows: list[Any], words: str) -> None:
    with pytest.raises(OutputError, match=words) as caught:
        write_windows(out, *windows)
    assert caught.value.message.startswith("out.parquet: ")
    assert ".jsonl" in str(caught.value.hint)


def test_values_nested_without_end_are_an_output_error(out: Path) -> None:
    deep: Any = 1
    for _ in range(400):
        deep = [deep]
    with pytest.raises(OutputError, match="levels of objects and lists"):
        write_windows(out, [{"a": deep}])


def test_integers_up_to_64_bit_without_sign_are_kept(out: Path) -> None:
    assert write_windows(out, [{"a": 2**64 - 1}, {"a": 0}]).column("a").to_pylist() == [2**64 - 1, 0]


def test_our_fields_have_fixed_types_in_the_flat_shape(out: Path) -> None:
    rows = [{"q": "x", "tokens": 7, "rank": 1, "logit": 2, "index": 0, "prob": 1, "kept_tokens": 5, "truncated": True}]
    schema = write_windows(out, rows, [{"q": "y", "rank": 1, "logit": 0.5, "index": 3, "prob": 0.5}]).schema
    assert {name: str(schema.field(name).type) for name in schema.names} == {
        "q": "string",
        "tokens": "int32",
        "rank": "int32",
        "logit": "float",
        "index": "int32",
        "prob": "double",
        "kept_tokens": "int32",
        "truncated": "bool",
    }


def test_our_fields_have_fixed_types_in_the_passages_and_foreign_ones_keep_theirs(out: Path) -> None:
    passages = [{"text": "a", "rank": 1, "cosine": 1, "index": 0}, {"text": "b", "rank": 2, "cosine": 0.5, "index": 1}]
    rows = [{"rank": "foreign", "index": 2**40, "passages": passages}, {"rank": None, "index": 1, "passages": []}]
    table = write_windows(out, rows, passages="passages", score="cosine")
    assert table.schema.field("rank").type == pa.string()
    assert table.schema.field("index").type == pa.int64()
    item = table.schema.field("passages").type.value_type
    assert {field.name: str(field.type) for field in struct_fields(item)} == {
        "text": "string",
        "rank": "int32",
        "cosine": "float",
        "index": "int32",
        "truncated": "bool",
        "tokens": "int32",
        "kept_tokens": "int32",
    }
    assert pc.list_value_length(table.column("passages")).to_pylist() == [2, 0]


def test_a_foreign_field_with_our_name_that_does_not_fit_keeps_its_type(out: Path) -> None:
    table = write_windows(out, [{"logit": 0.5, "prob": "high", "tokens": 2**40, "truncated": 0}])
    assert table.schema.field("prob").type == pa.string()
    assert table.schema.field("tokens").type == pa.int64()
    assert table.schema.field("truncated").type == pa.int64()


def test_a_passage_that_is_cut_late_does_not_change_the_schema(out: Path) -> None:
    first = [{"passages": [{"text": "a", "logit": 0.5}]}]
    later = [{"passages": [{"text": "a", "logit": 0.5, "truncated": True, "tokens": 9, "kept_tokens": 4}]}]
    writer = TableFile(out, passages="passages")
    writer.write_rows(first)
    schema = writer.parts.schema
    writer.write_rows(later)
    assert writer.parts.schema is schema
    writer.close()
    assert read_back(out).column("passages").to_pylist()[1][0]["tokens"] == 9


def test_a_type_that_arrow_cannot_write_is_an_output_error(out: Path) -> None:
    union = pa.UnionArray.from_sparse(pa.array([0], pa.int8()), [pa.array([1])])
    with pytest.raises(OutputError, match=r"out.parquet: cannot be written as Parquet: .*union"):
        TableFile(out).write_table(pa.table({"a": union}))


def test_columns_of_one_name_are_written_in_each_window(out: Path) -> None:
    table = pa.table([pa.array([1]), pa.array(["x"])], names=["a", "a"])
    writer = TableFile(out)
    writer.write_table(table)
    writer.write_table(table)
    with pytest.raises(OutputError, match=r"field `a` .* two values in one row"):
        writer.write_table(pa.table({"a": [1]}))
    writer.close()
    assert pq.ParquetFile(out).read().column(1).to_pylist() == ["x", "x"]


def test_a_full_disk_is_an_os_error() -> None:
    writer = TableFile(Path("/dev/full"))
    writer.write_rows([{"a": os.urandom(100_000).hex()}])
    with pytest.raises(OSError, match="No space left on device"):
        writer.close()


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    # Text without lone surrogates.
    | st.text(st.characters(exclude_categories=("Cs",))),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.fixed_dictionaries({"id": st.integers(0, 9)}, optional={"x": json_values}), min_size=1)))
def test_any_windows_of_json_rows_are_kept_or_refused(out: Path, windows: list[list[dict[str, Any]]]) -> None:
    try:
        table = write_windows(out, *windows)
    except OutputError:
        return
    rows = [row for window in windows for row in window]
    assert [without_nulls(row) for row in table.to_pylist()] == [without_nulls(row) for row in rows]


def without_nulls(value: Any) -> Any:
    """A value as Parquet can tell it: absent is null, and an object without any value is one of nulls."""
    if isinstance(value, dict):
        kept = {name: without_nulls(item) for name, item in value.items()}
        return {name: item for name, item in kept.items() if item is not None} or None
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def test_views_are_read_as_the_texts_that_they_are(tmp_path: Path) -> None:
    texts = pa.array(["tea", "a text that is too long to lie in the view", None], pa.string_view())
    flat = pa.table({"query": pa.array(["tea"] * 3, pa.string_view()), "passage": texts})
    lists = pa.table({"query": ["tea"], "passages": pa.array([[{"text": "a"}, {"text": "tea"}]])})
    views = pa.list_(pa.struct([("text", pa.string_view())]))
    lists = lists.set_column(1, "passages", pa.array([[{"text": "a"}, {"text": "tea"}]], views))
    for table, count in ((flat, 2), (lists, 1)):
        for out in ("out.jsonl", "out.parquet"):
            run = run_files([write_table(tmp_path / "in.parquet", table)], tmp_path / out, overwrite=True)
            assert len(run.rows) == count
    assert [one["text"] for one in run.rows[0]["passages"]] == ["tea", "a"]


def test_two_columns_of_one_name_are_not_written_as_objects(tmp_path: Path) -> None:
    columns = [pa.array(["tea"]), pa.array(["x"]), pa.array(["1"]), pa.array(["2"])]
    table = pa.Table.from_arrays(columns, names=["query", "passage", "n", "n"])
    path = write_table(tmp_path / "in.parquet", table)
    with pytest.raises(InputError, match="column `n` occurs 2 times, but a JSON object holds a name once"):
        run_files([path], tmp_path / "out.jsonl")
