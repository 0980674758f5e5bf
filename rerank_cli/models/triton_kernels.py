"""Triton kernels for what lies between the matrix products of a layer; see `elementwise.py` for who calls them.

Each reads its input once and writes its result once, with float32 in between. Imported only where Triton is installed
and a GPU is used, or where `TRITON_INTERPRET=1` runs them on a CPU, as the tests do to compare their numbers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_FP8_MAX = tl.constexpr(448.0)  # of float8_e4m3fn
_LEAST_SCALE = tl.constexpr(1e-12)  # of a row of zeros
_GATE_BLOCK = 1024


@triton.jit
def _rms_norm_kernel(x, weight, out, size, epsilon, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    channels = tl.arange(0, BLOCK)
    inside = channels < size
    values = tl.load(x + row * size + channels, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(values * values, 0) / size + epsilon)
    weights = tl.load(weight + channels, mask=inside, other=0.0)
    tl.store(out + row * size + channels, (values * scale * weights).to(out.dtype.element_ty), mask=inside)


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """x: [..., channels], contiguous; weight: float32 [channels]. Returns x's dtype."""
    out = torch.empty_like(x)
    size = x.shape[-1]
    _rms_norm_kernel[(x.numel() // size,)](x, weight, out, size, epsilon, BLOCK=triton.next_power_of_2(size))
    return out


@triton.jit
def _normalise_sum_kernel(x, residual, weight, bias, size, epsilon, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    channels = tl.arange(0, BLOCK)
    inside = channels < size
    place = x + row * size + channels
    values = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    values += tl.load(residual + row * size + channels, mask=inside, other=0.0).to(tl.float32)
    centred = tl.where(inside, values - tl.sum(values, 0) / size, 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, 0) / size + epsilon)
    weights = tl.load(weight + channels, mask=inside, other=0.0).to(tl.float32)
    biases = tl.load(bias + channels, mask=inside, other=0.0).to(tl.float32)
    tl.store(place, (centred * scale * weights + biases).to(x.dtype.element_ty), mask=inside)


def normalise_sum_(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """`x` becomes LayerNorm(x + residual), both [T, channels] and contiguous; weight, bias: [channels]."""
    assert x.is_contiguous(), "the result of a product"
    size = x.shape[1]
    block = triton.next_power_of_2(size)
    _normalise_sum_kernel[(len(x),)](x, residual, weight, bias, size, epsilon, BLOCK=block)
    return x


@triton.jit
def _rotate_kernel(  # noqa: PLR0913 (a kernel is given numbers, one by one)
    x, cosines, sines, stride, heads, half, HEADS: tl.constexpr, HALF: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    head, channel = tl.arange(0, HEADS)[:, None], tl.arange(0, HALF)[None, :]
    inside = (head < heads) & (channel < half)
    angle = tl.arange(0, HALF)
    cosine = tl.load(cosines + row * half + angle, mask=angle < half, other=1.0)[None, :]
    sine = tl.load(sines + row * half + angle, mask=angle < half, other=0.0)[None, :]
    lefts = x + row * stride + head * 2 * half + channel
    left = tl.load(lefts, mask=inside, other=0.0).to(tl.float32)
    right = tl.load(lefts + half, mask=inside, other=0.0).to(tl.float32)
    tl.store(lefts, (left * cosine - right * sine).to(x.dtype.element_ty), mask=inside)
    tl.store(lefts + half, (right * cosine + left * sine).to(x.dtype.element_ty), mask=inside)


def rotate_(x: Tensor, cosines: Tensor, sines: Tensor) -> None:
    """Turn x [T, heads, head_size] in place, rows each contiguous; cosines, sines: float32 [T, 1, head_size / 2]."""
    assert x.stride()[1:] == (x.shape[2], 1), "the heads of a token lie side by side"
    tokens, heads, size = x.shape
    blocks = {"HEADS": triton.next_power_of_2(heads), "HALF": triton.next_power_of_2(size // 2)}
    _rotate_kernel[(tokens,)](x, cosines, sines, x.stride(0), heads, size // 2, **blocks)


@triton.jit
def _gate_kernel(gate, up, gate_stride, up_stride, size, TANH: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = channel < size
    place = gate + row * gate_stride + channel
    x = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    if TANH:  # gelu by its tanh, which is x * sigmoid(2 * inner)
        inner = 0.7978845608028654 * (x + 0.044715 * x * x * x)
        x = x * tl.sigmoid(2.0 * inner)
    else:
        x = x * tl.sigmoid(x)
    x *= tl.load(up + row * up_stride + channel, mask=inside, other=0.0).to(tl.float32)
    tl.store(place, x.to(gate.dtype.element_ty), mask=inside)


def gate_(gate: Tensor, up: Tensor, *, tanh: bool) -> Tensor:
    """`gate` becomes act(gate) * up, act being SiLU or, with `tanh`, GELU by its tanh; both [T, channels].

    Each row is contiguous: they may be halves of one product.
    """
    assert gate.stride(1) == up.stride(1) == 1, "columns of a product"
    rows, size = gate.shape
    blocks = (rows, triton.cdiv(size, _GATE_BLOCK))
    _gate_kernel[blocks](gate, up, gate.stride(0), up.stride(0), size, TANH=tanh, BLOCK=_GATE_BLOCK)
    return gate


@triton.jit
def _quantise_kernel(x, out, scales, stride, size, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    channels = tl.arange(0, BLOCK)
    inside = channels < size
    values = tl.load(x + row * stride + channels, mask=inside, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(values), 0) / _FP8_MAX, _LEAST_SCALE)
    # Maxima ignore NaN, which must not come out as a number: the whole row becomes NaN.
    scale = tl.where(tl.max(tl.where(values != values, 1, 0), 0) > 0, float("nan"), scale)
    values = tl.minimum(tl.maximum(values / scale, -_FP8_MAX), _FP8_MAX)
    tl.store(out + row * size + channels, values.to(out.dtype.element_ty), mask=inside)
    tl.store(scales + row, scale)


def quantise_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """X [T, channels], each row contiguous, in float8_e4m3fn with a scale a row; scales: float32 [T, 1]."""
    assert x.stride(1) == 1, "rows, or columns of a product"
    out = torch.empty(x.shape, dtype=torch.float8_e4m3fn, device=x.device)
    scales = x.new_empty(len(x), 1, dtype=torch.float32)
    size = x.shape[1]
    _quantise_kernel[(len(x),)](x, out, scales, x.stride(0), size, BLOCK=triton.next_power_of_2(size))
    return out, scales
