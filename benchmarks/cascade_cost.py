"""What two scorers cost where their weights say nothing of agreement: a small one before a large one.

    python -m benchmarks.cascade_cost [--pairs N] [--words N] [--precision P] [--folder DIR] [--without-1b]

    tiny before 1B       the checkpoint of a test (2 layers), and a random one of Nemotron's shape (`full_size.py`)
    built-in before 1B   the built-in model, and the same
    3 layers before 12   the built-in model cut, and whole

A run of `rerank-file --first` reads one list, which both score in full, as they do with the first window of any run.
Told are the seconds a pair of each, and what they make of lists of which the second reads a tenth, a twentieth and a
hundredth: how many times faster than the second alone, if nothing else took time. Seconds by the clock.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from benchmarks.full_size import write_checkpoint
from benchmarks.material import machine, plain_checkpoint
from rerank_cli.job.options import First, JobOptions, Names
from rerank_cli.job.run import run_job
from rerank_cli.planning.choices import ProfileRequest

TINY = Path(__file__).parents[1] / "tests" / "parity" / "bert-ce-open" / "checkpoint"
SHARES = (0.1, 0.05, 0.01)


def measure(first: str, second: str | None, precision: str, source: Path, folder: Path) -> list[dict[str, float]]:
    """Seconds a pair of both, and their tokens a pair."""
    options = JobOptions(
        (str(source),), Names(str(folder / "out.jsonl")), model=second, overwrite=True, restart=True,
        request=ProfileRequest(precision=precision), first=First(first, "10"),
    )  # fmt: skip
    both = run_job(options).report["cascade"]
    return [
        {
            "seconds": both[name]["seconds"] / both[name]["pairs_scored"],
            "tokens": both[name]["tokens"] / both[name]["pairs_scored"],
        }
        for name in ("first", "second")
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--words", type=int, default=60)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--folder", help="where checkpoints go for a while; default: the system's own")
    parser.add_argument("--without-1b", action="store_true")
    given = parser.parse_args()
    print(machine(), flush=True)
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        source = folder / "in.jsonl"
        words = [f"{number} " + " ".join(["a road in a wood"] * (given.words // 5)) for number in range(given.pairs)]
        source.write_text(json.dumps({"query": "which road", "passages": words}) + "\n")
        sides: list[tuple[str, str, str, str | None]] = []
        if not given.without_1b:
            large = folder / "1b"
            large.mkdir()
            write_checkpoint(large)
            built_in = str(plain_checkpoint(folder / "whole"))
            sides += [("tiny", str(TINY), "1B", str(large)), ("built-in", built_in, "1B", str(large))]
        sides.append(("3 layers", str(plain_checkpoint(folder / "cut", layers=3)), "12 layers", None))
        for first_name, first, second_name, second in sides:
            precision = given.precision if second else "fp32"
            cheap, dear = measure(f"{first}:fp32", second, precision, source, folder)
            ratios = [dear["seconds"] / (cheap["seconds"] + share * dear["seconds"]) for share in SHARES]
            told = ", ".join(f"{ratio:.1f}x at {100 * share:g} %" for ratio, share in zip(ratios, SHARES, strict=True))
            each = [f"{1e3 * one['seconds']:.1f} ms a pair of {one['tokens']:.0f} tokens" for one in (cheap, dear)]
            print(f"{first_name} in fp32 before {second_name} in {precision}: {' and '.join(each)}: {told}", flush=True)


if __name__ == "__main__":
    main()
