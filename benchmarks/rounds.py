"""Sides that take turns over the same work, and the figures of each: see `speed.py` for what they mean."""

from __future__ import annotations

import datetime
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.ceiling import product_speed
from benchmarks.peers.process import Answer, PeerFailedError, PeerProcess, Ready
from benchmarks.peers.sides import Side, interpreter
from rerank_cli.checkpoint import Checkpoint
from rerank_cli.report.utilisation import forward_flops

MIB = 2**20
TOP = 10
REFERENCE = "rerank-cli fp32"


@dataclass(frozen=True, slots=True)
class Work:
    """What all sides are given.

    file: as `serving.py` reads it. lengths: real tokens of each pair. lists: pairs of each list, in order. unit: what
    an entry of the file is, a list or a pair.
    """

    checkpoint: Checkpoint
    file: Path
    lengths: list[int]
    lists: list[int]
    unit: str
    told: str

    def first(self, lists: int) -> int:
        """How many entries of the file the first lists are."""
        return min(lists, len(self.lists)) if self.unit == "list" else sum(self.lists[:lists])


@dataclass(slots=True)
class Measured:
    """What the rounds of a side gave. failure: why there are none, or no more."""

    batch_size: int | None = None
    ready: list[Ready] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class Rounds:
    """How it is measured. cpu_time: seconds are those that threads worked."""

    work: Work
    threads: int
    cpu_time: bool
    environments: Path

    def run(self, sides: Sequence[Side], rounds: int) -> dict[str, Any]:
        """All rounds of all sides, as the figures that are written and shown."""
        prepared = {side.prepare: self._prepare(side) for side in {side.prepare: side for side in sides}.values()}
        found = {side.name: Measured(failure=prepared[side.prepare]) for side in sides}
        speeds: dict[str, list[float]] = {side.precision: [] for side in sides}
        for turn in range(rounds):
            for precision, values in speeds.items():
                values.append(self._product_speed(precision))
            for side in sides:
                if found[side.name].failure is None:
                    self._turn(side, found[side.name])
                    print(f"round {turn + 1}, {side.name}: {self._told(found[side.name])}", flush=True)
        ceilings = {precision: statistics.median(values) for precision, values in speeds.items()}
        return {
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "work": self.work.told,
            "threads": self.threads,
            "clock": "cpu" if self.cpu_time else "wall",
            "rounds": rounds,
            "gflops_of_products": {precision: round(value / 1e9, 1) for precision, value in ceilings.items()},
            "sides": [
                {"name": side.name, "precision": side.precision} | self._figures(side, found, ceilings)
                for side in sides
            ],
        }

    def _process(self, module: str, environment: str | None, settings: Mapping[str, Any]) -> PeerProcess:
        return PeerProcess(interpreter(environment, self.environments), f"benchmarks.peers.{module}", settings)

    def _settings(self, side: Side) -> dict[str, Any]:
        common = {"checkpoint": str(self.work.checkpoint.path), "work": str(self.work.file), "threads": self.threads}
        return common | {"precision": side.precision} | dict(side.settings)

    def _prepare(self, side: Side) -> str | None:
        """Have the side write what it needs beside the checkpoint; returns why it could not."""
        if side.prepare is None:
            return None
        try:
            with self._process(*side.prepare, self._settings(side)) as peer:
                print(f"{side.prepare[0]}: {peer.ready.seconds:.0f} s", flush=True)
        except PeerFailedError as error:
            return str(error)
        return None

    def _turn(self, side: Side, measured: Measured) -> None:
        try:
            with self._process(side.module, side.environment, self._settings(side)) as peer:
                if len(side.batch_sizes) > 1 and measured.batch_size is None:
                    some = self.work.first(2)
                    peer.score(batch_size=side.batch_sizes[0], first=self.work.first(1))
                    tried = {size: self._seconds(peer.score(batch_size=size, first=some)) for size in side.batch_sizes}
                    measured.batch_size = min(tried, key=lambda size: tried[size])
                elif side.batch_sizes:
                    measured.batch_size = measured.batch_size or side.batch_sizes[0]
                peer.score(batch_size=measured.batch_size, first=self.work.first(1))
                answer = peer.score(batch_size=measured.batch_size)
                measured.ready.append(peer.ready)
                measured.answers.append(answer)
        except PeerFailedError as error:
            measured.failure = str(error)

    def _seconds(self, timed: Answer | Ready) -> float:
        return timed.cpu_seconds if self.cpu_time else timed.seconds

    def _told(self, measured: Measured) -> str:
        if measured.failure is not None:
            return measured.failure
        return f"{len(self.work.lengths) / self._seconds(measured.answers[-1]):.2f} pairs/s"

    def _figures(self, side: Side, found: Mapping[str, Measured], ceilings: Mapping[str, float]) -> dict[str, Any]:
        measured = found[side.name]
        if measured.failure is not None:
            return {"failure": measured.failure}
        seconds = [self._seconds(answer) for answer in measured.answers]
        tokens, answer = sum(self.work.lengths), measured.answers[-1]
        flops = forward_flops(self.work.checkpoint, tokens=tokens, squares=sum(n**2 for n in self.work.lengths))
        median = statistics.median(seconds)
        figures = {
            "version": measured.ready[-1].version,
            "batch_size": measured.batch_size,
            "pairs_per_second": spread([len(self.work.lengths) / one for one in seconds]),
            "tokens_per_second": round(tokens / median),
            "start_seconds": spread([self._seconds(ready) for ready in measured.ready]),
            "peak_rss_mib": round(statistics.median(one.peak_rss_bytes for one in measured.answers) / MIB),
            "padding": round(1 - answer.real / answer.computed, 3),
            "utilisation": round(flops / median / ceilings[side.precision], 3),
            "ours_is": self._ratios(found, seconds),
        }
        reference = found.get(REFERENCE)
        if reference and reference.answers:
            right = reference.answers[-1].logits
            apart = max(abs(a - b) for a, b in zip(right, answer.logits, strict=True))
            figures |= {"max_logit_difference": float(f"{apart:.1e}"), "top10_overlap": self._overlap(right, answer)}
        return figures

    def _ratios(self, found: Mapping[str, Measured], seconds: Sequence[float]) -> dict[str, dict[str, float]]:
        """How many times as fast each of ours is, round by round."""
        return {
            name: spread([a / self._seconds(b) for a, b in zip(seconds, ours.answers, strict=True)])
            for name, ours in found.items()
            if name.startswith("rerank-cli") and ours.failure is None
        }

    def _product_speed(self, precision: str) -> float:
        hidden, inner = (self.work.checkpoint.integer(name) for name in ("hidden_size", "intermediate_size"))
        clock = time.process_time if self.cpu_time else time.perf_counter
        return product_speed(precision, hidden, inner, clock)

    def _overlap(self, right: Sequence[float], answer: Answer) -> float:
        """How much of the reference's ten best of a list are among the answer's, the mean over the lists."""
        shares, start = [], 0
        for count in self.work.lists:
            best = [set(_best(logits[start : start + count])) for logits in (right, answer.logits)]
            shares.append(len(best[0] & best[1]) / len(best[0]))
            start += count
        return round(statistics.mean(shares), 3)


def _best(logits: Sequence[float]) -> list[int]:
    return sorted(range(len(logits)), key=lambda place: -logits[place])[:TOP]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most."""
    return {
        "median": float(f"{statistics.median(values):.4g}"),
        "least": float(f"{min(values):.4g}"),
        "most": float(f"{max(values):.4g}"),
    }
