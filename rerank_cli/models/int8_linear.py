"""Linear layers in 8-bit integers on a CPU, by oneDNN: products of 8 bits, sums of 32, one multiplication at the end.

A weight is rounded by output channel: each row has a scale of its own. An input is rounded by input channel: before it
is rounded, channel c is multiplied by `factors[c]`, and column c of the weight is divided by it, which changes nothing
of the product. The factors come from the largest values that were seen in each channel (`balance`). Without them the
top 10 of vaswani agree with float32 to 0.92, with them to 0.98: in the built-in model a few channels of a LayerNorm's
output are thirty times as large as the others. The idea is SmoothQuant's (Xiao et al., 2022).

What follows GELU cannot be multiplied beforehand, as GELU is not linear. There the few units with the largest values
are a layer of their own, with a coarse step, and all others one with a fine step (`split_units`); both add to the
residual. One step for both: 0.96.

Rounded numbers are bytes around 128, as VNNI multiplies unsigned inputs with signed weights. The product of the weights
with that 128 goes into the bias. Our own kernel for tiles (`amx.py`) takes both signed: the same numbers.

The operators are those that torch has for its own compiler (`onednn::qlinear_pointwise`); `int8_hindrance` tries them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor

_LARGEST = 127
_ZERO = 128
_HINT_ROWS = 2048  # rows that oneDNN lays the weight out for
# How much of the range of a channel goes into the weight: 1 is all, 0 nothing. 0.7 to 1 measured alike on the built-in
# model, 0.5 worse.
_SHARE = 0.85
_LEAST_SHARE = 1e-3  # of the largest channel: no channel is taken to be smaller
_LARGE_UNITS = 64  # as many as a tile of AMX sums up (`amx.cpp`); measured: 16 to 64 alike, none far worse


@dataclass(frozen=True, slots=True)
class ScaleAndZero:
    """What a byte stands for: `(byte - zero) * scale`."""

    scale: float = 1.0
    zero: int = _ZERO

    @classmethod
    def over(cls, least: float, most: float) -> ScaleAndZero:
        """The finest that reaches from `least` (or 0) to `most` (or 0)."""
        least, most = min(least, 0.0), max(most, 0.0)
        scale = max(most - least, 1e-6) / 255
        return cls(scale, round(-least / scale))

    @property
    def signed(self) -> ScaleAndZero:
        """The same of bytes from -128 to 127 in place of 0 to 255."""
        return ScaleAndZero(self.scale, self.zero - _ZERO)


STEPS = ScaleAndZero()
"""Of inputs that were multiplied by their factors: a byte is a step."""


class RoundedLinear:
    """Weights [outputs, inputs] as bytes, and how a sum over products of bytes becomes a result.

    Result = sum * scales * inputs.scale + bias, [outputs] each, with inputs as bytes that stand for
    `(byte - inputs.zero) * inputs.scale`: the zero is in the bias.
    """

    def __init__(self, weight: Tensor, bias: Tensor, inputs: ScaleAndZero) -> None:
        self.scales = weight.abs().amax(1).clamp_min_(1e-12).div_(_LARGEST)
        rounded = (weight / self.scales[:, None]).round_()
        self.bias = bias - rounded.sum(1) * self.scales * (inputs.scale * inputs.zero)
        self.weight = rounded.to(torch.int8)


class Int8Linear:
    """A linear layer whose inputs and weights are bytes; satisfies `Linear`, of bytes.

    weight: float32 [outputs, inputs], to be rounded; bias: float32 [outputs]. inputs: what the bytes of x stand for.
    out: the dtype of the result, or the grid of its bytes. gelu: follows.
    """

    kernel: ClassVar[str] = "oneDNN, int8"

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        *,
        inputs: ScaleAndZero = STEPS,
        out: torch.dtype | ScaleAndZero = torch.float32,
        gelu: bool = False,
    ) -> None:
        rounded = RoundedLinear(weight, bias, inputs)
        self._scales, self._bias = rounded.scales, rounded.bias
        self._zeros = torch.zeros(len(rounded.scales), dtype=torch.int64)
        self._inputs = inputs
        self._weight = torch.ops.onednn.qlinear_prepack(rounded.weight, [_HINT_ROWS, weight.shape[1]])
        self._grid = out if isinstance(out, ScaleAndZero) else ScaleAndZero(1.0, 0)
        self._dtype = torch.uint8 if isinstance(out, ScaleAndZero) else out
        self._then = ("gelu", "none") if gelu else ("none", "")

    def __call__(self, x: Tensor) -> Tensor:
        """x: uint8 [T, inputs]. Returns [T, outputs]."""
        name, algorithm = self._then
        y: Tensor = torch.ops.onednn.qlinear_pointwise(
            x, self._inputs.scale, 0, self._weight, self._scales, self._zeros, self._bias,
            self._grid.scale, self._grid.zero, self._dtype, name, [], algorithm,
        )  # fmt: skip
        return y

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """`residual`, float32 [T, outputs], with the product added in place; without the activation."""
        y: Tensor = torch.ops.onednn.qlinear_pointwise.binary(
            x, self._inputs.scale, 0, self._weight, self._scales, self._zeros, residual, self._bias,
            1.0, 0, torch.float32, 1.0, 0, "sum", 1.0, "none", [], "",
        )  # fmt: skip
        return y


def steps(x: Tensor) -> Tensor:
    """float32 `x`, which was multiplied by its factors and is overwritten, as bytes around 128."""
    # By way of int8: torch converts to uint8 eight times as slowly (2.13).
    return x.round_().clamp_(-_LARGEST, _LARGEST).to(torch.int8).view(torch.uint8).bitwise_xor_(_ZERO)


def balance(most: Tensor, weight: Tensor) -> Tensor:
    """Factors, [inputs], for inputs of at most `most`, [inputs], on the way to `weight`, [outputs, inputs].

    Inputs times factors are in +-127. `weight / factors` is what they are multiplied with.
    """
    seen = most.clamp_min(max(float(most.max()) * _LEAST_SHARE, 1e-6))
    needed = weight.abs().amax(0).clamp_min(1e-6)
    ranges = seen**_SHARE / needed ** (1 - _SHARE)
    return _LARGEST / (ranges * float((seen / ranges).max()))


def large_units(units: int) -> int:
    """How many of so many units are a layer of their own; 0 where all are one."""
    return _LARGE_UNITS if units > 2 * _LARGE_UNITS else 0


def split_units(most: Tensor) -> list[Tensor]:
    """The units with the largest values, and all others: the indices of both, each ascending. most: [units]."""
    large = large_units(len(most))
    if not large:
        return [torch.arange(len(most))]
    order = most.argsort(descending=True, stable=True)
    return [order[:large].sort().values, order[large:].sort().values]


@cache
def int8_hindrance() -> str | None:
    """Why int8 layers do not run in this process; None where they do (tried on a small layer)."""
    if not torch.backends.mkldnn.is_available():
        return "this torch has no oneDNN"
    try:
        weight = torch.full((16, 16), 2.0)
        layer = Int8Linear(weight, torch.ones(16))
        found = layer.add(torch.full((1, 16), _ZERO + 1, dtype=torch.uint8), torch.ones(1, 16))
    except (RuntimeError, AttributeError, NotImplementedError) as error:
        return f"torch {torch.__version__} has no int8 layers of oneDNN: {error}"
    return None if torch.allclose(found, torch.full((1, 16), 34.0)) else "oneDNN's int8 layers compute wrongly here"
