"""Shards of any shape and format: put together, they are the bytes of one run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rerank_cli.cli import main
from tests.conftest import TINY_CHECKPOINT, read_lines, write_lines

VARIANTS = {row["name"]: row for row in read_lines(Path(__file__).parents[1] / "data" / "field" / "variants.jsonl")}
ROWS = 260  # of three passages: more than two windows


def shards(source: Path, suffix: str, *options: str) -> tuple[bytes, list[bytes]]:
    """What one run writes, and what two shards do."""
    made = []
    for part in (None, "1/2", "2/2"):
        out = source.parent / f"out{str(part)[0]}{suffix}"
        given = ["rerank-file", str(source), "-o", str(out), "-q", "--model", str(TINY_CHECKPOINT), *options]
        assert main([*given, *(["--shard", part] if part else [])]) == 0
        made.append(out.read_bytes())
    return made[0], made[1:]


def _numbered(query: Any, n: int) -> Any:
    return {**query, "text": f"{query['text']} {n}", "qid": f"q{n}"} if isinstance(query, dict) else f"{query} {n}"


@pytest.mark.parametrize(
    ("name", "form"), [("dpr", "in.json"), ("rank_llm beir", "in.jsonl"), ("msmarco", "in.parquet")]
)
def test_shards_of_a_known_shape_are_the_bytes_of_one_run(name: str, form: str, tmp_path: Path) -> None:
    row = json.loads(VARIANTS[name]["content"])
    key = "question" if "question" in row else "query"
    rows = [{**row, key: _numbered(row[key], n), "query_id": n} for n in range(ROWS)]
    source = tmp_path / form
    if form == "in.parquet":
        pq.write_table(pa.Table.from_pylist(rows), source)
    elif form == "in.json":
        source.write_text(json.dumps(rows, indent=1))
    else:
        write_lines(source, rows)
    whole, parts = shards(source, ".jsonl", *(() if name == "msmarco" else ("--text-field", "title,text")))
    assert b"".join(parts) == whole
    assert all(parts)


def test_shards_of_a_table_are_the_rows_of_one_run(tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    rows = [[f"q{n // 4}", f"road {n // 4}", f"d{n}", "Road", f'"wood {n}\n""so"""'] for n in range(780)]
    table = [["query_id", "query", "doc_id", "title", "text"], *rows]
    source.write_text("".join(",".join(row) + "\n" for row in table))
    whole, parts = shards(source, ".csv", "--text-field", "title,text")
    header = whole.partition(b"\n")[0] + b"\n"
    assert header + b"".join(part.removeprefix(header) for part in parts) == whole
