from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rerank_cli.models.attention import attend, attend_first, attention_kind, varlen_runs
from rerank_cli.models.packed import PackedBatch, pack
from rerank_cli.models.product_attention import attend_by_products, blocks
from rerank_cli.records import EncodedPair

CPU = torch.device("cpu")
SIZE = 8


def batch_of(lengths: list[int]) -> PackedBatch:
    pairs = [
        EncodedPair(input_ids=np.ones(length, dtype=np.int32), second_start=1, tokens=length) for length in lengths
    ]
    return pack(pairs, device=CPU)


def random_qkv(batch: PackedBatch, *, heads: int = 2, kv_heads: int | None = None) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(len(batch.input_ids))
    counts = (heads, kv_heads or heads, kv_heads or heads)
    return [torch.randn(len(batch.input_ids), count, SIZE, generator=generator) for count in counts]


def dense(q, k, v, batch: PackedBatch, *, window: int | None = None, causal: bool = False) -> torch.Tensor:
    """The same by one softmax over all tokens of the batch, with a mask; float64 [tokens, heads * SIZE]."""
    n = batch.tokens
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    pair = torch.repeat_interleave(torch.tensor(batch.lengths))
    distance = torch.arange(n)[:, None] - torch.arange(n)
    seen = pair[:, None] == pair
    if window is not None:
        seen &= distance.abs() <= window
    if causal:
        seen &= distance >= 0
    q, k, v = (x[:n].double().transpose(0, 1) for x in (q, k, v))
    weights = (q @ k.transpose(1, 2) / SIZE**0.5).masked_fill(~seen, float("-inf")).softmax(-1)
    return (weights @ v).transpose(0, 1).flatten(1)


MIXES = [[1], [5], [3, 3, 3], [9, 9, 4, 4, 4, 1], [40, 7, 40], [300, 270, 2], [600]]


@pytest.mark.parametrize("lengths", MIXES, ids=str)
@pytest.mark.parametrize("window", [None, 0, 1, 3, 64, 10_000])
def test_runs_attend_to_their_own_pair_and_window_alone(lengths, window):
    batch = batch_of(lengths)
    q, k, v = random_qkv(batch)
    out = attend(q, k, v, batch, kind="runs", window=window)
    assert torch.allclose(out[: batch.tokens].double(), dense(q, k, v, batch, window=window), atol=2e-6)


@pytest.mark.parametrize("lengths", MIXES, ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_heads_may_share_keys_and_values(lengths, causal):
    batch = batch_of(lengths)
    q, k, v = random_qkv(batch, heads=4, kv_heads=2)
    out = attend(q, k, v, batch, kind="runs", causal=causal)
    assert torch.allclose(out[: batch.tokens].double(), dense(q, k, v, batch, causal=causal), atol=2e-6)


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=8), window=st.none() | st.integers(0, 32))
def test_any_mix_of_lengths_and_any_window(lengths, window):
    batch = batch_of(lengths)
    q, k, v = random_qkv(batch)
    out = attend(q, k, v, batch, kind="runs", window=window)
    assert torch.allclose(out[: batch.tokens].double(), dense(q, k, v, batch, window=window), atol=2e-6)


@pytest.mark.parametrize("lengths", MIXES, ids=str)
@pytest.mark.parametrize("spread", [1.0, 4.0, 60.0], ids=["small", "large", "over-the-range-of-exp"])
@pytest.mark.parametrize("kind", ["runs", "products"])
def test_bf16_is_as_near_as_its_8_bits_allow(lengths, spread, kind):
    batch = batch_of(lengths)
    q, k, v = (x.to(torch.bfloat16) for x in random_qkv(batch))
    q = q * spread
    n = batch.tokens
    expected = dense(q, k, v, batch)
    flash = attend(q.float(), k.float(), v.float(), batch, kind="runs")[:n].bfloat16().double()
    out = attend(q, k, v, batch, kind=kind)[:n].double()
    assert torch.isfinite(out).all()
    assert (out - expected).abs().mean() <= 0.02 + 2 * (flash - expected).abs().mean()
    first = attend_first(q[batch.starts], k, v, batch)[: len(lengths)].double()
    assert (first - expected[batch.starts[: len(lengths)]]).abs().mean() <= 0.05


def test_filler_rows_hold_zeros():
    batch = batch_of([17])
    out = attend(*random_qkv(batch), batch, kind="runs")
    assert not out[batch.tokens :].any()
    assert len(out) > batch.tokens


def test_views_of_one_projection_will_do():
    batch = batch_of([7, 7, 3])
    qkv = torch.randn(len(batch.input_ids), 3, 2, SIZE)
    q, k, v = qkv.unbind(1)
    out = attend(q, k, v, batch, kind="runs")
    assert torch.allclose(out[: batch.tokens].double(), dense(q, k, v, batch), atol=2e-6)


@pytest.mark.parametrize("lengths", MIXES, ids=str)
@pytest.mark.parametrize("window", [None, 0, 3, 64])
def test_the_first_tokens_alone_get_what_they_get_among_all(lengths, window):
    batch = batch_of(lengths)
    q, k, v = random_qkv(batch)
    out = attend_first(q[batch.starts], k, v, batch, window=window)
    everything = dense(q, k, v, batch, window=window)
    assert torch.allclose(out[: len(lengths)].double(), everything[batch.starts[: len(lengths)]], atol=2e-6)
    assert not out[len(lengths) :].any()


class LargestTensor(torch.utils._python_dispatch.TorchDispatchMode):
    """Notes the most elements that an operation of torch gives back."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize(
    ("dtype", "kind"), [(torch.float32, "runs"), (torch.bfloat16, "runs"), (torch.bfloat16, "products")]
)
@pytest.mark.parametrize("window", [None, 16])
def test_no_tensor_grows_with_the_square_of_a_long_pair(window, dtype, kind):
    length = 4096
    batch = batch_of([length])
    q, k, v = (x.to(dtype) for x in random_qkv(batch, heads=1))
    with LargestTensor() as largest:
        attend(q, k, v, batch, kind=kind, window=window)
    assert 0 < largest.elements <= length * 32  # a square mask would be 4,096 times the length


@pytest.mark.parametrize(
    ("device", "dtype"),
    [("cpu", torch.float16), ("cpu", torch.bfloat16), ("meta", torch.float16), ("cuda", torch.float32)],
)
def test_the_varlen_kernel_is_for_half_precision_on_cuda_alone(device, dtype):
    assert not varlen_runs(torch.device(device), dtype)


@pytest.mark.parametrize(
    ("head_size", "kind"), [(8, "varlen"), (32, "varlen"), (64, "varlen"), (256, "varlen"), (12, "runs"), (264, "runs")]
)
def test_heads_that_the_varlen_kernel_does_not_take_run_by_runs(head_size, kind):
    assert attention_kind("varlen", head_size) == kind
    assert attention_kind("runs", head_size) == "runs"
    assert attention_kind("products", head_size) == "products"


@pytest.mark.parametrize("lengths", [*MIXES[:-1], [17] * 9, [130, 129, 128, 100, 97, 96, 33, 33, 32, 31, 1]], ids=str)
def test_products_in_blocks_give_what_one_softmax_gives(lengths):
    batch = batch_of(lengths)
    n = batch.tokens
    q, k, v = (x.to(torch.bfloat16) for x in random_qkv(batch, heads=4, kv_heads=2))
    # What lies beyond the pairs of a block is never read: here it would be the only thing to be seen.
    for x in (q, k, v):
        x[n:] = torch.nan
    out = torch.full((len(q), 4, SIZE), 7.0)
    assert not attend_by_products(q, k, v, batch.runs, out, scale=SIZE**-0.5 * math.log2(math.e))
    expected = dense(*(x.float() for x in (q, k, v)), batch)
    assert (out[:n].flatten(1).double() - expected).abs().max() <= 0.04
    assert (out[n:] == 7).all(), "filler rows stay"


@given(lengths=st.lists(st.integers(1, 512), min_size=1, max_size=60))
def test_blocks_hold_every_pair_once_and_in_few_shapes(lengths):
    runs = batch_of(sorted(lengths, reverse=True)).runs
    made = list(blocks(runs))
    place = 0
    for block in made:
        assert block.length % 16 == 0
        assert block.pairs & (block.pairs - 1) == 0
        assert block.pairs == 1 or block.pairs * block.length <= 256
        for piece in block.pieces:
            assert block.length - 16 < piece.length <= block.length
            assert piece.start == place
            place += piece.count * piece.length
    assert place == sum(lengths)
    shapes = {(pairs, length) for length in range(16, 513, 16) for pairs in (1, 2, 4, 8, 16) if pairs * length <= 256}
    assert {(block.pairs, block.length) for block in made} <= shapes | {(1, length) for length in range(16, 513, 16)}
    assert len(shapes) + 32 <= 75  # two products each: what oneDNN's cache has to hold (`runtime.py`)


def as_the_kernel_does(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    queries: torch.Tensor,
    keys: torch.Tensor,
    longest_query: int,
    longest_key: int,
    dropout: float,
    causal: bool,
    *,
    return_debug_mask: bool,
    window_size_left: int,
    window_size_right: int,
) -> tuple[torch.Tensor]:
    """`aten::_flash_attention_forward` over sequences; a query that is shorter than its keys is their end."""
    assert (dropout, return_debug_mask) == (0.0, False)
    assert queries.dtype == keys.dtype == torch.int32
    assert queries.diff().max() <= longest_query
    assert keys.diff().max() <= longest_key
    assert (queries[-1], keys[-1]) == (len(q), len(k))
    out = torch.full_like(q, torch.nan)  # what no sequence covers stays undefined
    for begin, end, first, last in zip(queries[:-1], queries[1:], keys[:-1], keys[1:], strict=True):
        at = torch.arange(end - begin)[:, None] + (last - first) - (end - begin)
        distance = at - torch.arange(last - first)
        seen = torch.ones_like(distance, dtype=torch.bool)
        if window_size_left >= 0:
            seen &= distance <= window_size_left
        if window_size_right >= 0 or causal:
            seen &= -distance <= (0 if causal else window_size_right)
        one_q, one_k, one_v = (
            x[a:b].transpose(0, 1) for x, a, b in ((q, begin, end), (k, first, last), (v, first, last))
        )
        one_k, one_v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=0) for x in (one_k, one_v))
        weights = (one_q @ one_k.transpose(1, 2) / q.shape[-1] ** 0.5).masked_fill(~seen, -torch.inf).softmax(-1)
        out[begin:end] = (weights @ one_v).transpose(0, 1)
    return (out,)


class Kernels:
    """Stands for `torch.ops.aten`."""

    _flash_attention_forward = staticmethod(as_the_kernel_does)


@pytest.fixture
def varlen_kernel(monkeypatch):
    monkeypatch.setattr(torch.ops, "aten", Kernels())


@pytest.mark.usefixtures("varlen_kernel")
@pytest.mark.parametrize("options", [{}, {"window": 3}, {"causal": True}], ids=str)
@pytest.mark.parametrize("kv_heads", [2, 1])
@pytest.mark.parametrize("lengths", [*MIXES, [16], [8, 8]], ids=str)  # the last two are full: nothing fills up
def test_the_sequences_that_the_varlen_kernel_is_told_are_the_pairs(lengths, kv_heads, options):
    batch = batch_of(lengths)
    q, k, v = random_qkv(batch, kv_heads=kv_heads)
    found = attend(q, k, v, batch, kind="varlen", **options)
    assert found.isfinite().all()  # the filler too: it goes through every layer
    assert torch.allclose(found[: batch.tokens].double(), dense(q, k, v, batch, **options), atol=2e-6)


@pytest.mark.usefixtures("varlen_kernel")
@pytest.mark.parametrize("kv_heads", [2, 1])
@pytest.mark.parametrize("lengths", MIXES, ids=str)
def test_first_tokens_see_their_own_pair_in_the_varlen_kernel(lengths, kv_heads):
    batch = batch_of(lengths)
    q, k, v = random_qkv(batch, kv_heads=kv_heads)
    found = attend_first(q[batch.starts], k, v, batch, kind="varlen")[: len(lengths)]
    assert torch.allclose(found, attend_first(q[batch.starts], k, v, batch)[: len(lengths)], atol=2e-6)
