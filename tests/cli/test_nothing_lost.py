"""What people's files are like: a good output is never replaced by a worse one, and the message says what helps."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from pathlib import Path

import pytest

from rerank_cli.cli import main
from tests.conftest import TINY_CHECKPOINT
from tests.processes import Started

FIELD = Path(__file__).parents[1] / "data" / "field"
GOOD = json.dumps({"query": "road", "passages": ["two roads", "a wood"]}) + "\n"
BAD = json.dumps({"query": "road", "passages": "x"}) + "\n"


def rerank(folder: Path, path: Path, *more: str) -> int:
    given = [str(path), "-o", str(folder / "out.jsonl"), "-q", "--model", str(TINY_CHECKPOINT)]
    return main(["rerank-file", *given, *more])


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """A folder with an older output."""
    (tmp_path / "out.jsonl").write_text("older\n")
    return tmp_path


FOREIGN = {
    "page.jsonl": (
        b"<!DOCTYPE html>\n<html><title>404 Not Found</title>",
        "titled `404 Not Found`",
        "server",
    ),
    "lfs.jsonl": ((FIELD / "s21_lfs.jsonl").read_bytes(), "Git LFS", "git lfs pull"),
    "t.jsonl": ((FIELD / "s21_t.feather").read_bytes(), "feather", "read_table"),
    "wide.jsonl": (GOOD.encode("utf-16"), "UTF-16", "iconv -f UTF-16 -t UTF-8"),
    "wide.csv": ("query,passage\na,b\n".encode("utf-16-le"), "UTF-16", "iconv -f UTF-16LE"),
    "a.jsonl": (b"PK\x03\x04" + bytes(60), "zip archive", "unzip"),
    "t.tar": (b"x" * 257 + b"ustar\x0000" + bytes(300), "tar archive", "tar -xf"),
    "b.jsonl": (b"\x04\x22\x4d\x18" + bytes(60), "lz4 data", "lz4 -d"),
    "c.jsonl": (b"ORC" + bytes(60), "ORC file", "read_table"),
    "d.jsonl": (b"Obj\x01" + bytes(60), "Avro", "fastavro"),
    "e.jsonl": (b"query,passage\na,b\n", "CSV with a header", "--in-format csv"),
    "f.jsonl": (b"{'query': 'a', 'passage': None}\n", "objects of Python", "json.dumps"),
    "g.jsonl": (b"404: Not Found", "text that begins with `404: Not Found`", ""),
    "h.jsonl": (b'["a", "b"]\n', "JSON array of values that are no objects", ""),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_another_format_is_refused_by_what_it_is(name: str, older: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, words, command = FOREIGN[name]
    (older / name).write_bytes(data)
    assert rerank(older, older / name, "--overwrite") == 4
    said = capsys.readouterr().err
    assert words in said
    assert command in said
    assert sorted(path.name for path in older.iterdir()) == sorted([name, "out.jsonl"])
    assert (older / "out.jsonl").read_text() == "older\n"


@pytest.mark.parametrize("command", ["rerank-file", "score"])
def test_rows_of_which_none_can_be_scored_are_a_failure_of_its_own(
    command: str, older: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"query": "road", "passages": "x"} if command == "rerank-file" else {"query": 7, "passage": "x"}
    (older / "in.jsonl").write_text((json.dumps(row) + "\n") * 3)
    given = [str(older / "in.jsonl"), "-o", str(older / "out.jsonl"), "-q", "--model", str(TINY_CHECKPOINT)]
    assert main([command, *given, "--overwrite"]) == 10
    assert "not one of 3 rows could be scored" in capsys.readouterr().err
    assert (older / "out.jsonl").read_text() == "older\n"
    assert len((older / "out.jsonl.errors.jsonl").read_text().splitlines()) == 3
    assert not (older / "out.jsonl.job").exists()
    assert main([command, *given, "--dry-run"]) == 10


def test_nothing_replaces_nothing_and_not_something(older: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (older / "in.jsonl").write_bytes(b"")
    assert rerank(older, older / "in.jsonl", "--overwrite") == 4
    assert "has no row; " in capsys.readouterr().err
    assert (older / "out.jsonl").read_text() == "older\n"
    (older / "out.jsonl").unlink()
    assert rerank(older, older / "in.jsonl") == 0
    assert (older / "out.jsonl").read_bytes() == b""


def test_after_too_many_bad_rows_another_input_starts_over(older: Path) -> None:
    (older / "in.jsonl").write_text(GOOD * 600 + BAD)
    assert rerank(older, older / "in.jsonl", "--overwrite", "--max-errors", "0", "--checkpoint-every", "0s") == 7
    assert (older / "out.jsonl.job").is_dir()
    assert rerank(older, older / "in.jsonl", "--overwrite", "--max-errors", "0") == 7
    (older / "in.jsonl").write_text(GOOD)
    assert rerank(older, older / "in.jsonl", "--overwrite", "--max-errors", "0") == 0
    assert len((older / "out.jsonl").read_text().splitlines()) == 1


def test_a_wrong_field_leaves_no_output_that_the_right_one_would_be_refused_for(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(GOOD)
    assert rerank(tmp_path, tmp_path / "in.jsonl", "--passages-field", "nope") == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl"]
    assert rerank(tmp_path, tmp_path / "in.jsonl", "--passages-field", "passages") == 0


def test_parts_count_from_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in.jsonl").write_text(GOOD)
    assert rerank(tmp_path, tmp_path / "in.jsonl", "--shard", "0/8") == 2
    assert "parts count from 1" in capsys.readouterr().err


def test_a_pipe_that_goes_on_is_answered_at_once() -> None:
    command = [sys.executable, "-m", "rerank_cli", "score", "-q", "--model", str(TINY_CHECKPOINT)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with Started(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for number in range(3):  # the writer stays: whoever waits for more rows would hang
            process.stdin.write(json.dumps({"n": number, "query": "road", "passage": "two roads"}).encode() + b"\n")
            process.stdin.flush()
            assert select.select([process.stdout], [], [], 120)[0]
            assert json.loads(process.stdout.readline())["n"] == number
        process.stdin.close()
    assert process.returncode == 0


def test_the_command_that_is_put_right_is_not_refused_for_the_errors_file_of_the_wrong_one(tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text(json.dumps({"query": "road", "passages": [{"body": "two roads"}, {"body": "a wood"}]}) + "\n")
    errors = tmp_path / "out.jsonl.errors.jsonl"
    errors.write_text('{"file": "rows.jsonl", "row": 1, "id": null, "error": {"code": "missing-field"}, "raw": "{}"}\n')
    assert rerank(tmp_path, source, "--text-field", "body") == 0
    assert not errors.exists()


def test_a_file_of_the_user_with_the_name_of_an_errors_file_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text(GOOD)
    errors = tmp_path / "out.jsonl.errors.jsonl"
    errors.write_text('{"mine": 1}\n')
    assert rerank(tmp_path, source) == 4
    assert errors.read_text() == '{"mine": 1}\n'
