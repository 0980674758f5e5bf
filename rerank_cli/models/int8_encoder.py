"""BERT, RoBERTa and XLM-R cross-encoders with the products of their layers in int8, on a CPU.

    embeddings, norms, residual                            float32
    layers but the last: qkv, attention output, MLP        int8 (`int8.py`)
    attention                                              bfloat16, or float32 where the CPU has no bfloat16
    all of these layers at once, where the CPU has tiles   the same by our own kernel (`amx.py`)
    last layer, which is for [CLS] alone, and the head     float32

What an int8 layer needs to know is how large its inputs become. `calibrate` sees it on some pairs, in float32, and
returns it as a state for a JSON file; `use` rounds the weights by such a state. The same state makes the same model,
so a run goes on with the state that it began with.

Between the layers as little as possible is read and written again. The factor of the scores goes into the weights of
the queries, the factors of the context into those of the values: weights of a softmax sum to 1, so what is true of the
values is true of their mean. What is left before each layer is one multiplication and rounding.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor

from rerank_cli.checkpoint import Checkpoint
from rerank_cli.checkpoint.families import int8_refusal
from rerank_cli.errors import ModelError
from rerank_cli.models.amx import KERNEL as AMX_KERNEL
from rerank_cli.models.amx import AmxLayer, AmxLinear, AmxSteps
from rerank_cli.models.attention import attend_by_powers
from rerank_cli.models.encoder import EncoderCrossEncoder
from rerank_cli.models.int8 import (
    STEPS,
    Int8Linear,
    RoundedLinear,
    ScaleAndZero,
    balance,
    int8_hindrance,
    large_units,
    multiplies_bf16,
    split_units,
    steps,
)
from rerank_cli.models.norms import LayerNorm
from rerank_cli.models.packed import PackedBatch, pack
from rerank_cli.models.weights import open_weights
from rerank_cli.planning.cpu_kernels import AMX
from rerank_cli.records import EncodedPair

# What was seen is taken for this much less than what will come. With 4 pairs of one list to calibrate on, 1.15 brought
# the mean difference of logits from 0.09 to 0.07 (vaswani); with 55 pairs it changes nothing.
_HEADROOM = 1.1
_FORMAT = 2  # of the state; another number is another version's, whose weights would be others


@dataclass(frozen=True, slots=True)
class _Raw:
    """Weight and bias of a layer that is to be rounded."""

    weight: Tensor
    bias: Tensor
    then: str | None = None

    @property
    def pair(self) -> tuple[Tensor, Tensor]:
        """Weight and bias."""
        return self.weight, self.bias


class _Seen:
    """The largest magnitudes of what goes into the products of a layer, by channel; of GELU's output the least too."""

    def __init__(self) -> None:
        self.most: dict[str, Tensor] = {}
        self.least = 0.0

    def note(self, name: str, x: Tensor) -> None:
        """x: [tokens, channels]."""
        found = x.abs().amax(0)
        self.most[name] = torch.maximum(self.most[name], found) if name in self.most else found
        if name == "inner":
            self.least = min(self.least, float(x.min()))

    def to_json(self) -> dict[str, Any]:
        """For a state."""
        texts = {name: base64.b64encode(most.numpy().tobytes()).decode() for name, most in self.most.items()}
        return {**texts, "least": self.least}

    @classmethod
    def of_json(cls, found: Mapping[str, Any]) -> _Seen:
        """From a state."""
        seen = cls()
        seen.least = found["least"]
        for name in ("input", "context", "attended", "inner"):
            numbers = np.frombuffer(base64.b64decode(found[name]), dtype="<f4")
            seen.most[name] = torch.from_numpy(numbers.astype(np.float32)) * _HEADROOM
        return seen


@dataclass(frozen=True, slots=True)
class _Folded:
    """A layer whose weights hold all factors, and are still to be rounded.

    mlp: expand, the grid of its bytes, contract; of the large units, and of all others.
    """

    input_factors: Tensor
    qkv: _Raw
    attention_out: _Raw
    attention_norm: LayerNorm
    attended_factors: Tensor
    mlp: list[tuple[_Raw, ScaleAndZero, _Raw]]
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


class Int8Encoder(EncoderCrossEncoder):
    """A BERT-like cross-encoder in int8; satisfies `RerankModel` once it is calibrated, and `Calibrates`."""

    # This and `_steps` round: a test has others in their place, to see that all else leaves the logits as they are.
    _rounded_linear: ClassVar[type[Int8Linear]] = Int8Linear

    def __init__(self, checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype, attention: str) -> None:
        if device.type != "cpu" or (hindrance := int8_hindrance()):
            why = f"not on {device}" if device.type != "cpu" else hindrance
            raise ModelError(f"--precision int8: {why}", hint="`--precision fp32` runs anywhere")
        if refusal := int8_refusal(checkpoint.architecture, checkpoint.text("hidden_act", "gelu")):
            raise ModelError(f"--precision int8: {refusal}")
        super().__init__(checkpoint, device=device, dtype=torch.float32, attention=attention)
        self._checkpoint = checkpoint
        self._narrow = torch.bfloat16 if multiplies_bf16() else torch.float32
        self._layers: list[_Int8Layer] = []
        self.calibrated = False
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
        x = layer.attention_norm(layer.attention_out.add_to(x, self._context(layer, x, batch, room)))
        attended = self._steps(torch.mul(x, layer.attended_factors, out=room))
        for expand, contract in layer.mlp:
            x = contract.add_to(x, expand(attended))
        return layer.out_norm(x)

    def _context(self, layer: _Int8Layer, x: Tensor, batch: PackedBatch, room: Tensor) -> Tensor:
        # A function of its own, so that queries, keys and values are gone before the MLP needs room.
        inputs = self._steps(torch.mul(x, layer.input_factors, out=room))
        q, k, v = layer.qkv(inputs).unflatten(1, (3, self._shape.heads, -1)).unbind(1)
        return self._steps(attend_by_powers(q, k, v, batch, room, kind=self._attention))

    def _steps(self, x: Tensor) -> Tensor:
        return steps(x)

    def calibrate(self, batches: Sequence[Sequence[EncodedPair]]) -> dict[str, Any]:
        """See `Calibrates`."""
        seen = [_Seen() for _ in self._attentions]
        for pairs in batches:
            self._observe(pairs, seen)
        state = {"format": _FORMAT, "pairs": sum(map(len, batches)), "layers": [layer.to_json() for layer in seen]}
        self.use(state)
        return state

    def _observe(self, pairs: Sequence[EncodedPair], seen: Sequence[_Seen]) -> None:
        batch = pack(pairs, device=self._device)
        x, n = self._embed(batch), batch.tokens
        for qkv, rest, layer in zip(self._attentions, self._rests[:-1], seen, strict=True):
            layer.note("input", x[:n])
            context = self._attend(qkv, x, batch)
            layer.note("context", context[:n])
            x = rest.add_attention(context, x)
            layer.note("attended", x[:n])
            inner = rest.expand(x)
            layer.note("inner", inner[:n])
            x = rest.out_norm(rest.contract.add(inner, x))

    def use(self, state: Mapping[str, Any]) -> None:
        """See `Calibrates`."""
        if state.get("format") != _FORMAT or len(state["layers"]) != self._shape.layers - 1:
            raise ModelError(f"{self._checkpoint.path}: calibrated by another version, or for another model")
        self._attentions.clear()  # first: the model is never in memory twice
        del self._rests[:-1]
        self._kind = cast(Any, _Raw)  # what `_round` unpacks in place of layers
        large = large_units(self._shape.intermediate)
        layers = self._new_amx(len(state["layers"]), large=large) if self._by_tiles else None
        with open_weights(self._checkpoint, dtype=torch.float32, device=self._device) as weights:
            for number, found in enumerate(state["layers"]):
                name, seen = self.layer_name(number), _Seen.of_json(found)
                folded = self._fold(self._qkv(weights, name), self._rest(weights, name), seen)
                if layers is None:
                    self._layers.append(self._round(folded))
                else:
                    layers.add(_amx_layer(folded))
        self._amx = layers
        self.kernels += f", calibrated on {state['pairs']} pairs"
        self.calibrated = True

    def _fold(self, qkv: Any, rest: Any, seen: _Seen) -> _Folded:
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
            expand = _Raw(rest.expand.weight[units] / attended_factors, rest.expand.bias[units])
            mlp.append((expand, grid, _Raw(rest.contract.weight[:, units], bias)))
            bias = torch.zeros_like(bias)  # once is enough
        return _Folded(
            input_factors=input_factors,
            qkv=_Raw(qkv.weight * rows[:, None] / input_factors, qkv.bias * rows),
            attention_out=_Raw(rest.attention_out.weight / context_factors, rest.attention_out.bias),
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
            qkv=rounded(layer.qkv.weight, layer.qkv.bias, out=self._narrow),
            attention_out=rounded(layer.attention_out.weight, layer.attention_out.bias),
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

    def linear(raw: _Raw) -> AmxLinear:
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
