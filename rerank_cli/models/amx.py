"""Whole layers of a BERT-like encoder by our own kernel for CPUs with tiles (Intel AMX), in bfloat16 or int8.

The kernel is `amx.cpp`, whose head tells how it works; `machine/amx.py` tells where it runs. The encoder gives it
all layers but one that runs for the first tokens alone, and the embeddings; that layer and the head stay with torch.

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

from rerank_cli.machine.amx import Embedding, LayerWeights, Sizes, library
from rerank_cli.planning.memory.peak import amx_groups

_LINE = 64  # bytes that its buffers are aligned to
KERNEL = "AMX tiles"


@dataclass(frozen=True, slots=True)
class AmxLinear:
    """weight: [outputs, inputs], int8 or to be rounded to bfloat16. bias, scale: [outputs]; scale: of int8 sums."""

    weight: Tensor
    bias: Tensor
    scale: Tensor | None = None


@dataclass(frozen=True, slots=True)
class AmxSteps:
    """What an int8 layer's inputs are multiplied with before they are rounded to signed bytes.

    input_factors, attended_factors: of qkv's and of expand's, [hidden]. grids: of GELU's outputs, for the large units,
    which come first, and for all others: byte = x * by + zero, as (by, zero). large_scale: of contract's sums over the
    large units, [hidden].
    """

    input_factors: Tensor
    attended_factors: Tensor
    grids: tuple[tuple[float, float], tuple[float, float]]
    large_scale: Tensor


@dataclass(frozen=True, slots=True)
class AmxLayer:
    """One layer. Of its norms weight and bias. steps: in int8."""

    qkv: AmxLinear
    out: AmxLinear
    attention_norm: tuple[Tensor, Tensor]
    expand: AmxLinear
    contract: AmxLinear
    out_norm: tuple[Tensor, Tensor]
    steps: AmxSteps | None = None


@dataclass(frozen=True, slots=True)
class AmxTokens:
    """Places of each token in the tables of words, positions and types: int64 [T]."""

    words: Tensor
    positions: Tensor
    types: Tensor


class AmxLayers:
    """Layers one after another, by the kernel.

    layers: how many will be added. heads: of each. epsilon: of their norms. large: in int8 how many of GELU's outputs
    have a grid of their own, a multiple of 64; None: the layers are in bfloat16. `machine.amx.takes` says which sizes
    the kernel has; the library must be here.
    """

    def __init__(
        self, *, layers: int, hidden: int, inner: int, heads: int, epsilon: float, large: int | None = None
    ) -> None:
        found = library()
        assert found is not None, "the encoder asks first"
        self._library = found
        self._sizes = Sizes(layers, hidden, inner, heads, large is not None, large or 0, epsilon)
        self._layers = (LayerWeights * layers)()
        self._between = torch.float32 if self._sizes.int8 else torch.bfloat16
        # One buffer for all: the kernel fetches ahead, and one weight is followed by the next.
        numbers = layers * (4 * hidden * hidden + 2 * hidden * inner)
        self._weights = _aligned(numbers, torch.int8 if self._sizes.int8 else torch.bfloat16)
        found.amx_huge(self._weights.data_ptr(), self._weights.nbytes)
        self._kept: list[Tensor] = []  # what `_layers` and `_embedding` have the addresses of
        self._tables: tuple[Tensor, Tensor, Tensor] | None = None
        self._embedding = Embedding()
        self._added = self._packed = 0

    def embed(self, words: Tensor, positions: Tensor, types: Tensor, *, norm: tuple[Tensor, Tensor]) -> None:
        """Have `run` begin with the tokens' embeddings: the norm of the sum of three rows, of tables [., hidden]."""
        self._tables = words, positions, types
        assert all(table.dtype == self._between and table.is_contiguous() for table in self._tables)
        for name, table in zip(("words", "positions", "types"), self._tables, strict=True):
            setattr(self._embedding, name, table.data_ptr())
        self._embedding.norm, self._embedding.shift = map(self._keep, norm)

    def add(self, layer: AmxLayer) -> None:
        """Pack the next layer; its own tensors are needed no more."""
        into = self._layers[self._added]
        for name in ("qkv", "out", "expand", "contract"):
            linear: AmxLinear = getattr(layer, name)
            part = getattr(into, name)
            weight = linear.weight.to(self._weights.dtype).contiguous()
            room = self._weights[self._packed : self._packed + weight.numel()]
            self._packed += weight.numel()
            width = weight.shape[1] * weight.element_size()
            self._library.amx_pack(weight.data_ptr(), room.data_ptr(), len(weight), width)
            part.weights, part.bias = room.data_ptr(), self._keep(linear.bias)
            if linear.scale is not None:
                part.scale = self._keep(linear.scale)
        for name in ("attention", "out"):
            weight, bias = getattr(layer, f"{name}_norm")
            setattr(into, f"{name}_norm", self._keep(weight))
            setattr(into, f"{name}_shift", self._keep(bias))
        assert (layer.steps is not None) == bool(self._sizes.int8), "int8 layers have steps, others none"
        if steps := layer.steps:
            for name in ("input_factors", "attended_factors", "large_scale"):
                setattr(into, name, self._keep(getattr(steps, name)))
            for place, (by, zero) in enumerate(steps.grids):
                into.by[place], into.zero[place] = by, zero
        self._added += 1

    def run(self, x: Tensor, lengths: Sequence[int], *, threads: int, tokens: AmxTokens | None = None) -> None:
        """All layers over the pairs at the begin of `x`, [T, hidden], in place; of int8 layers float32, else bfloat16.

        lengths: tokens of each pair. threads: at most as many; torch's are not used. tokens: what the layers begin with
        in place of x, if they embed; `IndexError` where a table has no such row.
        """
        assert self._added == self._sizes.layers, "all layers are added before one runs"
        assert x.is_contiguous(), "rows lie one behind another"
        assert x.dtype == self._between and x.shape[1] == self._sizes.hidden, (x.dtype, x.shape)
        starts = np.zeros(len(lengths) + 1, dtype=np.int32)
        np.cumsum(lengths, out=starts[1:])
        assert min(lengths) > 0 and starts[-1] <= len(x), "pairs of at least one token, all of them in x"
        longest = max(lengths)
        groups = amx_groups(pairs=len(lengths), tokens=int(starts[-1]), longest=longest, threads=threads)
        sizes = ctypes.byref(self._sizes)
        room = _aligned(groups.threads * self._library.amx_room(sizes, groups.rows, longest), torch.uint8)
        self._library.amx_huge(room.data_ptr(), room.nbytes)
        self._library.amx_run(  # ctypes lets go of the GIL meanwhile
            sizes, self._layers, self._place(tokens) if tokens else None, x.data_ptr(),
            starts.ctypes.data, len(lengths), room.data_ptr(), groups.rows, longest, groups.threads,
        )  # fmt: skip

    def _place(self, tokens: AmxTokens) -> Embedding:
        """The embedding with the addresses of these tokens, which must live as long."""
        assert self._tables is not None, "it was told to embed"
        places = (tokens.words, tokens.positions, tokens.types)
        for table, rows in zip(self._tables, places, strict=True):
            least, most = rows.aminmax()
            assert rows.dtype == torch.int64 and rows.is_contiguous(), "the kernel reads them so"
            if int(least) < 0 or int(most) >= len(table):
                raise IndexError(f"rows {int(least)} to {int(most)} of a table of {len(table)}")
        here = Embedding.from_buffer_copy(self._embedding)
        here.word, here.position, here.type = (rows.data_ptr() for rows in places)
        return here

    def _keep(self, numbers: Tensor) -> int:
        self._kept.append(numbers.float().contiguous())
        return self._kept[-1].data_ptr()


def _aligned(numbers: int, dtype: torch.dtype) -> Tensor:
    """An empty tensor of so many numbers that begins at a cache line."""
    whole = torch.empty(numbers + _LINE // dtype.itemsize, dtype=dtype)
    skipped = -whole.data_ptr() % _LINE // dtype.itemsize
    return whole[skipped : skipped + numbers]
