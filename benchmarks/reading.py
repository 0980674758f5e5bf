"""What reading costs, without a model: rows into candidate lists, grouped by query.

    python -m benchmarks.reading                        CPU time a row of each format, in turns
    python -m benchmarks.reading --other FOLDER         beside another version of this repository, in turns
    python -m benchmarks.reading --big 2e9 --folder F   peak memory for a CSV file and a JSON array of that many bytes

Each figure is that of a process started anew; of the rounds the least CPU time counts.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

HERE = Path(__file__).parents[1]
WORDS = ("kettle", "vinegar", "boil", "water", "rinse", "toaster", "crumb", "tray", "bridge", "mill", "river", "stone")
PASSAGES = 25  # of a query
READ = """
import json, sys, time
sys.path[:] = [sys.argv[1], *(path for path in sys.path if path)]
from rerank_cli.formats.inputs import ReadOptions, open_lists, resolve_inputs
try:
    from rerank_cli.formats.scattered_groups import ordered_by_group
except ModuleNotFoundError:  # a version of before 2026-11-29
    from rerank_cli.formats.inputs import ordered_by_group
from rerank_cli.formats.shapes import FieldNames
def read():
    inputs, options = resolve_inputs([sys.argv[2]]), ReadOptions()
    shape, items = open_lists(inputs, FieldNames(), options, "auto")
    return sum(len(one.passages) for one in shape.group(ordered_by_group(inputs, shape, items, options)))
began = time.process_time()
rows = read()
spent = time.process_time() - began
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM:"))
print(json.dumps({"rows": rows, "seconds": spent, "peak": peak * 1024}))
"""


def lists(queries: int, words: int = 60) -> Iterator[dict[str, Any]]:
    """Queries with their passages; the same each time."""
    rng = random.Random(1)
    pool = [" ".join(rng.choices(WORDS, k=words)) for _ in range(997)]
    for n in range(queries):
        query = f"{' '.join(rng.choices(WORDS, k=8))} {n}"
        places = range(n * PASSAGES, (n + 1) * PASSAGES)
        passages = [{"id": f"d{place}", "text": f"{pool[place % len(pool)]} {place}"} for place in places]
        yield {"query_id": f"q{n}", "query": query, "passages": passages}


def flat(rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, str]]:
    """A pair a row."""
    for row in rows:
        for one in row["passages"]:
            yield {"query_id": row["query_id"], "query": row["query"], "doc_id": one["id"], "passage": one["text"]}


def write(path: Path, rows: Iterator[dict[str, Any]], *, size: float = float("inf")) -> Path:
    """A file of rows in the format of its suffix, of about `size` bytes at most."""
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(list(rows)), path)
        return path
    with path.open("w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream, lineterminator="\n")
        for place, row in enumerate(rows):
            if path.suffix == ".csv":
                table.writerows([row.keys(), row.values()] if place == 0 else [row.values()])
            elif path.suffix == ".json":
                stream.write(("[\n" if place == 0 else ",\n") + json.dumps(row))
            else:
                stream.write(json.dumps(row) + "\n")
            if stream.tell() >= size:
                break
        if path.suffix == ".json":
            stream.write("\n]\n")
    return path


def measured(repository: Path, path: Path) -> dict[str, Any]:
    """What a process that reads the file has used."""
    command = [sys.executable, "-c", READ, str(repository), str(path)]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--other", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--queries", type=int, default=4000)
    parser.add_argument("--big", type=float)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    with TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        if given.big:
            for path in (folder / "flat.csv", folder / "lists.json"):
                rows = lists(10**9, words=600)
                write(path, flat(rows) if path.suffix == ".csv" else rows, size=given.big)
                found = measured(HERE, path)
                shown = f"{path.stat().st_size / 1e9:.2f} GB, {found['rows']:,} passages"
                print(
                    f"{path.suffix[1:]}: {shown}: peak {found['peak'] / 2**20:.0f} MiB, {found['seconds']:.0f} s of CPU"
                )
                path.unlink()
            return
        paths = [
            write(folder / f"flat{suffix}", flat(lists(given.queries))) for suffix in (".jsonl", ".parquet", ".csv")
        ]
        paths += [write(folder / f"lists{suffix}", lists(given.queries)) for suffix in (".jsonl", ".parquet", ".json")]
        sides = [HERE, *([given.other.resolve()] if given.other else [])]
        best: dict[tuple[Path, Path], float] = {}
        for _ in range(given.rounds):
            for path in paths:
                for side in sides:
                    try:
                        found = measured(side, path)
                    except subprocess.CalledProcessError:  # an older version that does not read it
                        continue
                    spent = found["seconds"] / found["rows"]
                    best[path, side] = min(best.get((path, side), spent), spent)
        for path in paths:
            print(
                path.name, *(f"{1e6 * best[path, side]:.1f}" if (path, side) in best else "-" for side in sides), "us"
            )


if __name__ == "__main__":
    main()
