"""Memory does not grow with the input: the program as a user starts it, watched while it goes through gigabytes.

Files at URLs too: what is read ahead, the log beside the output and the upload have their bounds.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from backports import zstd

from tests.conftest import LONG, TINY_CHECKPOINT
from tests.processes import Started
from tests.stores import Bucket
from tests.torture.runs import ROOT, on_one_core

GIGABYTES = float(os.environ.get("RERANK_TORTURE_GB", "2" if LONG else "0.004"))
ROWS = 1_000_000 if LONG else 2000
MB = 2**20
# What the allocator takes and gives back moves by some MB while nothing grows, which is all that a short run can see.
GROWTH = MB  # a million rows, over the second half of the long run; a short one is too short for a line
SWING = 64 * MB  # within the second half of the run
FAR_SIZES = (20, 100, 400)  # MB of rows
FAR_ROW_BYTES = 40_000


def write_rows(path: Path, kind: str) -> None:
    """Lists of two passages with a long field that nobody reads; each query and passage is another one.

    kind: `single` are lists of one passage without that field.
    """
    size = 0 if kind == "single" else int(GIGABYTES * 1e9 / ROWS)  # of a row
    with path.open("w", encoding="utf-8") as stream:
        for number in range(ROWS):
            passages = [f"wood {number} yellow", f"road {number + 7} taken"][: 1 if kind == "single" else 2]
            row = json.dumps({"id": number, "query": f"which way {number}", "passages": passages, "html": ""})
            stream.write(f'{row[:-2]}{"all that happens must be known " * (1 + (size - len(row)) // 31)}"}}\n')


def resident(process: int) -> int:
    """Bytes of a process that are in memory."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def slope(points: list[tuple[float, float]]) -> float:
    """Of the line through points that has the least squares."""
    middle_x, middle_y = (sum(values) / len(points) for values in zip(*points, strict=True))
    spread = sum((x - middle_x) ** 2 for x, _ in points)
    return sum((x - middle_x) * (y - middle_y) for x, y in points) / spread if spread else 0.0


@pytest.mark.parametrize("kind", ["good", "bad", "single"] if LONG else ["good"])
def test_memory_does_not_grow_with_the_input(tmp_path: Path, kind: str) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write_rows(source, kind)
    work = tmp_path / "out.jsonl.job" / ("errors" if kind == "bad" else "rows")
    command = [sys.executable, "-m", "rerank_cli", "rerank-file", str(source), "-o", str(out), "-q"]
    command += ["--model", str(TINY_CHECKPOINT), *(("--query-field", "id") if kind == "bad" else ())]
    points: list[tuple[float, float]] = []  # bytes written, bytes in memory
    times: list[float] = []
    began = time.monotonic()
    with Started(command, cwd=ROOT, preexec_fn=on_one_core) as process:
        while process.poll() is None:
            with contextlib.suppress(FileNotFoundError):  # it is not there yet, or has its name by now
                points.append((work.stat().st_size, resident(process.pid)))
                times.append(time.monotonic())
            time.sleep(0.5 if LONG else 0.02)
    assert process.returncode == (3 if kind == "bad" else 0)
    written = max(points)[0]
    later = [(done / written * ROWS, memory) for done, memory in points if done > written / 2]
    peak, grown = max(memory for _, memory in points), slope(later) * 1e6
    swing = max(memory for _, memory in later) - min(memory for _, memory in later)
    halves = [
        [at for (done, _), at in zip(points, times, strict=True) if low < done / written <= high]
        for low, high in ((0, 0.5), (0.5, 1))
    ]
    first, second = (max(part) - min(part) if part else 0.0 for part in halves)
    print(
        f"{kind} rows: {ROWS:,} in {source.stat().st_size / 1e9:.2f} GB, {time.monotonic() - began:.0f} s; peak "
        f"{peak / MB:.0f} MB, second half {grown / MB:+.2f} MB per million rows, swing {swing / MB:.1f} MB; the halves "
        f"took {first:.0f} and {second:.0f} s"
    )
    assert swing < SWING
    # Short rows come and go faster: their swing of some 36 MB tilts the line by 2 MB.
    assert not LONG or grown < GROWTH * (4 if kind == "single" else 1)
    source.unlink()
    Path(f"{out}{'.errors.jsonl' if kind == 'bad' else ''}").unlink()


def far_rows(megabytes: int) -> Iterator[dict[str, str | list[str]]]:
    """Lists with a long field that nobody reads and that no compression makes short."""
    chance = random.Random(5)
    for number in range(megabytes * 10**6 // FAR_ROW_BYTES):
        passages = [f"wood {number} yellow", f"road {number + 7} taken"]
        yield {"query": f"which way {number}", "passages": passages, "html": chance.randbytes(FAR_ROW_BYTES // 2).hex()}


def write_far(path: Path, megabytes: int) -> None:
    """The rows as JSON lines, those in zstd, or Parquet of row groups of some 20 MB."""
    if path.suffix == ".parquet":
        rows = far_rows(megabytes)
        schema = pa.schema([("query", pa.string()), ("passages", pa.list_(pa.string())), ("html", pa.string())])
        with pq.ParquetWriter(path, schema, compression="zstd") as writer:
            while some := list(itertools.islice(rows, 500)):
                writer.write_table(pa.Table.from_pylist(some, schema))
        return
    opened: Callable[[], Any] = (lambda: zstd.open(path, "wb")) if path.suffix == ".zst" else (lambda: path.open("wb"))
    with opened() as stream:
        stream.writelines(json.dumps(row).encode() + b"\n" for row in far_rows(megabytes))


@pytest.mark.skipif(not LONG, reason="what is read ahead and what is put at once are not full before 100 MB")
@pytest.mark.timeout(0)
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.zst", ".parquet"])
def test_memory_does_not_grow_with_what_lies_at_urls(bucket: Bucket, tmp_path: Path, suffix: str) -> None:
    peaks: list[int] = []
    for megabytes in FAR_SIZES:
        source, name = tmp_path / f"in{suffix}", f"{megabytes}{suffix}"
        write_far(source, megabytes)
        with source.open("rb") as stream:
            bucket.client.put_object(Bucket=bucket.name, Key=f"in/{name}", Body=stream)
        command = [sys.executable, "-m", "rerank_cli", "rerank-file", bucket.url(f"in/{name}"), "-q"]
        command += ["-o", bucket.url(f"out/{name}"), "--model", str(TINY_CHECKPOINT)]
        environment = {**os.environ, **bucket.variables, "XDG_CACHE_HOME": str(tmp_path / "cache")}
        began, peak = time.monotonic(), 0
        with Started(command, cwd=ROOT, preexec_fn=on_one_core, env=environment) as process:
            while process.poll() is None:
                peak = max(peak, resident(process.pid))
                time.sleep(0.02)
        assert process.returncode == 0
        assert f"out/{name}" in bucket.names()
        peaks.append(peak)
        size = source.stat().st_size / 1e6
        print(f"{name}: {size:.0f} MB, {time.monotonic() - began:.0f} s; peak {peak / MB:.0f} MB")
        source.unlink()
    assert peaks[-1] - peaks[-2] < SWING
