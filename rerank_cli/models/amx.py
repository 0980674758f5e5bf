"""Whole layers of a BERT-like encoder by our own kernel for CPUs with tiles (Intel AMX), in bfloat16.

The kernel is `amx.cpp`, whose head tells how it works; `machine/amx.py` tells where it runs. The encoder gives it
all layers but one that runs for the first tokens alone; embeddings, that layer and the head stay with torch.

Why it is worth its upkeep (built-in model, one thread, CPU time, in turns with torch's path, 29 November 2026): 2.0 to
3.0 times as fast, and nearer to float32, as sums stay in float32 up to the norms. `benchmarks/RESULTS.md` has the rest.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rerank_cli.machine.amx import LayerWeights, Sizes, library
from rerank_cli.planning.memory.peak import amx_groups

_LINE = 64  # bytes that its buffers are aligned to
KERNEL = "AMX tiles"


@dataclass(frozen=True, slots=True)
class AmxLayer:
    """Weights [outputs, inputs] and biases of one layer; of its norms weight and bias."""

    qkv: tuple[Tensor, Tensor]
    out: tuple[Tensor, Tensor]
    attention_norm: tuple[Tensor, Tensor]
    expand: tuple[Tensor, Tensor]
    contract: tuple[Tensor, Tensor]
    out_norm: tuple[Tensor, Tensor]


class AmxLayers:
    """Layers one after another, by the kernel.

    layers: how many will be added. heads: of each. epsilon: of their norms. The sizes must be such as
    `machine.amx.takes` says, and the library must be here.
    """

    def __init__(self, *, layers: int, hidden: int, inner: int, heads: int, epsilon: float) -> None:
        found = library()
        assert found is not None, "the encoder asks first"
        self._library = found
        self._sizes = Sizes(layers, hidden, inner, heads, epsilon)
        self._layers = (LayerWeights * layers)()
        # One buffer for all: the kernel fetches ahead, and one weight is followed by the next.
        numbers = layers * (4 * hidden * hidden + 2 * hidden * inner)
        self._weights = _aligned(numbers, torch.bfloat16)
        found.amx_huge(self._weights.data_ptr(), self._weights.nbytes)
        self._floats: list[Tensor] = []  # what `_layers` has the addresses of
        self._added = self._packed = 0

    def add(self, layer: AmxLayer) -> None:
        """Pack the next layer; its own tensors are needed no more."""
        into = self._layers[self._added]
        for name in ("qkv", "out", "expand", "contract"):
            weight, bias = getattr(layer, name)
            setattr(into, name, self._pack(weight))
            setattr(into, f"{name}_bias", self._keep(bias))
        for name in ("attention", "out"):
            weight, bias = getattr(layer, f"{name}_norm")
            setattr(into, f"{name}_norm", self._keep(weight))
            setattr(into, f"{name}_shift", self._keep(bias))
        self._added += 1

    def run(self, x: Tensor, lengths: Sequence[int], *, threads: int) -> None:
        """All layers over the pairs at the begin of `x`, bfloat16 [T, hidden], in place.

        lengths: tokens of each pair. threads: at most as many; torch's are not used.
        """
        assert self._added == self._sizes.layers, "all layers are added before one runs"
        assert x.is_contiguous(), "rows lie one behind another"
        assert x.dtype == torch.bfloat16 and x.shape[1] == self._sizes.hidden, (x.dtype, x.shape)
        starts = np.zeros(len(lengths) + 1, dtype=np.int32)
        np.cumsum(lengths, out=starts[1:])
        assert min(lengths) > 0 and starts[-1] <= len(x), "pairs of at least one token, all of them in x"
        longest = max(lengths)
        groups = amx_groups(pairs=len(lengths), tokens=int(starts[-1]), longest=longest, threads=threads)
        sizes = ctypes.byref(self._sizes)
        room = _aligned(groups.threads * self._library.amx_room(sizes, groups.rows, longest), torch.uint8)
        self._library.amx_huge(room.data_ptr(), room.nbytes)
        self._library.amx_run(  # ctypes lets go of the GIL meanwhile
            sizes, self._layers, x.data_ptr(), starts.ctypes.data, len(lengths), room.data_ptr(), groups.rows, longest,
            groups.threads,
        )  # fmt: skip

    def _pack(self, weight: Tensor) -> int:
        weight = weight.to(torch.bfloat16).contiguous()
        into = self._weights[self._packed : self._packed + weight.numel()]
        self._packed += weight.numel()
        self._library.amx_pack(weight.data_ptr(), into.data_ptr(), *weight.shape)
        return into.data_ptr()

    def _keep(self, numbers: Tensor) -> int:
        self._floats.append(numbers.float().contiguous())
        return self._floats[-1].data_ptr()


def _aligned(numbers: int, dtype: torch.dtype) -> Tensor:
    """An empty tensor of so many numbers that begins at a cache line."""
    whole = torch.empty(numbers + _LINE // dtype.itemsize, dtype=dtype)
    skipped = -whole.data_ptr() % _LINE // dtype.itemsize
    return whole[skipped : skipped + numbers]
