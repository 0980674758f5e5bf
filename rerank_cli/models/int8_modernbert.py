"""ModernBERT cross-encoders with the products of their layers in int8, on a CPU.

    embeddings, norms, residual              float32
    products for all tokens                  int8 (`int8_linear.py`), by oneDNN
    between them: attention and the gate     bfloat16, or float32 where the CPU has no bfloat16
    products for [CLS] alone, and the head   float32

Every input of a product is multiplied by channel before it is rounded, at no cost: the factors of what queries, keys
and values read, and of what the MLP reads, are in the weights of the norm before (the first layer has none: there the
embeddings are multiplied); those of the context in the rows of the values, as weights of a softmax sum to 1; those of
the MLP's last product in the rows of `up`, which the activation of the gate multiplies.

Where the head reads [CLS] alone, so does all of the last layer but its queries, keys and values: those are in int8, as
in float32 they took a fifth of the time of a forward (six layers of 768, AMX).

How large the inputs become is seen by a calibration (`int8_calibration.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from rerank_cli.checkpoint import Checkpoint
from rerank_cli.models.elementwise import Rotation
from rerank_cli.models.int8_calibration import Int8Model, RawLinear, Seen
from rerank_cli.models.int8_linear import Int8Linear, balance
from rerank_cli.models.modernbert import Layer, ModernBertCrossEncoder
from rerank_cli.models.norms import LayerNorm
from rerank_cli.models.packed import PackedBatch, pack
from rerank_cli.models.weights import open_weights
from rerank_cli.records import EncodedPair


class Int8ModernBert(Int8Model, ModernBertCrossEncoder):
    """A ModernBERT cross-encoder in int8; satisfies `RerankModel` once it is calibrated, and `Calibrates`."""

    _format = 1

    def __init__(self, checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype, attention: str) -> None:
        Int8Model.__init__(self)
        ModernBertCrossEncoder.__init__(self, checkpoint, device=device, dtype=torch.float32, attention=attention)
        self._checkpoint = checkpoint
        self._rounded_layers = len(self._shape.layers)
        narrow = str(self._narrow).removeprefix("torch.")
        self.kernels = (
            f"linear layers: {Int8Linear.kernel}; rotation: {self._elementwise.name}; "
            f"attention: {self._attention}, {narrow}"
        )

    def forward(self, pairs: Sequence[EncodedPair]) -> Tensor:
        """See `RerankModel`."""
        assert self.calibrated, "the pipeline calibrates before it scores"
        return super().forward(pairs)

    def _run_layer(self, layer: Layer, x: Tensor, batch: PackedBatch, rotation: Rotation) -> Tensor:
        # The norms of a rounded layer give bytes.
        x = layer.attention_out.add(self._steps(self._attend(layer, x, batch, rotation)), x)
        return layer.down.add(self._steps(self._gated(layer, layer.mlp_norm(x))), x)

    def _observe(self, pairs: Sequence[EncodedPair], seen: Sequence[Seen]) -> None:
        batch = pack(pairs, device=self._device)
        rotations, x = self._rotations(batch), self._embedding_norm(self._words[batch.input_ids])
        for number, (layer, found) in enumerate(zip(self._layers, seen, strict=True)):
            found.note("input", layer.attention_norm(x) if layer.attention_norm else x, batch)
            if number == self._whole_layers:
                return
            context = found.note("context", self._attend(layer, x, batch, rotations[layer.kind]), batch)
            x = layer.attention_out.add(context, x)
            del context  # no more is alive than in a forward
            inner = self._gated(layer, found.note("attended", layer.mlp_norm(x), batch))
            x = layer.down.add(found.note("inner", inner, batch), x)
            del inner

    def _replace_layers(self, seen: Sequence[Seen]) -> None:
        whole = self._whole_layers
        self._layers, last = [], self._layers[whole:]  # first: the model is never in memory twice
        self._kind = cast(Any, RawLinear)  # what `_round` unpacks in place of layers
        with open_weights(self._checkpoint, dtype=torch.float32, device=self._device) as weights:
            for number, found in enumerate(seen):
                raw = self._layer(weights, number)
                rounded = self._round(raw, found.most) if number < whole else last[0]
                self._layers.append(self._with_qkv(rounded, raw, found.most))

    def _round(self, layer: Any, most: dict[str, Tensor]) -> Layer:
        """A layer of raw weights, rounded, with the factors in it, but for its queries, keys and values.

        most: of its inputs, by channel.
        """
        rounded, gate, up = self._rounded_linear, layer.gate.weight, layer.up.weight
        context_factors = balance(most["context"], layer.attention_out.weight)
        attended_factors = balance(most["attended"], torch.cat([gate, up]))
        inner_factors = balance(most["inner"], layer.down.weight)
        up_bias = layer.up.bias_or_zeros * inner_factors
        found: Layer = replace(
            layer,
            attention_out=rounded(layer.attention_out.weight / context_factors, layer.attention_out.bias_or_zeros),
            mlp_norm=self._rounded_norm(layer.mlp_norm, attended_factors),
            gate=rounded(gate / attended_factors, layer.gate.bias_or_zeros, out=self._narrow, gelu=True),
            up=rounded(up * inner_factors[:, None] / attended_factors, up_bias, out=self._narrow),
            down=rounded(layer.down.weight / inner_factors, layer.down.bias_or_zeros),
        )
        return found

    def _with_qkv(self, layer: Layer, raw: Any, most: dict[str, Tensor]) -> Layer:
        """`layer` with the queries, keys and values of `raw`, rounded. The factors of the context are in the values."""
        hidden, weight = self._shape.hidden, raw.qkv.weight
        input_factors = balance(most["input"], weight)
        rows = torch.ones(3 * hidden)
        if "context" in most:
            rows[2 * hidden :] = balance(most["context"], raw.attention_out.weight)
        qkv = self._rounded_linear(
            weight * rows[:, None] / input_factors, raw.qkv.bias_or_zeros * rows, out=self._narrow
        )
        return replace(layer, attention_norm=self._rounded_norm(raw.attention_norm, input_factors), qkv=qkv)

    def _rounded_norm(self, norm: LayerNorm | None, factors: Tensor) -> Callable[[Tensor], Tensor]:
        """`norm` with the factors in its weights, and then bytes; without a norm the factors alone."""
        if norm is None:
            return lambda x: self._steps(x * factors)
        bias = None if norm.bias is None else norm.bias * factors
        folded = LayerNorm(norm.weight * factors, bias, norm.epsilon)
        return lambda x: self._steps(folded(x))
