"""Attention inside each pair of a packed batch, in time and memory linear in the number of pairs.

Kinds (a `Plan` names one):

* `runs`: scaled dot product attention of torch, one call for each run of pairs of equal length. Exact, runs anywhere.
On a
  CPU this is torch's flash kernel; nothing is padded and no mask is built.
* `varlen`: `torch.nn.attention.varlen`, one kernel for the whole batch. CUDA, compute capability 8.0 and up, fp16 or
bf16.

A window (ModernBERT's local layers) limits a token to its neighbours at a distance of at most `window` on either side.
In `runs` long pairs are cut in blocks of queries that see only the keys in reach: memory stays linear in the length.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from rerank_cli.models.packed import PackedBatch

_BLOCK = 256  # queries of a block of windowed attention


def attend(q: Tensor, k: Tensor, v: Tensor, batch: PackedBatch, *, kind: str, window: int | None = None) -> Tensor:
    """Attention of every token over the tokens of its own pair.

    q, k, v: [T, heads, head_dim], may be views. Returns [T, heads * head_dim]; filler rows hold zeros.
    """
    if kind == "varlen":
        return _varlen(q, k, v, batch, window)
    heads, size = q.shape[1:]
    out = q.new_zeros(q.shape[0], heads * size)
    for run in batch.runs:
        stop = run.start + run.count * run.length
        # [count, heads, length, head_dim], without a copy
        run_q, run_k, run_v = (
            x[run.start : stop].unflatten(0, (run.count, run.length)).transpose(1, 2) for x in (q, k, v)
        )
        if window is None or run.length <= window + 1:
            result = F.scaled_dot_product_attention(run_q, run_k, run_v)
        else:
            result = _windowed(run_q, run_k, run_v, window)
        out[run.start : stop] = result.transpose(1, 2).reshape(stop - run.start, heads * size)
    return out


def attend_first(q: Tensor, k: Tensor, v: Tensor, batch: PackedBatch, *, window: int | None = None) -> Tensor:
    """Attention of the first token of each pair over its pair: all that the last layer owes to [CLS] pooling.

    q: [pairs, heads, head_dim]; k, v: [T, heads, head_dim]. Returns [pairs, heads * head_dim].
    """
    reach = None if window is None else window + 1
    heads, size = q.shape[1:]
    out = q.new_empty(q.shape[0], heads * size)
    pair = 0
    for run in batch.runs:
        stop = run.start + run.count * run.length
        run_k, run_v = (
            x[run.start : stop].unflatten(0, (run.count, run.length))[:, :reach].transpose(1, 2) for x in (k, v)
        )
        run_q = q[pair : pair + run.count].unsqueeze(2)
        out[pair : pair + run.count] = F.scaled_dot_product_attention(run_q, run_k, run_v).flatten(1)
        pair += run.count
    return out


def _windowed(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """q, k, v: [count, heads, length, head_dim]; a query sees keys at a distance of at most `window`."""
    length = q.shape[2]
    blocks = []
    for begin in range(0, length, _BLOCK):
        end = min(begin + _BLOCK, length)
        low, high = max(0, begin - window), min(length, end + window)
        distance = torch.arange(begin, end, device=q.device)[:, None] - torch.arange(low, high, device=q.device)
        blocks.append(
            F.scaled_dot_product_attention(
                q[:, :, begin:end], k[:, :, low:high], v[:, :, low:high], attn_mask=distance.abs() <= window
            )
        )
    return torch.cat(blocks, dim=2)


def _varlen(q: Tensor, k: Tensor, v: Tensor, batch: PackedBatch, window: int | None) -> Tensor:
    # Imported here: the module exists only in builds that bring the kernel.
    from torch.nn.attention.varlen import varlen_attn

    out = q.new_zeros(q.shape)
    reach = (-1, -1) if window is None else (window, window)
    n = batch.tokens
    result = varlen_attn(
        q[:n], k[:n], v[:n], batch.cumulative, batch.cumulative, batch.longest, batch.longest, window_size=reach
    )
    assert isinstance(result, Tensor), "no auxiliary output was asked for"
    out[:n] = result
    return out.flatten(1)


def varlen_runs(device: torch.device, dtype: torch.dtype) -> bool:
    """The varlen kernel takes this device and dtype (see the module's head for its limits)."""
    return (
        device.type == "cuda"
        and dtype in (torch.float16, torch.bfloat16)
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )
