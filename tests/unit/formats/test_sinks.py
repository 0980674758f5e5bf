from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rerank_cli.errors import OutputError
from rerank_cli.formats.inputs import ReadOptions, open_lists, resolve_inputs
from rerank_cli.formats.jsonl import parse_row
from rerank_cli.formats.shapes import FieldNames, FlatShape, ListShape, PairShape, Selection, Shape
from rerank_cli.formats.sinks import BestSink, JsonlSink, ParquetSink
from rerank_cli.records import CandidateList, RankedList, RankedPassage, Window
from tests.conftest import json_rows, ranked_of, run_files, write_lines, write_table

LISTS = ListShape(FieldNames())
FLAT = FlatShape(FieldNames())
PAIRS = PairShape(FieldNames())


def ranked(shape: Shape, *rows: Mapping[str, Any], logits: Sequence[float] = (1.0, 2.0, 3.0)) -> list[RankedList]:
    """Lists of JSON rows; the last passage of each is its best."""
    lists = [item for item in shape.group(json_rows(*rows)) if isinstance(item, CandidateList)]
    return [ranked_of(item, *logits[: len(item.passages)]) for item in lists]


def ranked_file(path: str, names: FieldNames | None = None) -> tuple[Shape, list[RankedList]]:
    shape, items = open_lists(resolve_inputs([path]), names or FieldNames(), ReadOptions(), "auto")
    lists = [item for item in shape.group(items) if isinstance(item, CandidateList)]
    return shape, [ranked_of(item, *map(float, range(len(item.passages)))) for item in lists]


def as_lines(shape: Shape, lists: Sequence[RankedList], selection: Selection | None = None) -> list[dict[str, Any]]:
    stream = io.BytesIO()
    JsonlSink(stream, shape, selection or Selection()).write(lists)
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def as_table(path: Path, shape: Shape, *windows: Sequence[RankedList], **options: Any) -> pa.Table:
    parts = io.BytesIO()
    sink = ParquetSink(
        parts, "out.parquet", shape, Selection(), earlier=lambda: [pa.BufferReader(parts.getvalue())], **options
    )
    for lists in windows:
        sink.write(lists)
    with path.open("wb") as file:
        sink.finish(file)
    return pq.read_table(path)


# JSONL


def test_lines_are_counted_and_written_in_order() -> None:
    stream = io.BytesIO()
    sink = JsonlSink(stream, FLAT, Selection())
    rows = [{"query": q, "passage": p} for q, p in [("q1", "a"), ("q1", "b"), ("q2", "c")]]
    assert sink.write(ranked(FLAT, *rows)) == 3
    assert [json.loads(line)["passage"] for line in stream.getvalue().splitlines()] == ["b", "a", "c"]
    assert sink.write([]) == 0


class Flushes(io.BytesIO):
    count = 0

    def flush(self) -> None:
        self.count += 1


@pytest.mark.parametrize("flush", [True, False])
def test_a_window_is_flushed_for_the_reader_of_a_pipe(flush: bool) -> None:
    stream = Flushes()
    sink = JsonlSink(stream, PAIRS, Selection(), flush=flush)
    sink.write(ranked(PAIRS, {"query": "q", "passage": "a"}))
    assert stream.count == int(flush)


def test_rows_of_a_table_have_the_fields_of_json_rows(tmp_path: Path) -> None:
    row = {"query": "q", "passages": [{"text": "a", "n": 1}, {"text": "b", "n": 2}]}
    by_json = as_lines(*ranked_file(write_lines(tmp_path / "a.jsonl", [row])))
    by_table = as_lines(*ranked_file(write_table(tmp_path / "a.parquet", [row])))
    assert by_json == by_table
    assert list(by_table[0]["passages"][0]) == ["text", "n", "rank", "logit", "index"]
    flat = {"query": "q", "passage": "a", "n": None}
    assert as_lines(*ranked_file(write_lines(tmp_path / "b.jsonl", [flat]))) == as_lines(
        *ranked_file(write_table(tmp_path / "b.parquet", [flat]))
    )


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_truncation_is_told_of_the_passages_that_were_cut_alone(tmp_path: Path, kind: str) -> None:
    row = {"query": "q", "passages": ["a", "b"]}
    write = write_lines if kind == "jsonl" else write_table
    shape, (found,) = ranked_file(write(tmp_path / f"a.{kind}", [row]))
    ranking = (RankedPassage(1, 0, 1.0, 600, 512), RankedPassage(2, 1, 0.5, 20, 20))
    (line,) = as_lines(shape, [RankedList(found.source, ranking)], Selection(prob=True))
    cut, whole = line["passages"]
    assert {name: cut[name] for name in ("truncated", "tokens", "kept_tokens")} == {
        "truncated": True,
        "tokens": 600,
        "kept_tokens": 512,
    }
    assert sorted(whole) == ["index", "logit", "prob", "rank", "text"]
    assert [passage["prob"] for passage in line["passages"]] == pytest.approx([0.7310585786300049, 0.6224593312018546])


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_passage_of_plain_text_becomes_an_object_with_text(tmp_path: Path, kind: str) -> None:
    write = write_lines if kind == "jsonl" else write_table
    path = write(tmp_path / f"a.{kind}", [{"query": "q", "passages": ["a"]}])
    ((passage,),) = [line["passages"] for line in as_lines(*ranked_file(path, FieldNames(text="body.content")))]
    assert passage == {"text": "a", "rank": 1, "logit": 0.0, "index": 0}


def test_an_empty_list_of_a_table_comes_back_empty(tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.parquet", [{"query": "q", "passages": []}, {"query": "r", "passages": ["x"]}])
    first, second = as_lines(*ranked_file(path))
    assert (first["passages"], len(second["passages"])) == ([], 1)


# Parquet


def test_json_rows_get_the_types_of_scores(tmp_path: Path) -> None:
    table = as_table(tmp_path / "o", FLAT, ranked(FLAT, {"query": "q", "passage": "a", "n": 3, "x": 1.5}))
    assert dict(zip(table.schema.names, table.schema.types, strict=True)) == {
        "query": pa.string(), "passage": pa.string(), "n": pa.int64(), "x": pa.float64(),
        "rank": pa.int32(), "logit": pa.float32(), "index": pa.int32(),
        "truncated": pa.bool_(), "tokens": pa.int32(), "kept_tokens": pa.int32(),
    }  # fmt: skip
    lists = as_table(tmp_path / "p", LISTS, ranked(LISTS, {"query": "q", "docs": ["a", {"text": "b"}]}))
    assert lists.schema.field("docs").type.value_type.field("logit").type == pa.float32()


@pytest.mark.parametrize("text", ["1.10", "1e5", "-0.0", "12345678901234567890.5"])
def test_numbers_that_json_writes_in_another_way_become_doubles(tmp_path: Path, text: str) -> None:
    line = f'{{"query": "q", "passages": [{{"text": "a", "n": {text}}}], "m": [{text}], "o": {{"k": {text}}}}}'
    row = parse_row(line.encode(), file="-", number=1)
    (source,) = LISTS.group([row])
    assert isinstance(source, CandidateList)
    (found,) = as_table(tmp_path / "o", LISTS, [ranked_of(source, 1.0)]).to_pylist()
    assert found["passages"][0]["n"] == found["m"][0] == found["o"]["k"] == float(text)


def test_a_number_beyond_doubles_is_refused_and_not_made_infinite(tmp_path: Path) -> None:
    row = parse_row(b'{"query": "q", "passage": "a", "n": 1e999}', file="-", number=1)
    (source,) = PAIRS.group([row])
    assert isinstance(source, CandidateList)
    with pytest.raises(OutputError, match=r"out\.parquet: field `n` cannot be a Parquet column"):
        as_table(tmp_path / "o", PAIRS, [ranked_of(source, 1.0)])


def test_rows_of_json_and_of_a_table_go_into_one_file(tmp_path: Path) -> None:
    row = {"query": "q", "passages": [{"text": "a"}, {"text": "b"}]}
    _, by_json = ranked_file(write_lines(tmp_path / "a.jsonl", [row]))
    _, by_table = ranked_file(write_table(tmp_path / "a.parquet", [row]))
    table = as_table(tmp_path / "o", LISTS, [*by_json, *by_table, *by_json], by_table)
    assert table.num_rows == 4
    assert len({str(line) for line in table.to_pylist()}) == 1


def test_tables_with_the_passages_under_different_names_go_into_one_file(tmp_path: Path) -> None:
    first = ranked_file(write_table(tmp_path / "a.parquet", [{"query": "q", "passages": ["a", "b"]}]))[1]
    second = ranked_file(write_table(tmp_path / "b.parquet", [{"query": "q", "docs": ["c", "d"]}]))[1]
    table = as_table(tmp_path / "o", LISTS, [*first, *second])
    texts = [[p["text"] for p in line["passages"] or line["docs"]] for line in table.to_pylist()]
    assert texts == [["b", "a"], ["d", "c"]]
    assert [
        [p["text"] for p in line.get("passages", line.get("docs"))] for line in as_lines(LISTS, [*first, *second])
    ] == [
        ["b", "a"],
        ["d", "c"],
    ]


def test_columns_that_the_shape_does_not_read_come_back(tmp_path: Path) -> None:
    table = pa.table(
        {"query": ["q"], "passages": [["a", "b"]], "blob": [b"\xff"], "half": pa.array([1.5], pa.float16())}
    )
    path = write_table(tmp_path / "a.parquet", table)
    back = as_table(tmp_path / "o", *ranked_file(path))
    assert back.drop_columns("passages").equals(table.drop_columns("passages"))


# Parquet without rows


def test_without_rows_and_without_a_table_as_input_there_are_no_columns(tmp_path: Path) -> None:
    assert as_table(tmp_path / "o", LISTS).schema.names == []


PASSAGE = pa.struct([("text", pa.string()), ("vector", pa.list_(pa.float32(), 2)), ("rank", pa.int64())])
FOREIGN = [
    pa.field("query", pa.large_string(), nullable=False),
    pa.field("kind", pa.dictionary(pa.int8(), pa.string()), metadata={"a": "b"}),
    pa.field("when", pa.timestamp("ms", "UTC")),
    pa.field("tags", pa.map_(pa.string(), pa.int32())),
]


@pytest.mark.parametrize(
    ("shape", "field", "row"),
    [
        (LISTS, pa.field("passages", pa.list_(PASSAGE)), [{"text": "a", "vector": [1.0, 2.0], "rank": 1}]),
        (LISTS, pa.field("docs", pa.large_list(pa.string())), ["a", "b"]),
        (FLAT, pa.field("passage", pa.string()), "a"),
        (PAIRS, pa.field("text", pa.string()), "a"),
    ],
)
def test_without_rows_the_columns_are_those_that_rows_would_have_had(
    tmp_path: Path, shape: Shape, field: pa.Field, row: Any
) -> None:
    schema = pa.schema([*FOREIGN[:2], field, *FOREIGN[2:]], {"made": "here"})
    full = pa.Table.from_pylist([{"query": "q", "kind": "k", field.name: row}], schema=schema)
    path = write_table(tmp_path / "a.parquet", full)
    _, lists = ranked_file(path)
    with_rows = as_table(tmp_path / "full", shape, lists)
    without = as_table(tmp_path / "empty", shape, like=path)
    assert without.num_rows == 0
    assert without.schema.equals(with_rows.schema, check_metadata=True)


@pytest.mark.parametrize("table", [{"query": [], "passages": []}, {"query": ["q"], "passages": ["no list"]}])
def test_without_rows_and_lists_the_columns_stay_as_they_are(tmp_path: Path, table: dict[str, Any]) -> None:
    path = write_table(tmp_path / "a.parquet", pa.table(table))
    assert as_table(tmp_path / "o", LISTS, like=path).schema == pa.table(table).schema


def test_a_table_without_columns_is_a_model_for_none(tmp_path: Path) -> None:
    for number, shape in enumerate((LISTS, FLAT)):
        path = write_table(tmp_path / "a.parquet", pa.table({}))
        table = as_table(tmp_path / f"o{number}", shape, like=path)
        assert table.num_rows == 0
        assert set(table.schema.names) <= {"rank", "logit", "index", "truncated", "tokens", "kept_tokens"}


def test_with_rows_the_model_is_not_looked_at(tmp_path: Path) -> None:
    table = as_table(tmp_path / "o", LISTS, ranked(LISTS, {"query": "q", "docs": ["a"]}), like="nowhere.parquet")
    assert table.schema.names == ["query", "docs"]


# The best of a run


def test_the_best_rows_of_all_windows_come_best_first_and_ties_in_input_order() -> None:
    stream = io.BytesIO()
    best = BestSink(JsonlSink(stream, PAIRS, Selection()), top_n=3)
    scores = [[1.0, 5.0, 3.0], [], [5.0, 0.0], [5.0, 4.0]]
    names = iter("abcdefg")
    for window in scores:
        rows = [{"query": "q", "passage": next(names)} for _ in window]
        lists = [item for item in PAIRS.group(json_rows(*rows)) if isinstance(item, CandidateList)]
        assert best.write([ranked_of(item, score) for item, score in zip(lists, window, strict=True)]) == 0
    assert stream.getvalue() == b""
    assert best.finish() == 3
    assert [json.loads(line)["passage"] for line in stream.getvalue().splitlines()] == ["b", "d", "f"]
    assert best.dropped == 4


def test_the_best_rows_are_known_again_from_their_notes() -> None:
    rows = json_rows(*({"query": "q", "passage": name} for name in "abcdef"))
    lists = [item for item in PAIRS.group(rows) if isinstance(item, CandidateList)]
    scores = [1.0, 5.0, 3.0, 5.0, 0.0, 4.0]
    windows = [Window(n, tuple(lists[n * 2 : n * 2 + 2]), (), 2, 0) for n in range(3)]
    whole, again = io.BytesIO(), io.BytesIO()
    first, second = (BestSink(JsonlSink(stream, PAIRS, Selection()), top_n=3) for stream in (whole, again))
    for window in windows:
        ranked = [ranked_of(item, scores[lists.index(item)]) for item in window.lists]
        first.write(ranked)
        if window.number < 2:
            second.restore(window, json.loads(json.dumps(first.note)))
            second.dropped = first.dropped
        else:
            second.write(ranked)
    assert (first.finish(), first.dropped) == (second.finish(), second.dropped)
    assert whole.getvalue() == again.getvalue()


def test_a_row_that_the_threshold_dropped_is_not_among_the_best() -> None:
    stream = io.BytesIO()
    best = BestSink(JsonlSink(stream, PAIRS, Selection()), top_n=3)
    (kept,) = ranked(PAIRS, {"query": "q", "passage": "a"})
    best.write([RankedList(kept.source, ()), kept])
    assert (best.finish(), best.dropped) == (1, 0)


# All four ways


ROWS = [
    {"query_id": number, "query": f"w{number} x y z", "passages": [
        {"id": f"{number}-{place}", "text": f"{'x ' * (place % 3)}w{place % 4} y{' z' * (place % 2)}"}
        for place in range(size)
    ]}
    for number, size in enumerate([3, 1, 7, 2, 5, 4])
]  # fmt: skip
FLAT_ROWS = [
    {"query_id": row["query_id"], "query": row["query"], "pid": passage["id"], "passage": passage["text"]}
    for row in ROWS
    for passage in row["passages"]
]


@pytest.mark.parametrize("selection", [Selection(), Selection(top_n=2, prob=True), Selection(threshold=2.0)])
@pytest.mark.parametrize("rows", [ROWS, FLAT_ROWS], ids=["list", "flat"])
def test_all_four_ways_between_the_formats_give_the_same_rows(
    tmp_path: Path, rows: list[dict[str, Any]], selection: Selection
) -> None:
    inputs = [write_lines(tmp_path / "in.jsonl", rows), write_table(tmp_path / "in.parquet", rows, row_group_size=2)]
    results = []
    for number, path in enumerate(inputs):
        for suffix in ("jsonl", "parquet"):
            done = run_files([path], tmp_path / f"{number}.{suffix}", selection=selection)
            results.append([without_nulls(row) for row in done.rows])
    assert results[0]
    assert all(result == results[0] for result in results)


def without_nulls(value: Any) -> Any:
    """In Parquet every row has every field, null where JSON leaves it out."""
    if isinstance(value, dict):
        return {name: without_nulls(item) for name, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value
