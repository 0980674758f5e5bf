"""What a store costs and spares: a warm run beside one that only reads and writes, and beside a cold one.

    python -m benchmarks.store [--pairs N] [--cold-pairs N] [--folder DIR]

cold         the built-in model scores `--cold-pairs` pairs
filled       the store gets all pairs, from an engine that computes nothing (it would take an hour)
warm         the built-in model with that store: every pair is found
read, write  the same run with scores from a short list, without keys and without a database: what is left is reading
             the rows, ranking and writing

Wall and CPU seconds of each, loading included, the last two by turns and as medians; on a machine with other work only
CPU seconds mean something. Bytes a pair on disk, and the resident memory of the warm run, which is a process of its own
as the others are.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rerank_cli.job.score_store.folder import DATABASE

WORDS = [f"word{number}" for number in range(2000)]
LIST = 50
ROUNDS = 5


def make_lists(path: Path, pairs: int) -> None:
    """Lists of short passages, none of them twice."""
    chance = random.Random(7)
    with path.open("w") as stream:
        for number in range(-(-pairs // LIST)):
            passages = [f"{number} {place} " + " ".join(chance.choices(WORDS, k=20)) for place in range(LIST)]
            stream.write(
                json.dumps({"query": f"{number} " + " ".join(chance.choices(WORDS, k=4)), "passages": passages})
            )
            stream.write("\n")


class Filler:
    """An engine with the kernels of another, whose logits are lengths."""

    depth, peak_bytes = 1, None

    def __init__(self, kernels: str) -> None:
        self.kernels = kernels

    def submit(self, pairs: Sequence[Any], *, on_batch: Any = None) -> Any:
        """Logits at once."""
        from rerank_cli.engine.protocols import Done, Scores, Trouble

        return Done(Scores(np.array([len(pair.input_ids) for pair in pairs], dtype=np.float32), Trouble()))

    def wait(self, seconds: float) -> None:
        """Nothing to wait for."""

    def close(self) -> None:
        """Nothing to give back."""


def _one(kind: str, source: str, output: str, store: str | None, limit: int | None) -> None:
    from rerank_cli.engine import open_engine
    from rerank_cli.job.options import JobOptions, Names
    from rerank_cli.job.run import run_job
    from rerank_cli.job.score_store import known_scores
    from rerank_cli.machine.this_process import keep_freed_memory, prepare_process

    prepare_process(online=False)  # as the command does
    keep_freed_memory()
    if kind == "read, write":
        # As many lengths and logits as the pairs of `make_lists` have: equal logits would need no sorting.
        drawn = random.Random(3)
        lengths = [drawn.randint(50, 110) for _ in range(1009)]
        entries = {length: (known_scores._without_ids(length, length, 0, 3, 0, 0),) for length in lengths}

        def find(self: Any, found: Any) -> None:
            given = [lengths[place * 617 % len(lengths)] for place in range(len(found.pairs))]
            found.entries = [entries[length] for length in given]
            found.logits[:] = given

        known_scores.KnownScores._find_lists = staticmethod(lambda *_: None)  # type: ignore[method-assign]
        known_scores.KnownScores._find = find  # type: ignore[method-assign]
        known_scores.KnownScores._keys = staticmethod(lambda pairs, *_, **__: [None] * len(pairs))  # type: ignore[method-assign]

    def opened(plan: Any, checkpoint: Any, calibration: Mapping[str, Any] | None, *, on_note: Any) -> Any:
        engine = open_engine(plan, checkpoint, calibration, on_note=on_note)
        return Filler(engine.kernels) if kind == "filled" else engine

    options = JobOptions((source,), Names(output), restart=True, overwrite=True, limit=limit, store=store)
    began, cpu = time.perf_counter(), time.process_time()
    outcome = run_job(options, open_engine=opened)
    found = {
        "pairs": outcome.counts.pairs,
        "found": outcome.counts.pairs_found,
        "wall": round(time.perf_counter() - began, 2),
        "cpu": round(time.process_time() - cpu, 2),
        "load": outcome.report["seconds"]["load"],
        "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000,
    }
    print(json.dumps(found))


def measure(folder: Path, pairs: int, cold_pairs: int) -> None:
    """Print a line a run."""
    source, store = folder / "in.jsonl", folder / "store"
    make_lists(source, pairs)
    seen: dict[str, list[dict[str, float]]] = {}
    turns = [("warm", None), ("read, write", None)] * ROUNDS
    for kind, rows in (("cold", cold_pairs // LIST), ("filled", None), *turns):
        given = ["", "", ""] if kind == "cold" else [str(store), "", ""]
        given[1] = str(rows or "")
        command = [
            sys.executable,
            "-m",
            "benchmarks.store",
            "--one",
            kind,
            str(source),
            str(folder / "out.jsonl"),
            *given[:2],
        ]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found = json.loads(done.stdout)
        seen.setdefault(kind, []).append(found)
        print(f"{kind:12} {found}", flush=True)
    size = (store / DATABASE).stat().st_size
    print(f"on disk      {size / pairs:.1f} bytes a pair")
    for unit in ("wall", "cpu"):
        (cold,) = seen["cold"]
        warm, alone = (statistics.median(run[unit] for run in seen[name]) for name in ("warm", "read, write"))
        cold_rate = cold["pairs"] / (cold[unit] - (cold["load"] if unit == "wall" else 0))
        print(
            f"{unit:12} warm is {pairs / warm / cold_rate:.0f} times as fast as cold, and takes "
            f"{100 * (warm / alone - 1):.0f} % more than reading and writing"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--cold-pairs", type=int, default=2000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--one", nargs=5)
    arguments = parser.parse_args()
    if arguments.one:
        kind, source, output, store, limit = arguments.one
        _one(kind, source, output, store or None, int(limit) if limit else None)
    elif arguments.folder:
        arguments.folder.mkdir(parents=True, exist_ok=True)
        measure(arguments.folder, arguments.pairs, arguments.cold_pairs)
    else:
        with tempfile.TemporaryDirectory() as name:
            measure(Path(name), arguments.pairs, arguments.cold_pairs)
