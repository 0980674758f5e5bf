"""What it costs that a run survives kill -9: the calls that write, the journal, and the hashes of its files.

python -m benchmarks.commit_cost [--rounds 3] [--checkpoint-every 5s] [--checks] [--folder /var/tmp] [--model DIR]

The outputs go into a folder in `--folder`, which must lie on a disk: in memory an fsync costs nothing.

With `--checks` it is what it costs that a second hand is noticed (`journal/__init__.py`): the CPU time in all checks,
and that of runs with and without them, in turns.

The job is `samples/python-docs.jsonl`, 800 pairs, with the built-in model, or with a smaller one, beside which the same
checks weigh more. Timed is what `Job` does, each system call and fsync in it included, so the figure does not drown in
the noise of a machine as the difference of two runs would. Inputs and model are hashed by a thread beside the run; its
time counts in full.
"""

from __future__ import annotations

import argparse
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.material import machine
from rerank_cli.cli.parsers import parse_duration
from rerank_cli.job.options import JobOptions, Names
from rerank_cli.job.run import run_job
from rerank_cli.job.run_paths import RunPaths
from rerank_cli.job.watched_images import WatchedImages
from rerank_cli.journal import Files, Fingerprint, Job, Watch, WorkFile
from rerank_cli.journal.lock import Lock
from rerank_cli.journal.seal import Seal

CHECKS: dict[type, tuple[str, ...]] = {
    Lock: ("check",), WorkFile: ("check", "refuse_other_bytes"), Watch: ("look", "check"),
    Seal: ("is_of", "is_untouched"), WatchedImages: ("finish",), RunPaths: ("__init__",),
}  # fmt: skip
"""What looks for a second hand. Without them a run trusts what it finds; paths are known in any case."""

SAMPLE = Path(__file__).parents[1] / "samples" / "python-docs.jsonl"


class Counted(Files):
    """Files that note how often each call was made."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()

    def __getattribute__(self, name: str) -> Any:
        if name in ("mkdir", "open", "write", "fsync", "truncate", "close", "rename", "unlink", "rmdir", "sync_folder"):
            self.calls[name] += 1
        return super().__getattribute__(name)


class Clock:
    """Seconds spent in functions, nested calls counted once. now: a clock of time, or of a thread's CPU time."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self.seconds = 0.0
        self._depth = 0

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, with its time added to the clock's."""

        def call(*arguments: Any, **options: Any) -> Any:
            began = self._now()
            self._depth += 1
            try:
                return function(*arguments, **options)
            finally:
                self._depth -= 1
                if not self._depth:
                    self.seconds += self._now() - began

        return call


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--checkpoint-every", default="5s")
    parser.add_argument("--checks", action="store_true")
    parser.add_argument("--folder", default="/var/tmp")
    parser.add_argument("--model")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the folder goes
    every = parse_duration(options.checkpoint_every)
    if options.checks:
        measure_checks(options.rounds, every, options.folder, options.model)
        return
    jobs, hashes = Clock(), Clock()
    for name in ("__enter__", "__exit__", "add", "append", "checkpoint", "complete", "place"):
        setattr(Job, name, jobs.timed(getattr(Job, name)))
    Fingerprint._hash_all = hashes.timed(Fingerprint._hash_all)  # type: ignore[method-assign]
    shares = []
    for turn in range(options.rounds + 1):
        jobs.seconds = hashes.seconds = 0.0
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            files, began = Counted(), time.perf_counter()
            names = Names(str(Path(folder) / "out.jsonl"))
            job = JobOptions((str(SAMPLE),), names, model=options.model, checkpoint_every=every)
            outcome = run_job(job, files=files)
            seconds = time.perf_counter() - began
        if not turn:
            continue  # it warms the file cache
        shares.append((jobs.seconds + hashes.seconds) / seconds)
        print(
            f"{outcome.counts.pairs:,} pairs in {seconds:.1f} s; job and journal {1000 * jobs.seconds:.0f} ms, "
            f"hashes {1000 * hashes.seconds:.0f} ms: {100 * shares[-1]:.2f} %; "
            + ", ".join(f"{files.calls[name]} {name}" for name in ("write", "fsync", "sync_folder", "rename"))
        )
    print(f"\n{100 * statistics.median(shares):.2f} % ({100 * min(shares):.2f} to {100 * max(shares):.2f}) {machine()}")


def measure_checks(rounds: int, every: float, where: str, model: str | None) -> None:
    """Print what the checks cost, as time in them and as the difference of runs in turns."""
    real = {(kind, name): getattr(kind, name) for kind, names in CHECKS.items() for name in names}
    clock, seconds = Clock(time.thread_time), {"with": [], "without": []}  # type: ignore[var-annotated]
    shares = []
    for turn in range(2 * rounds + 1):
        how = "without" if turn % 2 else "with"
        clock.seconds = 0.0
        for (kind, name), function in real.items():
            trusting = turn % 2 and kind is not RunPaths
            setattr(kind, name, (_trust if kind is Seal else _look_away) if trusting else clock.timed(function))
        with tempfile.TemporaryDirectory(dir=where) as folder:
            began = time.process_time()
            names = Names(str(Path(folder) / "out.jsonl"))
            run_job(JobOptions((str(SAMPLE),), names, model=model, checkpoint_every=every))
            taken = time.process_time() - began
        if not turn:
            continue  # it warms the file cache
        seconds[how].append(taken)
        if how == "with":
            shares.append(clock.seconds / taken)
            print(f"{taken:.2f} s of CPU, {1000 * clock.seconds:.1f} ms in checks: {100 * shares[-1]:.3f} %")
    difference = statistics.median(seconds["with"]) / statistics.median(seconds["without"]) - 1
    print(
        f"\nin checks {100 * statistics.median(shares):.3f} %; with and without {100 * difference:+.2f} % "
        f"({', '.join(f'{how} {min(all_):.2f} to {max(all_):.2f} s' for how, all_ in seconds.items())}) {machine()}"
    )


def _look_away(*_: Any, **__: Any) -> None:
    pass


def _trust(seal: Seal, path: Path) -> bool:
    seal.seen = path.stat()
    return True


if __name__ == "__main__":
    main()
