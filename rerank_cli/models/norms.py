"""LayerNorm with its weights, as the encoders and the vision tower use it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from rerank_cli.models.weights import WeightReader

if TYPE_CHECKING:
    from rerank_cli.models.elementwise import Elementwise


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """weight, bias: [channels]; ModernBERT's norms have no bias unless its config says so."""

    weight: Tensor
    bias: Tensor | None
    epsilon: float

    @property
    def parameters(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of a norm that has one."""
        assert self.bias is not None, "asked of norms with a bias"
        return self.weight, self.bias

    def __call__(self, x: Tensor) -> Tensor:
        """Normalised over the last dimension."""
        return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.epsilon)

    def of_sum_(self, x: Tensor, residual: Tensor, by: Elementwise) -> Tensor:
        """`x` becomes the norm of `x + residual`."""
        return by.normalise_sum_(x, residual, *self.parameters, self.epsilon)


def read_norm(
    weights: WeightReader, name: str, size: int, epsilon: float, *, dtype: torch.dtype | None = None
) -> LayerNorm:
    """The norm `name` over `size` channels, with its bias; dtype: as `WeightReader.take` takes it."""
    weight, bias = (weights.take(f"{name}.{part}", (size,), dtype=dtype) for part in ("weight", "bias"))
    return LayerNorm(weight, bias, epsilon)
