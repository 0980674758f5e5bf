"""Rotary positions (RoPE): the angle for each position and channel; `elementwise.py` turns the channels by it."""

from __future__ import annotations

import torch
from torch import Tensor

from rerank_cli.models.elementwise import Elementwise, Rotation


def rotary_frequencies(theta: float, head_size: int, device: torch.device) -> Tensor:
    """Radians a token of each pair of channels, float32 [head_size / 2]."""
    exponents = torch.arange(0, head_size, 2, device=device).float() / head_size
    # As the reference rounds it: at position 8,000 another order of operations turns angles by half a thousandth.
    return 1.0 / theta**exponents


def rotation_at(positions: Tensor, frequencies: Tensor) -> Rotation:
    """How tokens at these positions [T] are turned; frequencies: radians a token, float32 [head_size / 2]."""
    angles = positions.float()[:, None] * frequencies
    return angles.cos()[:, None], angles.sin()[:, None]


def split_rotated(qkv: Tensor, heads: int, rotation: Rotation, by: Elementwise) -> tuple[Tensor, Tensor, Tensor]:
    """Query and key, turned in place, and value, each [T, heads, head_size]; qkv: [T, 3 * hidden]."""
    parts = qkv.unflatten(1, (3 * heads, -1))
    by.rotate_(parts[:, : 2 * heads], rotation)
    q, k, v = parts.split(heads, dim=1)
    return q, k, v
