from __future__ import annotations

import numpy as np
import pytest
import torch

from rerank_cli.models.attention import attend_first
from rerank_cli.models.first_token import (
    FirstTokenAttention,
    _means_by_blocks,
    _means_by_rectangles,
    _means_by_runs,
    rectangles,
)
from rerank_cli.models.linear import PlainLinear
from rerank_cli.models.packed import PackedBatch, pack
from rerank_cli.records import EncodedPair

HIDDEN, HEADS = 24, 3
MIXES = [[1], [5], [3, 3, 3], [9, 9, 4, 4, 4, 1], [40, 7, 40], [300, 270, 2]]


def batch_of(lengths: list[int]) -> PackedBatch:
    pairs = [EncodedPair(input_ids=np.ones(n, dtype=np.int32), second_start=1, tokens=n) for n in lengths]
    return pack(pairs, device=torch.device("cpu"))


@pytest.mark.parametrize("lengths", MIXES, ids=str)
def test_it_is_the_attention_of_the_first_token_over_all_keys_and_values(lengths):
    generator = torch.Generator().manual_seed(sum(lengths))
    batch = batch_of(lengths)
    x = torch.randn(len(batch.input_ids), HIDDEN, generator=generator)
    weights = [torch.randn(HIDDEN, HIDDEN, generator=generator) / HIDDEN**0.5 for _ in range(3)]
    biases = [torch.randn(HIDDEN, generator=generator) for _ in range(3)]
    q, k, v = ((x @ weight.T + bias).unflatten(1, (HEADS, -1)) for weight, bias in zip(weights, biases, strict=True))
    expected = attend_first(q[batch.starts], k, v, batch)
    attention = FirstTokenAttention(PlainLinear(weights[0], biases[0]), weights[1], weights[2], biases[2], heads=HEADS)
    assert torch.allclose(attention(x, batch)[: len(lengths)], expected[: len(lengths)], atol=2e-6)


@pytest.mark.parametrize("lengths", MIXES, ids=str)
def test_the_way_of_a_gpu_gives_the_same_means(lengths):
    generator = torch.Generator().manual_seed(len(lengths))
    batch = batch_of(lengths)
    x = torch.randn(len(batch.input_ids), HIDDEN, generator=generator)
    probes = torch.randn(len(batch.starts), HEADS, HIDDEN, generator=generator)
    assert torch.allclose(_means_by_rectangles(probes, x, batch), _means_by_runs(probes, x, batch), atol=2e-6)


@pytest.mark.parametrize("lengths", [*MIXES, [17] * 9, [130, 129, 33, 33, 32, 1]], ids=str)
def test_in_bfloat16_blocks_give_the_same_means(lengths):
    generator = torch.Generator().manual_seed(len(lengths))
    batch = batch_of(lengths)
    x = torch.randn(len(batch.input_ids), HIDDEN, generator=generator)
    probes = torch.randn(len(batch.starts), HEADS, HIDDEN, generator=generator)
    x[batch.tokens :] = torch.nan  # beyond the last pair nothing is read
    expected = _means_by_runs(probes, x, batch)
    assert torch.allclose(_means_by_blocks(probes, x, batch), expected, atol=2e-6)
    rounded = _means_by_blocks(probes.bfloat16(), x.bfloat16(), batch)
    assert (rounded.float() - expected).abs().mean() <= 0.02


@pytest.mark.parametrize("lengths", [*MIXES, [8192] + [8] * 3072, [512, 400, 256, 255, 100]], ids=str)
def test_rectangles_cover_every_pair_once_and_hold_at_most_two_copies_of_the_tokens(lengths):
    lengths = sorted(lengths, reverse=True)
    parts = list(rectangles(lengths))
    assert [place for begin, end in parts for place in range(begin, end)] == list(range(len(lengths)))
    assert sum(lengths[begin] * (end - begin) for begin, end in parts) <= 2 * sum(lengths)
