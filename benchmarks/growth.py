"""Does time grow with the tokens and with nothing else? Runs of more pairs, longer pairs, longer lists, more threads.

    python -m benchmarks.growth [--model DIR] [--quick]

pairs        1,000, 10,000 and 100,000 of mixed length
tokens       pairs of 32 to 512 tokens (to what the model reads), as many tokens in all
candidates   10, 100 and 1,000 for a query, as many pairs in all
threads      1 to all cores

Each line is a whole `rerank-file` process: tokens a second of computing, its CPU seconds (start included) for a million
tokens, peak RSS. CPU seconds hold on a machine with other work, tokens a second do not. The default model is the
smallest real checkpoint at hand, so that the work around the model is seen; with `--model` a real one shows that it
hides behind computing.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.material import machine
from benchmarks.memory import TINY

WORDS = [f"word{number}" for number in range(2000)]
TOKENS_OF_A_WORD = 6.5  # of these words in the tiny checkpoint: what a length in tokens is made of


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(TINY))
    parser.add_argument("--quick", action="store_true", help="a hundredth of the work")
    options = parser.parse_args()
    print(machine())
    share = 100 if options.quick else 1
    for pairs in (1_000, 10_000, 100_000):
        measure(options.model, f"pairs {pairs // share:,}", rows(pairs // share, candidates=50, words=(5, 60)))
    for tokens in (32, 64, 128, 256, 512):
        words = max(1, round(tokens / TOKENS_OF_A_WORD))
        count = 1_000_000 // share // tokens
        measure(options.model, f"tokens about {tokens}", rows(count, candidates=50, words=(words, words)))
    for candidates in (10, 100, 1_000):
        measure(
            options.model, f"candidates {candidates:,}", rows(20_000 // share, candidates=candidates, words=(5, 60))
        )
    cores = sorted(os.sched_getaffinity(0))
    for threads in range(1, len(cores) + 1):
        made = rows(20_000 // share, candidates=50, words=(5, 60))
        measure(options.model, f"threads {threads}", made, cores=set(cores[:threads]))


def rows(pairs: int, *, candidates: int, words: tuple[int, int]) -> Iterator[dict[str, object]]:
    """Lists of `candidates` passages with as many words as `words` allows."""
    draw = random.Random(0)
    for query in range(max(1, pairs // candidates)):
        passages = [" ".join(draw.choices(WORDS, k=draw.randint(*words))) for _ in range(min(candidates, pairs))]
        yield {"query": f"query {query} {draw.choice(WORDS)}", "passages": passages}


def measure(model: str, what: str, made: Iterator[dict[str, object]], *, cores: set[int] | None = None) -> None:
    """Run the program over these rows, and print."""
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "rows.jsonl", Path(folder) / "out.jsonl"
        with source.open("w", encoding="utf-8") as lines:
            lines.writelines(json.dumps(row) + "\n" for row in made)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [
            sys.executable,
            "-m",
            "rerank_cli",
            "rerank-file",
            str(source),
            "-o",
            str(out),
            "-q",
            "--model",
            model,
        ]
        subprocess.run(command, check=True, preexec_fn=lambda: os.sched_setaffinity(0, cores) if cores else None)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        report = json.loads(Path(f"{out}.report.json").read_text())
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    counts = report["counts"]
    speed, peak = report["speed"]["tokens_per_second"], report["peak_rss_bytes"] / 2**20
    work = f"{counts['pairs']:8,} pairs {counts['tokens']:11,} tokens"
    cost = 1e6 * spent / counts["tokens"]
    print(f"{what:20} {work}  {speed:10,.0f} tokens/s  {cost:6.1f} CPU-s a million  {peak:5.0f} MiB", flush=True)


if __name__ == "__main__":
    main()
