"""Linear layers over packed tokens, with what follows them fused in: an activation (the list is here), or a residual.

Two kinds, with the same result up to rounding, and two whose products are in FP8:

* `PlainLinear`: `F.linear` and then the activation. Runs anywhere; on a GPU the compiler of cuBLAS does the rest.
* `OneDnnLinear`: on a CPU the weight is re-laid once for oneDNN's blocked GEMM, and the activation or the addition
  happens while the output block is still in cache. Measured on Zen 4 (torch 2.13, fp32): 13 % over `F.linear`, which
  calls MKL. It uses operators that torch has for its own compiler (`mkldnn::_linear_pointwise`); where they are
  missing, or refuse the dtype, `linear_kind` takes the plain kind, and a model's `kernels` says so.
* `Fp8Linear`: weights and inputs in float8_e4m3fn with the scales of a ModelOpt checkpoint, multiplied by the tensor
  cores of compute capability 8.9 and up (`torch._scaled_mm`). Elsewhere such weights are dequantised as they are read,
  and the layer is one of the others.
* `RowScaledFp8Linear`: the same product for weights in 16 bits, rounded when the model loads. Every output channel and
  every token has a scale of its own, so no outlier costs the others their bits, and nothing is calibrated.

oneDNN compiles a kernel for every number of rows it sees and keeps them in a cache: callers round the rows of a batch
(see `packed.py`), or memory creeps up with every new length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from rerank_cli.errors import ModelError
from rerank_cli.machine.gpu import FP8_CAPABILITY
from rerank_cli.models.elementwise import FP8_MAX, Elementwise, Unfused
from rerank_cli.models.weights import Fp8Weight, WeightReader
from rerank_cli.planning.memory.pieces import CHUNK, FP8_MULTIPLE

_HINT_ROWS = 2048  # rows that oneDNN lays the weight out for; a batch has 1,000 to 4,000


class Linear(Protocol):
    """`activation(x @ weight.T + bias)`."""

    def __call__(self, x: Tensor) -> Tensor:
        """x: [T, in]. Returns [T, out]."""

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """x: [T, in], residual: [T, out]. Returns `residual + x @ weight.T + bias`, without the activation.

        It may be `residual` itself, changed, which the caller must not need any more.
        """


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "swish": F.silu,
    "tanh": torch.tanh,
}
"""Activations by the name that config.json uses."""

# How oneDNN spells them: (attribute, algorithm). An activation without a row here is applied after the layer.
_FUSED: dict[str | None, tuple[str, str]] = {
    None: ("none", ""),
    "gelu": ("gelu", "none"),
    "gelu_new": ("gelu", "tanh"),
    "gelu_pytorch_tanh": ("gelu", "tanh"),
    "relu": ("relu", ""),
    "silu": ("swish", ""),
    "swish": ("swish", ""),
    "tanh": ("tanh", ""),
}


def activation(name: str, *, where: str) -> Callable[[Tensor], Tensor]:
    """The activation that a config calls `name`; `ModelError` naming `where` if it is not known."""
    if name not in ACTIVATIONS:
        raise ModelError(f"{where}: activation `{name}` is not known", hint=f"known are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


class PlainLinear:
    """A linear layer by `F.linear`; satisfies `Linear`."""

    kernel: ClassVar[str] = "F.linear"

    def __init__(self, weight: Tensor, bias: Tensor | None, *, then: str | None = None) -> None:
        self._weight = weight
        self._bias = bias
        self._then = ACTIVATIONS[then] if then else None

    def __call__(self, x: Tensor) -> Tensor:
        """See `Linear`."""
        y = F.linear(x, self._weight, self._bias)
        return self._then(y) if self._then else y

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """See `Linear`."""
        if x.device.type != "cpu" and self._bias is None:
            return residual.addmm_(x, self._weight.t())  # the sum is part of the product's end
        return residual.add_(F.linear(x, self._weight, self._bias))


_HEAD_CHANNELS = 32


class HeadLinear(PlainLinear):
    """A layer of a head, over one row a pair in float32; satisfies `Linear`.

    On a CPU it multiplies in float64 and rounds once: in float32 the last digit of a logit depends on how many rows
    there are, and on how many threads.
    """

    def __call__(self, x: Tensor) -> Tensor:
        """See `Linear`."""
        if x.device.type != "cpu":
            return super().__call__(x)
        wide = x.double()
        # Some channels at a time: a whole weight in float64 would be the peak of a small batch.
        y = torch.cat([F.linear(wide, rows.double()).to(x.dtype) for rows in self._weight.split(_HEAD_CHANNELS)], dim=1)
        y = y if self._bias is None else y + self._bias
        return self._then(y) if self._then else y


BLOCK_ROWS = 256
"""Rows of a batch that a layer of a CPU takes at a time where it goes by blocks: what lies between its products then
stays in the L2 of a core."""

_LONG_INPUTS = 385  # from here on oneDNN may cut a sum in pieces whose number depends on the rows
# Measured with AMX, torch 2.13, one thread, 32 to 2,048 rows: 128 to 384 inputs are never cut; 512, 640, 768 and 1,024
# are, for some numbers of outputs. In blocks none is.


class OneDnnLinear:
    """A linear layer with its weight prepacked for oneDNN; satisfies `Linear`.

    In bfloat16 long sums go by blocks of exactly `BLOCK_ROWS` rows, the last one filled up: oneDNN adds them up in
    another order for every number of rows, and a logit would move by some hundredths with the batch it is in. On AMX it
    costs some 0.5 ms per layer and 1,024 rows (384 channels, torch 2.13).
    """

    kernel: ClassVar[str] = "oneDNN, prepacked"

    def __init__(self, weight: Tensor, bias: Tensor | None, *, then: str | None = None) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, _HINT_ROWS)
        self._outputs = len(weight)
        self._bias = bias
        self._attribute, self._algorithm = _FUSED[then]
        self._by_blocks = weight.dtype == torch.bfloat16 and weight.shape[1] >= _LONG_INPUTS

    def __call__(self, x: Tensor) -> Tensor:
        """See `Linear`."""
        return self._blocks(self._product, x) if self._by_blocks else self._product(x)

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """See `Linear`."""
        return self._blocks(self._sum, x, residual) if self._by_blocks else self._sum(x, residual)

    def _product(self, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self._weight, self._bias, self._attribute, [], self._algorithm
        )
        return y

    def _sum(self, x: Tensor, residual: Tensor) -> Tensor:
        y: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, residual, self._weight, self._bias, "add")
        return y

    def _blocks(self, compute: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        if len(inputs[0]) == BLOCK_ROWS:
            return compute(*inputs)
        out = inputs[0].new_empty(len(inputs[0]), self._outputs)
        for into, *rows in zip(out.split(BLOCK_ROWS), *(x.split(BLOCK_ROWS) for x in inputs), strict=True):
            missing = BLOCK_ROWS - len(into)
            block = [F.pad(part, (0, 0, 0, missing)) for part in rows] if missing else rows
            into.copy_(compute(*block)[: len(into)])
        return out


_TRIED = 128  # rows and columns of the weight that a product in FP8 is tried with


class Fp8Linear:
    """A linear layer whose product is in FP8; satisfies `Linear`.

    y = (e4m3(x / input_scale) @ weight.T) * input_scale * weight_scale + bias, summed in float32, where e4m3 rounds to
    nearest and clips at +-448: the arithmetic that the checkpoint was calibrated with.
    """

    kernel: ClassVar[str] = "FP8 (torch._scaled_mm)"

    def __init__(self, weight: Fp8Weight, bias: Tensor | None, *, then: str | None = None) -> None:
        self._weight = weight.values.t()  # [in, out] by columns, as the kernel wants it
        self._scale = weight.scale
        self._input_scale = weight.input_scale
        self._bias = bias
        self._then = ACTIVATIONS[then] if then else None

    def __call__(self, x: Tensor) -> Tensor:
        """See `Linear`."""
        y = self._product(x)
        return self._then(y) if self._then else y

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """See `Linear`."""
        return residual.add_(self._product(x))

    def _product(self, x: Tensor) -> Tensor:
        quantised = torch.empty_like(x, dtype=torch.float8_e4m3fn)
        for rows, values in zip(x.split(CHUNK), quantised.split(CHUNK), strict=True):
            # Divided in float32: a quotient in bfloat16 would be rounded twice.
            values.copy_((rows.float() / self._input_scale).clamp_(-FP8_MAX, FP8_MAX))
        y: Tensor = torch._scaled_mm(
            quantised,
            self._weight,
            scale_a=self._input_scale,
            scale_b=self._scale,
            bias=self._bias,
            out_dtype=x.dtype,
            use_fast_accum=True,
        )
        return y


class RowScaledFp8Linear:
    """A linear layer whose product is in FP8, of a weight [out, in] in 16 bits; satisfies `Linear`.

    y = (e4m3(x / s) @ e4m3(w / u).T) * s * u.T + bias, summed in float32; s: of each row of x, u: of each row of w.
    """

    kernel: ClassVar[str] = "FP8, a scale a row (torch._scaled_mm)"

    def __init__(
        self, weight: Tensor | Iterator[Tensor], bias: Tensor | None, *, then: str | None = None, by: Elementwise
    ) -> None:
        # Several weights lie one under the other; each is rounded before the next one is read.
        rounded = [by.quantise_rows(part) for part in ([weight] if isinstance(weight, Tensor) else weight)]
        values = torch.cat([part.view(torch.uint8) for part, _ in rounded]).view(torch.float8_e4m3fn)
        self._weight = values.t()  # [in, out] by columns, as the kernel wants it
        self._scales = torch.cat([scales for _, scales in rounded]).t()  # [1, out]
        self._bias = bias
        self._then = ACTIVATIONS[then] if then else None
        self._by = by

    def __call__(self, x: Tensor) -> Tensor:
        """See `Linear`."""
        y = self.multiply(*self._by.quantise_rows(x))
        return self._then(y) if self._then else y

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """See `Linear`."""
        return residual.add_(self.multiply(*self._by.quantise_rows(x)))

    def multiply(self, values: Tensor, scales: Tensor) -> Tensor:
        """The product of rounded rows, with the bias, bfloat16 [T, out]."""
        y: Tensor = torch._scaled_mm(
            values, self._weight, scale_a=scales, scale_b=self._scales, out_dtype=torch.bfloat16, use_fast_accum=True
        )
        return y if self._bias is None else y.add_(self._bias)


def row_scaled_refusal(device: torch.device) -> str | None:
    """Why `RowScaledFp8Linear` does not run on `device`; None where it does (tried on a small product)."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < FP8_CAPABILITY:
        return "needs compute capability 8.9"
    try:
        # No smaller than the blocks of any kernel, so that the kernel of real layers is tried.
        weight = torch.ones(_TRIED, _TRIED, device=device, dtype=torch.bfloat16)
        found = RowScaledFp8Linear(weight, None, by=Unfused())(weight[: _TRIED // 2])
    except (RuntimeError, NotImplementedError) as error:
        return f"torch._scaled_mm does not take a scale a row here: {str(error).partition(chr(10))[0]}"
    return None if bool((found == _TRIED).all()) else "torch._scaled_mm computes something else here"


@dataclass(frozen=True, slots=True)
class LinearLoader:
    """Makes linear layers of a checkpoint's weights.

    kind: for weights in `dtype`. fp8: weights in FP8 stay so (see `fp8_runs`). rows: those in 16 bits become FP8, with
    what quantises their inputs. together: layers of one input may be one product (see `beside`).
    """

    weights: WeightReader
    kind: Callable[..., Linear]
    fp8: bool = False
    rows: Elementwise | None = None
    together: bool = False

    def __call__(self, name: str, inputs: int, outputs: int, *, bias: bool = True, then: str | None = None) -> Linear:
        """The layer `name`, of weights `name.weight` [outputs, inputs] and, with `bias`, `name.bias` [outputs]."""
        fits = inputs % FP8_MULTIPLE == 0 and outputs % FP8_MULTIPLE == 0
        stays = self.fp8 and fits and self.weights.is_fp8(f"{name}.weight")
        weight = (self.weights.take_fp8 if stays else self.weights.take)(f"{name}.weight", (outputs, inputs))
        added = self.weights.take(f"{name}.bias", (outputs,)) if bias else None
        if isinstance(weight, Fp8Weight):
            return Fp8Linear(weight, added, then=then)
        if self.rows is not None and fits:
            return RowScaledFp8Linear(weight, added, then=then, by=self.rows)
        return self.kind(weight, added, then=then)

    def beside(
        self, names: Sequence[str], inputs: int, outputs: Sequence[int], *, bias: bool, then: str | None = None
    ) -> SideBySide:
        """The layers `names` of one input. outputs: of each of them. then: the activation after the first of them.

        With `together` they are one product where possible: it is wider, and reads and rounds its input once.
        """
        stored = any(self.weights.is_fp8(f"{name}.weight") for name in names)  # each has an input scale of its own
        fits = all(size % FP8_MULTIPLE == 0 for size in (inputs, *outputs)) or self.rows is None
        if not self.together or stored or then or not fits:
            each = zip(names, outputs, (then, *[None] * len(names)), strict=False)
            return SideBySide(tuple(self(name, inputs, size, bias=bias, then=one) for name, size, one in each), outputs)
        sizes = list(zip(names, outputs, strict=True))
        added = torch.cat([self.weights.take(f"{name}.bias", (size,)) for name, size in sizes]) if bias else None
        parts = (self.weights.take(f"{name}.weight", (size, inputs)) for name, size in sizes)
        if self.rows is not None:
            return SideBySide((RowScaledFp8Linear(parts, added, by=self.rows),), outputs)
        return SideBySide((self.kind(torch.cat(list(parts)), added),), outputs)


@dataclass(frozen=True, slots=True)
class SideBySide:
    """Linear layers of one input: one product for all of them, or one each. outputs: of each of them."""

    layers: tuple[Linear, ...]
    outputs: Sequence[int]

    def __call__(self, x: Tensor) -> Sequence[Tensor]:
        """x: [T, in]. Returns [T, out] of each; of one product they are views."""
        if len(self.layers) == 1:
            columns: Sequence[Tensor] = self.layers[0](x).split(list(self.outputs), dim=1)
            return columns
        return [layer(x) for layer in self.layers]


def fp8_runs(device: torch.device, dtype: torch.dtype) -> bool:
    """The device multiplies in FP8 and takes activations of this dtype.

    Source: torch's _scaled_mm wants compute capability 8.9 (Ada, Hopper and later).
    """
    return (
        device.type == "cuda"
        and dtype in (torch.float16, torch.bfloat16)
        and torch.cuda.get_device_capability(device) >= FP8_CAPABILITY
    )


def fp8_reason(device: torch.device, dtype: torch.dtype) -> str:
    """How weights in FP8 run on `device` with activations of `dtype`, and why, in words."""
    if fp8_runs(device, dtype):
        return "multiplied as they are, by torch._scaled_mm"
    if device.type != "cuda":
        return f"dequantised as they are read: no FP8 product on a {'CPU' if device.type == 'cpu' else device.type}"
    if dtype == torch.float32:
        return "dequantised as they are read: activations are in fp32"
    capability = ".".join(map(str, torch.cuda.get_device_capability(device)))
    return f"dequantised as they are read: compute capability {capability} is below 8.9"


def onednn_runs(dtype: torch.dtype) -> bool:
    """The prepacked linear of oneDNN exists in this torch and takes `dtype` on this CPU (tried on a 1x1 layer)."""
    if not torch.backends.mkldnn.is_available():
        return False
    try:
        one = torch.ones(1, 1, dtype=dtype)
        layer = OneDnnLinear(one, None)
        return bool(layer.add(layer(one), one).item() == 2)
    except (RuntimeError, AttributeError, NotImplementedError):
        return False


def linear_kind(device: torch.device, dtype: torch.dtype) -> type[PlainLinear] | type[OneDnnLinear]:
    """The kind of linear layer for a device and dtype; its `kernel` names it in reports."""
    return OneDnnLinear if device.type == "cpu" and onednn_runs(dtype) else PlainLinear
