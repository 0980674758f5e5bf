"""ModernBERT cross-encoders, packed.

Pre-norm layers without biases, rotary positions, a gated MLP, and attention that is global in every third layer and
reaches `local_attention / 2` tokens to either side in the others.

    ModernBertForSequenceClassification   model.*      the head of the class: [CLS] or the mean (`classifier_pooling`)
    ModernBertModel                       no prefix    the head that the checkpoint's modules declare (ettin)

Where the head reads [CLS] alone the last layer is computed for that token alone (see `encoder.py`).

Source of the maths: transformers' modeling_modernbert.py, against which the tests compare.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rerank_cli.checkpoint import Checkpoint
from rerank_cli.checkpoint.families import family_of
from rerank_cli.errors import ModelError
from rerank_cli.models.attention import attend, attend_first, attention_kind
from rerank_cli.models.elementwise import Rotation, elementwise_for
from rerank_cli.models.head import Head, dense, score_layer
from rerank_cli.models.linear import Linear, LinearLoader, activation, linear_kind
from rerank_cli.models.module_head import prefix_of_names, read_module_head
from rerank_cli.models.norms import LayerNorm
from rerank_cli.models.packed import PackedBatch, pack
from rerank_cli.models.rotary import rotary_frequencies, rotation_at, split_rotated
from rerank_cli.models.weights import WeightReader, open_weights
from rerank_cli.records import EncodedPair

_GLOBAL, _LOCAL = "full_attention", "sliding_attention"


@dataclass(frozen=True, slots=True)
class Layer:
    """One pre-norm layer."""

    attention_norm: Callable[[Tensor], Tensor] | None  # the first has none: the embeddings are normalised already
    qkv: Linear
    attention_out: Linear
    mlp_norm: Callable[[Tensor], Tensor]
    gate: Linear  # with the activation
    up: Linear
    down: Linear
    kind: str
    window: int | None  # how far a token sees to either side; None: its whole pair


@dataclass(frozen=True, slots=True)
class _Biases:
    """Which layers have a bias; config.json says so, as `attention_bias` and the like."""

    norm: bool
    attention: bool
    mlp: bool
    classifier: bool


@dataclass(frozen=True, slots=True)
class _Shape:
    """Sizes and switches of the model, from config.json."""

    hidden: int
    layers: tuple[str, ...]
    heads: int
    intermediate: int
    vocabulary: int
    epsilon: float
    activation: str
    head_activation: str
    pooling: str
    window: int
    biases: _Biases
    theta: dict[str, float]

    @property
    def head_size(self) -> int:
        """Channels of one attention head."""
        return self.hidden // self.heads


class ModernBertCrossEncoder:
    """A ModernBERT cross-encoder in eval mode; satisfies `RerankModel`.

    kernels: which implementations run, in words, for the report.
    """

    def __init__(self, checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype, attention: str) -> None:
        self._device = device
        self._shape = shape = _read_shape(checkpoint)
        self._attention = attention_kind(attention, shape.head_size)
        self._kind: Callable[..., Linear] = (kind := linear_kind(device, dtype))
        self._elementwise, between = elementwise_for(device, dtype)
        self.kernels = f"linear layers: {kind.kernel}; rotation: {between}; attention: {self._attention}"
        with open_weights(checkpoint, dtype=dtype, device=device) as weights:
            self._prefix = prefix = prefix_of_names(checkpoint, "model")
            words = f"{prefix}embeddings.tok_embeddings.weight"
            self._words = weights.take(words, (shape.vocabulary, shape.hidden))
            self._embedding_norm = self._norm(weights, f"{prefix}embeddings.norm")
            self._layers = [self._layer(weights, i) for i in range(len(shape.layers))]
            self._final_norm = self._norm(weights, f"{prefix}final_norm")
            self._head = self._read_head(weights, checkpoint)
            # How many layers are computed for all tokens: the last may be for the first token of each pair alone.
            self._whole_layers = len(shape.layers) - self._head.first_token_only
            weights.finish()

    def forward(self, pairs: Sequence[EncodedPair]) -> Tensor:
        """Logits of a batch, float32 [len(pairs)], on the model's device."""
        batch = pack(pairs, device=self._device)
        rotations, x = self._rotations(batch), self._embedding_norm(self._words[batch.input_ids])
        for layer in self._layers[: self._whole_layers]:
            x = self._run_layer(layer, x, batch, rotations[layer.kind])
        if not self._head.first_token_only:
            return self._head.of_tokens(self._final_norm(x), batch)
        # The last layer at the first token of each pair, [P, hidden].
        last = self._layers[-1]
        q, k, v = self._project(last, x, rotations[last.kind])
        context = attend_first(q[batch.starts], k, v, batch, kind=self._attention, window=last.window)
        first = self._run_mlp(last, last.attention_out.add(context.to(x.dtype), x[batch.starts]))
        return self._head.of_first_tokens(self._final_norm(first), batch)

    def _rotations(self, batch: PackedBatch) -> Mapping[str, Rotation]:
        """How the tokens are turned in layers of each kind."""
        return {
            kind: rotation_at(batch.positions, rotary_frequencies(theta, self._shape.head_size, self._device))
            for kind, theta in self._shape.theta.items()
            if kind in self._shape.layers
        }

    def _read_head(self, weights: WeightReader, checkpoint: Checkpoint) -> Head:
        shape = self._shape
        if family_of(checkpoint.architecture).headless:
            return read_module_head(weights, checkpoint, shape.hidden)
        inner = dense(
            weights, "head.dense", shape.hidden, shape.hidden, bias=shape.biases.classifier, then=shape.head_activation
        )
        norm = self._norm(weights, "head.norm", dtype=torch.float32)
        return Head((shape.pooling,), [inner, norm, score_layer(weights, checkpoint, "classifier", shape.hidden)])

    def _project(self, layer: Layer, x: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key (both rotated) and value, each [T, heads, head_size]."""
        normed = layer.attention_norm(x) if layer.attention_norm else x
        return split_rotated(layer.qkv(normed), self._shape.heads, rotation, self._elementwise)

    def _run_layer(self, layer: Layer, x: Tensor, batch: PackedBatch, rotation: Rotation) -> Tensor:
        return self._run_mlp(layer, layer.attention_out.add(self._attend(layer, x, batch, rotation), x))

    def _attend(self, layer: Layer, x: Tensor, batch: PackedBatch, rotation: Rotation) -> Tensor:
        # A function of its own, so that queries, keys and values are gone before the MLP needs room.
        q, k, v = self._project(layer, x, rotation)
        return attend(q, k, v, batch, kind=self._attention, window=layer.window)

    def _run_mlp(self, layer: Layer, x: Tensor) -> Tensor:
        return layer.down.add(self._gated(layer, layer.mlp_norm(x)), x)

    def _gated(self, layer: Layer, normed: Tensor) -> Tensor:
        # A function of its own, so that what it reads is gone before the product after it needs room.
        return layer.gate(normed).mul_(layer.up(normed))

    def _norm(self, weights: WeightReader, name: str, dtype: torch.dtype | None = None) -> LayerNorm:
        size = (self._shape.hidden,)
        return LayerNorm(
            weights.take(f"{name}.weight", size, dtype=dtype),
            weights.take(f"{name}.bias", size, dtype=dtype) if self._shape.biases.norm else None,
            self._shape.epsilon,
        )

    def _layer(self, weights: WeightReader, index: int) -> Layer:
        hidden, inner = self._shape.hidden, self._shape.intermediate
        biases, linear = self._shape.biases, LinearLoader(weights, self._kind)
        name, kind = f"{self._prefix}layers.{index}", self._shape.layers[index]
        # The gate and what it multiplies lie in one matrix, the gate's rows first. As one product they were slower:
        # each half of the result then lies in pieces, and the activation is a pass of its own (1,936 rows, 384 to
        # 2 x 576 channels, fp32 with AMX: 19.7 ms; apart 12.0).
        gate, up = weights.take(f"{name}.mlp.Wi.weight", (2 * inner, hidden)).chunk(2)
        halves = weights.take(f"{name}.mlp.Wi.bias", (2 * inner,)).chunk(2) if biases.mlp else (None, None)
        return Layer(
            attention_norm=self._norm(weights, f"{name}.attn_norm") if index else None,
            qkv=linear(f"{name}.attn.Wqkv", hidden, 3 * hidden, bias=biases.attention),
            attention_out=linear(f"{name}.attn.Wo", hidden, hidden, bias=biases.attention),
            mlp_norm=self._norm(weights, f"{name}.mlp_norm"),
            gate=self._kind(gate, halves[0], then=self._shape.activation),
            up=self._kind(up, halves[1]),
            down=linear(f"{name}.mlp.Wo", inner, hidden, bias=biases.mlp),
            kind=kind,
            window=self._shape.window if kind == _LOCAL else None,
        )


def _read_shape(checkpoint: Checkpoint) -> _Shape:
    where = str(checkpoint.path / "config.json")
    config = checkpoint.config
    pooling = checkpoint.text("classifier_pooling", "cls")
    if pooling not in ("cls", "mean"):
        raise ModelError(f"{where}: classifier_pooling `{pooling}` is not known", hint="known are cls, mean")
    half = config.get("sliding_window")  # transformers lets it take the place of `local_attention`
    if half is not None and half != checkpoint.integer("local_attention", 128) // 2:
        raise ModelError(
            f"{where}: `sliding_window` is {half!r}, which is not the half of `local_attention`",
            hint="`local_attention` alone says how far local layers reach, twice as far as `sliding_window`",
        )
    names = checkpoint.text("hidden_activation", "gelu"), checkpoint.text("classifier_activation", "gelu")
    for name in names:
        activation(name, where=where)
    shape = _Shape(
        hidden=checkpoint.integer("hidden_size"),
        layers=_read_layer_kinds(checkpoint),
        heads=checkpoint.integer("num_attention_heads"),
        intermediate=checkpoint.integer("intermediate_size"),
        vocabulary=checkpoint.integer("vocab_size"),
        epsilon=checkpoint.number("norm_eps", 1e-5),
        activation=names[0],
        head_activation=names[1],
        pooling=pooling,
        window=checkpoint.integer("local_attention", 128) // 2,
        biases=_Biases(
            norm=bool(config.get("norm_bias", False)),
            attention=bool(config.get("attention_bias", False)),
            mlp=bool(config.get("mlp_bias", False)),
            classifier=bool(config.get("classifier_bias", False)),
        ),
        theta=_read_theta(checkpoint),
    )
    fits = shape.layers and shape.heads > 0 and shape.hidden % (2 * shape.heads) == 0 and shape.window >= 0
    if not fits:
        raise ModelError(
            f"{where}: {len(shape.layers)} layers, hidden size {shape.hidden}, {shape.heads} heads, "
            f"local_attention {2 * shape.window} do not fit together"
        )
    return shape


def _read_layer_kinds(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Which attention each layer has: `layer_types`, or every n-th layer global as older configs say."""
    count, kinds = checkpoint.integer("num_hidden_layers"), checkpoint.config.get("layer_types")
    if kinds is None:
        every = checkpoint.integer("global_attn_every_n_layers", 3)
        kinds = [_LOCAL if every and i % every else _GLOBAL for i in range(count)]
    if not isinstance(kinds, list) or len(kinds) != count or any(kind not in (_GLOBAL, _LOCAL) for kind in kinds):
        raise ModelError(
            f"{checkpoint.path / 'config.json'}: `layer_types` does not describe {count} layers: {kinds!r}"
        )
    return tuple(kinds)


def _read_theta(checkpoint: Checkpoint) -> dict[str, float]:
    """Rotary base of global and local layers; old configs write `global_rope_theta`, new ones `rope_parameters`."""
    where, config = checkpoint.path / "config.json", checkpoint.config
    if config.get("rope_scaling") is not None:
        raise ModelError(f"{where}: `rope_scaling` is not known for ModernBERT: {config['rope_scaling']!r}")
    theta = {_GLOBAL: checkpoint.number("global_rope_theta", 160_000.0)}
    old_local = config.get("local_rope_theta", 10_000.0)
    theta[_LOCAL] = theta[_GLOBAL] if old_local is None else checkpoint.number("local_rope_theta", 10_000.0)
    kinds = config.get("rope_parameters") or {}
    if not isinstance(kinds, dict) or not kinds.keys() <= theta.keys():
        raise ModelError(f"{where}: `rope_parameters` must describe {_GLOBAL} and {_LOCAL}: {kinds!r}")
    for kind, parameters in kinds.items():
        if not isinstance(parameters, dict) or parameters.get("rope_type", "default") != "default":
            raise ModelError(f"{where}: rope_parameters of {kind} are not known for ModernBERT: {parameters!r}")
        base = parameters.get("rope_theta", theta[kind])
        if not isinstance(base, (int, float)) or base <= 0:
            raise ModelError(f"{where}: `rope_theta` of {kind} must be a number over 0: {base!r}")
        theta[kind] = float(base)
    return theta
