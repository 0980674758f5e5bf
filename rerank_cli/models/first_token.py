"""Attention of the first token of each pair, without the keys and values of the others.

A head that reads [CLS] alone needs one query a pair from the last layer. Its keys and values are linear in the layer's
input x and nothing comes between (no rotary positions), so the products can be taken in another order:

    scores   q . (Wk x_t + bk) = (Wk^T q) . x_t + q . bk       the last term is the same for all t: softmax drops it
    context  sum_t p_t (Wv x_t + bv) = Wv (sum_t p_t x_t) + bv  because the p_t sum to 1

The weights are multiplied with one vector a pair and head instead of with every token. For a layer of 384 channels and
12 heads that is a 16th of the work of its keys and values; a 6-layer model loses 5 % of all its operations.

Where the varlen kernel runs, keys and values are computed after all: its memory is linear in the tokens, whatever their
lengths, and on a GPU those operations are 1 to 3 % of a forward.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from rerank_cli.models.attention import attend_first
from rerank_cli.models.linear import Linear
from rerank_cli.models.packed import PackedBatch
from rerank_cli.models.product_attention import blocks


class FirstTokenAttention:
    """The attention of one layer.

    query: the layer of the queries. key, value: their weights, [hidden, hidden]; value_bias: [hidden]. kind: as
    `attend` takes it.
    """

    def __init__(
        self, query: Linear, key: Tensor, value: Tensor, value_bias: Tensor, *, heads: int, kind: str = "runs"
    ) -> None:
        self._query = query
        self._kind = kind
        self._key = key.unflatten(0, (heads, -1))  # [heads, head_dim, hidden]
        self._value = value.unflatten(0, (heads, -1)).transpose(1, 2)  # [heads, hidden, head_dim]
        self._value_bias = value_bias
        self._heads = heads

    def __call__(self, x: Tensor, batch: PackedBatch) -> Tensor:
        """x: the layer's input, [T, hidden]. Returns the contexts [P, hidden], P as in `PackedBatch.starts`."""
        q = self._query(x[batch.starts]).unflatten(1, (self._heads, -1))
        if self._kind == "varlen":
            k = F.linear(x, self._key.flatten(0, 1)).unflatten(1, (self._heads, -1))
            v = F.linear(x, self._value.transpose(1, 2).flatten(0, 1)).unflatten(1, (self._heads, -1))
            return attend_first(q, k, v, batch, kind="varlen") + self._value_bias
        with _same_sums(x):
            probes = torch.bmm((q * q.shape[-1] ** -0.5).transpose(0, 1), self._key).transpose(0, 1)
            if x.device.type != "cpu":  # on a GPU copying some rows is cheaper than kernels for every length
                mean = _means_by_rectangles(probes, x, batch)
            else:
                mean = (_means_by_blocks if x.dtype == torch.bfloat16 else _means_by_runs)(probes, x, batch)
            context = torch.bmm(mean.transpose(0, 1), self._value).transpose(0, 1)
        return context.flatten(1) + self._value_bias


@contextmanager
def _same_sums(x: Tensor) -> Iterator[None]:
    """Inside, products in float32 on a CPU are the same to the bit whatever the number of threads was.

    They take one thread: with several, MKL adds up in another order at the edges of each thread's columns (AMD Zen 5,
    MKL 2024.2). These products are a two-thousandth of a forward.
    """
    threads = torch.get_num_threads()
    if x.device.type != "cpu" or x.dtype != torch.float32 or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _means_by_runs(probes: Tensor, x: Tensor, batch: PackedBatch) -> Tensor:
    """The attended mean of the tokens of each pair, [P, heads, hidden]; probes: the same shape; x: [T, hidden]."""
    means = torch.zeros_like(probes)
    pair = 0
    for run in batch.runs:
        tokens = run.rows(x)
        weights = torch.bmm(probes[pair : pair + run.count], tokens.transpose(1, 2)).softmax(-1)
        means[pair : pair + run.count] = torch.bmm(weights, tokens)
        pair += run.count
    return means


def _means_by_blocks(probes: Tensor, x: Tensor, batch: PackedBatch) -> Tensor:
    """The same in products of few shapes, which suits oneDNN in bfloat16 (`product_attention.py`)."""
    means = torch.zeros_like(probes)
    pair = 0
    for block in blocks(batch.runs):
        tokens = x.new_empty(block.pairs, block.length, x.shape[1])
        for piece, place in block.placed:
            tokens[place, : piece.length] = piece.rows(x)
            tokens[place, piece.length :] = 0
        stop = pair + block.pairs
        scores = torch.bmm(probes[pair:stop], tokens.transpose(1, 2))
        for piece, place in block.placed:
            scores[place, :, piece.length :] = -torch.inf
        means[pair:stop] = torch.bmm(scores.softmax(-1), tokens)
        pair = stop
    return means


def _means_by_rectangles(probes: Tensor, x: Tensor, batch: PackedBatch) -> Tensor:
    """The same over rectangles of pairs; what is beyond a pair's end gets no weight.

    A pair is at least half as long as the longest of its rectangle, so that together they hold at most two copies of
    the tokens: one pair of 8,192 beside 3,000 of 8 would be a rectangle of 25 million.
    """
    means = torch.zeros_like(probes)
    lengths = batch.cumulative.diff()
    for begin, end in rectangles(batch.lengths):
        longest = max(batch.lengths[begin:end])
        places = torch.arange(longest, device=x.device)
        tokens = x[(batch.starts[begin:end, None] + places).clamp_(max=len(x) - 1)]
        scores = torch.bmm(probes[begin:end], tokens.transpose(1, 2))
        outside = places >= lengths[begin:end, None]
        means[begin:end] = torch.bmm(scores.masked_fill_(outside[:, None], -torch.inf).softmax(-1), tokens)
    return means


def rectangles(lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Neighbours, none shorter than half of the first, as (begin, end). lengths: longest first."""
    begin = 0
    for place, length in enumerate(lengths):
        if 2 * length < lengths[begin]:
            yield begin, place
            begin = place
    yield begin, len(lengths)
