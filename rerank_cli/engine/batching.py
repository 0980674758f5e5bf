"""Encoded pairs to batches within a token budget, one after another, and what happens where one does not fit in memory.

Longest first: pairs of equal length become neighbours, which makes attention faster, and the first batch is the hardest
on memory. Packed models pay for the tokens that are there, so a batch is filled up: where the next pair does not fit,
the longest one that does is taken. Nearly all batches then have the same number of tokens, and little filler is needed
for a round number of rows (`models/packed.py`; 0.5 % for 11,250 pairs of cranfield, 4.7 % without filling up). Padded
models pay for the longest pair times the number of pairs. Either way a pair longer than the budget is a batch of its
own.

How much a batch needs is estimated before a run, and other programs take memory during it. So a batch that does not fit
is computed in halves, halves of halves and so on. The budget drops to the size of the half, and larger batches are cut
at once. After every `_GOOD_BATCHES` batches that fit, it grows by a quarter, at most to the plan's. A single pair that
does not fit has no score; it becomes a bad row.

Logits can move in their last digit with the batch they were computed in. A run in which memory ran out is therefore
only equal to another one within the tolerance of batching.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from rerank_cli.encoding.encoder import EncodingProblem
from rerank_cli.engine.lanes import Lanes
from rerank_cli.engine.protocols import Trouble
from rerank_cli.models import RerankModel, SeesImages
from rerank_cli.planning.memory.pieces import rounded_rows
from rerank_cli.records import EncodedPair

T = TypeVar("T")
Launched = tuple[list[int], Tensor]
"""Places of the pairs of a batch, and their results, float32, on the model's device, which may still compute them."""

_GOOD_BATCHES = 16
_GROWTH = 1.25
# Words of errors that mean that memory ran out, for which torch has no class: of its allocator for the CPU
# (c10/core/impl/alloc_cpu.cpp), of CUDA where something else than torch's allocator asked for memory (a buffer on the
# host, the code or the stack of a kernel: cudaErrorMemoryAllocation, after which a device goes on), of Triton where it
# loads a kernel, and of cuBLAS.
_FULL = (
    "can't allocate memory",
    "CUDA error: out of memory",
    "Triton Error [CUDA]: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


def plan_batches(lengths: Sequence[int], *, token_budget: int, padded: bool = False) -> Iterator[list[int]]:
    """Cut pairs of these lengths into batches of at most `token_budget` tokens; yields lists of places in `lengths`.

    Every place is in exactly one batch, the longest of a batch first. padded: a batch counts as its longest pair times
    its number of pairs.
    """
    # Shortest first, as the longest are taken most often, from the end; of equal ones the first in the input last.
    waiting = sorted(range(len(lengths)), key=lambda place: (lengths[place], -place))
    if padded:
        while waiting:
            count = max(1, token_budget // max(1, lengths[waiting[-1]]))
            yield waiting[: -count - 1 : -1]
            del waiting[-count:]
        return
    sizes = [lengths[place] for place in waiting]
    while waiting:
        batch: list[int] = []
        room, index = token_budget, len(waiting) - 1
        while index >= 0:
            room -= sizes.pop(index)
            batch.append(waiting.pop(index))
            index = bisect_right(sizes, room, 0, index) - 1
        yield batch


class FittingBatches:
    """Batches of pairs of one model. token_budget: the plan's; `tokens` is what a batch may hold at the moment."""

    def __init__(self, token_budget: int, *, padded: bool = False) -> None:
        self._most = token_budget
        self._padded = padded
        self._good = 0
        self.tokens = token_budget

    def run(
        self,
        lengths: Sequence[int],
        compute: Callable[[list[int]], T],
        trouble: Trouble,
        lanes: Lanes | None = None,
    ) -> Iterator[tuple[list[int], T]]:
        """Each batch of places in `lengths` with what `compute` makes of it.

        A place that does not fit alone is in none of them, but in `trouble`. lanes: where batches are computed side by
        side, if there are enough of them; those after one that did not fit have all cores each.
        """
        waiting = list(plan_batches(lengths, token_budget=self.tokens, padded=self._padded))
        waiting.reverse()
        side = lanes if lanes and len(waiting) >= lanes.least else None
        under_way: deque[tuple[list[int], Callable[[], T], Callable[[], bool]]] = deque()
        try:
            while waiting or under_way:
                while waiting and len(under_way) <= (side.count if side else 0):
                    batch = waiting.pop()
                    if len(batch) > 1 and self._size(batch, lengths) > self.tokens:
                        waiting += _halves(batch)
                        continue
                    if side:
                        started = side.start(partial(compute, batch))
                        under_way.append((batch, started.result, started.cancel))
                    else:
                        under_way.append((batch, partial(compute, batch), lambda: True))
                batch, result, _ = under_way.popleft()
                size = self._size(batch, lengths)
                made = run_if_it_fits(result)
                if made is None and side:
                    side = None  # other lanes take memory too: this batch is tried once more, by itself
                    waiting.append(batch)
                    continue
                if made is not None:
                    trouble.computed += size if self._padded else rounded_rows(size)
                    self._good += 1
                    if self._good % _GOOD_BATCHES == 0:
                        self.tokens = min(self._most, int(self.tokens * _GROWTH) + 1)
                    yield batch, made[0]
                    continue
                trouble.splits += 1
                self._good = 0
                self.tokens = max(1, min(self.tokens, size // 2))
                if len(batch) > 1:
                    waiting += _halves(batch)
                else:
                    trouble.failed[batch[0]] = out_of_memory(f"the pair alone, with {lengths[batch[0]]} tokens,")
        finally:
            for _, _, cancel in under_way:
                cancel()

    def _size(self, batch: Sequence[int], lengths: Sequence[int]) -> int:
        found = [lengths[place] for place in batch]
        return max(found) * len(found) if self._padded else sum(found)


def launch_batches(
    model: RerankModel,
    pairs: Sequence[EncodedPair],
    batches: FittingBatches,
    trouble: Trouble,
    lanes: Lanes | None = None,
) -> Iterator[Launched]:
    """Hand over a batch with each step, until all of `pairs` are; pairs without a logit are in `trouble`.

    lanes: see `FittingBatches.run`. The caller must be in inference mode: set in here, the mode would last from one
    step to the next.
    """
    if isinstance(model, SeesImages) and not run_if_it_fits(partial(model.see, pairs)):
        yield from _launch_in_halves(model, pairs, batches, trouble, lanes)
        return
    lengths = [len(pair.input_ids) for pair in pairs]
    yield from batches.run(lengths, lambda batch: model.forward([pairs[place] for place in batch]), trouble, lanes)


def _launch_in_halves(
    model: RerankModel,
    pairs: Sequence[EncodedPair],
    batches: FittingBatches,
    trouble: Trouble,
    lanes: Lanes | None,
) -> Iterator[Launched]:
    """`launch_batches` of pairs whose images do not fit all at once: half of the images first, then the others."""
    trouble.splits += 1
    images = [pair.block and pair.block.image for pair in pairs]
    distinct = list(dict.fromkeys(image for image in images if image is not None))
    assert distinct, "texts need no memory before their batches"
    first = set(distinct[: len(distinct) // 2])
    if not first:
        for place in (place for place, image in enumerate(images) if image is not None):
            trouble.failed[place] = out_of_memory("the image alone")
    halves = [
        [place for place, image in enumerate(images) if image in first],
        [place for place, image in enumerate(images) if image not in first and place not in trouble.failed],
    ]
    for half in halves:
        own = Trouble()
        for batch, logits in launch_batches(model, [pairs[place] for place in half], batches, own, lanes):
            yield [half[place] for place in batch], logits
        trouble.add(own, half)


def _halves(batch: list[int]) -> list[list[int]]:
    """Both halves, the one to be computed first last."""
    middle = len(batch) // 2
    return [batch[middle:], batch[:middle]]


def out_of_memory(what: str) -> EncodingProblem:
    """The problem of a pair that has no score because memory ran out."""
    return EncodingProblem("out-of-memory", f"{what} does not fit in memory")


def run_if_it_fits(compute: Callable[[], T]) -> tuple[T] | None:
    """What `compute` returns, in a tuple; None where memory ran out."""
    try:
        return (compute(),)
    except (torch.OutOfMemoryError, MemoryError):
        pass
    except RuntimeError as error:
        if not any(message in str(error) for message in _FULL):
            raise
    # Out here the exception is gone, and with it the frames that held the batch's memory.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def load_where_it_fits(load: Callable[[str], T], device: str) -> tuple[T, str]:
    """`load(device)` and "", or where the device has no room `load("cpu")` and what the report says of that."""
    found = run_if_it_fits(partial(load, device))
    return (found[0], "") if found else (load("cpu"), f"; fp32 reruns on the CPU, as {device} has no room for them")
