"""gte-multilingual-reranker (`NewForSequenceClassification`), packed, under the names that it is published with.

Post-norm layers like BERT's, without a table of positions: rotary ones in every layer, a gated MLP, and BERT's head.

    new.embeddings.{word,token_type}_embeddings, new.embeddings.LayerNorm
    new.encoder.layer.N.attention.qkv_proj, .o_proj      with biases; query, key, value
    new.encoder.layer.N.attn_ln
    new.encoder.layer.N.mlp.up_gate_proj                 without a bias; the rows of `up`, then those of `gate`
    new.encoder.layer.N.mlp.down_proj                    with a bias: down(up * act(gate))
    new.encoder.layer.N.mlp_ln
    new.pooler.dense, classifier                         tanh on the first token

`rope_scaling: {"type": "ntk", "factor": f}` is fixed NTK, at every length: with d channels a head,
inv_freq[i] = (theta * f) ** (-2i / d) / f ** (2 / d). Other variants of the authors' code (`mixed_b`, scaled scores,
RMS norms, a table of positions) are refused.

Source of the maths: the authors' modeling.py and transformers' modeling_gte.py, which agree within 3e-6.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rerank_cli.checkpoint import Checkpoint
from rerank_cli.errors import ModelError
from rerank_cli.models.attention import attend, attend_first, attention_kind
from rerank_cli.models.elementwise import Rotation, elementwise_for
from rerank_cli.models.head import Head, dense, score_layer
from rerank_cli.models.linear import Linear, LinearLoader, activation, linear_kind
from rerank_cli.models.norms import LayerNorm, read_norm
from rerank_cli.models.packed import PackedBatch, pack
from rerank_cli.models.rotary import rotary_frequencies, rotation_at, split_rotated
from rerank_cli.models.weights import WeightReader, open_weights
from rerank_cli.records import EncodedPair

# Keys of config.json with the only value that is computed here, which is also the one of a missing key.
_FIXED = {
    "position_embedding_type": "rope",
    "layer_norm_type": "layer_norm",
    "pack_qkv": True,
    "logn_attention_scale": False,
}


@dataclass(frozen=True, slots=True)
class _Layer:
    """One post-norm layer."""

    qkv: Linear
    attention_out: Linear
    attention_norm: LayerNorm
    gate: Linear  # with the activation
    up: Linear
    down: Linear
    out_norm: LayerNorm


@dataclass(frozen=True, slots=True)
class _Shape:
    """Sizes of the model, from config.json. scaling: the factor of the fixed NTK, 1 without."""

    hidden: int
    layers: int
    heads: int
    intermediate: int
    vocabulary: int
    types: int
    epsilon: float
    activation: str
    theta: float
    scaling: float

    @property
    def head_size(self) -> int:
        """Channels of one attention head."""
        return self.hidden // self.heads


class GteCrossEncoder:
    """A gte-multilingual-reranker in eval mode; satisfies `RerankModel`.

    kernels: which implementations run, in words, for the report.
    """

    def __init__(self, checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype, attention: str) -> None:
        self._device = device
        self._shape = shape = _read_shape(checkpoint)
        self._attention = attention_kind(attention, shape.head_size)
        self._kind = linear_kind(device, dtype)
        self._elementwise, between = elementwise_for(device, dtype)
        self.kernels = f"linear layers: {self._kind.kernel}; between them: {between}; attention: {self._attention}"
        # With the fixed NTK scaling; radians a token of each pair of channels, float32 [head_size / 2].
        plain = rotary_frequencies(shape.theta * shape.scaling, shape.head_size, device)
        self._frequencies = plain / float(shape.scaling ** (2 / shape.head_size))
        hidden = shape.hidden
        with open_weights(checkpoint, dtype=dtype, device=device) as weights:
            self._words = weights.take("new.embeddings.word_embeddings.weight", (shape.vocabulary, hidden))
            self._types: Tensor | None = None
            if shape.types:
                self._types = weights.take("new.embeddings.token_type_embeddings.weight", (shape.types, hidden))
            self._embedding_norm = read_norm(weights, "new.embeddings.LayerNorm", hidden, shape.epsilon)
            self._layers = [self._layer(weights, f"new.encoder.layer.{i}") for i in range(shape.layers)]
            pooler = dense(weights, "new.pooler.dense", hidden, hidden, then="tanh")
            self._head = Head(("cls",), [pooler, score_layer(weights, checkpoint, "classifier", hidden)])
            weights.finish()

    def forward(self, pairs: Sequence[EncodedPair]) -> Tensor:
        """Logits of a batch, float32 [len(pairs)], on the model's device."""
        batch = pack(pairs, device=self._device)
        rotation = rotation_at(batch.positions, self._frequencies)
        x = self._words[batch.input_ids]
        if self._types is not None:  # a model with one type takes it for all tokens
            x = x + (self._types[batch.token_types] if len(self._types) > 1 else self._types[0])
        x = self._embedding_norm(x)
        for layer in self._layers[:-1]:
            x = self._run_mlp(layer, self._add_attention(layer, self._attend(layer, x, batch, rotation), x))
        # The last layer at the first token of each pair, [P, hidden].
        last = self._layers[-1]
        q, k, v = split_rotated(last.qkv(x), self._shape.heads, rotation, self._elementwise)
        context = attend_first(q[batch.starts], k, v, batch, kind=self._attention)
        first = self._run_mlp(last, self._add_attention(last, context, x[batch.starts]))
        return self._head.of_first_tokens(first, batch)

    def _attend(self, layer: _Layer, x: Tensor, batch: PackedBatch, rotation: Rotation) -> Tensor:
        # A function of its own, so that queries, keys and values are gone before the MLP needs room.
        q, k, v = split_rotated(layer.qkv(x), self._shape.heads, rotation, self._elementwise)
        return attend(q, k, v, batch, kind=self._attention)

    def _add_attention(self, layer: _Layer, context: Tensor, x: Tensor) -> Tensor:
        if self._elementwise.normalises_sums:
            return layer.attention_norm.of_sum_(layer.attention_out(context), x, self._elementwise)
        return layer.attention_norm(layer.attention_out.add(context, x))

    def _run_mlp(self, layer: _Layer, x: Tensor) -> Tensor:
        if self._elementwise.normalises_sums:
            return layer.out_norm.of_sum_(layer.down(self._gated(layer, x)), x, self._elementwise)
        return layer.out_norm(layer.down.add(self._gated(layer, x), x))

    def _gated(self, layer: _Layer, x: Tensor) -> Tensor:
        # A function of its own, so that what is multiplied is gone before the product after it needs room.
        return layer.gate(x).mul_(layer.up(x))

    def _layer(self, weights: WeightReader, name: str) -> _Layer:
        hidden, inner, epsilon = self._shape.hidden, self._shape.intermediate, self._shape.epsilon
        linear = LinearLoader(weights, self._kind)
        up, gate = weights.take(f"{name}.mlp.up_gate_proj.weight", (2 * inner, hidden)).chunk(2)
        return _Layer(
            qkv=linear(f"{name}.attention.qkv_proj", hidden, 3 * hidden),
            attention_out=linear(f"{name}.attention.o_proj", hidden, hidden),
            attention_norm=read_norm(weights, f"{name}.attn_ln", hidden, epsilon),
            gate=self._kind(gate, None, then=self._shape.activation),
            up=self._kind(up, None),
            down=linear(f"{name}.mlp.down_proj", inner, hidden),
            out_norm=read_norm(weights, f"{name}.mlp_ln", hidden, epsilon),
        )


def _read_shape(checkpoint: Checkpoint) -> _Shape:
    where, config = checkpoint.config_place, checkpoint.config
    for key, value in _FIXED.items():
        found = config.get(key, value)
        if found != value:
            raise ModelError(f"{where}: `{key}` is {found!r}: such a model of this line is not supported")
    if config.get("rope_parameters") is not None:
        found = config["rope_parameters"]
        raise ModelError(f"{where}: `rope_parameters` is not known for NewForSequenceClassification: {found!r}")
    name = checkpoint.text("hidden_act", "gelu")
    activation(name, where=where)
    shape = _Shape(
        hidden=checkpoint.integer("hidden_size"),
        layers=checkpoint.integer("num_hidden_layers"),
        heads=checkpoint.integer("num_attention_heads"),
        intermediate=checkpoint.integer("intermediate_size"),
        vocabulary=checkpoint.integer("vocab_size"),
        types=checkpoint.integer("type_vocab_size", 1),
        epsilon=checkpoint.number("layer_norm_eps", 1e-12),
        activation=name,
        theta=checkpoint.number("rope_theta", 10_000.0),
        scaling=_read_scaling(checkpoint),
    )
    fits = shape.layers > 0 and shape.heads > 0 and shape.hidden % (2 * shape.heads) == 0 and shape.theta > 0
    if not fits:
        raise ModelError(
            f"{where}: {shape.layers} layers, hidden size {shape.hidden}, {shape.heads} heads, rope_theta "
            f"{shape.theta} do not fit together"
        )
    return shape


def _read_scaling(checkpoint: Checkpoint) -> float:
    """The factor of `rope_scaling`; 1 where there is none. The authors' code scales nothing by a factor below 1."""
    scaling = checkpoint.config.get("rope_scaling")
    if scaling is None:
        return 1.0
    known = isinstance(scaling, dict) and scaling.get("type") == "ntk" and scaling.get("mixed_b") is None
    factor = scaling.get("factor") if known else None
    known = known and scaling.keys() <= {"type", "rope_type", "factor", "mixed_b"}
    if not known or isinstance(factor, bool) or not isinstance(factor, (int, float)) or not factor >= 1:
        raise ModelError(
            f"{checkpoint.config_place}: `rope_scaling` is not known for NewForSequenceClassification: {scaling!r}",
            hint='known is {"type": "ntk", "factor": F} with F of 1 or more, without `mixed_b`',
        )
    return float(factor)
