from __future__ import annotations

import gzip
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rerank_cli.errors import InputError, UsageError
from rerank_cli.formats.inputs import Input, ReadOptions, open_lists, read_items, resolve_inputs
from rerank_cli.formats.parquet_reader import ArrowRow
from rerank_cli.formats.row_counts import count_rows
from rerank_cli.formats.scattered_groups import ordered_by_group
from rerank_cli.formats.shapes import FieldNames, FlatShape, Item, ListShape, PairShape, Shape
from rerank_cli.records import CandidateList, Gap, JsonRow, RowError
from tests.conftest import told, write_lines, write_table
from tests.processes import Started

ROOT = Path(__file__).parents[3]
READ = ReadOptions()
NO_NAMES = FieldNames()
PAIR = {"query": "q", "passage": "a"}
LIST = {"query": "q", "passages": ["a"]}


def flat(*rows: tuple[Any, ...]) -> list[dict[str, Any]]:
    return [dict(zip(("query_id", "query", "passage"), row, strict=True)) for row in rows]


SCATTERED = flat((1, "q1", "a"), (2, "q2", "b"), (1, "q1", "c"), (3, "q3", "d"), (2, "q2", "e"))
GATHERED = [(1, ("a", "c")), (2, ("b", "e")), (3, ("d",))]


def opened(
    paths: Sequence[str], *, names: FieldNames = NO_NAMES, read: ReadOptions = READ, shape: str = "auto"
) -> tuple[Shape, list[Item]]:
    """The shape and the rows in the order in which they are scored."""
    inputs = resolve_inputs(paths)
    found, items = open_lists(inputs, names, read, shape)
    return found, list(ordered_by_group(inputs, found, items, read))


def lists_of(found: tuple[Shape, Iterable[Item]]) -> list[tuple[object, tuple[str, ...]]]:
    shape, items = found
    return [(item.id, item.passages) for item in shape.group(items) if isinstance(item, CandidateList)]


def errors_of(found: tuple[Shape, Iterable[Item]]) -> list[RowError]:
    shape, items = found
    return [item for item in shape.group(items) if isinstance(item, RowError)]


@contextmanager
def piped(path: Path, content: bytes) -> Iterator[str]:
    """A named pipe into which `content` is written."""
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(content,), daemon=True)
    writer.start()
    yield str(path)
    writer.join(timeout=30)


def numbers(items: Iterable[Item]) -> list[int | Gap]:
    return [
        item.row if isinstance(item, RowError) else item if isinstance(item, Gap) else item.number for item in items
    ]


# Files and their formats


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.jsonl", "jsonl"),
        ("a.ndjson", "jsonl"),
        ("a.json", "jsonl"),
        ("a.JSONL.GZ", "jsonl"),
        ("a.json.zst", "jsonl"),
        ("a.parquet", "parquet"),
        ("a.Parquet", "parquet"),
        ("a", "jsonl"),
        ("a.txt", "jsonl"),
    ],
)
def test_the_suffix_tells_the_format(tmp_path: Path, name: str, kind: str) -> None:
    (tmp_path / name).write_bytes(b"{}\n")
    assert resolve_inputs([str(tmp_path / name)]) == [Input(str(tmp_path / name), kind)]


def test_without_a_known_suffix_the_content_tells_the_format(tmp_path: Path) -> None:
    path = write_table(tmp_path / "part-00000", [PAIR])
    assert resolve_inputs([path]) == [Input(path, "parquet")]
    assert lists_of(opened([path])) == [(None, ("a",))]


@pytest.mark.parametrize("name", ["lists.parquet", "part-00000"])
def test_a_table_whose_first_numbers_have_zeros_at_every_other_byte_is_no_text(tmp_path: Path, name: str) -> None:
    path = str(tmp_path / name)
    rows = flat(*((number, f"q{number}", "a") for number in range(4)))
    pq.write_table(pa.Table.from_pylist(rows), path, compression="none")
    assert lists_of(opened([path])) == [(number, ("a",)) for number in range(4)]


def test_the_users_format_wins(tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.jsonl", [PAIR])
    assert [item.format for item in resolve_inputs([path], "parquet")] == ["parquet"]
    assert [item.format for item in resolve_inputs([path, "-"], "text")] == ["text", "text"]
    with pytest.raises(UsageError, match="--in-format xlsx: not known"):
        resolve_inputs([path], "xlsx")


def test_a_missing_file_and_a_folder_are_told_in_words(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.jsonl: no such file"):
        resolve_inputs([str(tmp_path / "nowhere.jsonl")])
    with pytest.raises(InputError, match="no file in the folder has the suffix of a format: it is empty"):
        opened([str(tmp_path)])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read any file")
def test_a_file_that_may_not_be_read_is_told_in_words(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"{}")
    path.chmod(0)
    with pytest.raises(InputError, match="cannot be opened: permission denied"):
        opened([str(path)])


def test_stdin_can_be_given_once_and_is_no_parquet() -> None:
    assert resolve_inputs(["-"]) == [Input("-", "jsonl")]
    with pytest.raises(UsageError, match="stdin"):
        resolve_inputs(["-", "-"])
    with pytest.raises(InputError, match="-: Parquet cannot be read from a pipe"):
        resolve_inputs(["-"], "parquet")


def test_a_pipe_without_a_suffix_loses_no_byte_to_a_look_at_it(tmp_path: Path) -> None:
    with piped(tmp_path / "pipe", b'{"query": "q", "passages": ["a"]}\n' * 3) as pipe:
        assert numbers(opened([pipe])[1]) == [1, 2, 3]


def test_rows_are_counted_without_blank_lines_unless_one_input_is_a_pipe(tmp_path: Path) -> None:
    first, second = write_lines(tmp_path / "a.jsonl", [PAIR]), write_lines(tmp_path / "b.jsonl", [PAIR, b"", PAIR])
    both = resolve_inputs([first, second])
    assert count_rows(both, ReadOptions()) == 3
    assert count_rows(both, ReadOptions(skip=1)) == 2
    assert count_rows(both, ReadOptions(skip=1, limit=1)) == 1
    assert count_rows(resolve_inputs([first, "-"]), ReadOptions()) is None
    os.mkfifo(tmp_path / "pipe")
    assert count_rows(resolve_inputs([str(tmp_path / "pipe")]), ReadOptions()) is None


# The shape


@pytest.mark.parametrize(("row", "shape"), [(LIST, ListShape), (PAIR, FlatShape)])
def test_the_first_row_with_a_shape_decides(tmp_path: Path, row: dict[str, Any], shape: type[Shape]) -> None:
    path = write_lines(tmp_path / "a.jsonl", [b"", b"{", {"comment": "a header"}, row, row])
    found, items = opened([path])
    assert isinstance(found, shape)
    assert numbers(items) == [Gap.BLANK, 2, 3, 4, 5]


def test_the_columns_of_a_table_decide(tmp_path: Path) -> None:
    assert isinstance(opened([write_table(tmp_path / "a.parquet", [LIST])])[0], ListShape)
    assert isinstance(opened([write_table(tmp_path / "b.parquet", [PAIR])])[0], FlatShape)


def test_an_empty_first_file_leaves_the_decision_to_the_next(tmp_path: Path) -> None:
    empty, blank = write_lines(tmp_path / "a.jsonl", []), write_lines(tmp_path / "b.jsonl", [b"", b"{"])
    nothing = write_table(tmp_path / "c.parquet", pa.table({}))
    rows = write_lines(tmp_path / "d.jsonl", [PAIR, PAIR])
    shape, items = opened([empty, blank, nothing, rows])
    assert isinstance(shape, FlatShape)
    assert numbers(items) == [Gap.BLANK, 2, 1, 2]


@pytest.mark.parametrize("lines", [[], [b"", b" "]])
def test_a_file_without_rows_has_any_shape(tmp_path: Path, lines: list[bytes]) -> None:
    path = write_lines(tmp_path / "a.jsonl", lines)
    assert len(opened([path])[1]) == len(lines)


@pytest.mark.parametrize("lines", [[b"{"] * 3, [b"["] * 150, [b"{"] * 100 + [b'{"query": "q", "passage": "p"}']])
def test_a_file_whose_first_rows_have_no_shape_is_refused(tmp_path: Path, lines: list[bytes]) -> None:
    path = write_lines(tmp_path / "a.jsonl", lines)
    says = r"a\.jsonl:1: .*none of its first (3|100) rows can be read.*nothing was replaced"
    with pytest.raises(InputError, match=says):
        opened([path])


def test_a_table_without_columns_and_rows_is_empty(tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.parquet", pa.table({}))
    for shape in ("auto", "list", "flat"):
        assert opened([path], shape=shape)[1] == []


def test_rows_of_no_shape_end_the_run_with_what_they_have(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [b"{", *[{"question": "q", "hits": []}] * 200])
    with pytest.raises(
        InputError, match=r"a\.jsonl:2: neither a list of passages nor a passage: .* `question`, `hits`"
    ):
        opened([path])
    table = write_table(tmp_path / "a.parquet", [{"question": "q"}])
    with pytest.raises(InputError, match=r"a\.parquet: neither .* `question`"):
        opened([table])
    assert isinstance(opened([path], names=FieldNames(query="question", passages="hits"))[0], ListShape)


def test_the_user_can_name_the_shape(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{**LIST, **PAIR}])
    assert isinstance(opened([path])[0], ListShape)
    assert isinstance(opened([path], shape="flat")[0], FlatShape)
    with pytest.raises(UsageError, match="--shape pairs: not known"):
        opened([path], shape="pairs")


def test_only_the_columns_of_the_shape_become_values_of_a_table(tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.parquet", [{**PAIR, "big": "x" * 100}])
    (row,) = opened([path])[1]
    assert isinstance(row, ArrowRow)
    assert row.fields == PAIR


def test_plain_lines_are_passages(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"first\n\nsecond\n")
    inputs = resolve_inputs([str(tmp_path / "a.txt")], "text")
    rows = list(read_items(inputs, PairShape(NO_NAMES, query="q"), READ))
    assert [row.fields["passage"] if isinstance(row, JsonRow) else row for row in rows] == [
        "first",
        Gap.BLANK,
        "second",
    ]


def test_a_line_over_the_limit_is_an_error(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [LIST, {**LIST, "x": "y" * 3000}])
    items = opened([path], read=ReadOptions(max_line_bytes=2000))[1]
    assert [told(item) for item in items if isinstance(item, RowError)] == [(2, "line-too-long")]


# Skip and limit


@pytest.mark.parametrize(
    ("skip", "limit", "rows"),
    [
        (0, None, [1, Gap.BLANK, 3, 4, 1, 2]),
        (2, None, [Gap.BLANK, 4, 1, 2]),
        (0, 2, [1, Gap.BLANK, 3]),
        (1, 3, [Gap.BLANK, 3, 4, 1]),
        (0, 0, []),
        (9, 5, [Gap.BLANK]),
        (3, 9, [Gap.BLANK, 1, 2]),
    ],
)
def test_skip_and_limit_count_rows_over_all_files(
    tmp_path: Path, skip: int, limit: int | None, rows: list[int | Gap]
) -> None:
    first = write_lines(tmp_path / "a.jsonl", [LIST, b"", b"{", LIST])
    second = write_table(tmp_path / "b.parquet", [LIST, LIST])
    read = ReadOptions(skip=skip, limit=limit)
    assert numbers(opened([first, second], read=read)[1]) == rows
    assert numbers(opened([first, second], read=read, shape="list")[1]) == rows


@pytest.mark.parametrize("write", [write_lines, write_table])
@pytest.mark.parametrize(
    ("skip", "limit", "gathered"),
    [
        (0, 3, [(1, ("a", "c")), (2, ("b",))]),
        (1, None, [(2, ("b", "e")), (1, ("c",)), (3, ("d",))]),
        (1, 3, [(2, ("b",)), (1, ("c",)), (3, ("d",))]),
        (5, None, []),
        (0, 0, []),
    ],
)
def test_skip_and_limit_count_the_rows_of_the_file_not_those_brought_together(
    tmp_path: Path, write: Any, skip: int, limit: int | None, gathered: list[Any]
) -> None:
    path = write(tmp_path / ("a.jsonl" if write is write_lines else "a.parquet"), SCATTERED)
    assert lists_of(opened([path], read=ReadOptions(skip=skip, limit=limit))) == gathered


def test_after_the_limit_nothing_is_waited_for(tmp_path: Path) -> None:
    """The writer of the pipe never closes it."""
    program = (
        "from rerank_cli.formats.inputs import *; from rerank_cli.formats.shapes import *\n"
        "shape, read = PairShape(FieldNames()), ReadOptions(limit=2, live=True)\n"
        "items = read_items(resolve_inputs(['-']), shape, read)\n"
        "print([row.number for row in items if not isinstance(row, Gap)])"
    )
    with Started([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        impatience = threading.Timer(60, process.kill)
        impatience.start()
        process.stdin.write(b'{"query": "q", "passage": "a"}\n' * 2)
        process.stdin.flush()
        assert process.stdout.read() == b"[1, 2]\n"
        impatience.cancel()


# Groups


@pytest.fixture
def scattered(tmp_path: Path) -> dict[str, list[str]]:
    """The same scattered rows in every way that can be put in order."""
    gz = tmp_path / "c.jsonl.gz"
    gz.write_bytes(gzip.compress(Path(write_lines(tmp_path / "plain", SCATTERED)).read_bytes()))
    return {
        "jsonl": [write_lines(tmp_path / "a.jsonl", SCATTERED)],
        "gz": [str(gz)],
        "several": [
            write_lines(tmp_path / "d.jsonl", SCATTERED[:2]),
            write_lines(tmp_path / "e.jsonl", SCATTERED[2:]),
        ],
        "parquet": [write_table(tmp_path / "f.parquet", SCATTERED, row_group_size=2)],
    }


@pytest.mark.parametrize("kind", ["jsonl", "gz", "several", "parquet"])
def test_scattered_rows_come_together_in_order_of_first_appearance(scattered: dict[str, list[str]], kind: str) -> None:
    found = opened(scattered[kind])
    assert lists_of(found) == GATHERED


def test_gathered_rows_keep_their_file_number_and_bytes(tmp_path: Path) -> None:
    first = write_lines(tmp_path / "a.jsonl", [b"", *SCATTERED[:2], b"{bad"])
    second = write_lines(tmp_path / "b.jsonl", [*SCATTERED[2:], {"query": "q", "query_id": 2, "passage": 7}])
    shape, items = opened([first, second])
    rows = [item for item in items if isinstance(item, JsonRow)]
    places = {row.fields["passage"]: (Path(row.file).name, row.number) for row in rows}
    assert places == {
        "a": ("a.jsonl", 2), "b": ("a.jsonl", 3), "c": ("b.jsonl", 1), "d": ("b.jsonl", 2), "e": ("b.jsonl", 3),
        7: ("b.jsonl", 4),
    }  # fmt: skip
    assert all(row.raw == (Path(row.file).read_bytes().split(b"\n")[row.number - 1]) for row in rows)
    assert [(Path(error.file).name, *told(error)) for error in errors_of((shape, items))] == [
        ("a.jsonl", 4, "bad-json"),
        ("b.jsonl", 4, "wrong-type"),
    ]
    assert items.count(Gap.BLANK) == 1
    assert lists_of((shape, items)) == GATHERED


def test_gathering_leaves_no_temporary_file(
    tmp_path: Path, scattered: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "t"))  # its documented setting
    (tmp_path / "t").mkdir()
    inputs = resolve_inputs(scattered["jsonl"])
    shape, items = open_lists(inputs, NO_NAMES, READ, "auto")
    rows = ordered_by_group(inputs, shape, items, READ)
    next(rows)
    assert [path.name.startswith("rerank-cli-") for path in (tmp_path / "t").iterdir()] == [True]
    # Stopped half-way, and from another thread than it was read in, as a run that is given up does.
    assert isinstance(rows, Iterator)
    thread = threading.Thread(target=rows.close)
    thread.start()
    thread.join(timeout=30)
    assert list((tmp_path / "t").iterdir()) == []


def test_a_spool_without_room_is_told_with_what_to_do(tmp_path: Path) -> None:
    rows = flat(*((place % 2, f"q{place % 2}", "x" * 500) for place in range(400)))
    path = write_lines(tmp_path / "a.jsonl", rows)
    program = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "from rerank_cli.errors import InputError\n"
        "from rerank_cli.formats.inputs import *\n"
        "from rerank_cli.formats.scattered_groups import ordered_by_group\n"
        "inputs, read = resolve_inputs(sys.argv[1:]), ReadOptions()\n"
        "shape, items = open_lists(inputs, FieldNames(), read, 'auto')\n"
        "try: list(ordered_by_group(inputs, shape, items, read))\n"
        "except InputError as error: print(error.message, error.hint)"
    )
    command = [sys.executable, "-B", "-c", program, path]  # -B: no module is cached, cut off at the limit
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert "rows cannot be gathered by query: " in done.stdout
    assert "set TMPDIR to a folder with room" in done.stdout


def test_rows_in_order_are_not_gathered(tmp_path: Path) -> None:
    rows = flat((2, "q2", "a"), (2, "q2", "b"), (1, "q1", "c"))
    inputs = resolve_inputs([write_lines(tmp_path / "a.jsonl", rows)])
    shape, items = open_lists(inputs, NO_NAMES, READ, "auto")
    assert ordered_by_group(inputs, shape, items, READ) is items


def test_lists_are_never_gathered(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{**LIST, "query_id": i} for i in (1, 2, 1)])
    assert lists_of(opened([path])) == [(1, ("a",)), (2, ("a",)), (1, ("a",))]


def test_from_a_pipe_scattered_rows_are_errors(tmp_path: Path) -> None:
    content = Path(write_lines(tmp_path / "a.jsonl", SCATTERED)).read_bytes()
    with piped(tmp_path / "pipe", content) as pipe:
        found = opened([pipe])
    assert [told(error) for error in errors_of(found)] == [(3, "scattered-group"), (5, "scattered-group")]
    assert lists_of(found) == [(1, ("a",)), (2, ("b",)), (3, ("d",))]


@pytest.mark.parametrize("formats", [("jsonl", "parquet"), ("parquet", "jsonl"), ("parquet", "parquet")])
def test_a_query_in_files_that_cannot_be_put_in_order_is_refused(tmp_path: Path, formats: tuple[str, str]) -> None:
    writers = {"jsonl": write_lines, "parquet": write_table}
    paths = [
        writers[kind](tmp_path / f"{place}.{kind}", flat(*rows))
        for place, (kind, rows) in enumerate(
            zip(formats, [[(1, "q1", "a"), (2, "q2", "b")], [(1, "q1", "c")]], strict=True)
        )
    ]
    with pytest.raises(InputError, match="the rows of a query are scattered over files"):
        opened(paths)


@pytest.mark.parametrize(
    ("first", "second", "adjacent"),
    [("jsonl", "parquet", False), ("parquet", "parquet", True), ("jsonl", "jsonl", True)],
)
def test_a_query_may_go_on_in_the_next_file_of_the_same_format(
    tmp_path: Path, first: str, second: str, adjacent: bool
) -> None:
    writers = {"jsonl": write_lines, "parquet": write_table}
    rows = flat((1, "q1", "a"), (1, "q1", "b"))
    paths = [
        writers[kind](tmp_path / f"{place}.{kind}", [row])
        for place, (kind, row) in enumerate(zip((first, second), rows, strict=True))
    ]
    if adjacent:
        assert lists_of(opened(paths)) == [(1, ("a", "b"))]
    else:
        with pytest.raises(InputError, match="not all JSON lines"):
            opened(paths)


def test_rows_of_a_pipe_and_of_a_table_are_never_one_list(tmp_path: Path) -> None:
    rows = flat((1, "q1", "a"), (1, "q1", "b"))
    content = Path(write_lines(tmp_path / "a.jsonl", rows[:1])).read_bytes()
    with piped(tmp_path / "pipe", content) as pipe:
        found = opened([pipe, write_table(tmp_path / "a.parquet", rows[1:])])
    assert lists_of(found) == [(1, ("a",))]
    assert [told(error) for error in errors_of(found)] == [(1, "scattered-group")]


NULL_IDS = [
    {"query_id": None, "qid": None, "query": "q1", "passage": "a"},
    {"query_id": None, "qid": 5, "query": "q2", "passage": "b"},
    {"query_id": None, "qid": None, "query": "q1", "passage": "c"},
    {"query_id": 7, "qid": 7, "query": "q3", "passage": "d"},
    {"query_id": None, "qid": 5, "query": "q2", "passage": "e"},
]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_where_the_id_is_null_the_next_name_and_then_the_query_decides(tmp_path: Path, kind: str) -> None:
    path = str(tmp_path / f"a.{kind}")
    (write_lines if kind == "jsonl" else write_table)(Path(path), NULL_IDS)
    assert lists_of(opened([path])) == [(None, ("a", "c")), (5, ("b", "e")), (7, ("d",))]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_scattered_rows_come_together_by_a_dotted_path(tmp_path: Path, kind: str) -> None:
    rows = [{"query": "q", "text": text, "meta": {"g": g}} for g, text in [("x", "a"), ("y", "b"), ("x", "c")]]
    path = str(tmp_path / f"a.{kind}")
    (write_lines if kind == "jsonl" else write_table)(Path(path), rows)
    assert lists_of(opened([path], names=FieldNames(group_by="meta.g"))) == [("x", ("a", "c")), ("y", ("b",))]


def test_ids_with_the_same_value_and_another_text_are_different_groups(tmp_path: Path) -> None:
    lines = [b'{"query_id": %s, "query": "q", "text": "%s"}' % pair for pair in [
        (b"1.10", b"a"), (b"1.1", b"b"), (b"1.10", b"c"), (b"-1", b"d"), (b"-2", b"e"), (b"-1", b"f"),
    ]]  # fmt: skip
    found = opened([write_lines(tmp_path / "a.jsonl", lines)])
    assert [passages for _, passages in lists_of(found)] == [("a", "c"), ("b",), ("d", "f"), ("e",)]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_json_and_parquet_group_the_same_ids_in_the_same_way(tmp_path: Path, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from([st.integers(-3, 3), st.sampled_from(["1", "-1", "a", "", "None", "é"])]))
    ids = data.draw(st.lists(st.one_of(st.none(), kind), min_size=1, max_size=9))
    rows = [{"query_id": key, "query": f"q{key}", "passage": str(place)} for place, key in enumerate(ids)]
    by_json = lists_of(opened([write_lines(tmp_path / "a.jsonl", rows)]))
    by_table = lists_of(opened([write_table(tmp_path / "a.parquet", rows, row_group_size=3)]))
    expected: dict[Any, list[str]] = {}
    for row in rows:
        expected.setdefault(row["query_id"], []).append(str(row["passage"]))
    assert by_json == by_table == [(key, tuple(passages)) for key, passages in expected.items()]


def test_a_table_without_the_column_of_the_groups_is_refused(tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.parquet", [PAIR])
    with pytest.raises(InputError, match="column `topic` is missing"):
        opened([path], names=FieldNames(group_by="topic"))


def test_many_rows_are_gathered_in_their_order(tmp_path: Path) -> None:
    rows = flat(*((place % 3, f"q{place % 3}", str(place)) for place in range(10_500)))
    found = lists_of(opened([write_lines(tmp_path / "a.jsonl", rows)]))
    assert [key for key, _ in found] == [0, 1, 2]
    assert [passages for _, passages in found] == [
        tuple(str(place) for place in range(start, 10_500, 3)) for start in range(3)
    ]
