"""Parts of a run, made by themselves and put one behind the other, are the run."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.conftest import LONG, write_table
from tests.torture.runs import Asked, Runs

SHARDS = range(1, 9) if LONG else (1, 3, 8)


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz", "out.parquet"])
@pytest.mark.parametrize("shards", SHARDS)
def test_shards_are_the_run_when_they_are_put_together(
    tmp_path: Path, runs: Runs, pairs: str, name: str, shards: int
) -> None:
    parts = made(tmp_path, runs, pairs, name, shards, {"pairs": True}, code=3)
    whole, *parts = parts
    if name.endswith(".parquet"):
        rows = [row for part in parts for row in pq.read_table(part).to_pylist()]
        assert rows == pq.read_table(whole).to_pylist()
        assert len(rows) == 300
    else:
        # More shards than windows: some are empty, and an empty gzip file has 20 bytes.
        read = gzip.decompress if name.endswith(".gz") else bytes
        joined = b"".join(part.read_bytes() for part in parts)
        assert read(joined) == read(whole.read_bytes())
        assert read(joined).count(b"\n") == 300
    errors = [Path(f"{part}.errors.jsonl") for part in [whole, *parts]]
    first, *others = [path.read_bytes() if path.exists() else b"" for path in errors]
    assert b"".join(others) == first


@pytest.mark.parametrize("shards", SHARDS)
def test_lists_from_parquet_are_cut_too(tmp_path: Path, runs: Runs, shards: int) -> None:
    rows = [{"query": "two roads", "passages": [f"wood {n} {k}" for k in range(40)]} for n in range(60)]
    source = write_table(tmp_path / "in.parquet", rows)
    whole, *parts = made(tmp_path, runs, source, "out.jsonl", shards, {}, code=0)
    assert b"".join(part.read_bytes() for part in parts) == whole.read_bytes()


def made(
    folder: Path, runs: Runs, source: str, name: str, shards: int, options: dict[str, Any], *, code: int
) -> list[Path]:
    """The outputs of the whole run and of each shard."""
    asked = [Asked((source,), str(folder / f"whole.{name}"), options)]
    for shard in range(1, shards + 1):
        asked.append(Asked((source,), str(folder / f"{shard}.{name}"), {**options, "shard": [shard, shards]}))
    codes = [runs.run(one).code for one in asked]
    assert codes[0] == code
    assert set(codes[1:]) <= {0, code}
    return [Path(one.output) for one in asked]
