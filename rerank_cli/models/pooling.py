"""How the tokens of a pair become one vector, for BERT-like encoders (a Llama pools in `llama.py`); always float32.

The modes are those of sentence-transformers' Pooling module: over all tokens of the pair, special ones included. If a
checkpoint leaves its prompt out (`include_prompt`), neither the prompt's tokens nor the special one before them count.

    cls                    the first token
    lasttoken              the last token
    mean                   the mean
    mean_sqrt_len_tokens   the sum, divided by the root of the number of tokens
    weightedmean           the mean, with weights 1, 2, 3, ... from the pair's first token on, counted or not
    max                    the largest value of each channel
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from rerank_cli.models.packed import PackedBatch, without_unpooled


def pool(x: Tensor, batch: PackedBatch, modes: Sequence[str]) -> Tensor:
    """The vectors of each pair, one mode after another: [pairs, modes * hidden]. x: [T, hidden]."""
    x, batch = without_unpooled(x, batch)
    return torch.cat([_MODES[mode](x, batch) for mode in modes], dim=1)


def _weighted_mean(x: Tensor, batch: PackedBatch) -> Tensor:
    weights = (batch.positions + 1).float()[:, None]
    lengths = batch.cumulative.diff().float()[:, None]
    first = batch.positions[batch.starts[: len(batch.lengths)]].float()[:, None]
    return _sums(x * weights, batch) / (lengths * (lengths + 1) / 2 + lengths * first)


def _largest(x: Tensor, batch: PackedBatch) -> Tensor:
    if x.device.type != "cpu":
        return torch.segment_reduce(x[: batch.tokens].float(), "max", lengths=batch.cumulative.diff().long(), axis=0)
    return torch.cat([run.rows(x).amax(dim=1).float() for run in batch.runs])


def _sums(x: Tensor, batch: PackedBatch) -> Tensor:
    """Sum over the tokens of each pair, always in the same order; [pairs, hidden]."""
    lengths, rows = batch.cumulative.diff(), x[: batch.tokens].float()
    if x.device.type != "cpu":  # where an indexed sum takes the tokens as they come
        return torch.segment_reduce(rows, "sum", lengths=lengths.long(), axis=0)
    pair_of_token = torch.repeat_interleave(lengths, output_size=batch.tokens)
    return torch.zeros(len(batch.lengths), x.shape[1]).index_add_(0, pair_of_token, rows)


_MODES: Mapping[str, Callable[[Tensor, PackedBatch], Tensor]] = {
    "cls": lambda x, batch: x[batch.starts[: len(batch.lengths)]].float(),
    "lasttoken": lambda x, batch: x[batch.cumulative[1:].long() - 1].float(),
    "mean": lambda x, batch: _sums(x, batch) / batch.cumulative.diff()[:, None],
    "mean_sqrt_len_tokens": lambda x, batch: _sums(x, batch) / batch.cumulative.diff()[:, None].sqrt(),
    "weightedmean": _weighted_mean,
    "max": _largest,
}
POOLINGS = tuple(_MODES)
"""The names of the modes."""
