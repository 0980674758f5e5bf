"""BERT, RoBERTa, XLM-R and ELECTRA cross-encoders, packed.

One forward for all: embeddings (word + position + type) -> LayerNorm -> post-norm layers -> head. They differ in the
prefix of the weights' names, in how positions are counted, and in the head (`head.py`):

    BertForSequenceClassification          bert.*         positions 0, 1, ...           tanh pooler, then classifier
    RobertaForSequenceClassification       roberta.*      pad_token_id + 1 + ..., and   classifier.dense, tanh,
    XLMRobertaForSequenceClassification    roberta.*      padding ids are not counted   classifier.out_proj
    ElectraForSequenceClassification       electra.*      as BERT                       the same with gelu
    BertModel, XLMRobertaModel, ...        no prefix      as their classifiers          declared by modules.json

XLM-R is also published under the names of its flash implementation (jina-reranker-v2, without `model_type`): the same
model, with query, key and value in one matrix. Other models of that line compute something else (rotary positions, LoRA
adapters, pooled embeddings) and are refused.

Where the head reads [CLS] alone, the last layer is computed for it alone (`first_token.py`). The result is the same; a
sixth of a 6-layer model's work falls away.

In bfloat16 on a CPU with tiles (AMX) all other layers are one kernel (`amx.py`), if the plan says so and the library is
here.

Source of the maths: transformers' modeling_bert.py, modeling_xlm_roberta.py and modeling_electra.py, against which the
tests compare; of the flash names: its authors' conversion script and transformers' conversion_mapping.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rerank_cli.checkpoint import Checkpoint
from rerank_cli.checkpoint.families import family_of
from rerank_cli.errors import ModelError
from rerank_cli.machine.amx import library, takes
from rerank_cli.models.amx import KERNEL as AMX_KERNEL
from rerank_cli.models.amx import AmxLayer, AmxLayers, AmxLinear, AmxTokens
from rerank_cli.models.attention import attend, attention_kind
from rerank_cli.models.elementwise import Elementwise, Unfused, elementwise_for
from rerank_cli.models.first_token import FirstTokenAttention
from rerank_cli.models.head import Head, dense, score_layer
from rerank_cli.models.linear import BLOCK_ROWS, Linear, LinearLoader, activation, linear_kind
from rerank_cli.models.module_head import prefix_of_names, read_module_head
from rerank_cli.models.norms import LayerNorm, read_norm
from rerank_cli.models.packed import PackedBatch, pack
from rerank_cli.models.weights import WeightReader, open_weights
from rerank_cli.planning.cpu_kernels import AMX
from rerank_cli.records import EncodedPair


@dataclass(frozen=True, slots=True)
class _Names:
    """The names of a model's weights, after the prefix; those of a layer, after its number.

    qkv: query, key and value; one name where one matrix holds all three, in that order.
    """

    embedding_norm: str
    layers: str
    qkv: tuple[str, ...]
    attention_out: str
    attention_norm: str
    expand: str
    contract: str
    out_norm: str


_OWN = _Names(
    embedding_norm="embeddings.LayerNorm",
    layers="encoder.layer",
    qkv=("attention.self.query", "attention.self.key", "attention.self.value"),
    attention_out="attention.output.dense",
    attention_norm="attention.output.LayerNorm",
    expand="intermediate.dense",
    contract="output.dense",
    out_norm="output.LayerNorm",
)
_FLASH = _Names(
    embedding_norm="emb_ln",
    layers="encoder.layers",
    qkv=("mixer.Wqkv",),
    attention_out="mixer.out_proj",
    attention_norm="norm1",
    expand="mlp.fc1",
    contract="mlp.fc2",
    out_norm="norm2",
)
_FLASH_ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh")


@dataclass(frozen=True, slots=True)
class _Rest:
    """What a post-norm transformer layer does after its attention."""

    attention_out: Linear
    attention_norm: LayerNorm
    expand: Linear
    contract: Linear
    out_norm: LayerNorm
    elementwise: Elementwise

    def add_attention(self, context: Tensor, x: Tensor) -> Tensor:
        """The sum, normalised. context: the result of the attention; x: the layer's input; both [rows, hidden]."""
        if self.elementwise.normalises_sums:
            return self.attention_norm.of_sum_(self.attention_out(context), x, self.elementwise)
        return self.attention_norm(self.attention_out.add(context, x))

    def add_mlp(self, x: Tensor) -> Tensor:
        """x: [rows, hidden], with the attention added. Returns the layer's output."""
        if self.elementwise.normalises_sums:
            return self.out_norm.of_sum_(self.contract(self.expand(x)), x, self.elementwise)
        return self.out_norm(self.contract.add(self.expand(x), x))

    def finish_by_blocks(self, context: Tensor, x: Tensor) -> Tensor:
        """`add_attention` and `add_mlp`, block by block and into `x`, so that the wide rows of the MLP stay in L2.

        Measured with AMX in bfloat16, one thread, CPU time, the built-in model: 1.1 to 1.3 times as fast; in float32
        somewhat slower.
        """
        for some, rows in zip(context.split(BLOCK_ROWS), x.split(BLOCK_ROWS), strict=True):
            rows.copy_(self.add_mlp(self.add_attention(some, rows)))
        return x


@dataclass(frozen=True, slots=True)
class _Shape:
    """Sizes of the model, from config.json."""

    hidden: int
    embedding: int
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
        self._elementwise, described = elementwise_for(device, dtype)
        between = "" if described == Unfused.name else f"; between them {described}"
        self.kernels = f"linear layers: {kind.kernel}{between}; attention: {self._attention}"
        self._amx: AmxLayers | None = None
        self._kind_of_names = family_of(checkpoint.architecture).forward
        self._padding_id = _read_padding_id(checkpoint, shape) if self._kind_of_names == "roberta" else None
        with open_weights(checkpoint, dtype=dtype, device=device) as weights:
            self._prefix = prefix_of_names(checkpoint, self._kind_of_names)
            self._names = self._read_names(weights, checkpoint)
            self._head = self._read_head(weights, checkpoint)
            table = f"{self._prefix}embeddings"
            self._words = weights.take(f"{table}.word_embeddings.weight", (shape.vocabulary, shape.embedding))
            self._positions = weights.take(f"{table}.position_embeddings.weight", (shape.positions, shape.embedding))
            self._types = weights.take(f"{table}.token_type_embeddings.weight", (shape.types, shape.embedding))
            embedding_norm = f"{self._prefix}{self._names.embedding_norm}"
            self._embedding_norm = read_norm(weights, embedding_norm, shape.embedding, shape.epsilon)
            self._widen: Linear | None = None
            if shape.embedding != shape.hidden:
                widen = f"{self._prefix}embeddings_project"
                self._widen = LinearLoader(weights, kind)(widen, shape.embedding, shape.hidden)
            self._layer_names = names = [
                f"{self._prefix}{self._names.layers}.{number}" for number in range(shape.layers)
            ]
            whole, last = (names[:-1], names[-1]) if self._head.first_token_only else (names, None)
            if whole and attention == AMX and dtype == torch.bfloat16 and self._amx_takes_it("bf16"):
                self._amx = self._read_amx(weights, whole)
                self.kernels = f"layers: {AMX_KERNEL}; beside them {self.kernels}"
                whole = []
            self._attentions = [kind(*self._projections(weights, name)) for name in whole]
            self._last_attention = self._first_token_attention(weights, last) if last else None
            self._rests = [self._rest(weights, name) for name in (*whole, last) if name]
            weights.finish()

    def forward(self, pairs: Sequence[EncodedPair]) -> Tensor:
        """Logits of a batch, float32 [len(pairs)], on the model's device."""
        batch = pack(pairs, device=self._device)
        x = self._embed(batch) if self._amx is None else self._by_amx(self._amx, batch)
        by_blocks = x.device.type == "cpu" and x.dtype == torch.bfloat16
        for qkv, rest in zip(self._attentions, self._rests, strict=False):
            if by_blocks:
                x = rest.finish_by_blocks(self._attend(qkv, x, batch), x)
            else:  # the context has no name here, so its memory is free before the MLP needs room
                x = rest.add_mlp(rest.add_attention(self._attend(qkv, x, batch), x))
        return self._finish(x, batch)

    def _by_amx(self, layers: AmxLayers, batch: PackedBatch) -> Tensor:
        """What the kernel's layers give, [T, hidden]."""
        tokens = None
        if self._widen is None:
            x = self._words.new_empty(len(batch.input_ids), self._shape.hidden)
            x[batch.tokens :] = 0
            positions, types = self._places(batch)
            types = torch.zeros_like(positions) if types is None else types
            tokens = AmxTokens(batch.input_ids, positions, types)
        else:
            x = self._embed(batch)
        layers.run(x, batch.lengths, threads=torch.get_num_threads(), tokens=tokens)
        return x

    def _finish(self, x: Tensor, batch: PackedBatch) -> Tensor:
        """The head, after the last layer where that runs for the first tokens alone. x: [T, hidden]."""
        if self._last_attention is None:
            return self._head.of_tokens(x, batch)
        last = self._rests[-1]
        first = last.add_mlp(last.add_attention(self._last_attention(x, batch), x[batch.starts]))
        return self._head.of_first_tokens(first, batch)

    def _embed(self, batch: PackedBatch) -> Tensor:
        positions, types = self._places(batch)
        type_rows = self._types[0 if types is None else types]
        x = self._embedding_norm(self._words[batch.input_ids] + type_rows + self._positions[positions])
        return x if self._widen is None else self._widen(x)

    def _places(self, batch: PackedBatch) -> tuple[Tensor, Tensor | None]:
        """Rows of the tables of positions and types, each [T]; no types: all tokens have the first."""
        if self._padding_id is None:
            return batch.positions, batch.token_types
        return _roberta_positions(batch, self._padding_id), None

    def _attend(self, qkv: Linear, x: Tensor, batch: PackedBatch) -> Tensor:
        # A function of its own, so that queries, keys and values are gone before the MLP needs room.
        q, k, v = qkv(x).unflatten(1, (3, self._shape.heads, -1)).unbind(1)
        return attend(q, k, v, batch, kind=self._attention)

    def _amx_takes_it(self, precision: str) -> bool:
        shape = self._shape
        sizes = {"hidden": shape.hidden, "inner": shape.intermediate, "heads": shape.heads}
        return takes(precision, **sizes, activation=shape.activation) and library() is not None

    def _new_amx(self, layers: int, *, large: int | None = None) -> AmxLayers:
        """The kernel for so many layers of this model, which begins with the embeddings where it can."""
        shape = self._shape
        made = AmxLayers(
            layers=layers, hidden=shape.hidden, inner=shape.intermediate, heads=shape.heads, epsilon=shape.epsilon,
            large=large,
        )  # fmt: skip
        if self._widen is None:
            made.embed(self._words, self._positions, self._types, norm=self._embedding_norm.parameters)
        return made

    def _read_amx(self, weights: WeightReader, names: Sequence[str]) -> AmxLayers:
        """Layers of these names for the kernel, in bfloat16."""
        hidden, inner, parts = self._shape.hidden, self._shape.intermediate, self._names
        layers = self._new_amx(len(names))

        def read(name: str, *shape: int) -> tuple[Tensor, Tensor]:
            return weights.take(f"{name}.weight", shape), weights.take(f"{name}.bias", shape[:1])

        for name in names:
            layers.add(
                AmxLayer(
                    qkv=AmxLinear(*self._projections(weights, name)),
                    out=AmxLinear(*read(f"{name}.{parts.attention_out}", hidden, hidden)),
                    attention_norm=read(f"{name}.{parts.attention_norm}", hidden),
                    expand=AmxLinear(*read(f"{name}.{parts.expand}", inner, hidden)),
                    contract=AmxLinear(*read(f"{name}.{parts.contract}", hidden, inner)),
                    out_norm=read(f"{name}.{parts.out_norm}", hidden),
                )
            )
        return layers

    def _projections(self, weights: WeightReader, name: str) -> tuple[Tensor, Tensor]:
        """Weight [3 * hidden, hidden] and bias of query, key and value, one below the other."""
        hidden, parts = self._shape.hidden, self._names.qkv
        rows = 3 * hidden // len(parts)
        found = [weights.take(f"{name}.{part}.weight", (rows, hidden)) for part in parts]
        biases = [weights.take(f"{name}.{part}.bias", (rows,)) for part in parts]
        return (torch.cat(found), torch.cat(biases)) if len(parts) > 1 else (found[0], biases[0])

    def _first_token_attention(self, weights: WeightReader, name: str) -> FirstTokenAttention:
        (q, k, v), (q_bias, _, v_bias) = (part.chunk(3) for part in self._projections(weights, name))
        # The keys' bias is left out: it moves all scores of a query alike.
        return FirstTokenAttention(self._kind(q, q_bias), k, v, v_bias, heads=self._shape.heads, kind=self._attention)

    def _rest(self, weights: WeightReader, name: str) -> _Rest:
        hidden, inner, names = self._shape.hidden, self._shape.intermediate, self._names
        epsilon, linear = self._shape.epsilon, LinearLoader(weights, self._kind)
        return _Rest(
            attention_out=linear(f"{name}.{names.attention_out}", hidden, hidden),
            attention_norm=read_norm(weights, f"{name}.{names.attention_norm}", hidden, epsilon),
            expand=linear(f"{name}.{names.expand}", hidden, inner, then=self._shape.activation),
            contract=linear(f"{name}.{names.contract}", inner, hidden),
            out_norm=read_norm(weights, f"{name}.{names.out_norm}", hidden, epsilon),
            elementwise=self._elementwise,
        )

    def _read_names(self, weights: WeightReader, checkpoint: Checkpoint) -> _Names:
        if not weights.has(f"{self._prefix}emb_ln.weight") or self._kind_of_names != "roberta":
            return _OWN
        for key in ("emb_pooler", "lora_adaptations"):
            if checkpoint.config.get(key):
                raise ModelError(
                    f"{checkpoint.config_place}: `{key}` is set: another model of the jina line, which is not supported"
                )
        # Source: create_mlp_cls in the authors' modeling_xlm_roberta.py takes the exact GELU for any other name.
        if self._shape.activation not in _FLASH_ACTIVATIONS:
            raise ModelError(
                f"{checkpoint.config_place}: `hidden_act` is {self._shape.activation!r}: under the names of the flash "
                f"implementation it is one of {', '.join(_FLASH_ACTIVATIONS)}"
            )
        return _FLASH

    def _read_head(self, weights: WeightReader, checkpoint: Checkpoint) -> Head:
        hidden, kind = self._shape.hidden, self._kind_of_names
        if family_of(checkpoint.architecture).headless:
            weights.ignore(rf"^{re.escape(self._prefix)}pooler\.")  # the modules pool themselves
            return read_module_head(weights, checkpoint, hidden)
        if kind == "bert":
            inner, out, then = "bert.pooler.dense", "classifier", "tanh"
        else:
            # RoBERTa's and ELECTRA's classifiers have a pooler of their own.
            weights.ignore(r"^(roberta|electra)\.pooler\.")
            inner, out, then = "classifier.dense", "classifier.out_proj", "gelu" if kind == "electra" else "tanh"
        layers = dense(weights, inner, hidden, hidden, then=then), score_layer(weights, checkpoint, out, hidden)
        return Head(("cls",), layers)


_NARROW = {"ElectraForSequenceClassification", "ElectraModel"}  # their embeddings may be narrower than their layers


def _read_shape(checkpoint: Checkpoint) -> _Shape:
    where = str(checkpoint.path / "config.json")
    config = checkpoint.config
    position_type = checkpoint.text("position_embedding_type", "absolute")
    if position_type != "absolute":
        raise ModelError(f"{where}: position_embedding_type `{position_type}` is not supported")
    if config.get("is_decoder") or config.get("add_cross_attention"):
        raise ModelError(f"{where}: a decoder is not a cross-encoder (`is_decoder`, `add_cross_attention`)")
    if adapted := next((name for name in checkpoint.tensors if ".parametrizations." in name), None):
        raise ModelError(
            f"{checkpoint.path}: a LoRA adapter in the weights (`{adapted}`)",
            hint="merge it first (`merge_and_unload`)",
        )
    name = checkpoint.text("hidden_act", "gelu")
    activation(name, where=where)
    hidden = checkpoint.integer("hidden_size")
    shape = _Shape(
        hidden=hidden,
        embedding=checkpoint.integer("embedding_size", hidden) if checkpoint.architecture in _NARROW else hidden,
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


def _read_padding_id(checkpoint: Checkpoint, shape: _Shape) -> int:
    """The id behind which RoBERTa's positions begin; one that leaves no row of the table is refused."""
    number = checkpoint.integer("pad_token_id", 1)
    if not -1 <= number < shape.positions - 1:
        raise ModelError(
            f"{checkpoint.config_place}: `pad_token_id` is {number}, and positions that begin behind it are not in a "
            f"table of {shape.positions} rows"
        )
    return number


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
