"""Does memory stay flat? Peak RSS of a whole `rerank-file` run over 5,000 and over 100,000 pairs of mixed length.

    python -m benchmarks.memory [--pairs 5000 --pairs 100000] [--model DIR]

The default model is the smallest real checkpoint at hand, so that what is measured is the tool and not the model.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.material import machine

TINY = Path(__file__).parents[1] / "tests" / "parity" / "bert-ce-open" / "checkpoint"
CANDIDATES = 100


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, action="append")
    parser.add_argument("--model", default=str(TINY))
    options = parser.parse_args()
    print(machine())
    for pairs in options.pairs or [5_000, 100_000]:
        with tempfile.TemporaryDirectory() as folder:
            rows, out = Path(folder) / "rows.jsonl", Path(folder) / "out.jsonl"
            _write(rows, pairs)
            command = [sys.executable, "-m", "rerank_cli", "rerank-file", str(rows), "-o", str(out), "-q"]
            subprocess.run([*command, "--model", options.model], check=True)
            report = json.loads(Path(f"{out}.report.json").read_text())
        speed = report["speed"]["pairs_per_second"]
        peak = report["peak_rss_bytes"] / 2**20
        print(f"{pairs:8,} pairs: peak RSS {peak:.0f} MiB, {speed:,.0f} pairs/s", flush=True)


def _write(path: Path, pairs: int) -> None:
    draw = random.Random(0)
    words = [f"word{number}" for number in range(2000)]
    with path.open("w", encoding="utf-8") as rows:
        for query in range(pairs // CANDIDATES):
            passages = [" ".join(draw.choices(words, k=draw.randint(5, 120))) for _ in range(CANDIDATES)]
            rows.write(json.dumps({"query": f"query {query} {draw.choice(words)}", "passages": passages}) + "\n")


if __name__ == "__main__":
    main()
