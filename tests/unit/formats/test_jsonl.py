from __future__ import annotations

import copy
import gzip
import io
import json
import os
import pickle
import sys
import threading
import tracemalloc
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_cli.errors import InputError
from rerank_cli.formats.compression import open_input, open_output
from rerank_cli.formats.jsonl import MAX_NESTING, ExactFloat, dump_row, error_row, read_rows
from rerank_cli.records import Gap, JsonRow, RowError

Read = JsonRow | RowError | Gap


def read(content: bytes, **options: Any) -> list[Read]:
    return list(read_rows(io.BytesIO(content), file="in.jsonl", **options))


def read_one(line: bytes) -> Read:
    (row,) = read(line)
    return row


def fields_of(line: bytes) -> dict[str, Any]:
    row = read_one(line)
    assert isinstance(row, JsonRow), row
    return dict(row.fields)


def error_of(line: bytes) -> RowError:
    row = read_one(line)
    assert isinstance(row, RowError), row
    return row


def nested(depth: int) -> bytes:
    """An object that holds arrays in each other, `depth` containers in all."""
    return b'{"a": ' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"


def test_rows_come_with_their_numbers_fields_and_bytes() -> None:
    assert read(b'{"a": 1}\n{"b": "caf\xc3\xa9"}\n') == [
        JsonRow("in.jsonl", 1, {"a": 1}, b'{"a": 1}'),
        JsonRow("in.jsonl", 2, {"b": "café"}, b'{"b": "caf\xc3\xa9"}'),
    ]


def test_an_empty_input_has_no_rows() -> None:
    assert read(b"") == []


def test_blank_lines_are_gaps_and_count() -> None:
    rows = read(b'\n \t\r\n{"a": 1}\n\n')
    assert rows == [Gap.BLANK, Gap.BLANK, JsonRow("in.jsonl", 3, {"a": 1}, b'{"a": 1}'), Gap.BLANK]


def test_the_last_line_may_lack_its_newline() -> None:
    assert [row.number for row in read(b'{"a": 1}\n{"a": 2}') if isinstance(row, JsonRow)] == [1, 2]


def test_a_carriage_return_before_the_newline_is_not_part_of_the_line() -> None:
    assert [row.raw for row in read(b'{"a": 1}\r\n{"a": 2}\r\n') if isinstance(row, JsonRow)] == [
        b'{"a": 1}',
        b'{"a": 2}',
    ]


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85", "\x7f"])
def test_a_line_ends_at_a_newline_only(character: str) -> None:
    assert fields_of(f'{{"a": "x{character}y"}}\n'.encode()) == {"a": f"x{character}y"}


def test_a_byte_order_mark_is_dropped_where_files_begin_that_were_put_together() -> None:
    rows = read(b'\xef\xbb\xbf{"a": 1}\n\xef\xbb\xbf{"a": 2}\n')
    assert rows == [JsonRow("in.jsonl", n, {"a": n}, b'{"a": %d}' % n) for n in (1, 2)]


HOSTILE = {
    "cut": (b'{"a": "x', "bad-json", 'not JSON: column 7: unterminated string, found `"x`'),
    "torn": (b'{"a": 1', "bad-json", "not JSON: column 8: expecting ',' delimiter, found the end of the line"),
    "prose": (
        b"Traceback (most recent call last):",
        "bad-json",
        "not JSON: column 1: expecting value, found `Traceback (most rece`...",
    ),
    "two objects": (b'{"a": 1}{"b": 2}', "bad-json", 'not JSON: column 9: extra data, found `{"b": 2}`'),
    "escape codes": (
        b"\x1b]0;title\x07{}",
        "bad-json",
        "not JSON: column 1: expecting value, found `\\x1b]0;title\\x07{}`",
    ),
    "NUL": (b"\x00", "bad-json", "not JSON: column 1: expecting value, found `\\x00`"),
    "NUL in a string": (
        b'{"a": "x\x00"}',
        "bad-json",
        'not JSON: column 9: invalid control character, found `\\x00"}`',
    ),
    "NaN": (b'{"a": NaN}', "bad-json", "not JSON: `NaN` is not a number of JSON"),
    "Infinity": (b'{"a": [Infinity]}', "bad-json", "not JSON: `Infinity` is not a number of JSON"),
    "-Infinity": (b'{"a": -Infinity}', "bad-json", "not JSON: `-Infinity` is not a number of JSON"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "bad-utf8", "not UTF-8: byte 0xff at offset 0 of the line"),
    "Latin-1": (b'{"a": "caf\xe9"}', "bad-utf8", "not UTF-8: byte 0xe9 at offset 10 of the line"),
    "surrogate in UTF-8": (b'{"a": "\xed\xa0\x80"}', "bad-utf8", "not UTF-8: byte 0xed at offset 7 of the line"),
    "array": (b'["a"]', "not-an-object", "the row is an array, not an object"),
    "string": (b'"a"', "not-an-object", "the row is a string, not an object"),
    "number": (b"1.5", "not-an-object", "the row is a number, not an object"),
    "whole number": (b"15", "not-an-object", "the row is a number, not an object"),
    "boolean": (b"true", "not-an-object", "the row is a boolean, not an object"),
    "null": (b"null", "not-an-object", "the row is null, not an object"),
    "lone surrogate": (
        b'{"a": ["\\ud83d"]}',
        "lone-surrogate",
        "lone surrogate `\\ud83d`, which no UTF-8 text can hold",
    ),
    "lone low surrogate in a key": (
        b'{"\\uDe00": 1}',
        "lone-surrogate",
        "lone surrogate `\\ude00`, which no UTF-8 text can hold",
    ),
    "surrogates in the wrong order": (
        b'{"a": "\\ude00\\ud83d"}',
        "lone-surrogate",
        "lone surrogate `\\ude00`, which no UTF-8 text can hold",
    ),
    "duplicate key": (b'{"a": 1, "b": 2, "a": 1}', "duplicate-key", "key `a` stands 2 times in one object"),
    "duplicate key below": (
        b'{"a": [{"text": 1, "text": 2, "\\u0074ext": 3}]}',
        "duplicate-key",
        "key `text` stands 3 times in one object",
    ),
    "deep": (nested(MAX_NESTING + 1), "too-deep", "objects and arrays stand more than 200 deep in each other"),
    "deeper than the stack": (
        b'{"a":' + b"[" * 200_000,
        "too-deep",
        "objects and arrays stand more than 200 deep in each other",
    ),
    "deeper than the stack, in objects": (
        b'{"a":' * 200_000 + b"1" + b"}" * 200_000,
        "too-deep",
        "objects and arrays stand more than 200 deep in each other",
    ),
    "long": (b'{"a": "' + b"x" * 2_000_000 + b'"}', "line-too-long", "line of 2000009 bytes; at most 1600000 are read"),
}


@pytest.mark.parametrize(("line", "code", "message"), HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_line_is_an_error_and_its_neighbours_are_read(line: bytes, code: str, message: str) -> None:
    good = b'{"query": "q", "passages": ["p"]}'
    rows = read(good + b"\n" + line + b"\n\n" + good, max_line_bytes=1_600_000)
    fields = {"query": "q", "passages": ["p"]}
    raw = line[:1024] if code == "line-too-long" else line
    assert rows == [
        JsonRow("in.jsonl", 1, fields, good),
        RowError("in.jsonl", 2, None, code, message, raw),
        Gap.BLANK,
        JsonRow("in.jsonl", 4, fields, good),
    ]
    assert json.loads(error_row(rows[1]))["error"]["code"] == code


def test_a_torn_last_line_is_an_error() -> None:
    rows = read(b'{"a": 1}\n{"a": ')
    assert isinstance(rows[0], JsonRow)
    assert isinstance(rows[1], RowError)
    assert (rows[1].row, rows[1].code, rows[1].raw) == (2, "bad-json", b'{"a": ')


def test_pairs_of_surrogate_escapes_and_escaped_backslashes_are_read() -> None:
    assert fields_of(b'{"a": "\\ud83d\\uDE00"}') == {"a": "😀"}
    assert fields_of(b'{"a": "C:\\\\ud800"}') == {"a": "C:\\ud800"}


def test_equal_keys_in_different_objects_are_read() -> None:
    line = b'{"a": {"a": 1}, "b": [{"a": 1}, {"a": 1}]}'
    assert fields_of(line) == json.loads(line)


def test_the_deepest_row_that_is_read_can_be_written() -> None:
    for number in (b"", b"1.10"):
        line = nested(MAX_NESTING).replace(b"[]", b"[" + number + b"]") + b"\n"
        assert dump_row(fields_of(line)) == line


def test_many_flat_containers_are_not_deep() -> None:
    line = b'{"a": [' + b", ".join([b'{"b": [1]}'] * 300) + b"]}"
    assert len(fields_of(line)["a"]) == 300


def test_a_line_of_exactly_the_limit_is_read_wherever_chunks_end() -> None:
    line = b'{"a": "' + b"x" * 100_000 + b'"}'
    for before in (b"", b" " * 30_000 + b"\n"):
        for newline in (b"", b"\n"):
            whole = before + line + newline
            rows = read(whole, max_line_bytes=len(line))
            assert isinstance(rows[-1], JsonRow)
            assert rows[-1].raw == line
            shorter = read(whole, max_line_bytes=len(line) - 1)
            assert isinstance(shorter[-1], RowError)
            assert (shorter[-1].code, shorter[-1].raw) == ("line-too-long", line[:1024])


class Chunks(io.RawIOBase):
    """A stream that is made while it is read, so that it may be larger than the memory."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        part = self._rest or next(self._chunks, b"")
        count = min(len(buffer), len(part))
        buffer[:count] = part[:count]
        self._rest = part[count:]
        return count


def test_a_huge_line_is_passed_over_in_little_memory() -> None:
    block = b"x" * 2**16

    def chunks() -> Iterator[bytes]:
        yield b'{"a": 1}\n{"a": "'
        for _ in range(300 * 2**20 // len(block)):
            yield block
        yield b'"}\n{"a": 3}\n'

    limit = 4 * 2**20
    tracemalloc.start()
    rows = list(read_rows(io.BufferedReader(Chunks(chunks())), file="-", max_line_bytes=limit))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < limit * 1.25 + 2**20
    assert rows == [
        JsonRow("-", 1, {"a": 1}, b'{"a": 1}'),
        RowError(
            "-",
            2,
            None,
            "line-too-long",
            f"line of {300 * 2**20 + 9} bytes; at most {limit} are read",
            b'{"a": "' + b"x" * 1017,
        ),
        JsonRow("-", 3, {"a": 3}, b'{"a": 3}'),
    ]


lines = st.one_of(
    st.binary(max_size=40).map(lambda line: line.replace(b"\n", b"")),
    st.integers(0, 99).map(lambda number: b'{"a": %d}' % number),
)


@given(st.lists(lines, max_size=8), st.lists(st.integers(1, 30), max_size=8), st.booleans(), st.integers(1, 30))
def test_rows_do_not_depend_on_where_chunks_end(
    content: list[bytes], cuts: list[int], newline: bool, limit: int
) -> None:
    whole = b"\n".join(content) + (b"\n" if newline else b"")

    def chunks() -> Iterator[bytes]:
        start = 0
        for cut in cuts:
            if start < len(whole):  # an empty chunk would be the end of the stream
                yield whole[start : start + cut]
            start += cut
        yield whole[start:]

    rows = list(read_rows(io.BufferedReader(Chunks(chunks())), file="in.jsonl", max_line_bytes=limit))
    assert rows == read(whole, max_line_bytes=limit)
    expected = whole.split(b"\n")[:-1] if whole.endswith(b"\n") or not whole else whole.split(b"\n")
    assert len(rows) == len(expected)
    for number, (row, line) in enumerate(zip(rows, expected, strict=True), start=1):
        assert isinstance(row, Gap) or (row.number if isinstance(row, JsonRow) else row.row) == number
        assert (isinstance(row, RowError) and row.code == "line-too-long") == (len(line) > limit)


@pytest.mark.parametrize(
    "text",
    ["1.10", "1e5", "1E5", "-0", "-0.00", "0.1000000000000000055", "1e999", "-1e999", "5e-400", "9" * 5000, "1e-5"],
)
def test_a_number_that_python_would_write_differently_keeps_its_text(text: str) -> None:
    for line in (f'{{"a": {text}}}\n', f'{{"b": [1, {{"a": [{text}, "x"], "c": null}}, 2.5], "é": "é"}}\n'):
        assert dump_row(fields_of(line.encode())) == line.encode()
    number = fields_of(f'{{"a": {text}}}'.encode())["a"]
    assert isinstance(number, ExactFloat)
    assert number == float(text)


@pytest.mark.parametrize(("text", "kind"), [("1.5", float), ("0", int), ("-0.0", float), ("9" * 4300, int)])
def test_a_number_that_python_writes_alike_is_a_plain_number(text: str, kind: type) -> None:
    fields = fields_of(f'{{"a": {text}}}'.encode())
    assert type(fields["a"]) is kind
    assert dump_row(fields) == f'{{"a": {text}}}\n'.encode()


def test_an_exact_float_survives_copy_and_pickle() -> None:
    number = ExactFloat("1.10")
    for other in (copy.copy(number), copy.deepcopy(number), pickle.loads(pickle.dumps(number))):
        assert (type(other), other, other.text) == (ExactFloat, 1.1, "1.10")


numbers_as_text = st.decimals(allow_nan=False, allow_infinity=False).map(str)
fractions_as_text = numbers_as_text.filter(lambda text: "." in text or "E" in text)
values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.integers(10**40, 10**60),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(),
        fractions_as_text.map(ExactFloat),
    ),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=5), children, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(max_size=8), values, max_size=6))
def test_what_was_written_is_read_and_written_alike(fields: dict[str, Any]) -> None:
    line = dump_row(fields)
    assert line.endswith(b"}\n")
    assert line.count(b"\n") == 1
    again = fields_of(line)
    assert again == fields
    assert list(again) == list(fields)
    assert dump_row(again) == line


@given(st.dictionaries(st.text(max_size=8), values, max_size=6))
def test_rows_are_written_as_the_standard_library_would(fields: dict[str, Any]) -> None:
    plain = json.loads(json.dumps(fields))  # an ExactFloat becomes a plain float, or infinite
    try:
        expected = json.dumps(plain, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    except ValueError:
        with pytest.raises(ValueError, match="cannot be written as JSON"):
            dump_row(plain)
    else:
        assert dump_row(plain) == expected


@given(numbers_as_text, st.text())
def test_numbers_and_text_of_a_foreign_field_stay_byte_for_byte(number: str, text: str) -> None:
    line = f'{{"x": [{number}, {json.dumps(text, ensure_ascii=False)}]}}\n'.encode()
    assert dump_row(fields_of(line)) == line


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (float("nan"), "Out of range float values are not JSON compliant"),
        ([{"b": float("inf")}], "Out of range float values are not JSON compliant"),
        ([float("inf"), ExactFloat("1.10")], "Out of range float values are not JSON compliant"),
        ("x\ud800", r"lone surrogate `\\ud800`, which no UTF-8 text can hold"),
        ({"\udfff": ExactFloat("1.10")}, r"lone surrogate `\\udfff`, which no UTF-8 text can hold"),
    ],
)
def test_a_field_that_has_no_json_form_is_named(value: object, reason: str) -> None:
    with pytest.raises(ValueError, match=f"field `bad` cannot be written as JSON: {reason}"):
        dump_row({"good": 1, "bad": value})


def test_a_field_that_holds_itself_is_named() -> None:
    circle: list[object] = []
    circle.append(circle)
    with pytest.raises(ValueError, match="field `bad` cannot be written as JSON: maximum recursion depth"):
        dump_row({"bad": circle})


def test_tuples_are_written_as_arrays() -> None:
    assert dump_row({"a": (1, ("x", ExactFloat("1.10")))}) == b'{"a": [1, ["x", 1.10]]}\n'


def test_an_error_row_holds_the_bad_line_as_text() -> None:
    error = RowError("in.jsonl", 7, "q1", "bad-json", "not JSON", '{"a": é\x1b'.encode())
    assert (
        error_row(error)
        == (
            '{"file": "in.jsonl", "row": 7, "id": "q1", "error": {"code": "bad-json", "message": "not JSON"}, '
            '"raw": "{\\"a\\": é\\u001b"}\n'
        ).encode()
    )


def test_an_error_row_holds_bytes_that_are_not_text_in_base64() -> None:
    error = RowError("in.jsonl", 7, None, "bad-utf8", "not UTF-8", b"\xff\x00")
    assert error_row(error) == (
        b'{"file": "in.jsonl", "row": 7, "id": null, "error": {"code": "bad-utf8", "message": "not UTF-8"}, '
        b'"raw_base64": "/wA="}\n'
    )


def test_an_error_row_of_a_file_whose_name_is_not_text_can_be_written() -> None:
    name = os.fsdecode(b"caf\xe9.jsonl")
    line = json.loads(error_row(RowError(name, 1, None, "bad-json", f"in {name}", b"x")))
    assert line["file"] == "caf\\udce9.jsonl"
    assert line["error"]["message"] == "in caf\\udce9.jsonl"


def test_lines_of_text_are_passages() -> None:
    content = 'first "passage"\r\n\n  \n{"a": 1}\u2028x\nlast'.encode() + b"\n\xff\n" + b"y" * 100
    assert list(read_rows(io.BytesIO(b"\xef\xbb\xbf" + content), file="-", max_line_bytes=99, plain=True)) == [
        JsonRow("-", 1, {"passage": 'first "passage"'}, b'first "passage"'),
        Gap.BLANK,
        Gap.BLANK,
        JsonRow("-", 4, {"passage": '{"a": 1}\u2028x'}, '{"a": 1}\u2028x'.encode()),
        JsonRow("-", 5, {"passage": "last"}, b"last"),
        RowError("-", 6, None, "bad-utf8", "not UTF-8: byte 0xff at offset 0 of the line", b"\xff"),
        RowError("-", 7, None, "line-too-long", "line of 100 bytes; at most 99 are read", b"y" * 100),
    ]


def row(number: int) -> JsonRow:
    raw = b'{"a": %d}' % number
    return JsonRow("-", number, {"a": number}, raw)


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.FileIO]:
    """The end that writes into standard input."""
    reader, writer = os.pipe()
    with os.fdopen(reader, "r") as stdin, io.FileIO(writer, "w") as pipe:
        monkeypatch.setattr(sys, "stdin", stdin)
        yield pipe


def test_a_pause_of_a_live_input_is_told_before_the_next_row_is_waited_for(pipe: io.FileIO) -> None:
    pipe.write(b'{"a": 1}\n{"a": 2}\n')
    with open_input("-") as stream:
        rows = read_rows(stream, file="-", live=True)
        assert [next(rows), next(rows), next(rows)] == [row(1), row(2), Gap.IDLE]
        pipe.write(b'{"a": 3}\n')
        assert [next(rows), next(rows)] == [row(3), Gap.IDLE]
        pipe.write(b'{"a": 4}')
        pipe.close()
        assert list(rows) == [row(4)]


def test_a_long_pause_of_a_live_input_is_told_once(pipe: io.FileIO) -> None:
    pipe.write(b'{"a": 1}\n{"a"')
    with open_input("-") as stream:
        rows = read_rows(stream, file="-", live=True)
        assert [next(rows), next(rows)] == [row(1), Gap.IDLE]
        parts = [b": ", b"2}", b"\n"]
        timers = [threading.Timer(0.08 * n, pipe.write, [part]) for n, part in enumerate(parts, start=1)]
        for timer in timers:
            timer.start()
        assert next(rows) == row(2)
        for timer in timers:
            timer.join()


def test_a_live_input_without_pauses_gives_rows_only(pipe: io.FileIO) -> None:
    pipe.write(b"".join(row(number).raw + b"\n" for number in range(1, 2000)))
    pipe.close()
    with open_input("-") as stream:
        assert list(read_rows(stream, file="-", live=True)) == [row(number) for number in range(1, 2000)]


def test_only_a_live_reader_looks_for_pauses(pipe: io.FileIO) -> None:
    pipe.write(b'{"a": 1}\n')
    with open_input("-") as stream:
        rows = read_rows(stream, file="-")
        assert next(rows) == row(1)
        later = threading.Timer(0.1, pipe.write, [b'{"a": 2}\n'])
        later.start()
        assert next(rows) == row(2)
        later.join()


def test_lines_of_text_are_read_live_too(pipe: io.FileIO) -> None:
    pipe.write(b"a pass")
    with open_input("-") as stream:
        rows = read_rows(stream, file="-", live=True, plain=True)
        later = threading.Timer(0.1, pipe.write, [b"age\n"])  # a pause with nothing to score before it
        later.start()
        assert next(rows) == JsonRow("-", 1, {"passage": "a passage"}, b"a passage")
        assert next(rows) is Gap.IDLE
        later.join()


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
def test_a_file_has_no_pauses(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with path.open("wb") as raw, open_output(raw, name) as stream:
        stream.write(b"".join(row(number).raw + b"\n" for number in range(1, 20_000)))
        stream.flush()
    with open_input(str(path)) as content:
        rows = list(read_rows(content, file="-", live=True))
    assert rows == [row(number) for number in range(1, 20_000)]


def test_memory_has_no_pauses() -> None:
    assert list(read_rows(io.BytesIO(b'{"a": 1}\n'), file="-", live=True)) == [row(1)]


def test_rows_before_a_fault_of_the_stream_are_read_and_the_fault_is_raised(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(b'{"a": 1}\n{"a": 2}\n')[:-8])
    with open_input(str(path)) as stream:
        rows = read_rows(stream, file="-")
        assert [next(rows), next(rows)] == [row(1), row(2)]
        with pytest.raises(InputError, match="cut or corrupt at byte 18 "):
            next(rows)
