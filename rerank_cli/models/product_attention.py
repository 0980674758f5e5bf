"""Attention by matrix products, for bfloat16 on a CPU: two batched products and one exponential.

Without tiles (AMX) torch's flash kernel multiplies bfloat16 on a CPU no faster than float32 (50 GFLOP/s a core on
Zen 4, torch 2.13); the products of oneDNN reach 200. With them it is the faster one, and this is not used
(`planning/cpu_kernels.py`). What is needed to get there:

* Contiguous heads. Queries, keys and values are copied into blocks [pairs, heads, length, head_dim]; the copies cost
  less than products of views do.
* Few shapes. oneDNN compiles a kernel for every shape of a product, half a millisecond each: more than the product of a
  pair of 300 tokens takes. So blocks have lengths that are multiples of 16 and whole powers of 2 of pairs (`blocks`):
  some 60 shapes in all, two products each, which its cache holds (`machine/this_process.py`). With a shape for every
  length a small encoder was 4 to 9 % slower. Of a filled up row or column nothing is read: its weights are 0.
* The softmax shrinks to its exponential: the usual subtraction of the row's maximum is left out. That overflows only
  for scores over 88, far from what trained models have; the caller is told of such runs, and takes the kernel that
  subtracts.
  Powers of 2 are cheaper than those of e, whose logarithm goes into the scale. The division by the sums comes last, for
  all pairs at once.

The result is as near to float32 as the flash kernel's (built-in model, 100 pairs: at most 0.054 and 0.049 logits off).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from rerank_cli.models.packed import Run
from rerank_cli.planning.memory.pieces import PRODUCT_BLOCK, PRODUCT_STEP


@dataclass(frozen=True, slots=True)
class Block:
    """Pairs of one rounded length. pieces: runs of pairs of equal length, one after the other in the block."""

    length: int
    pieces: tuple[Run, ...]

    @property
    def pairs(self) -> int:
        """How many there are."""
        return sum(piece.count for piece in self.pieces)

    @property
    def placed(self) -> Iterator[tuple[Run, slice]]:
        """Each piece with the place of its pairs in the block."""
        begin = 0
        for piece in self.pieces:
            yield piece, slice(begin, begin + piece.count)
            begin += piece.count


def blocks(runs: Sequence[Run]) -> Iterator[Block]:
    """The pairs of a batch in blocks, all in order."""
    for length, group in groupby(runs, key=lambda run: -(-run.length // PRODUCT_STEP) * PRODUCT_STEP):
        waiting = list(group)
        left = sum(run.count for run in waiting)
        most = 1 << (max(1, PRODUCT_BLOCK // length).bit_length() - 1)
        while left:
            pairs = min(most, 1 << (left.bit_length() - 1))
            yield Block(length, tuple(_take(waiting, pairs)))
            left -= pairs


def _take(waiting: list[Run], pairs: int) -> Iterator[Run]:
    """The first `pairs` pairs of the runs that wait, which lose them."""
    while pairs:
        run = waiting.pop(0)
        count = min(pairs, run.count)
        yield Run(run.start, count, run.length)
        if count < run.count:
            waiting.insert(0, Run(run.start + count * run.length, run.count - count, run.length))
        pairs -= count


def attend_by_products(q: Tensor, k: Tensor, v: Tensor, runs: Sequence[Run], out: Tensor, *, scale: float) -> list[Run]:
    """Fill the rows of `runs` in `out`, [T, heads, head_dim] of any float dtype: every token over its own pair.

    q: bfloat16 [T, heads, head_dim]; k, v: the same, or with fewer heads. scale: of the scores, as powers of 2 take it.
    Returns the runs in which a power of 2 overflows or all of a row vanish; their rows are worthless.
    """
    totals = q.new_ones(q.shape[:2], dtype=torch.float32)
    for block in blocks(runs):
        _attend_block(block, q, k, v, scale, out, totals)
    out.div_(totals[:, :, None])
    return [] if _is_sound(totals) else [run for run in runs if not _is_sound(run.rows(totals))]


def _is_sound(totals: Tensor) -> bool:
    least, most = totals.aminmax()
    return float(least) > 0 and math.isfinite(float(most))


def _attend_block(block: Block, q: Tensor, k: Tensor, v: Tensor, scale: float, out: Tensor, totals: Tensor) -> None:
    """The block's part of `out`, which is still to be divided by `totals`, [T, heads]."""
    heads, groups, size = q.shape[1], k.shape[1], q.shape[2]
    shape = (block.pairs, groups, block.length, size)
    block_q = q.new_empty(block.pairs, heads, block.length, size)
    block_k, block_v = k.new_empty(shape), v.new_empty(shape)
    for piece, place in block.placed:
        for x, into in ((q, block_q), (k, block_k), (v, block_v)):
            into[place, :, : piece.length].copy_(piece.heads(x))
            into[place, :, piece.length :].zero_()
    if scale != 1.0:
        block_q.mul_(scale)
    # Heads that share keys stand one below the other: one product for all of them.
    rows = block_q.view(-1, heads // groups * block.length, size)
    weights = torch.bmm(rows, block_k.view(-1, block.length, size).transpose(1, 2)).exp2_()
    by_pair = weights.view(block.pairs, heads, block.length, block.length)
    for piece, place in block.placed:
        by_pair[place, :, :, piece.length :].zero_()
    sums = by_pair.sum(-1)
    result = torch.bmm(weights, block_v.view(-1, block.length, size)).view_as(block_q)
    for piece, place in block.placed:
        piece.heads(out).copy_(result[place, :, : piece.length])
        piece.heads(totals).copy_(sums[place, :, : piece.length])
