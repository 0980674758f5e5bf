"""Attention inside each pair of a packed batch, in time and memory linear in the number of pairs.

Kinds (a `Plan` names one):

* `runs`: scaled dot product attention of torch, one call for each run of pairs of equal length. Exact, runs anywhere.
  On a CPU this is torch's flash kernel; no mask is built.
* `products`: the same for bfloat16 on a CPU by matrix products (`product_attention.py`), where those are faster
  (`planning/cpu_kernels.py`). Long pairs and other dtypes, which they do not take, are computed as `runs`.
* `amx`: part of a kernel for whole layers (`amx.py`); what it leaves to torch is computed as `runs`.
* `varlen`: the kernel of `torch.nn.attention.varlen`, one launch for the whole batch. CUDA, compute capability 8.0 and
  up, fp16 or bf16.

Keys and values may have fewer heads than queries, each for a group of neighbouring query heads (GQA). The kernels take
them as they are, except where torch has no fast kernel for that (see `_attention`): there they are repeated, a run at a
time.

A window (ModernBERT's local layers) limits a token to its neighbours at a distance of at most `window` on either side.
In `runs` long pairs are cut in blocks of queries that see only the keys in reach: memory stays linear in the length.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from rerank_cli.machine.gpu import FLASH_CAPABILITY
from rerank_cli.models.packed import PackedBatch, Run
from rerank_cli.models.product_attention import attend_by_products
from rerank_cli.planning.cpu_kernels import AMX
from rerank_cli.planning.memory import takes_varlen
from rerank_cli.planning.memory.pieces import PRODUCT_LONGEST, WINDOW_BLOCK


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    batch: PackedBatch,
    *,
    kind: str,
    window: int | None = None,
    causal: bool = False,
) -> Tensor:
    """Attention of every token over the tokens of its own pair.

    q, k, v: [T, heads, head_dim], may be views. causal: over the tokens up to itself; then without a window.
    Returns [T, heads * head_dim]; filler rows hold finite numbers that nobody reads.
    """
    if kind == "varlen":
        # The filler is a sequence of its own: the kernel writes every row, and nothing need be cleared or copied.
        longest = max(batch.longest, len(q) - batch.tokens)
        reach = (-1, 0) if causal else (-1, -1) if window is None else (window, window)
        return _varlen_kernel(q, k, v, (batch.sequences, batch.sequences), (longest, longest), reach).flatten(1)
    heads, size = q.shape[1:]
    out = q.new_empty(q.shape[0], heads * size)
    out[batch.tokens :] = 0
    by_head = out.unflatten(1, (heads, size))
    runs: Sequence[Run] = batch.runs
    if kind == "products" and q.dtype == torch.bfloat16 and not causal:
        longest = PRODUCT_LONGEST if window is None else min(PRODUCT_LONGEST, window + 1)
        runs = _after_products(q, k, v, batch, by_head, longest=longest, scale=size**-0.5 * math.log2(math.e))
    for run in runs:
        run_q, run_k, run_v = (run.heads(x) for x in (q, k, v))
        into = run.heads(by_head)
        if window is None or run.length <= window + 1:
            into.copy_(_attention(run_q, run_k, run_v, causal=causal))
            continue
        band = _band(window, q.dtype, q.device)
        for begin in range(0, run.length, WINDOW_BLOCK):  # of the queries; each sees keys in reach alone
            end = min(begin + WINDOW_BLOCK, run.length)
            low, high = max(0, begin - window), min(run.length, end + window)
            first = low - (begin - window)  # the column of the band that stands for the first key
            mask = band[: end - begin, first : first + high - low]
            seen = run_k[:, :, low:high], run_v[:, :, low:high]
            into[:, :, begin:end] = attend_densely(run_q[:, :, begin:end], *seen, attn_mask=mask)
    return out


def attend_first(
    q: Tensor, k: Tensor, v: Tensor, batch: PackedBatch, *, kind: str = "runs", window: int | None = None
) -> Tensor:
    """Attention of the first token of each pair over its pair, which is all that [CLS] pooling reads of the last layer.

    q: [P, heads, head_dim], P as in `PackedBatch.starts`; k, v: [T, heads, head_dim]. Returns [P, heads * head_dim].
    """
    if kind == "varlen" and window is None:  # with a window the kernel would take the query for the pair's last token
        out = q.new_zeros(q.shape)
        pairs, n = len(batch.lengths), batch.tokens
        each = torch.arange(pairs + 1, dtype=torch.int32, device=q.device)
        out[:pairs] = _varlen_kernel(q[:pairs], k[:n], v[:n], (each, batch.cumulative), (1, batch.longest), (-1, -1))
        return out.flatten(1)
    reach = None if window is None else window + 1
    heads, size = q.shape[1:]
    out = q.new_zeros(q.shape[0], heads * size)
    pair = 0
    for run in batch.runs:
        run_k, run_v = (run.heads(x)[:, :, :reach] for x in (k, v))
        run_q = q[pair : pair + run.count].unsqueeze(2)
        out[pair : pair + run.count] = _attention(run_q, run_k, run_v).flatten(1)
        pair += run.count
    return out


def _attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    """q: [count, heads, length, head_dim]; k, v: the same or with fewer heads."""
    grouped = q.shape[1] != k.shape[1]
    # On CUDA torch takes grouped heads only in its flash kernel (sm_80 and up, 16 bits) and otherwise falls back to a
    # matrix of length x length; the memory-efficient kernel wants them repeated. A CPU's flash kernel takes them.
    if grouped and q.device.type != "cpu" and not varlen_runs(q.device, q.dtype):
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
        grouped = False
    return attend_densely(q, k, v, is_causal=causal, enable_gqa=grouped)


_ROWS = _CHANNELS = 16


def attend_densely(
    q: Tensor, k: Tensor, v: Tensor, *, attn_mask: Tensor | None = None, scale: float | None = None, **how: bool
) -> Tensor:
    """`F.scaled_dot_product_attention`; in float32 on a CPU the same to the bit with any number of threads.

    MKL may multiply in another way inside a parallel region than outside: few rows, and head sizes that are not whole
    vectors (AMD Zen 5, MKL 2024.2: up to 11 queries; heads of 8 and 12 with any number). So zeros fill both up.
    """
    queries, size = q.shape[2:]
    rows, channels = max(0, _ROWS - queries), -size % _CHANNELS
    if q.device.type != "cpu" or q.dtype != torch.float32 or not (rows or channels):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, scale=scale, **how)
    if channels:
        k, v = F.pad(k, (0, channels)), F.pad(v, (0, channels))
    if attn_mask is not None:
        attn_mask = F.pad(attn_mask, (0, 0, 0, rows))
    scale = 1 / math.sqrt(size) if scale is None else scale
    filled = F.pad(q, (0, channels, 0, rows))
    return F.scaled_dot_product_attention(filled, k, v, attn_mask=attn_mask, scale=scale, **how)[:, :, :queries, :size]


def attend_by_powers(q: Tensor, k: Tensor, v: Tensor, batch: PackedBatch, out: Tensor, *, kind: str) -> Tensor:
    """Attention of every token over its own pair, as softmax of powers of 2, for the int8 layers of a CPU.

    q, k, v: [T, heads, head_dim], may be views; the scale and log2(e) are in q already. kind: `runs` or `products`.
    Returns `out`, float32 [T, heads * head_dim], whose filler rows stay as they are.
    """
    by_head = out.unflatten(1, q.shape[1:])
    runs: Sequence[Run] = batch.runs
    if kind == "products" and q.dtype == torch.bfloat16:
        runs = _after_products(q, k, v, batch, by_head, longest=PRODUCT_LONGEST, scale=1.0)
    for run in runs:
        run_q, run_k, run_v = (run.heads(x) for x in (q, k, v))
        run.heads(by_head).copy_(attend_densely(run_q, run_k, run_v, scale=math.log(2)))
    return out


def _after_products(
    q: Tensor, k: Tensor, v: Tensor, batch: PackedBatch, out: Tensor, *, longest: int, scale: float
) -> list[Run]:
    """Fill `out`, [T, heads, head_dim], by matrix products for pairs of up to `longest` tokens; returns what is left.

    How a pair is computed depends on its own length and scores, never on the pairs beside it.
    """
    short = [run for run in batch.runs if run.length <= longest]
    long = [run for run in batch.runs if run.length > longest]
    return long + attend_by_products(q, k, v, short, out, scale=scale) if short else long


@cache
def _band(window: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What is added to the scores of a block, [queries, keys]; the first key is `window` before the first query."""
    distance = (
        torch.arange(WINDOW_BLOCK + 2 * window, device=device)
        - torch.arange(WINDOW_BLOCK, device=device)[:, None]
        - window
    )
    return torch.zeros(distance.shape, dtype=dtype, device=device).masked_fill_(distance.abs() > window, -math.inf)


def _varlen_kernel(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cumulative: tuple[Tensor, Tensor],
    longest: tuple[int, int],
    reach: tuple[int, int],
) -> Tensor:
    """The operator under `torch.nn.attention.varlen`.

    cumulative, longest: of the queries and of the keys. reach: how many tokens to the left and to the right a token
    sees; -1 is all. The function takes fewer heads of keys only with `enable_gqa`, which torch 2.11 does not know; the
    operator takes them by itself and is the same from 2.11 on. It also saves the function's own kernel for its state.
    """
    result: Tensor = torch.ops.aten._flash_attention_forward(
        q, k, v, *cumulative, *longest, 0.0, reach == (-1, 0),
        return_debug_mask=False, window_size_left=reach[0], window_size_right=reach[1],
    )[0]  # fmt: skip
    return result


def attention_kind(asked: str, head_size: int) -> str:
    """`asked`; but `runs` for heads of a size that the varlen kernel does not take, and beside the kernel of `amx`."""
    return "runs" if asked == AMX or (asked == "varlen" and not takes_varlen(head_size)) else asked


def varlen_runs(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the varlen kernel takes this device and dtype (see the module's head for its limits)."""
    return (
        device.type == "cuda"
        and dtype in (torch.float16, torch.bfloat16)
        and torch.cuda.get_device_capability(device) >= FLASH_CAPABILITY
    )
