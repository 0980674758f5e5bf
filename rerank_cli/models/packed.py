"""Packed execution: the tokens of all pairs of a batch in one row, no padding between them.

Linear layers see a matrix [T, hidden] of real tokens; attention alone must know where a pair begins and ends. The pairs
of a batch stand longest first, so that pairs of equal length are neighbours and their attention is one call.

T is rounded up (`rounded_rows`) with filler tokens that belong to no pair: their rows go through the linear layers and
are never read. The rows of a last layer that runs for the first token of each pair alone are rounded up too. Rounding
limits how many shapes oneDNN sees, and so the size of its kernel cache (without it 100,000 pairs cost 80 MB more than
5,000). Full batches are just below the token budget, which is a round number, so the filler costs next to nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from rerank_cli.models.transfer import transfer_for
from rerank_cli.planning.memory.pieces import rounded_rows
from rerank_cli.records import EncodedPair


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring pairs of equal length: tokens `start : start + count * length` of the batch."""

    start: int
    count: int
    length: int

    def rows(self, x: Tensor) -> Tensor:
        """Their part of `x`, [T, ...], as [count, length, ...]; a view."""
        rows: Tensor = x.narrow(0, self.start, self.count * self.length).unflatten(0, (self.count, self.length))
        return rows

    def heads(self, x: Tensor) -> Tensor:
        """Their part of `x`, [T, heads, ...], as [count, heads, length, ...]; a view."""
        return self.rows(x).transpose(1, 2)


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """The pairs of a batch, concatenated.

    input_ids, token_types: int64 [T]; positions: int64 [T], from 0 in each pair.
    starts: int64 [P], the first token of each pair, then zeros up to the rounded P.
    cumulative: int32 [pairs + 1], as varlen kernels want it. sequences: the same with the filler as one sequence more,
    int32 [pairs + 2].
    lengths: tokens of each pair, on the host. tokens: their sum; T - tokens is filler. unpooled: how many tokens at the
    start of each pair its pooling leaves out, on the host.
    """

    input_ids: Tensor
    token_types: Tensor
    positions: Tensor
    starts: Tensor
    cumulative: Tensor
    sequences: Tensor
    lengths: tuple[int, ...]
    runs: tuple[Run, ...]
    tokens: int
    unpooled: tuple[int, ...] = ()

    @property
    def longest(self) -> int:
        """Tokens of the longest pair."""
        return max(self.lengths)


def pack(pairs: Sequence[EncodedPair], *, device: torch.device) -> PackedBatch:
    """Concatenate `pairs` (none of them empty) and copy them to `device` in one transfer."""
    lengths = np.fromiter((len(pair.input_ids) for pair in pairs), dtype=np.int64, count=len(pairs))
    ends = np.cumsum(lengths)
    tokens = int(ends[-1])
    starts = ends - lengths
    width = rounded_rows(tokens)
    sizes = [width, width, width, rounded_rows(len(pairs)), len(pairs) + 2]
    # Everything travels as one buffer: one transfer a batch.
    buffer = np.zeros(sum(sizes), dtype=np.int64)
    ids, types, within, firsts, bounds = np.split(buffer, np.cumsum(sizes)[:-1])
    np.concatenate([pair.input_ids for pair in pairs], out=ids[:tokens], casting="same_kind")
    np.subtract(np.arange(tokens), np.repeat(starts, lengths), out=within[:tokens])
    seconds = np.array([pair.second_start for pair in pairs])
    if (seconds < lengths).any():
        np.greater_equal(within[:tokens], np.repeat(seconds, lengths), out=types[:tokens])
    firsts[: len(pairs)] = starts
    bounds[1:-1], bounds[-1] = ends, width
    flat = transfer_for(device).to_device(torch.from_numpy(buffer))
    input_ids, token_types, positions, first_tokens, last_tokens = flat.split_with_sizes(sizes)
    sequences = last_tokens.to(torch.int32)
    return PackedBatch(
        input_ids=input_ids,
        token_types=token_types,
        positions=positions,
        starts=first_tokens,
        cumulative=sequences[:-1],
        sequences=sequences,
        lengths=tuple(lengths.tolist()),
        runs=tuple(_runs(lengths.tolist())),
        tokens=tokens,
        unpooled=tuple(pair.unpooled for pair in pairs),
    )


def without_unpooled(x: Tensor, batch: PackedBatch) -> tuple[Tensor, PackedBatch]:
    """The rows of `x`, [T, hidden], that a pooling counts, and the batch of them; positions stay those in the pair."""
    if not any(batch.unpooled):
        return x, batch
    lengths = np.array(batch.lengths) - np.array(batch.unpooled)
    ends = np.cumsum(lengths)
    tokens = int(ends[-1])
    # Of each kept token its row in `x`: rows before it are kept, or left out in its pair and in those before it.
    kept = np.arange(tokens) + np.repeat(np.cumsum(batch.unpooled), lengths)
    device = x.device
    rows, starts = (torch.from_numpy(places).to(device) for places in (kept, ends - lengths))
    sequences = torch.from_numpy(np.concatenate([[0], ends, [tokens]]).astype(np.int32)).to(device)
    return x[rows], PackedBatch(
        input_ids=batch.input_ids[rows],
        token_types=batch.token_types[rows],
        positions=batch.positions[rows],
        starts=starts,
        cumulative=sequences[:-1],
        sequences=sequences,
        lengths=tuple(lengths.tolist()),
        runs=tuple(_runs(lengths.tolist())),
        tokens=tokens,
    )


def _runs(lengths: Sequence[int]) -> list[Run]:
    runs, start = [], 0
    for length, group in groupby(lengths):
        count = sum(1 for _ in group)
        runs.append(Run(start=start, count=count, length=length))
        start += count * length
    return runs
