"""Stopping early inside the built-in model: what a linear head on [CLS] of an early layer knows of the final order.

    python -m benchmarks.early_stop COLLECTION [--fit N] [--short N] [--long N] [--seconds S] [--precision P]

The head is fitted by ridge regression of the final logits on the [CLS] of a layer, over the first `--fit` lists of 50.
The rule of `--first-keep auto` (`job/cascade/choice.py`) then takes from these lists how many of a list go on, and the
other lists say what that is worth: the share that goes on, and the top-10 overlap with the whole model. A list of
1,000 is the list of a query, and passages drawn from those of others; its rule is made by the first one.

The cost of a layer is its share of the seconds that the threads worked in the whole forward, in `--precision`. From it:

    inside      all pairs run to the layer, the share goes on from there: 1 / (c + share (1 - c))
    int8 first  the layers and the head in int8 before the whole model in fp32: 1 / (c / INT8 + share), without what the
                share's own hidden states would spare, as they are those of another precision

No more lists are begun after `--seconds`.
"""

from __future__ import annotations

import argparse
import random
import time
from collections import defaultdict
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.cascade import LONG, TOP, Side
from benchmarks.material import candidate_lists, machine, read_lists
from rerank_cli.engine.batching import plan_batches
from rerank_cli.job.cascade.choice import Agreement, choose, make_rule
from rerank_cli.job.first_scorer import Asked
from rerank_cli.models import DTYPES
from rerank_cli.models.encoder import EncoderCrossEncoder
from rerank_cli.models.packed import pack

LAYERS = (2, 4, 6, 8)
INT8 = 2.56
"""How many times fp32's speed the built-in model has in int8 (RESULTS.md, speed beside every peer, on an AMD)."""

Floats = npt.NDArray[np.float64]


class Layers:
    """The built-in model, which also gives the [CLS] of early layers, and what each layer has cost."""

    def __init__(self, precision: str) -> None:
        self.side = Side(precision)
        self.model: Any = EncoderCrossEncoder(
            self.side.prepared.checkpoint, device=torch.device("cpu"), dtype=DTYPES[precision], attention="auto"
        )
        self.spent: dict[int, float] = defaultdict(float)

    @torch.inference_mode()
    def read(self, query: str, passages: list[str]) -> tuple[dict[int, Floats], Floats]:
        """[CLS] of each of `LAYERS` by its number, and the logits."""
        pairs = self.side.encoded(query, passages)
        first = {layer: np.zeros((len(pairs), self.model._shape.hidden)) for layer in LAYERS}
        logits = np.zeros(len(pairs))
        for places in plan_batches([len(pair.input_ids) for pair in pairs], token_budget=4096):
            batch = pack([pairs[place] for place in places], device=torch.device("cpu"))
            began = time.process_time()
            x = self.model._embed(batch)
            for number, (qkv, rest) in enumerate(zip(self.model._attentions, self.model._rests, strict=False), 1):
                x = rest.add_mlp(rest.add_attention(self.model._attend(qkv, x, batch), x))
                self.spent[number] += time.process_time() - began
                began = time.process_time()
                if number in LAYERS:
                    first[number][places] = x[batch.starts[: len(places)]].double().numpy()
            logits[places] = self.model._finish(x, batch).double().numpy()
            self.spent[0] += time.process_time() - began  # the last layer, for [CLS] alone
        return first, logits

    def share_until(self, layer: int) -> float:
        """The share of the forward's seconds up to a layer."""
        return sum(self.spent[one] for one in range(1, layer + 1)) / sum(self.spent.values())


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


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("collection")
    parser.add_argument("--fit", type=int, default=10)
    parser.add_argument("--short", type=int, default=60)
    parser.add_argument("--long", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=200)
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    given = parser.parse_args()
    began = time.perf_counter()
    everything = read_lists(candidate_lists(given.collection), lists=10**6, candidates=50)
    pool = [passage for _, passages in everything for passage in passages]
    chance = random.Random(19)
    model = Layers(given.precision)
    fitted = [model.read(*item) for item in everything[: given.fit]]
    heads = {
        layer: fit_head(np.concatenate([one[layer] for one, _ in fitted]), np.concatenate([last for _, last in fitted]))
        for layer in LAYERS
    }

    def both(read: tuple[dict[int, Floats], Floats], layer: int) -> tuple[Floats, Floats]:
        weights, bias = heads[layer]
        return read[0][layer] @ weights + bias, read[1]

    print(machine())
    print(f"{given.collection}: heads fitted on {given.fit} lists of 50, {given.precision}", flush=True)
    asked = Asked(same_model=False, precision=None, model=None, keep="auto", number=0, top=TOP)
    rest = everything[given.fit :]
    for length, count, until in ((50, given.short, 0.5), (LONG, given.long + 1, 1.0)):
        lists: list[tuple[dict[int, Floats], Floats]] = []
        for query, own in rest[:count]:
            if time.perf_counter() - began > until * given.seconds and len(lists) > 1:
                break
            more = chance.sample(pool, LONG) if length == LONG else []
            lists.append(model.read(query, (own + more)[:length]))
        makers = fitted if length == 50 else lists[:1]
        measured = lists if length == 50 else lists[1:]
        print(f"  {len(measured)} lists of {length}")
        for layer in LAYERS:
            rule = make_rule(asked, [both(one, layer) for one in makers])
            agreement, kept, passages = Agreement(TOP), 0, 0
            near = []
            for one in measured:
                first, second = both(one, layer)
                agreement.add(first, second, rule)
                kept += len(choose(first, second, rule).read)
                passages += len(second)
                near.append(np.corrcoef(first, second)[0, 1])
            told, share, cost = agreement.document(), kept / passages, model.share_until(layer)
            print(
                f"  | {layer} | {100 * cost:.0f} % | {np.mean(near):.3f} | {100 * share:.0f} % | "
                f"{told['overlap']:.4f} ({told['interval'][0]:.3f} to {told['interval'][1]:.3f}) | "
                f"{1 / (cost + share * (1 - cost)):.2f}x | {1 / (cost / INT8 + share):.2f}x |",
                flush=True,
            )


if __name__ == "__main__":
    main()
