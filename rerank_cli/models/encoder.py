"""BERT, RoBERTa and XLM-R cross-encoders, packed.

One forward for the three: embeddings (word + position + type) -> LayerNorm -> post-norm layers -> head over [CLS].
They differ in the prefix of the weights' names, in how positions are counted, and in the head:

    BertForSequenceClassification          bert.*         positions 0, 1, ...           tanh pooler, then classifier
    RobertaForSequenceClassification       roberta.*      pad_token_id + 1 + ..., and   classifier.dense, tanh,
    XLMRobertaForSequenceClassification    roberta.*      padding ids are not counted   classifier.out_proj

The last layer is computed for [CLS] alone, since the head reads nothing else (`first_token.py`). The result is the
same; a sixth of a 6-layer model's work falls away.

Source of the maths: transformers' modeling_bert.py and modeling_xlm_roberta.py, against which the tests compare.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rerank_cli.checkpoint import Checkpoint
from rerank_cli.errors import ModelError
from rerank_cli.models.attention import attend, attention_kind
from rerank_cli.models.first_token import FirstTokenAttention
from rerank_cli.models.linear import HeadLinear, Linear, activation, linear_kind
from rerank_cli.models.norms import LayerNorm
from rerank_cli.models.packed import PackedBatch, pack
from rerank_cli.models.weights import WeightReader, open_weights
from rerank_cli.records import EncodedPair

PREFIXES = {
    "BertForSequenceClassification": "bert",
    "RobertaForSequenceClassification": "roberta",
    "XLMRobertaForSequenceClassification": "roberta",
    "CamembertForSequenceClassification": "roberta",
}
"""Prefix of the weights' names by architecture."""


@dataclass(frozen=True, slots=True)
class _Rest:
    """What a post-norm transformer layer does after its attention."""

    attention_out: Linear
    attention_norm: LayerNorm
    expand: Linear
    contract: Linear
    out_norm: LayerNorm

    def add_attention(self, context: Tensor, x: Tensor) -> Tensor:
        """context: what the attention gave; x: the layer's input; both [rows, hidden]."""
        return self.attention_norm(self.attention_out.add(context, x))

    def add_mlp(self, x: Tensor) -> Tensor:
        """x: [rows, hidden], with the attention added. Returns the layer's output."""
        return self.out_norm(self.contract.add(self.expand(x), x))


@dataclass(frozen=True, slots=True)
class _Shape:
    """Sizes of the model, from config.json."""

    hidden: int
    layers: int
    heads: int
    intermediate: int
    vocabulary: int
    positions: int
    types: int
    epsilon: float
    activation: str


class EncoderCrossEncoder:
    """A BERT-like cross-encoder in eval mode; satisfies `RerankModel`.

    kernels: which implementations run, in words, for the report.
    """

    def __init__(self, checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype, attention: str) -> None:
        self._device = device
        self._shape = shape = _read_shape(checkpoint)
        self._attention = attention_kind(attention, shape.hidden // shape.heads)
        kind = linear_kind(device, dtype)
        self._kind: Callable[..., Linear] = kind
        self.kernels = f"linear layers: {kind.kernel}; attention: {self._attention}"
        self._prefix = prefix = PREFIXES[checkpoint.architecture]
        self._padding_id = None if prefix == "bert" else checkpoint.integer("pad_token_id", 1)
        with open_weights(checkpoint, dtype=dtype, device=device) as weights:
            table = f"{prefix}.embeddings"
            self._words = weights.take(f"{table}.word_embeddings.weight", (shape.vocabulary, shape.hidden))
            self._positions = weights.take(f"{table}.position_embeddings.weight", (shape.positions, shape.hidden))
            self._types = weights.take(f"{table}.token_type_embeddings.weight", (shape.types, shape.hidden))
            self._embedding_norm = self._norm(weights, f"{table}.LayerNorm")
            names = [self.layer_name(number) for number in range(shape.layers)]
            self._attentions = [self._qkv(weights, name) for name in names[:-1]]
            self._last_attention = self._first_token_attention(weights, names[-1])
            self._rests = [self._rest(weights, name) for name in names]
            dense, out = (
                ("bert.pooler.dense", "classifier") if prefix == "bert" else ("classifier.dense", "classifier.out_proj")
            )
            self._head_dense = self._head(weights, dense, shape.hidden, "tanh")
            self._head_out = self._head(weights, out, 1, None)
            if prefix != "bert":
                weights.ignore(r"^roberta\.pooler\.")  # RoBERTa's classifier has a head of its own
            weights.finish()

    def forward(self, pairs: Sequence[EncodedPair]) -> Tensor:
        """Logits of a batch, float32 [len(pairs)], on the model's device."""
        batch = pack(pairs, device=self._device)
        x = self._embed(batch)
        for qkv, rest in zip(self._attentions, self._rests[:-1], strict=True):
            x = rest.add_mlp(rest.add_attention(self._attend(qkv, x, batch), x))
        return self._finish(x, batch)

    def _finish(self, x: Tensor, batch: PackedBatch) -> Tensor:
        """The last layer and the head. x: the last layer's input, [T, hidden]. Returns the logits."""
        last = self._rests[-1]
        first = last.add_mlp(last.add_attention(self._last_attention(x, batch), x[batch.starts]))
        return self._head_out(self._head_dense(first[: len(batch.lengths)].float())).squeeze(1)

    def layer_name(self, number: int) -> str:
        """What the names of a layer's weights begin with."""
        return f"{self._prefix}.encoder.layer.{number}"

    def _embed(self, batch: PackedBatch) -> Tensor:
        positions = batch.positions
        if self._padding_id is None:
            types = self._types[batch.token_types]
        else:
            positions = _roberta_positions(batch, self._padding_id)
            types = self._types[0]
        return self._embedding_norm(self._words[batch.input_ids] + types + self._positions[positions])

    def _attend(self, qkv: Linear, x: Tensor, batch: PackedBatch) -> Tensor:
        # A function of its own, so that queries, keys and values are gone before the MLP needs room.
        q, k, v = qkv(x).unflatten(1, (3, self._shape.heads, -1)).unbind(1)
        return attend(q, k, v, batch, kind=self._attention)

    def _norm(self, weights: WeightReader, name: str) -> LayerNorm:
        size = (self._shape.hidden,)
        return LayerNorm(weights.take(f"{name}.weight", size), weights.take(f"{name}.bias", size), self._shape.epsilon)

    def _qkv(self, weights: WeightReader, name: str) -> Linear:
        """Query, key and value side by side."""
        hidden = self._shape.hidden
        projections = [f"{name}.attention.self.{part}" for part in ("query", "key", "value")]
        return self._kind(
            torch.cat([weights.take(f"{part}.weight", (hidden, hidden)) for part in projections]),
            torch.cat([weights.take(f"{part}.bias", (hidden,)) for part in projections]),
        )

    def _first_token_attention(self, weights: WeightReader, name: str) -> FirstTokenAttention:
        hidden = self._shape.hidden
        name = f"{name}.attention.self"
        attention = FirstTokenAttention(
            self._linear(weights, f"{name}.query", hidden, hidden),
            weights.take(f"{name}.key.weight", (hidden, hidden)),
            weights.take(f"{name}.value.weight", (hidden, hidden)),
            weights.take(f"{name}.value.bias", (hidden,)),
            heads=self._shape.heads,
            kind=self._attention,
        )
        weights.take(f"{name}.key.bias", (hidden,))  # checked and left: it moves all scores of a query alike
        return attention

    def _rest(self, weights: WeightReader, name: str) -> _Rest:
        hidden, inner = self._shape.hidden, self._shape.intermediate
        return _Rest(
            attention_out=self._linear(weights, f"{name}.attention.output.dense", hidden, hidden),
            attention_norm=self._norm(weights, f"{name}.attention.output.LayerNorm"),
            expand=self._linear(weights, f"{name}.intermediate.dense", hidden, inner, self._shape.activation),
            contract=self._linear(weights, f"{name}.output.dense", inner, hidden),
            out_norm=self._norm(weights, f"{name}.output.LayerNorm"),
        )

    def _linear(self, weights: WeightReader, name: str, inputs: int, outputs: int, then: str | None = None) -> Linear:
        return self._kind(
            weights.take(f"{name}.weight", (outputs, inputs)), weights.take(f"{name}.bias", (outputs,)), then=then
        )

    def _head(self, weights: WeightReader, name: str, outputs: int, then: str | None) -> Linear:
        """A layer of the head: float32 whatever the model's dtype, because bf16 logits tie."""
        return HeadLinear(
            weights.take(f"{name}.weight", (outputs, self._shape.hidden), dtype=torch.float32),
            weights.take(f"{name}.bias", (outputs,), dtype=torch.float32),
            then=then,
        )


def _read_shape(checkpoint: Checkpoint) -> _Shape:
    where = str(checkpoint.path / "config.json")
    config = checkpoint.config
    position_type = checkpoint.text("position_embedding_type", "absolute")
    if position_type != "absolute":
        raise ModelError(f"{where}: position_embedding_type `{position_type}` is not supported")
    if config.get("is_decoder") or config.get("add_cross_attention"):
        raise ModelError(f"{where}: a decoder is not a cross-encoder (`is_decoder`, `add_cross_attention`)")
    name = checkpoint.text("hidden_act", "gelu")
    activation(name, where=where)
    shape = _Shape(
        hidden=checkpoint.integer("hidden_size"),
        layers=checkpoint.integer("num_hidden_layers"),
        heads=checkpoint.integer("num_attention_heads"),
        intermediate=checkpoint.integer("intermediate_size"),
        vocabulary=checkpoint.integer("vocab_size"),
        positions=checkpoint.integer("max_position_embeddings"),
        types=checkpoint.integer("type_vocab_size", 2),
        epsilon=checkpoint.number("layer_norm_eps", 1e-12),
        activation=name,
    )
    if shape.layers < 1 or shape.heads < 1 or shape.hidden % shape.heads:
        raise ModelError(
            f"{where}: {shape.layers} layers, hidden size {shape.hidden}, {shape.heads} heads do not fit together"
        )
    return shape


def _roberta_positions(batch: PackedBatch, padding_id: int) -> Tensor:
    """Positions as RoBERTa counts them: from `padding_id + 1`; a padding id written in the text stays there."""
    counted = batch.input_ids != padding_id
    running = counted.cumsum(0)
    before = running[batch.starts] - counted[batch.starts].long()
    pair_of_token = torch.bucketize(torch.arange(batch.tokens, device=running.device), batch.cumulative[1:], right=True)
    positions = torch.full_like(batch.positions, padding_id)
    n = batch.tokens
    positions[:n] += (running[:n] - before[pair_of_token]) * counted[:n]
    return positions
