"""How many pairs a second the host can feed: whole jobs with everything but the forward.

    python -m benchmarks.host [--model DIR] [--pairs 20000] [--words 100] [--rounds 3]

Reads, tokenises, plans and packs batches, ranks, writes and commits as `rerank-file` does for a GPU (windows of 4,096
pairs, its batches for the model's hidden size, no table of known pairs); an engine that answers at once stands where
the model would. Where a GPU makes more pairs a second than this, the host is the limit. Passages are made of the words
of real ones and all differ, so nothing is tokenised once for two pairs.

The tokenizer runs on all cores; what is left runs under the interpreter's lock. It is told apart, as the CPU time that
each thread of Python's takes a pair: their sum is what limits a machine whose cores suffice for the tokenizer.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.material import SAMPLES, machine, read_pairs
from rerank_cli.checkpoint import Checkpoint, locate_checkpoint, read_checkpoint
from rerank_cli.encoding.encoder import open_encoder
from rerank_cli.engine.batching import plan_batches
from rerank_cli.engine.protocols import Engine, InProcess, OnBatch, Trouble
from rerank_cli.job.options import JobOptions, Names
from rerank_cli.job.run import Outcome, run_job
from rerank_cli.machine.this_process import keep_freed_memory, prepare_process
from rerank_cli.models.packed import pack
from rerank_cli.planning.profiles.matching import gpu_token_budget
from rerank_cli.planning.run_plan import Plan
from rerank_cli.records import EncodedPair

CANDIDATES = 100
_WINDOW_PAIRS = 4096  # of a run on a GPU


class NoModel(InProcess):
    """An engine that packs each batch and computes nothing of it.

    clocks: CPU seconds of each thread of Python's when the last part was submitted. pairs: submitted before that.
    start: seconds of the main thread when the first part was.
    """

    kernels = "none"

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._seen = self.pairs = 0
        self.clocks: dict[str, float] = {}
        self.start = 0.0

    def score(self, pairs: Sequence[EncodedPair], *, on_batch: OnBatch | None = None) -> npt.NDArray[np.float32]:
        """Logits that differ from pair to pair."""
        self.trouble = Trouble()
        self.clocks |= _clocks()  # of a thread that has ended, what it was last
        self.start = self.start or time.thread_time()
        self.pairs = self._seen
        self._seen += len(pairs)
        lengths = [len(pair.input_ids) for pair in pairs]
        for batch in plan_batches(lengths, token_budget=self._plan.token_budget):
            pack([pairs[place] for place in batch], device=torch.device("cpu"))
            if on_batch:
                on_batch(len(batch), sum(lengths[place] for place in batch))
        return np.arange(len(pairs), dtype=np.float32) * 617 % 1009

    def close(self) -> None:
        """Nothing is held."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--pairs", type=int, default=20_000)
    parser.add_argument("--words", type=int, default=100, help="of a passage, in the mean")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    prepare_process(online=False)
    keep_freed_memory()  # both as `rerank-file` does
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.jsonl"
        passages = write_lists(rows, options.pairs, options.words)
        outcomes, limits, starts = [], [], []
        for turn in range(options.rounds):
            outcome, engine = _run(rows, Path(folder) / f"out{turn}.jsonl", options.model)
            outcomes.append(outcome)
            limits.append({name: 1e6 * spent / max(1, engine.pairs) for name, spent in engine.clocks.items()})
            starts.append(1e6 * engine.start / max(1, engine.pairs))
    counts, report = outcomes[0].counts, outcomes[0].report
    speeds = [outcome.counts.pairs / outcome.report["seconds"]["wall"] for outcome in outcomes]
    spread = f"[{min(speeds):,.0f}..{max(speeds):,.0f}]"
    print(f"{counts.pairs:,} pairs of {counts.tokens / counts.pairs:.0f} tokens")
    print(f"whole jobs: {statistics.median(speeds):,.0f} pairs/s {spread}, their seconds: {report['seconds']}")
    least = min(limits, key=lambda one: sum(one.values()))
    told = ", ".join(f"{name} {spent:.0f}" for name, spent in least.items())
    start = starts[limits.index(least)]
    print(
        f"under the lock, us of CPU a pair: {told}; together {sum(least.values()):.0f}, the least of the rounds; "
        f"{start:.0f} of them before the first pair"
    )
    checkpoint = read_checkpoint(locate_checkpoint(options.model))
    print(f"the tokenizer alone: {len(passages) / _tokenizing_seconds(checkpoint, passages):,.0f} passages/s")


def write_lists(path: Path, pairs: int, words: int) -> list[str]:
    """Lists of passages that are all different; returns the passages."""
    draw = random.Random(0)
    known = " ".join(passage for _, passage in read_pairs(SAMPLES, limit=10**6)).split()
    passages = [" ".join(draw.choices(known, k=draw.randint(words // 2, words * 3 // 2))) for _ in range(pairs)]
    with path.open("w", encoding="utf-8") as lines:
        for begin in range(0, pairs, CANDIDATES):
            query = " ".join(draw.choices(known, k=9))
            lines.write(json.dumps({"query": query, "passages": passages[begin : begin + CANDIDATES]}) + "\n")
    return passages


def _clocks() -> dict[str, float]:
    """CPU seconds of each thread of Python's; the threads of the tokenizer are not among them."""
    clocks = {}
    for name, number in [(thread.name, thread.ident) for thread in threading.enumerate()]:
        with suppress(ProcessLookupError):  # it has just ended
            if number is not None:
                clocks[name] = time.clock_gettime(time.pthread_getcpuclockid(number))
    return clocks


def _run(rows: Path, out: Path, model: str | None) -> tuple[Outcome, NoModel]:
    engines: list[NoModel] = []
    began = _clocks()

    def open_engine(
        plan: Plan,
        checkpoint: Checkpoint,
        calibration: Mapping[str, Any] | None,
        *,
        on_note: Callable[[str], None] | None,
    ) -> Engine:
        del calibration, on_note
        budget = gpu_token_budget(checkpoint.integer("hidden_size"))
        engines.append(NoModel(replace(plan, token_budget=budget)))
        return engines[0]

    with (
        mock.patch("rerank_cli.planning.run_plan._CPU_WINDOW_PAIRS", _WINDOW_PAIRS),
        mock.patch("rerank_cli.job.score_store.run_store.depends_on_batch", lambda prepared, plan: "a GPU"),
    ):
        outcome = run_job(JobOptions((str(rows),), Names(str(out)), model=model), open_engine=open_engine)
    (engine,) = engines
    engine.clocks = {name: spent - began.get(name, 0.0) for name, spent in engine.clocks.items()}
    engine.start -= began[threading.current_thread().name]
    return outcome, engine


def _tokenizing_seconds(checkpoint: Checkpoint, passages: Sequence[str]) -> float:
    encoder = open_encoder(checkpoint, max_tokens=512)
    began = time.perf_counter()
    for begin in range(0, len(passages), 1024):
        encoder.encode([("", passage) for passage in passages[begin : begin + 1024]])
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
