"""BERT, RoBERTa and XLM-R cross-encoders with the products of their layers in int8, on a CPU.

    embeddings, norms, residual                            float32
    layers but the last: qkv, attention output, MLP        int8 (`int8_linear.py`)
    attention                                              bfloat16, or float32 where the CPU has no bfloat16
    all of these layers at once, where the CPU has tiles   the same by our own kernel (`amx.py`)
    last layer, which is for [CLS] alone, and the head     float32

How large the inputs of a layer become is seen by a calibration (`int8_calibration.py`).

Between the layers as little as possible is read and written again. The factor of the scores goes into the weights of
the queries, the factors of the context into those of the values: weights of a softmax sum to 1, so what is true of the
values is true of their mean. What is left before each layer is one multiplication and rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from rerank_cli.checkpoint import Checkpoint
from rerank_cli.models.amx import KERNEL as AMX_KERNEL
from rerank_cli.models.amx import AmxLayer, AmxLinear, AmxSteps
from rerank_cli.models.attention import attend_by_powers
from rerank_cli.models.encoder import EncoderCrossEncoder
from rerank_cli.models.int8_calibration import Int8Model, RawLinear, Seen
from rerank_cli.models.int8_linear import (
    STEPS,
    Int8Linear,
    RoundedLinear,
    ScaleAndZero,
    balance,
    large_units,
    split_units,
)
from rerank_cli.models.norms import LayerNorm
from rerank_cli.models.packed import PackedBatch, pack
from rerank_cli.models.weights import open_weights
from rerank_cli.planning.cpu_kernels import AMX
from rerank_cli.records import EncodedPair


@dataclass(frozen=True, slots=True)
class _Folded:
    """A layer whose weights hold all factors, and are still to be rounded.

    mlp: expand, the grid of its bytes, contract; of the large units, and of all others.
    """

    input_factors: Tensor
    qkv: RawLinear
    attention_out: RawLinear
    attention_norm: LayerNorm
    attended_factors: Tensor
    mlp: list[tuple[RawLinear, ScaleAndZero, RawLinear]]
    out_norm: LayerNorm


@dataclass(frozen=True, slots=True)
class _Int8Layer:
    """A layer with its weights rounded. mlp: expand and contract of the large units, and of all others."""

    input_factors: Tensor
    qkv: Int8Linear
    attention_out: Int8Linear
    attention_norm: LayerNorm
    attended_factors: Tensor
    mlp: list[tuple[Int8Linear, Int8Linear]]
    out_norm: LayerNorm


class Int8Encoder(Int8Model, EncoderCrossEncoder):
    """A BERT-like cross-encoder in int8; satisfies `RerankModel` once it is calibrated, and `Calibrates`."""

    _format = 2

    def __init__(self, checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype, attention: str) -> None:
        Int8Model.__init__(self)
        EncoderCrossEncoder.__init__(self, checkpoint, device=device, dtype=torch.float32, attention=attention)
        self._checkpoint = checkpoint
        self._rounded_layers = self._shape.layers - 1
        self._layers: list[_Int8Layer] = []
        narrow = str(self._narrow).removeprefix("torch.")
        beside = f"linear layers: {Int8Linear.kernel}; attention: {self._attention}, {narrow}"
        self._by_tiles = attention == AMX and self._head.first_token_only and self._amx_takes_it("int8")
        self.kernels = f"layers: {AMX_KERNEL}, int8" if self._by_tiles else beside

    def forward(self, pairs: Sequence[EncodedPair]) -> Tensor:
        """See `RerankModel`."""
        assert self.calibrated, "the pipeline calibrates before it scores"
        batch = pack(pairs, device=self._device)
        if self._amx is not None:
            return self._finish(self._by_amx(self._amx, batch), batch)
        x = self._embed(batch)
        room = torch.empty_like(x)  # for what is rounded; a new one each time costs more than the multiplication
        for layer in self._layers:
            x = self._run(layer, x, batch, room)
        return self._finish(x, batch)

    def _run(self, layer: _Int8Layer, x: Tensor, batch: PackedBatch, room: Tensor) -> Tensor:
        x = layer.attention_norm(layer.attention_out.add(self._context(layer, x, batch, room), x))
        attended = self._steps(torch.mul(x, layer.attended_factors, out=room))
        for expand, contract in layer.mlp:
            x = contract.add(expand(attended), x)
        return layer.out_norm(x)

    def _context(self, layer: _Int8Layer, x: Tensor, batch: PackedBatch, room: Tensor) -> Tensor:
        # A function of its own, so that queries, keys and values are gone before the MLP needs room.
        inputs = self._steps(torch.mul(x, layer.input_factors, out=room))
        q, k, v = layer.qkv(inputs).unflatten(1, (3, self._shape.heads, -1)).unbind(1)
        return self._steps(attend_by_powers(q, k, v, batch, room, kind=self._attention))

    def _observe(self, pairs: Sequence[EncodedPair], seen: Sequence[Seen]) -> None:
        batch = pack(pairs, device=self._device)
        x = self._embed(batch)
        for qkv, rest, layer in zip(self._attentions, self._rests[:-1], seen, strict=True):
            layer.note("input", x, batch)
            x = rest.add_attention(layer.note("context", self._attend(qkv, x, batch), batch), x)
            layer.note("attended", x, batch)
            x = rest.out_norm(rest.contract.add(layer.note("inner", rest.expand(x), batch), x))

    def _replace_layers(self, seen: Sequence[Seen]) -> None:
        self._attentions.clear()  # first: the model is never in memory twice
        del self._rests[:-1]
        self._kind = cast(Any, RawLinear)  # what `_round` unpacks in place of layers
        large = large_units(self._shape.intermediate)
        layers = self._new_amx(len(seen), large=large) if self._by_tiles else None
        with open_weights(self._checkpoint, dtype=torch.float32, device=self._device) as weights:
            for name, found in zip(self._layer_names, seen, strict=False):  # but for the last
                qkv = self._kind(*self._projections(weights, name))
                folded = self._fold(qkv, self._rest(weights, name), found)
                if layers is None:
                    self._layers.append(self._round(folded))
                else:
                    layers.add(_amx_layer(folded))
        self._amx = layers

    def _fold(self, qkv: Any, rest: Any, seen: Seen) -> _Folded:
        """A layer of raw weights with the factors in it, for inputs as large as those that were seen."""
        hidden, most = self._shape.hidden, seen.most
        context_factors = balance(most["context"], rest.attention_out.weight)
        rows = torch.ones(3 * hidden)
        rows[:hidden] = math.log2(math.e) * (hidden // self._shape.heads) ** -0.5
        rows[2 * hidden :] = context_factors
        input_factors = balance(most["input"], qkv.weight)
        attended_factors = balance(most["attended"], rest.expand.weight)
        mlp = []
        bias = rest.contract.bias
        for units in split_units(most["inner"]):
            grid = ScaleAndZero.over(seen.least, float(most["inner"][units].max()))
            expand = RawLinear(rest.expand.weight[units] / attended_factors, rest.expand.bias[units])
            mlp.append((expand, grid, RawLinear(rest.contract.weight[:, units], bias)))
            bias = torch.zeros_like(bias)  # once is enough
        return _Folded(
            input_factors=input_factors,
            qkv=RawLinear(qkv.weight * rows[:, None] / input_factors, qkv.bias * rows),
            attention_out=RawLinear(rest.attention_out.weight / context_factors, rest.attention_out.bias),
            attention_norm=rest.attention_norm,
            attended_factors=attended_factors,
            mlp=mlp,
            out_norm=rest.out_norm,
        )

    def _round(self, layer: _Folded) -> _Int8Layer:
        """For oneDNN."""
        rounded = self._rounded_linear
        return _Int8Layer(
            input_factors=layer.input_factors,
            qkv=rounded(*layer.qkv.pair, out=self._narrow),
            attention_out=rounded(*layer.attention_out.pair),
            attention_norm=layer.attention_norm,
            attended_factors=layer.attended_factors,
            mlp=[
                (rounded(*expand.pair, out=grid, gelu=True), rounded(*contract.pair, inputs=grid))
                for expand, grid, contract in layer.mlp
            ],
            out_norm=layer.out_norm,
        )


def _amx_layer(layer: _Folded) -> AmxLayer:
    """For our own kernel, whose bytes are signed."""
    steps = STEPS.signed
    grids = [grid.signed for _, grid, _ in layer.mlp]
    expands = [RoundedLinear(*expand.pair, steps) for expand, _, _ in layer.mlp]
    contracts = [RoundedLinear(*raw.pair, grid) for (_, _, raw), grid in zip(layer.mlp, grids, strict=True)]
    scales = [part.scales * grid.scale for part, grid in zip(contracts, grids, strict=True)]
    by_and_zero = [(1 / grid.scale, float(grid.zero)) for grid in grids]

    def linear(raw: RawLinear) -> AmxLinear:
        rounded = RoundedLinear(*raw.pair, steps)
        return AmxLinear(rounded.weight, rounded.bias, rounded.scales)

    return AmxLayer(
        qkv=linear(layer.qkv),
        out=linear(layer.attention_out),
        attention_norm=layer.attention_norm.parameters,
        expand=AmxLinear(
            torch.cat([part.weight for part in expands]),
            torch.cat([part.bias for part in expands]),
            torch.cat([part.scales for part in expands]),
        ),
        contract=AmxLinear(
            torch.cat([part.weight for part in contracts], 1),
            torch.stack([part.bias for part in contracts]).sum(0),
            scales[-1],
        ),
        out_norm=layer.out_norm.parameters,
        steps=AmxSteps(layer.input_factors, layer.attended_factors, (by_and_zero[0], by_and_zero[-1]), scales[0]),
    )
