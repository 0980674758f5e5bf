"""What lies between the matrix products of a layer: norms, rotation, the gate of the MLP, rows in FP8.

A Llama layer uses the RMS norm, the rotation, the gate and the rows in FP8; the encoders with rotary positions
(ModernBERT, GTE) the rotation; the encoders that normalise sums (BERT and its kin, GTE) the norm of a sum.

None of it computes much; all of it moves every activation. On a GPU that is the time a forward pass spends beside its
products: as torch operations, in float32 as precision requires, it moves five to ten times the bytes that it must
(66,000 tokens of a 1B model in bf16 at 3.3 TB/s, on paper: 90 ms beside 190 ms of products; fused 30 ms).

* `Unfused`: torch operations, a chunk of tokens at a time, so that the float32 copies stay small. Runs anywhere.
* `Fused`: one Triton kernel each (`triton_kernels.py`). CUDA; each is tried on a few numbers when a model loads, and
  where one fails or disagrees the model runs unfused and its `kernels` says so.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import cache, partial
from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from rerank_cli.machine.gpu import FP8_CAPABILITY
from rerank_cli.planning.memory.pieces import CHUNK

FP8_MAX = 448.0
"""The largest number of float8_e4m3fn, which has no infinity."""

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines of the rotary angles, each float32 [T, 1, head_size / 2]."""

_GATES = {"silu": False, "swish": False, "gelu_new": True, "gelu_pytorch_tanh": True}
"""The activations that `gate_` has, and whether they are the tanh approximation."""


class Elementwise(Protocol):
    """The operations. name: of the implementation, in words, for the report."""

    name: ClassVar[str]

    normalises_sums: ClassVar[bool]
    """Whether `normalise_sum_` is faster than a sum that is part of the product's end, and a norm."""

    def normalise_sum_(self, x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
        """`x` [T, channels] becomes LayerNorm(x + residual), summed in float32; weight, bias: [channels]."""

    def rms_norm(self, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """RMSNorm over the last dimension, computed in float32, in the dtype of `x`; weight: float32 [channels]."""

    def rotate_(self, x: Tensor, rotation: Rotation) -> None:
        """Turn `x` [T, heads, head_size] in place, in float32; each channel of the left half with its right one.

        `x` may be columns of a wider matrix; so may the inputs of `gate_` and `quantise_rows`.
        """

    def has_gate(self, activation: str) -> bool:
        """Whether `gate_` has this activation."""

    def gate_(self, gate: Tensor, up: Tensor, activation: str) -> Tensor:
        """`gate` becomes activation(gate) * up."""

    def quantise_rows(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`x` [T, channels] in float8_e4m3fn, each row divided by its scale; scales: float32 [T, 1]."""


class Unfused:
    """By operations of torch; satisfies `Elementwise`."""

    name: ClassVar[str] = "unfused"
    normalises_sums: ClassVar[bool] = False

    def normalise_sum_(self, x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
        """See `Elementwise`."""
        return x.copy_(F.layer_norm(x.float() + residual, x.shape[-1:], weight.float(), bias.float(), epsilon))

    def rms_norm(self, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """See `Elementwise`."""
        if x.dtype == torch.float32:
            return F.rms_norm(x, x.shape[-1:], weight, epsilon)
        out = torch.empty_like(x)
        for rows, normed in zip(x.split(CHUNK), out.split(CHUNK), strict=True):
            normed.copy_(F.rms_norm(rows.float(), x.shape[-1:], weight, epsilon))
        return out

    def rotate_(self, x: Tensor, rotation: Rotation) -> None:
        """See `Elementwise`."""
        cosines, sines = rotation
        for rows, cos, sin in zip(x.split(CHUNK), cosines.split(CHUNK), sines.split(CHUNK), strict=True):
            self._rotate_rows_(rows, cos, sin)

    def _rotate_rows_(self, rows: Tensor, cosines: Tensor, sines: Tensor) -> None:
        # A function of its own, so that what it makes is gone before the next rows need room.
        wide = rows.float()  # the rows themselves, where they are float32
        left, right = wide.chunk(2, dim=-1)
        turned = left * cosines
        turned -= right * sines
        right.mul_(cosines).add_(left * sines)
        left.copy_(turned)
        if rows.dtype != torch.float32:
            rows.copy_(wide)

    def has_gate(self, activation: str) -> bool:
        """See `Elementwise`: none, as the product before can have the activation fused into it."""
        return False

    def gate_(self, gate: Tensor, up: Tensor, activation: str) -> Tensor:
        """See `Elementwise`."""
        x = F.gelu(gate, approximate="tanh") if _GATES[activation] else F.silu(gate)
        return gate.copy_(x.mul_(up))

    def quantise_rows(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See `Elementwise`."""
        out = torch.empty(x.shape, dtype=torch.float8_e4m3fn, device=x.device)  # contiguous, which columns are not
        scales = x.new_empty(len(x), 1, dtype=torch.float32)
        for rows, values, scale in zip(x.split(CHUNK), out.split(CHUNK), scales.split(CHUNK), strict=True):
            wide = rows.float()
            torch.div(wide.abs().amax(dim=1, keepdim=True), FP8_MAX, out=scale).clamp_min_(1e-12)
            values.copy_((wide / scale).clamp_(-FP8_MAX, FP8_MAX))
        return out, scales


class Fused:
    """By Triton kernels; satisfies `Elementwise`."""

    name: ClassVar[str] = "fused (Triton)"
    normalises_sums: ClassVar[bool] = True

    def __init__(self) -> None:
        from rerank_cli.models import triton_kernels  # only where Triton is

        self._kernels = triton_kernels

    def normalise_sum_(self, x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
        """See `Elementwise`."""
        normed: Tensor = self._kernels.normalise_sum_(x, residual.contiguous(), weight, bias, epsilon)
        return normed

    def rms_norm(self, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """See `Elementwise`."""
        normed: Tensor = self._kernels.rms_norm(x.contiguous(), weight, epsilon)
        return normed

    def rotate_(self, x: Tensor, rotation: Rotation) -> None:
        """See `Elementwise`."""
        self._kernels.rotate_(x, *(part.contiguous() for part in rotation))

    def has_gate(self, activation: str) -> bool:
        """See `Elementwise`."""
        return activation in _GATES

    def gate_(self, gate: Tensor, up: Tensor, activation: str) -> Tensor:
        """See `Elementwise`."""
        gated: Tensor = self._kernels.gate_(gate, up, tanh=_GATES[activation])
        return gated

    def quantise_rows(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See `Elementwise`."""
        quantised: tuple[Tensor, Tensor] = self._kernels.quantise_rows(x)
        return quantised


@cache
def elementwise_for(device: torch.device, dtype: torch.dtype) -> tuple[Elementwise, str]:
    """The operations for a device, and why they are not fused where they are not.

    fp32 on a GPU stays unfused: it is there to be compared with.
    """
    if device.type != "cuda" or dtype == torch.float32:
        return Unfused(), Unfused.name
    try:
        fused = Fused()
        # Below 8.9 Triton has no float8_e4m3fn to store, and nobody asks for it.
        lacks_fp8 = torch.cuda.get_device_capability(device) < FP8_CAPABILITY
        wrong = disagreement(fused, device, dtype, leave_out=["fp8"] if lacks_fp8 else [])
    except Exception as error:  # noqa: BLE001 (no Triton, no C compiler, a kernel that this card does not take: all said)
        wrong = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return (Unfused(), f"unfused ({wrong})") if wrong else (fused, fused.name)


def disagreement(
    one: Elementwise, device: torch.device, dtype: torch.dtype, *, leave_out: Collection[str] = ()
) -> str | None:
    """The first operation that `one` and `Unfused` compute differently on some numbers, in words; None if all agree.

    Half a unit in the last place may differ, as the unfused gate rounds once more. leave_out: operations by name.
    """
    other = Unfused()
    numbers = torch.Generator().manual_seed(0)
    x, up = torch.randn(5, 12, 80, generator=numbers).to(device, dtype).chunk(2, dim=1)  # columns of wider rows
    weight = torch.rand(80, generator=numbers).to(device)
    scale, shift = weight.to(dtype), torch.rand(80, generator=numbers).to(device, dtype)
    angles = torch.rand(5, 1, 40, generator=numbers).to(device) * 100
    rotation = (angles.cos(), angles.sin())

    def turned(by: Elementwise) -> Tensor:
        out = torch.cat([x, up], dim=1)[:, : x.shape[1]]
        by.rotate_(out, rotation)
        return out

    def gated(by: Elementwise, activation: str) -> Tensor:
        left, right = torch.cat([x, up], dim=1).flatten(1).chunk(2, dim=1)
        return by.gate_(left, right, activation)

    def restored(by: Elementwise) -> Tensor:
        values, scales = by.quantise_rows(torch.cat([x, up], dim=1).flatten(1).chunk(2, dim=1)[0])
        return values.float() * scales

    checks: dict[str, Callable[[Elementwise], Tensor]] = {
        "layer_norm": lambda by: by.normalise_sum_(x[:, 0].clone(), up[:, 0], scale, shift, 1e-5),
        "rms_norm": lambda by: by.rms_norm(x, weight, 1e-6),
        "rotation": turned,
        "silu": partial(gated, activation="silu"),
        "gelu": partial(gated, activation="gelu_pytorch_tanh"),
        "fp8": restored,
    }
    tolerance = {torch.float16: 4e-3, torch.bfloat16: 3e-2}.get(dtype, 1e-5)
    for name, compute in checks.items():
        if name in leave_out:
            continue
        # A number between two of FP8 may go either way: three bits are left of it.
        allowed = 0.3 if name == "fp8" else tolerance
        if not torch.allclose(compute(one).float(), compute(other).float(), atol=allowed, rtol=allowed / 2):
            return f"{name} of the kernels and of torch differ on this device"
    return None
