"""How long until the first score: one pair, whole processes, in turn with sentence-transformers on the same checkpoint.

    python -m benchmarks.startup [--rounds 5] [--cpu-time] [--json FILE]

--cpu-time counts the seconds that processes worked, which hold on a machine with other work, instead of the time.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.material import machine, plain_checkpoint
from benchmarks.rounds import spread
from benchmarks.tables import table

PAIR = {"query": "How many people live in Berlin?", "passage": "Berlin has a population of 3,520,031 inhabitants."}
THEIRS = """
import sys, torch
from sentence_transformers import CrossEncoder
model = CrossEncoder(sys.argv[1], max_length=512, activation_fn=torch.nn.Identity(), device="cpu")
print(model.predict([(sys.argv[2], sys.argv[3])], show_progress_bar=False))
"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    rounds, clock = options.rounds, _worked if options.cpu_time else time.perf_counter
    with tempfile.TemporaryDirectory() as folder:
        plain = plain_checkpoint(Path(folder) / "plain")
        rows = Path(folder) / "pair.jsonl"
        rows.write_text(json.dumps(PAIR) + "\n")
        commands = {
            "rerank-cli, built-in model": [sys.executable, "-m", "rerank_cli", "score", str(rows), "-q"],
            "rerank-cli, same checkpoint": [
                sys.executable, "-m", "rerank_cli", "score", str(rows), "-q", "--model", str(plain)
            ],
            "sentence-transformers": [sys.executable, "-c", THEIRS, str(plain), PAIR["query"], PAIR["passage"]],
            "rerank-cli --help": [sys.executable, "-m", "rerank_cli", "--help"],
        }  # fmt: skip
        # Bytecode is there, as where pip has installed a package; the first turn writes what is missing.
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        times: dict[str, list[float]] = {name: [] for name in commands}
        for turn in range(rounds + 1):
            for name, command in commands.items():
                began = clock()
                subprocess.run(command, check=True, capture_output=True, env=environment)
                if turn:  # the first turn warms the file cache
                    times[name].append(clock() - began)
    result = {
        "question": "startup",
        "machine": machine(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "clock": "cpu" if options.cpu_time else "wall",
        "sides": [
            {"name": name, "seconds": spread(values), "times": spread(_ratios(values, times["sentence-transformers"]))}
            for name, values in times.items()
        ],
    }
    print(machine(), *table(result), sep="\n")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _worked() -> float:
    """Seconds of CPU time of the processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(ours, theirs, strict=True)]


if __name__ == "__main__":
    main()
