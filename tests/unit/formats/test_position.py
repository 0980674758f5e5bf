"""How far the rows that were handed on are: the share of their bytes, whatever the file looks like."""

from __future__ import annotations

import csv
import gzip
import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from rerank_cli.formats.inputs import ReadOptions, open_lists, resolve_inputs
from rerank_cli.formats.position import Position
from rerank_cli.formats.scattered_groups import ordered_by_group
from rerank_cli.formats.shapes import FieldNames
from rerank_cli.records import Gap
from tests.conftest import write_lines, write_table

WORDS = random.Random(17)
ROWS: list[dict[str, Any]] = [
    {
        "query_id": f"{n // 5:04}",
        "query": f"query {n // 5:04}",
        "passage": f"{WORDS.getrandbits(64):016x} " * (1 + n % 9),
    }
    for n in range(3000)
]
SCATTERED = [*ROWS[0::2], *ROWS[1::2]]


def shares(paths: list[str], **limits: Any) -> list[float]:
    """The share after each row."""
    inputs = resolve_inputs(paths)
    position = Position([item.path for item in inputs], limits.get("limit"))
    options = ReadOptions(position=position, **limits)
    shape, items = open_lists(inputs, FieldNames(), options, "auto")
    found = []
    for item in position.count(ordered_by_group(inputs, shape, items, options)):
        share = position.share
        assert share is not None
        if not isinstance(item, Gap):
            found.append(share)
    return found


def write(folder: Path, kind: str, rows: list[dict[str, Any]]) -> str:
    path = folder / f"in.{kind}"
    text = write_lines(folder / "plain.jsonl", rows)
    match kind:
        case "parquet":
            return write_table(path, rows, row_group_size=100)
        case "jsonl.gz":
            path.write_bytes(gzip.compress(Path(text).read_bytes()))
        case "jsonl.zst":
            with pa.OSFile(str(path), "wb") as raw, pa.CompressedOutputStream(raw, "zstd") as stream:
                stream.write(Path(text).read_bytes())
        case "json":
            path.write_text(json.dumps(rows, indent=4))
        case "csv":
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
        case _:
            return text
    return str(path)


@pytest.mark.parametrize("rows", [ROWS, SCATTERED], ids=["in order", "scattered"])
@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "jsonl.zst", "parquet", "json", "csv"])
def test_the_share_is_that_of_the_rows_and_never_ahead(tmp_path: Path, kind: str, rows: list[dict[str, Any]]) -> None:
    found = shares([write(tmp_path, kind, rows)])
    assert len(found) == 3000
    assert found[-1] == pytest.approx(1.0, abs=1e-3)
    for number in range(300, 3000, 100):
        assert found[number] == pytest.approx(number / 3000, rel=0.05), number


def test_files_count_as_their_sizes(tmp_path: Path) -> None:
    paths = [write_lines(tmp_path / f"{n}.jsonl", ROWS[n::3]) for n in range(3)]
    found = shares(paths)
    assert found[999] == pytest.approx(1 / 3, rel=0.02)
    assert found[-1] == pytest.approx(1.0, abs=1e-3)


def test_rows_that_are_left_out_do_not_count(tmp_path: Path) -> None:
    source = write(tmp_path, "jsonl", ROWS)
    found = shares([source], skip=1000)
    assert found[999] == pytest.approx(0.5, rel=0.03)
    assert found[-1] == pytest.approx(1.0, abs=1e-3)
    assert shares([source], limit=100)[49] == pytest.approx(0.5)
    assert shares([source], limit=6000)[-1] == pytest.approx(1.0, abs=1e-3)
