"""How long until the first score: one pair, whole processes, in turn with sentence-transformers on the same checkpoint.

python -m benchmarks.startup [--rounds 5]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.material import machine, plain_checkpoint

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
    rounds = parser.parse_args().rounds
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
                began = time.perf_counter()
                subprocess.run(command, check=True, capture_output=True, env=environment)
                if turn:  # the first turn warms the file cache
                    times[name].append(time.perf_counter() - began)
    print(machine())
    for name, values in times.items():
        theirs = times["sentence-transformers"]
        ratio = statistics.median(a / b for a, b in zip(values, theirs, strict=True))
        spread = f"[{min(values):.2f}..{max(values):.2f}]"
        print(f"{name:28s} {statistics.median(values):.2f} s {spread}, {ratio:.2f}x its time")


if __name__ == "__main__":
    main()
