"""What the CPU reaches in this project's own product of matrices: the ceiling that figures are compared with."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

from rerank_cli.models.measure import layer_product

_ROWS = 2048  # tokens of a batch on a CPU
_ROUNDS, _CALLS = 9, 10


@torch.inference_mode()
def product_speed(precision: str, hidden: int, inner: int, clock: Callable[[], float]) -> float:
    """Operations a second, of the shape of a layer from `hidden` to `inner` channels; the median of some rounds."""
    product = layer_product(precision, "cpu", rows=_ROWS, inputs=hidden, outputs=inner)
    for _ in range(_CALLS):
        product()
    times = []
    for _ in range(_ROUNDS):
        began = clock()
        for _ in range(_CALLS):
            product()
        times.append((clock() - began) / _CALLS)
    return 2 * _ROWS * hidden * inner / statistics.median(times)
