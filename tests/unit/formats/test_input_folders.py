"""Folders, patterns and partitions: what is read, in which order, and with which fields."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rerank_cli.cli import main
from rerank_cli.errors import InputError
from rerank_cli.formats.inputs import resolve_inputs
from tests.conftest import TINY_CHECKPOINT, read_lines

FIELD = Path(__file__).parents[2] / "data" / "field"


def row(number: int) -> str:
    return json.dumps({"query_id": number, "query": f"road {number}", "passages": ["two roads", "a wood"]}) + "\n"


def ranked(*inputs: object, out: Path, more: tuple[str, ...] = ()) -> list[dict[str, object]]:
    command = ["rerank-file", *map(str, inputs), "-o", str(out), "-q", "--model", str(TINY_CHECKPOINT), *more]
    assert main(command) == 0
    return read_lines(out)


def test_a_folder_stands_for_its_parts_by_number_without_hidden_files(tmp_path: Path) -> None:
    folder = tmp_path / "lists"
    folder.mkdir()
    for number in (10, 9, 100):
        (folder / f"{number}.part").write_text(row(number))
    for name in ("_SUCCESS", ".10.part.crc", "README.md"):
        (folder / name).write_text("no row")
    assert [Path(item.path).name for item in resolve_inputs([str(folder)])] == ["9.part", "10.part", "100.part"]
    assert [one["query_id"] for one in ranked(folder, out=tmp_path / "out.jsonl")] == [9, 10, 100]


def test_a_pattern_stands_for_what_it_matches(tmp_path: Path) -> None:
    for number in (2, 1):
        (tmp_path / f"l{number}.jsonl").write_text(row(number))
    assert [one["query_id"] for one in ranked(tmp_path / "l*.jsonl", out=tmp_path / "out.json")] == [1, 2]
    with pytest.raises(InputError, match="no file matches"):
        resolve_inputs([str(tmp_path / "nothing*.jsonl")])
    (tmp_path / "a[1].jsonl").write_text(row(1))
    assert len(resolve_inputs([str(tmp_path / "a[1].jsonl")])) == 1


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_folders_named_by_key_and_value_give_each_row_fields(tmp_path: Path, kind: str) -> None:
    for day, language in (("7", "de"), ("12", "en"), ("__HIVE_DEFAULT_PARTITION__", "a%20b")):
        folder = tmp_path / "lists" / f"day={day}" / f"lang={language}"
        folder.mkdir(parents=True)
        if kind == "jsonl":
            (folder / "part-0.jsonl").write_text(row(1))
        else:
            pq.write_table(pa.Table.from_pylist([json.loads(row(1))]), folder / "part-0.parquet")
    for out in ("out.jsonl", "out.parquet"):
        (tmp_path / out).unlink(missing_ok=True)
    found = ranked(tmp_path / "lists", out=tmp_path / "out.jsonl")
    assert [(one["day"], one["lang"]) for one in found] == [(7, "de"), (12, "en"), (None, "a b")]


def test_the_folder_of_spark_is_read(tmp_path: Path) -> None:
    assert ranked(FIELD / "s21_dir.parquet", out=tmp_path / "out.jsonl")


@pytest.mark.parametrize("out", ["lists/out.jsonl", "lists/sub/out.jsonl"])
def test_an_output_among_its_inputs_is_refused(tmp_path: Path, out: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "lists" / "sub").mkdir(parents=True)
    (tmp_path / "lists" / "a.jsonl").write_text(row(1))
    assert main(["rerank-file", str(tmp_path / "lists"), "-o", str(tmp_path / out), "-q"]) == 2
    assert "whose files are the input" in capsys.readouterr().err


def test_files_of_several_formats_in_a_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(row(1))
    shutil.copy(FIELD / "s21_dir.parquet" / "part-00000.parquet", tmp_path / "b.parquet")
    with pytest.raises(InputError, match="files of several formats: jsonl, parquet"):
        resolve_inputs([str(tmp_path)])
