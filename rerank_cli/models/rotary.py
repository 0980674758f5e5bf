"""Rotary positions of the encoders (ModernBERT, GTE): the halves of each head are turned against each other."""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_frequencies(theta: float, head_size: int, device: torch.device) -> Tensor:
    """Radians a token of each pair of channels, float32 [head_size / 2]."""
    exponents = torch.arange(0, head_size, 2, device=device).float() / head_size
    # As the reference rounds it: at position 8,000 another order of operations turns angles by half a thousandth.
    return 1.0 / theta**exponents


def rotation(positions: Tensor, frequencies: Tensor) -> Tensor:
    """Cosines and sines of the rotary angles, float32 [2, T, 1, 1, head_size]."""
    angles = positions.float()[:, None] * frequencies
    angles = torch.cat((angles, angles), dim=1)
    return torch.stack((angles.cos(), angles.sin()))[:, :, None, None, :]


def rotate(x: Tensor, turned: Tensor) -> Tensor:
    """x: [T, 2, heads, head_size] (query and key). Rotated in float32, returned in the dtype of `x`."""
    wide = x.float()
    left, right = wide.chunk(2, dim=-1)
    return (wide * turned[0] + torch.cat((-right, left), dim=-1) * turned[1]).to(x.dtype)
