"""What the CPU reaches in this project's own product of matrices: the ceiling that figures are compared with."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

from rerank_cli.models.int8 import Int8Linear
from rerank_cli.models.linear import linear_kind

_ROWS = 2048  # tokens of a batch on a CPU
_ROUNDS, _CALLS = 9, 10


@torch.inference_mode()
def product_speed(precision: str, hidden: int, inner: int, clock: Callable[[], float]) -> float:
    """Operations a second, of the shape of a layer from `hidden` to `inner` channels; the median of some rounds."""
    product = _product(precision, hidden, inner)
    for _ in range(_CALLS):
        product()
    times = []
    for _ in range(_ROUNDS):
        began = clock()
        for _ in range(_CALLS):
            product()
        times.append((clock() - began) / _CALLS)
    return 2 * _ROWS * hidden * inner / statistics.median(times)


def _product(precision: str, hidden: int, inner: int) -> Callable[[], object]:
    if precision == "int8":
        layer, whole = Int8Linear(torch.randn(inner, hidden), torch.zeros(inner)), torch.zeros(_ROWS, hidden).byte()
        return lambda: layer(whole)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    floats = linear_kind(torch.device("cpu"), dtype)(torch.randn(inner, hidden, dtype=dtype), None)
    rows = torch.randn(_ROWS, hidden, dtype=dtype)
    return lambda: floats(rows)
