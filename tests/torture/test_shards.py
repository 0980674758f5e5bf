"""Parts of a run, made by themselves and put one behind the other, are the run."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.conftest import LONG, read_lines, write_lines, write_table
from tests.torture.runs import Asked, Runs
from tests.unit.formats.shapes.known_rows import ROWS, Candidate

EMBEDDER = Path(__file__).parents[1] / "parity" / "nemotron-vl-embed-open" / "checkpoint"
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


@pytest.mark.parametrize("first", [{"scorer": "bf16", "top": 3}, {"scorer": str(EMBEDDER), "top": 3}])
def test_two_scorers_choose_alike_in_every_shard_and_after_every_kill(
    tmp_path: Path, runs: Runs, first: dict[str, Any]
) -> None:
    words = [f"{word} {n}" for n in range(3) for word in ("two", "roads", "diverged", "in", "a", "yellow", "wood")]
    rows = [
        {
            "query": " ".join(words[n % 5 : n % 5 + 3]),
            "passages": [" ".join(words[(n + k) % 9 :][: 2 + k % 7]) + f" {k}" for k in range(50)],
        }
        for n in range(44)
    ]
    source = write_lines(tmp_path / "in.jsonl", rows)
    whole, *parts = made(tmp_path, runs, source, "out.jsonl", 8 if LONG else 2, {"first": first}, code=0)
    assert b"".join(part.read_bytes() for part in parts) == whole.read_bytes()
    for at in range(9, 60, 2) if LONG else (30,):
        one = Asked((source,), str(tmp_path / f"{at}.jsonl"), {"first": first})
        assert runs.run(one, at=at, fault="half").code in (-9, 0)
        again = runs.run(one)
        assert again.code == 0, again.said
        assert Path(one.output).read_bytes() == whole.read_bytes(), at


FOUND = [Candidate(f"d{n}", "Roads", f"wood {n}", 1.5) for n in range(40)]


@pytest.mark.parametrize("shape", ["rank_llm", "elasticsearch", "msmarco", "phoenix"])
def test_lists_of_other_programs_are_cut_too(tmp_path: Path, runs: Runs, shape: str) -> None:
    rows = [ROWS[shape][1](f"two roads {n}", f"q{n}", FOUND[n % 7 :]) for n in range(40)]
    source = write_lines(tmp_path / "in.jsonl", rows)
    options = {} if shape == "msmarco" else {"fields": {"text": "title,text"}}
    whole, *parts = made(tmp_path, runs, source, "out.jsonl", 3, options, code=0)
    assert b"".join(part.read_bytes() for part in parts) == whole.read_bytes()
    assert len(read_lines(whole)) == 40


@pytest.mark.parametrize("name", ["out.csv", "out.tsv.gz"])
def test_separated_values_are_cut_and_the_parts_are_the_whole(tmp_path: Path, runs: Runs, name: str) -> None:
    rows = [f'q{n // 9},"two roads, {n // 9}","wood\n{n}",{n}' for n in range(1350)]
    source = tmp_path / "in.csv"
    source.write_text("\n".join(["query_id,query,passage,mine", *rows]) + "\n")
    whole, *parts = made(tmp_path, runs, str(source), name, 3, {}, code=0)
    read = gzip.decompress if name.endswith(".gz") else bytes
    header, _, body = read(whole.read_bytes()).partition(b"\n")
    cut = [read(part.read_bytes()).partition(b"\n") for part in parts]
    assert {first for first, _, _ in cut} - {b""} == {header}  # a part may have no row, and so no columns
    assert b"".join(rest for _, _, rest in cut) == body
    assert body.count(b"\nq") == 1349


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
