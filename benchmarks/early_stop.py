"""Stopping early inside the built-in model: what a linear head on [CLS] of an early layer knows of the final order.

    python -m benchmarks.early_stop COLLECTION [--length 50|1000] [--sampled N] [--lists N] [--seconds S] [--keep DIR]

The layers run in int8, which is the cheapest first scorer. As a run would do, the head is fitted on its first
`--sampled` lists, by ridge regression of the final logits on the [CLS] of a layer, and the rule of `--first-keep auto`
(`job/cascade/choice.py`) takes from the same lists how many of a list go on. All other lists say what that is worth:
the share that goes on, and the top-10 overlap with fp32. So that one beginning does not decide, each block of
`--sampled` lists is the sample in turn. A list of 1,000 is the list of a query, and passages drawn from those of
others; its ten best are found as in `cascade.py`.

The cost of a layer is its share of the seconds that the threads worked in the forward. From it, and from the speed of
int8 that `--int8` says in times fp32, with so many read again by fp32 in the end as `--exact` says:

    fp32 next   what goes on is read by fp32: 1 / (c / INT8 + share)
    int8 next   it is read in int8, and what can still be among the first by fp32: 1 / (c / INT8 + share / INT8 + EXACT)

No more lists are begun after `--seconds`. With `--keep` what was read stays, and the next call goes on behind it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.cascade import LONG, TOP, Side, drawn_lists, near_best
from benchmarks.material import machine
from rerank_cli.engine.batching import plan_batches
from rerank_cli.job.agreement import Agreement
from rerank_cli.job.cascade.choice import add_list, agreement_document, choose, make_rule
from rerank_cli.job.first_scorer import Asked
from rerank_cli.models.int8_encoder import Int8Encoder
from rerank_cli.models.packed import pack

LAYERS = (2, 4, 6, 8)

Floats = npt.NDArray[np.float64]


class Layers:
    """The built-in model in int8, which also gives the [CLS] of early layers, and what each layer has cost."""

    def __init__(self) -> None:
        self.side, self.exact = Side("int8"), Side("fp32")
        plan, checkpoint = self.side.prepared.plan, self.side.prepared.checkpoint
        self.model: Any = Int8Encoder(
            checkpoint, device=torch.device("cpu"), dtype=torch.float32, attention=plan.attention
        )
        self.spent: dict[int, float] = defaultdict(float)

    def calibrate(self, pairs: list[Any]) -> None:
        """As a run is by its first list."""
        self.side.engine.calibrate(pairs)
        self.model.use(self.side.engine.calibration)

    @torch.inference_mode()
    def read(self, pairs: list[Any]) -> dict[str, Floats]:
        """[CLS] of each of `LAYERS`, the logits, and those in fp32 of what is near the best."""
        self.spent.clear()
        found = {f"layer{layer}": np.zeros((len(pairs), self.model._shape.hidden)) for layer in LAYERS}
        logits = np.zeros(len(pairs))
        for places in plan_batches([len(pair.input_ids) for pair in pairs], token_budget=2048):
            batch = pack([pairs[place] for place in places], device=torch.device("cpu"))
            began = time.process_time()
            x = self.model._embed(batch)
            room = torch.empty_like(x)
            for number, layer in enumerate(self.model._layers, 1):
                x = self.model._run(layer, x, batch, room)
                self.spent[number] += time.process_time() - began
                if number in LAYERS:
                    found[f"layer{number}"][places] = x[batch.starts[: len(places)]].double().numpy()
                began = time.process_time()
            logits[places] = self.model._finish(x, batch).double().numpy()
            self.spent[0] += time.process_time() - began  # the last layer, for [CLS] alone
        exact = np.full(len(pairs), np.nan)
        near = near_best(logits)
        exact[near], _ = self.exact.score([pairs[place] for place in near])
        return {**found, "logits": logits, "exact": exact, "spent": np.array([self.spent[n] for n in range(12)])}


def fit_head(rows: Floats, logits: Floats) -> tuple[Floats, float]:
    """Weights and bias of the ridge regression with the penalty that generalises best (the GCV of Golub et al.)."""
    mean, middle = rows.mean(axis=0), float(logits.mean())
    u, sizes, v = np.linalg.svd(rows - mean, full_matrices=False)
    turned = u.T @ (logits - middle)
    best: tuple[float, Floats] | None = None
    for penalty in np.geomspace(1e-3, 1e3, 25) * sizes[0] ** 2 / len(rows):
        shrunk = sizes**2 / (sizes**2 + penalty)
        error = float(((logits - middle - u @ (shrunk * turned)) ** 2).sum())
        score = error / (len(rows) - 1 - shrunk.sum()) ** 2
        if best is None or score < best[0]:
            best = score, v.T @ (shrunk / sizes * turned)
    assert best is not None, "there are penalties"
    return best[1], middle - float(mean @ best[1])


def _read_lists(given: argparse.Namespace, folder: Path) -> list[dict[str, Floats]]:
    until = time.perf_counter() + given.seconds
    model = Layers()
    read: list[dict[str, Floats]] = []
    for place, (query, passages) in enumerate(drawn_lists(given.collection, given.length)[: given.lists]):
        file = folder / f"{place}.npz"
        if file.exists():
            with np.load(file) as found:
                read.append(dict(found))
            continue
        if time.perf_counter() > until and read:
            break
        pairs = model.side.encoded(query, passages)
        if not model.model.calibrated:  # by the first list, in every call
            model.calibrate(
                pairs if place == 0 else model.side.encoded(*drawn_lists(given.collection, given.length)[0])
            )
        found = model.read(pairs)
        np.savez(file, **found)
        read.append(found)
    return read


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("collection")
    parser.add_argument("--length", type=int, default=LONG)
    parser.add_argument("--sampled", type=int, default=1)
    parser.add_argument("--lists", type=int, default=10**6)
    parser.add_argument("--seconds", type=float, default=400)
    parser.add_argument("--int8", type=float, default=2.56)
    parser.add_argument("--exact", type=float, default=0.025)
    parser.add_argument("--keep", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        lists = _read_lists(given, folder)
    print(machine())
    print(f"{given.collection}: {len(lists)} lists of {given.length}, {given.sampled} of them sampled, in turn")
    if len(lists) <= given.sampled:
        raise SystemExit("no list is left to measure on: a larger --seconds, and --keep to go on")
    asked = Asked(same_model=False, precision=None, model=None, keep="auto", number=0, top=TOP)
    spent = sum(one["spent"] for one in lists)
    for layer in LAYERS:
        agreement, kept, passages, near = Agreement(TOP), 0, 0, []
        for begin in range(0, len(lists) - given.sampled + 1, given.sampled):
            sample = lists[begin : begin + given.sampled]
            weights, bias = fit_head(
                np.concatenate([one[f"layer{layer}"] for one in sample]),
                np.concatenate([one["logits"] for one in sample]),
            )
            heads = [one[f"layer{layer}"] @ weights + bias for one in lists]
            rule = make_rule(
                asked, [(heads[place], lists[place]["exact"]) for place in range(begin, begin + given.sampled)]
            )
            for place, (one, head) in enumerate(zip(lists, heads, strict=True)):
                if begin <= place < begin + given.sampled:
                    continue
                add_list(agreement, head, one["exact"], rule)
                kept += len(choose(head, np.zeros(len(head)), rule).read)
                passages += len(head)
                near.append(np.corrcoef(head, one["logits"])[0, 1])
        told, share = agreement_document(agreement), kept / passages
        cost = float(spent[1 : layer + 1].sum() / spent.sum())
        fp32_next = 1 / (cost / given.int8 + share)
        int8_next = 1 / ((cost + share) / given.int8 + given.exact)
        print(
            f"| {layer} | {100 * cost:.0f} % | {np.mean(near):.3f} | {100 * share:.1f} % | {told['overlap']:.4f} | "
            f"{fp32_next:.2f}x | {int8_next:.2f}x |",
            flush=True,
        )


if __name__ == "__main__":
    main()
