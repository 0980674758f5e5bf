"""A cheap scorer first: speed and agreement of lists of 50 and of 1,000 beside fp32 alone and sentence-transformers.

    python -m benchmarks.cascade COLLECTION [--first int8|bf16] [--short N] [--long N] [--seconds S]

The built-in model reads lists in fp32, in the precision of `--first`, and again in fp32 what the choice wants (`exact`,
first 10). The first list of each length makes the bound and calibrates int8; it is in no figure, as a night has
thousands of others. A list of 1,000 is the list of a query, and passages drawn from those of others.

Told of each length: pairs a second of fp32 alone and of both scorers, their ratio, the share that is read again, and
the top-10 overlap of all lists with fp32 alone; and sentence-transformers in fp32 at its best batch size on pairs of
the same lists. Seconds are those that the threads of the process worked, as machines have other work. No more
lists are begun after `--seconds`.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.material import candidate_lists, machine, plain_checkpoint, read_lists
from rerank_cli.engine import NeedsCalibration, open_engine
from rerank_cli.job.cascade.choice import Agreement, ListChoice, make_rule
from rerank_cli.job.first_scorer import Asked
from rerank_cli.job.image_parts import pairs_of
from rerank_cli.job.options import JobOptions, Names
from rerank_cli.job.prepare import find_known, prepare_model
from rerank_cli.planning.choices import ProfileRequest

LONG = 1000
TOP = 10
PEER_PAIRS = 64


class Side:
    """The built-in model in one precision."""

    def __init__(self, precision: str) -> None:
        options = JobOptions(("-",), Names("-"), request=ProfileRequest(precision=precision))
        self.prepared = prepare_model(options, find_known(options))
        self.engine: Any = open_engine(self.prepared.plan, self.prepared.checkpoint)

    def encoded(self, query: str, passages: list[str]) -> list[Any]:
        """Token ids of a list."""
        return pairs_of(self.prepared.encoder.encode([(query, passage) for passage in passages]))

    def score(self, pairs: list[Any]) -> tuple[Any, float]:
        """Logits, and the seconds that they took."""
        if not pairs:
            return np.zeros(0), 0.0
        if isinstance(self.engine, NeedsCalibration) and self.engine.needs_calibration:
            self.engine.calibrate(pairs)
        began = time.process_time()
        logits = self.engine.submit(pairs).scores().logits
        return logits.astype(np.float64), time.process_time() - began


def _peer(texts: list[tuple[str, str]]) -> tuple[float, int]:
    """Pairs a second of sentence-transformers in fp32, and its best batch size."""
    from sentence_transformers import CrossEncoder

    with tempfile.TemporaryDirectory() as folder:
        path = plain_checkpoint(Path(folder), layers=12)
        model = CrossEncoder(str(path), max_length=512, device="cpu")
        model.predict(texts[:8], show_progress_bar=False)
        speeds = {}
        for size in (4, 16):
            began = time.process_time()
            model.predict(texts, batch_size=size, show_progress_bar=False)
            speeds[size] = len(texts) / (time.process_time() - began)
    best = max(speeds, key=lambda size: speeds[size])
    return speeds[best], best


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("collection")
    parser.add_argument("--first", default="int8")
    parser.add_argument("--short", type=int, default=12)
    parser.add_argument("--long", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=200)
    given = parser.parse_args()
    until = time.perf_counter() + given.seconds
    source = candidate_lists(given.collection)
    everything = read_lists(source, lists=10**6, candidates=50)
    pool = [passage for _, passages in everything for passage in passages]
    chance = random.Random(19)
    cheap, dear = Side(given.first), Side("fp32")
    print(machine())
    asked = Asked(same_model=True, precision=given.first, model=None, keep="exact", number=0, top=TOP)
    speed, batch = _peer([(query, passage) for query, passages in everything[:4] for passage in passages[:16]])
    print(f"{given.collection}: sentence-transformers fp32, batch {batch}: {speed:.1f} pairs/s of {PEER_PAIRS} pairs")
    for length, lists in ((50, given.short), (LONG, given.long)):
        rule, agreement = None, Agreement(TOP)
        spent = {"alone": 0.0, "first": 0.0, "again": 0.0}
        pairs = read = 0
        for query, own in everything[: lists + 1]:
            if time.perf_counter() > until and agreement.lists:
                break
            passages = own if length == 50 else (own + chance.sample(pool, LONG))[:LONG]
            encoded = dear.encoded(query, passages)
            first, of_first = cheap.score(encoded)
            second, alone = dear.score(encoded)
            if rule is None:
                rule = make_rule(asked, [(first, second)])
                continue
            choice = ListChoice(first, rule)
            while wanted := choice.wanted():
                logits, again = dear.score([encoded[place] for place in wanted])
                choice.put(wanted, logits.tolist())
                spent["again"] += again
            agreement.add(first, second, rule)
            spent["alone"] += alone
            spent["first"] += of_first
            pairs += len(passages)
            read += len(choice.read)
        if rule is None or not agreement.lists:
            print(f"  lists of {length}: no time was left")
            continue
        both, told = spent["first"] + spent["again"], agreement.document()
        print(
            f"{told['lists']} lists of {length}: fp32 alone {pairs / spent['alone']:.1f} pairs/s, {given.first} first "
            f"{pairs / both:.1f} ({spent['alone'] / both:.2f}x; it alone {pairs / spent['first']:.1f}), "
            f"{pairs / both / speed:.2f}x sentence-transformers; read again {100 * read / pairs:.1f} %; "
            f"top-10 overlap {told['overlap']:.4f} ({told['interval'][0]:.3f} to {told['interval'][1]:.3f}), "
            f"bound {rule.over:.3f} of {rule.bound.pairs if rule.bound else 0} pairs",
            flush=True,
        )


if __name__ == "__main__":
    main()
