"""A cheap scorer first: speed and agreement of lists of 50 and of 1,000 beside fp32 alone and sentence-transformers.

    python -m benchmarks.cascade COLLECTION [--first int8|bf16] [--length 50|1000] [--lists N] [--timed N]
                                 [--seconds S] [--log FILE] [--cpu-time] [--environments DIR] [--no-peer]

The built-in model reads lists in the precision of `--first`, and again in fp32 what the choice wants (`exact`, first
10). The first list of the collection makes the bound and calibrates int8; it is in no figure, as a night has thousands
of others. A list of 1,000 is the list of a query, and passages drawn from those of others.

fp32 alone reads `--timed` lists in full, whose speed is told. Of the other lists it reads what has a cheap score at
most `NEAR` below the tenth best, which is several times the bound: their ten best are those. Told are pairs a second of
fp32 alone and of both scorers, their ratio, the share that is read again, and the top-10 overlap of all lists with fp32
alone; and sentence-transformers in fp32 at its best batch size, in a process of its own, on pairs of the same lists.

No more lists are begun after `--seconds`. With `--log` what was measured is kept, and the next call goes on behind it.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.material import candidate_lists, machine, plain_checkpoint, read_lists
from benchmarks.peers.process import PeerProcess
from benchmarks.peers.sides import ENVIRONMENTS, interpreter
from rerank_cli.engine import NeedsCalibration, open_engine
from rerank_cli.job.agreement import Agreement, first_n
from rerank_cli.job.cascade.choice import ListChoice, Rule, agreement_document, make_rule
from rerank_cli.job.first_scorer import Asked
from rerank_cli.job.image_parts import pairs_of
from rerank_cli.job.options import JobOptions, Names
from rerank_cli.job.prepare import find_known, prepare_model
from rerank_cli.planning.choices import ProfileRequest

OWN, LONG, TOP = 50, 1000, 10
NEAR = 1.5
_PEER_LISTS, _PEER_BATCHES = 4, (4, 8, 16, 32)


class Side:
    """The built-in model in one precision. clock: tells seconds."""

    def __init__(self, precision: str, clock: Any = time.process_time) -> None:
        options = JobOptions(("-",), Names("-"), request=ProfileRequest(precision=precision))
        self.prepared = prepare_model(options, find_known(options))
        self.engine: Any = open_engine(self.prepared.plan, self.prepared.checkpoint)
        self._clock = clock

    def encoded(self, query: str, passages: list[str]) -> list[Any]:
        """Token ids of a list."""
        return pairs_of(self.prepared.encoder.encode([(query, passage) for passage in passages]))

    def score(self, pairs: list[Any]) -> tuple[Any, float]:
        """Logits, and the seconds that they took."""
        if not pairs:
            return np.zeros(0), 0.0
        if isinstance(self.engine, NeedsCalibration) and self.engine.needs_calibration:
            self.engine.calibrate(pairs)
        began = self._clock()
        logits = self.engine.submit(pairs).scores().logits
        return logits.astype(np.float64), self._clock() - began


def drawn_lists(collection: str, length: int) -> list[tuple[str, list[str]]]:
    """Lists of a collection, filled up to `length` with passages of others; the same ones each time."""
    everything = read_lists(candidate_lists(collection), lists=10**6, candidates=OWN)
    if length <= OWN:
        return everything
    pool = [passage for _, passages in everything for passage in passages]
    chance = random.Random(19)
    return [(query, own + chance.sample(pool, length - len(own))) for query, own in everything]


def near_best(cheap: Any, top: int = TOP) -> list[int]:
    """Places whose cheap score is at most `NEAR` below that of the worst of the best."""
    least = np.sort(cheap)[-min(top, len(cheap))]
    found: list[int] = np.flatnonzero(cheap >= least - NEAR).tolist()
    return found


@dataclass
class Sums:
    """What was measured so far. done: lists, that of the rule included."""

    rule: dict[str, Any] | None = None
    done: int = 0
    timed_pairs: int = 0
    alone: float = 0.0
    pairs: int = 0
    first: float = 0.0
    again: float = 0.0
    read: int = 0
    agreement: dict[str, Any] = field(default_factory=lambda: asdict(Agreement(TOP)))


def measure_list(sums: Sums, cheap: Side, dear: Side, query: str, passages: list[str], *, timed: bool) -> None:
    """Add a list."""
    assert sums.rule is not None, "the first list makes it"
    rule = Rule.of_state(sums.rule)
    encoded = dear.encoded(query, passages)
    first, of_first = cheap.score(encoded)
    choice = ListChoice(first, rule)
    while wanted := choice.wanted():
        logits, again = dear.score([encoded[place] for place in wanted])
        choice.put(wanted, logits.tolist())
        sums.again += again
    truth = np.full(len(first), np.nan)
    places = list(range(len(first))) if timed else near_best(first)
    truth[places], alone = dear.score([encoded[place] for place in places])
    if timed:
        sums.timed_pairs += len(passages)
        sums.alone += alone
    agreement = Agreement(**sums.agreement)
    agreement.add(first_n(truth, TOP), first_n(choice.second, TOP), passages=len(passages))
    sums.agreement = asdict(agreement)
    sums.first += of_first
    sums.pairs += len(passages)
    sums.read += len(choice.read)
    sums.done += 1


def peer_speed(lists: list[tuple[str, list[str]]], environments: Path, *, cpu_time: bool) -> tuple[float, int, str]:
    """Pairs a second of sentence-transformers in fp32, its best batch size and its version."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, work = Path(folder) / "model", Path(folder) / "work.json"
        work.write_text(json.dumps(lists))
        settings = {
            "checkpoint": str(plain_checkpoint(checkpoint)), "work": str(work), "backend": "torch", "precision": "fp32",
            "threads": Side("fp32").prepared.plan.threads,
        }  # fmt: skip
        module = "benchmarks.peers.sentence_transformers_ce"
        with PeerProcess(interpreter("sentence-transformers", environments), module, settings) as peer:
            peer.score(batch_size=_PEER_BATCHES[0], first=1)
            speeds: dict[int, float] = {}
            for size in _PEER_BATCHES:
                answer = peer.score(batch_size=size)
                speeds[size] = len(answer.logits) / (answer.cpu_seconds if cpu_time else answer.seconds)
            best = max(speeds, key=lambda size: speeds[size])
            return speeds[best], best, peer.ready.version


def told(sums: Sums, name: str, length: int, peer: float | None) -> str:
    """The figures in a line."""
    if not sums.pairs or not sums.timed_pairs or sums.rule is None:
        return "no list was measured yet"
    found, rule = agreement_document(Agreement(**sums.agreement)), Rule.of_state(sums.rule)
    alone, both = sums.timed_pairs / sums.alone, sums.pairs / (sums.first + sums.again)
    against = "" if peer is None else f"{both / peer:.2f}x sentence-transformers, "
    return (
        f"{found['lists']} lists of {length}: fp32 alone {alone:.1f} pairs/s, {name} alone "
        f"{sums.pairs / sums.first:.1f}, {name} first {both:.1f}: {both / alone:.2f}x fp32, {against}"
        f"read again {100 * sums.read / sums.pairs:.1f} %; top-10 overlap {found['overlap']:.4f} "
        f"({found['interval'][0]:.3f} to {found['interval'][1]:.3f}), same order {found['same_order']}; bound "
        f"{rule.over:.3f} of {rule.bound.pairs if rule.bound else 0} pairs"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("collection")
    parser.add_argument("--first", default="int8")
    parser.add_argument("--length", type=int, default=LONG)
    parser.add_argument("--lists", type=int, default=10**6)
    parser.add_argument("--timed", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--log", type=Path)
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--environments", type=Path, default=ENVIRONMENTS)
    parser.add_argument("--no-peer", action="store_true")
    given = parser.parse_args()
    until = time.perf_counter() + given.seconds
    clock = time.process_time if given.cpu_time else time.perf_counter
    lists = drawn_lists(given.collection, given.length)[: given.lists + 1]
    print(machine())
    print(
        f"{given.collection}, built-in model, seconds {'of the CPU' if given.cpu_time else 'by the clock'}", flush=True
    )
    peer = None
    if not given.no_peer:
        some = [(query, passages[:16]) for query, passages in lists[:_PEER_LISTS]]
        peer, batch, version = peer_speed(some, given.environments, cpu_time=given.cpu_time)
        print(f"{version}, fp32, batch {batch}: {peer:.1f} pairs/s", flush=True)
    cheap, dear = Side(given.first, clock), Side("fp32", clock)
    sums = Sums(**json.loads(given.log.read_text())) if given.log and given.log.exists() else Sums()
    asked = Asked(same_model=True, precision=given.first, model=None, keep="exact", number=0, top=TOP)
    query, passages = lists[0]
    encoded = dear.encoded(query, passages)
    first, _ = cheap.score(encoded)  # in every call: it calibrates
    if sums.rule is None:
        sums.rule, sums.done = make_rule(asked, [(first, dear.score(encoded)[0])]).state, 1
        if given.log:
            given.log.write_text(json.dumps(asdict(sums)))
    while sums.done < len(lists) and (time.perf_counter() < until or not sums.pairs):
        measure_list(sums, cheap, dear, *lists[sums.done], timed=sums.done <= given.timed)
        if given.log:
            given.log.write_text(json.dumps(asdict(sums)))
    print(told(sums, given.first, given.length, peer), flush=True)


if __name__ == "__main__":
    main()
