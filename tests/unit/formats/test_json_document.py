"""JSON that is no JSON lines: arrays and objects over several lines, wherever reads end and whatever is wrong."""

from __future__ import annotations

import io
import json
import random

import pytest

from rerank_cli.errors import InputError
from rerank_cli.formats.json_document import is_document, look_into, read_rows
from rerank_cli.records import JsonRow, RowError

ROWS = [{"a": 'x\\"[{', "n": [1, {"b": []}], "d": "\u00e9" * n} for n in range(30)]
FORMS = {
    "compact": json.dumps(ROWS),
    "pretty": json.dumps(ROWS, indent=2, ensure_ascii=False),
    "arrays": json.dumps(ROWS[:10]) + "\n" + json.dumps(ROWS[10:], indent=1),
    "objects": "\n".join(json.dumps(row, indent=2) for row in ROWS),
    "marked": "\ufeff" + json.dumps(ROWS),
}


class Pieces(io.BytesIO):
    """A stream whose reads give some bytes at a time."""

    def read1(self, size: int | None = -1) -> bytes:
        return super().read(random.Random(self.tell()).randint(1, 9))


def read(data: bytes, limit: int = 2**20) -> list[object]:
    return list(read_rows(Pieces(data), file="in.json", max_line_bytes=limit))


@pytest.mark.parametrize("form", FORMS)
def test_rows_come_out_as_they_were_written(form: str) -> None:
    data = FORMS[form].encode()
    is_one, stream = look_into(Pieces(data))
    assert is_one
    assert is_document(data)
    rows = list(read_rows(stream, file="in.json"))
    assert [row.fields for row in rows if isinstance(row, JsonRow)] == ROWS
    assert [row.number for row in rows if isinstance(row, JsonRow)] == list(range(1, 31))


@pytest.mark.parametrize("form", ["compact", "pretty"])
def test_a_cut_array_gives_its_start_and_then_ends_the_run(form: str) -> None:
    data = FORMS[form].encode()
    for cut in random.Random(3).sample(range(2, len(data) - 1), 40):
        found: list[object] = []
        with pytest.raises(InputError, match="no JSON document"):
            for row in read_rows(Pieces(data[:cut]), file="in.json"):
                found.append(row.fields if isinstance(row, JsonRow) else row)
        assert found == ROWS[: len(found)]


def test_what_is_no_object_is_a_bad_row_and_digits_stay() -> None:
    rows = read(b'[{"a": 1}, 5.10, "x", null, [1], {"b": 1, "b": 2}, {"c": 1.10}]')
    assert [row.code if isinstance(row, RowError) else row.raw for row in rows] == [
        b'{"a": 1}', *["not-an-object"] * 4, "duplicate-key", b'{"c": 1.10}',
    ]  # fmt: skip
    assert rows[1].raw == b"5.10"


@pytest.mark.parametrize(
    "data", [b'[{"a":1} {"b":2}]', b'[{"a":1},]', b'[{"a":1}}]', b'[{"a":1}] x', b'[,{"a":1}]', b'[{"a":1},,{"b":2}]']
)
def test_what_contradicts_itself_ends_the_run(data: bytes) -> None:
    with pytest.raises(InputError, match=r"in\.json: no JSON document: byte"):
        read(data)


def test_an_element_over_the_limit_is_skipped_in_little_memory() -> None:
    rows = read(b'[{"a":["' + b'x","' * 3000 + b'"]},{"b":1}]', limit=2000)
    assert [row.code if isinstance(row, RowError) else row.fields for row in rows] == ["line-too-long", {"b": 1}]
    assert len(rows[0].raw) == 1024


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b'{"a": 1}\n',
        b'{\n{"a": 1}\n',
        b'["a"]\n',
        b'[1]\n{"a": 1}\n',
        b'[{"a": 1}]\n{"a": 1}\n',
        b"[\n[\n",
        b"text",
    ],
)
def test_json_lines_with_bad_lines_are_json_lines(data: bytes) -> None:
    assert not is_document(data)
    is_one, stream = look_into(Pieces(data))
    assert not is_one
    assert b"".join(iter(lambda: stream.read1(100), b"")) == data
