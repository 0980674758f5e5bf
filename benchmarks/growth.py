"""Does the cost grow with the tokens and nothing else? Runs of more pairs, longer lists, longer pairs, more threads.

    python -m benchmarks.growth [--only SECTION ...] [--quick] [--json FILE [--resume]]

pairs        1,000, 10,000 and 100,000 of mixed length
candidates   10, 100 and 1,000 for a query, as many pairs in all
length       pairs of 32 to 8,192 tokens, as many tokens in all
threads      1 to all cores, pairs of 512 tokens

Each line is a whole `rerank-file` process, on one core but for the last section: threads that wait for each other on a
machine with other work would be what is measured. The first two sections use the smallest real checkpoint at hand, so
that the work around the model is seen; the others a Llama of 8 layers of 512 with random weights, fp32, so that
computing is. Told are the CPU seconds for a million tokens, those of starting (a run of one pair) taken off; tokens a
second by the clock of computing; and peak RSS. CPU seconds hold on a machine with other work, tokens a second do not.

Attention grows with the squared length. So of lengths it is told too which share of the operations it is, and the
share of the matrix product's speed (measured first, one thread) that all of them make up: that stays level where
nothing but the operations grows.

With --json a point is written as soon as it is there; with --resume those that the file has, of this machine, are not
measured again.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.ceiling import product_speed
from benchmarks.material import LLAMA, llama_checkpoint, machine
from rerank_cli.checkpoint import read_checkpoint
from rerank_cli.report.utilisation import forward_flops

TINY = Path(__file__).parents[1] / "tests" / "parity" / "bert-ce-open" / "checkpoint"
WORDS = [f"word{number}" for number in range(2000)]
MIXED = (5, 20)  # words of a passage; some 6.5 tokens each
LENGTHS = (32, 128, 512, 2048, 8192)
TOKENS = 32_768  # of all pairs of a length
CANDIDATES = 50
Row = dict[str, object]


@dataclass(frozen=True, slots=True)
class Point:
    """One run. tokens: to which its pairs are cut, where it runs the larger model."""

    section: str
    value: int
    pairs: int
    candidates: int = CANDIDATES
    words: tuple[int, int] = MIXED
    tokens: int | None = None
    cores: int = 1

    @property
    def is_llama(self) -> bool:
        """Runs the larger model."""
        return self.tokens is not None

    def rows(self) -> Iterator[Row]:
        """Its candidate lists."""
        draw = random.Random(0)
        for start in range(0, self.pairs, self.candidates):
            count = min(self.candidates, self.pairs - start)
            passages = [" ".join(draw.choices(WORDS, k=draw.randint(*self.words))) for _ in range(count)]
            yield {"query": f"query {start} {draw.choice(WORDS)}", "passages": passages}


def points(*, share: int) -> Iterator[Point]:
    """All points; share: by which their work is divided."""
    for pairs in (1_000, 10_000, 100_000):
        yield Point("pairs", pairs // share, pairs // share)
    for candidates in (10, 100, 1_000):
        yield Point("candidates", candidates, 20_000 // share, candidates=candidates)
    for length in LENGTHS:
        pairs = max(1, TOKENS // share // length)
        yield Point("length", length, pairs, words=(length, length), tokens=length)
    for threads in range(1, len(os.sched_getaffinity(0)) + 1):
        yield Point("threads", threads, max(1, TOKENS // share // 512), words=(512, 512), tokens=512, cores=threads)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], metavar="SECTION")
    parser.add_argument("--quick", action="store_true", help="a fiftieth of the work")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--resume", action="store_true", help="keep the points that the file of --json has")
    options = parser.parse_args()
    print(machine())
    result = _begun(options.json if options.resume else None)
    with tempfile.TemporaryDirectory() as folder:
        llama = llama_checkpoint(Path(folder) / "llama")
        torch.set_num_threads(1)
        ceiling = product_speed("fp32", LLAMA["hidden_size"], LLAMA["intermediate_size"], time.process_time)
        starts: dict[bool, float] = {}
        for point in points(share=50 if options.quick else 1):
            model = llama if point.is_llama else TINY
            if options.only and point.section not in options.only:
                continue
            if not any((at["section"], at["value"]) == (point.section, point.value) for at in result["points"]):
                if point.is_llama not in starts:
                    starts[point.is_llama] = _run(Point("start", 1, 1), model)["cpu_seconds"]
                found = {"section": point.section, "value": point.value} | _run(point, model)
                result["points"].append(_figures(point, found, starts[point.is_llama], model, ceiling))
                if options.json:
                    options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
            print(told(result["points"][_place(result, point)]), flush=True)


def _begun(file: Path | None) -> dict[str, Any]:
    """What a run before this one has left, if it was on such a machine."""
    if file and file.exists():
        result: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if result["machine"] == machine():
            return result
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return {"question": "growth", "machine": machine(), "date": today, "points": []}


def _place(result: Mapping[str, Any], point: Point) -> int:
    return [(at["section"], at["value"]) for at in result["points"]].index((point.section, point.value))


def _run(point: Point, model: Path) -> dict[str, Any]:
    """Run the program over the point's rows."""
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "rows.jsonl", Path(folder) / "out.jsonl"
        with source.open("w", encoding="utf-8") as lines:
            lines.writelines(json.dumps(row) + "\n" for row in point.rows())
        command = [sys.executable, "-m", "rerank_cli", "rerank-file", str(source), "-o", str(out), "-q"]
        command += ["--model", str(model), "--precision", "fp32", "--device", "cpu"]
        command += ["--max-tokens", str(point.tokens)] if point.tokens else []
        cores = set(sorted(os.sched_getaffinity(0))[-point.cores :])  # the first is where most else runs
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, preexec_fn=lambda: os.sched_setaffinity(0, cores))
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        report = json.loads(Path(f"{out}.report.json").read_text(encoding="utf-8"))
    return {
        "pairs": report["counts"]["pairs"],
        "tokens": report["counts"]["tokens"],
        "cpu_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 3),
        "tokens_per_second": round(report["speed"]["tokens_per_second"]),
        "peak_rss_mib": round(report["peak_rss_bytes"] / 2**20),
    }


def _figures(point: Point, found: dict[str, Any], start: float, model: Path, ceiling: float) -> dict[str, Any]:
    seconds, tokens = found["cpu_seconds"] - start, found["tokens"]
    figures = found | {"start_cpu_seconds": start, "cpu_seconds_per_million": round(1e6 * seconds / tokens, 1)}
    if point.is_llama:
        checkpoint = read_checkpoint(model)
        products = forward_flops(checkpoint, tokens=tokens, squares=0)
        attention = forward_flops(checkpoint, tokens=0, squares=tokens**2 // found["pairs"])
        figures["attention_share"] = round(attention / (products + attention), 3)
        figures["utilisation"] = round((products + attention) / seconds / ceiling, 3)
    return figures


def told(at: Mapping[str, Any]) -> str:
    """A point as a line."""
    line = f"{at['section']:10} {at['value']:7,}: {at['pairs']:7,} pairs, {at['tokens']:10,} tokens"
    line += f"  {at['cpu_seconds_per_million']:8.1f} CPU-s a million  {at['tokens_per_second']:9,} tokens/s"
    line += f"  {at['peak_rss_mib']:6,} MiB"
    if "utilisation" in at:
        line += f"  attention {at['attention_share']:.0%} of the operations, utilisation {at['utilisation']:.0%}"
    return line


if __name__ == "__main__":
    main()
