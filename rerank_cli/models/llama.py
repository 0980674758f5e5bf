"""Llama cross-encoders, packed, with their own pooling: the Nemotron rerankers and other bidirectional Llamas.

A Llama decoder without its causal mask: pre-norm layers with RMSNorm, rotary positions, grouped key and value heads,
and a gated MLP; then the final norm, pooling over the tokens of a pair, one linear layer, division by `temperature`.
No mask exists here at all, since every pair is attended to by itself; `is_causal: true` in config.json brings the
causal one back.

**Memory.** The peak lies in attention, with five to six rows of `hidden_size` a token: residual, queries, keys, values,
and the context with the copy that lays it out. The MLP, whose rows are `intermediate_size` wide, runs over some tokens
at a time (`mlp_rows`) and writes its result into the residual; rotation and norms in float32 are chunked. Measured: 33
KiB a token of resident memory for a pair of 8,192 tokens, 2,048 wide, bf16 (CPU, torch 2.13, its buffers included).

**Precision.** Norms, rotation, pooling and head are computed in float32 whatever the precision of the layers: a bf16
logit of 20 has a spacing of 0.125, and rankings would tie.

`LlamaTrunk` is all but the head, for models that bring embeddings of their own, and for close relatives of Llama
(`causal.py`), which differ by the switches of `LlamaShape`.

Source of the maths: transformers' modeling_llama.py and NVIDIA NeMo AutoModel's llama_bidirectional/model.py, against
which the tests compare. What config.json says is read in `llama_config.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NotRequired, TypedDict, Unpack

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rerank_cli.checkpoint import Checkpoint
from rerank_cli.errors import DoesNotFitError
from rerank_cli.models.attention import attend, attend_first, attention_kind
from rerank_cli.models.elementwise import Elementwise, Rotation, Unfused, elementwise_for
from rerank_cli.models.linear import (
    Linear,
    LinearLoader,
    PlainLinear,
    RowScaledFp8Linear,
    SideBySide,
    fp8_reason,
    fp8_runs,
    linear_kind,
    row_scaled_refusal,
)
from rerank_cli.models.llama_config import LlamaShape, Pooling, read_llama_shape, read_pooling, read_temperature
from rerank_cli.models.packed import PackedBatch, pack
from rerank_cli.models.rotary import rotation_at
from rerank_cli.models.weights import WeightReader, open_weights
from rerank_cli.planning.memory.pieces import mlp_rows
from rerank_cli.records import EncodedPair

_PIECE_TOKENS = 64  # that a thread of a GPU adds up
_WIDE_TOKENS = 8192  # that are copied to float32 at a time


@dataclass(frozen=True, slots=True)
class _Norm:
    """RMSNorm with its weight; computed in float32, returned in the dtype of its input."""

    weight: Tensor
    epsilon: float
    by: Elementwise

    def __call__(self, x: Tensor) -> Tensor:
        return self.by.rms_norm(x, self.weight, self.epsilon)


@dataclass(frozen=True, slots=True)
class _Layer:
    """One pre-norm layer."""

    attention_norm: _Norm
    qkv: SideBySide
    attention_out: Linear
    mlp_norm: _Norm
    gate_up: SideBySide  # the gate with the activation, unless `Elementwise.gate_` has it
    down: Linear
    query_norm: _Norm | None = None
    key_norm: _Norm | None = None


class Placed(TypedDict):
    """Where and how a trunk computes; see `LlamaTrunk`."""

    device: torch.device
    dtype: torch.dtype
    attention: str
    fp8: NotRequired[bool]


class LlamaTrunk:
    """Embeddings, layers, final norm and pooling of a Llama model.

    prefix: of the weights' names, with its dot. fp8: the products are in FP8, of weights in 16 bits. words: the table
    of embeddings [vocabulary, hidden]. kernels: which implementations run, in words, for the report.
    """

    def __init__(
        self,
        weights: WeightReader,
        shape: LlamaShape,
        *,
        prefix: str,
        device: torch.device,
        dtype: torch.dtype,
        attention: str,
        fp8: bool = False,
    ) -> None:
        self._shape = shape
        self._attention = attention_kind(attention, shape.head_size)
        # In 16 bits the weights are used where they lie in the mapped file: prepacking them for oneDNN would be a
        # second copy, and F.linear is as fast there (2,048 tokens, 2,048 to 8,192 channels in bf16, AMD EPYC, torch
        # 2.13: 166 ms, prepacked 163 ms).
        self._kind = linear_kind(device, dtype) if dtype == torch.float32 else PlainLinear
        self._elementwise, described = elementwise_for(device, dtype)
        if fp8 and (refusal := row_scaled_refusal(device)):
            raise DoesNotFitError(f"--precision fp8: {refusal}", hint="`--precision bf16`")
        rows = self._elementwise if fp8 else None
        # On a CPU weights stay where they lie in the mapped file.
        linear = LinearLoader(
            weights, self._kind, fp8=fp8_runs(device, dtype), rows=rows, together=device.type != "cpu"
        )
        self._mlp_rows = mlp_rows(device.type != "cpu", dtype.itemsize)
        self._frequencies = shape.frequencies.to(device)
        # Rounded to the dtype of the embeddings, as the reference does; a tensor made in `embed` would be a copy each.
        self._scale = torch.tensor(shape.embedding_scale, device=device, dtype=dtype)
        self.words = weights.take(f"{prefix}embed_tokens.weight", (shape.vocabulary, shape.hidden))
        self._layers = [self._layer(linear, f"{prefix}layers.{i}") for i in range(shape.layers)]
        self._final_norm = self._norm(weights, f"{prefix}norm")
        kernel = RowScaledFp8Linear.kernel if fp8 else self._kind.kernel
        stored = f", FP8 weights {fp8_reason(device, dtype)}" if weights.quantised else ""
        between = "" if described == Unfused.name else f"; between them {described}"
        self.kernels = f"packed; linear {kernel}{stored}{between}; attention {self._attention}"

    def embed(self, input_ids: Tensor) -> Tensor:
        """Embeddings [T, hidden] of tokens [T]."""
        x = F.embedding(input_ids, self.words)
        return x if self._shape.embedding_scale == 1 else x.mul_(self._scale)

    def pool(self, x: Tensor, batch: PackedBatch, pooling: Pooling) -> Tensor:
        """One vector a pair, float32 [pairs, hidden], from the embeddings `x` [T, hidden] of its tokens.

        Where the pooling reads a single token that sees its whole pair, the last layer runs for that token alone.
        """
        rotation = rotation_at(batch.positions, self._frequencies)
        one_token = pooling == "last" or (pooling == "cls" and not self._shape.causal)
        for layer in self._layers[:-1] if one_token else self._layers:
            x = self._run_mlp(layer, self._add_attention(layer, x, batch, rotation))
        if pooling == "avg":
            return _mean_of_each_pair(self._final_norm(x), batch)
        picked = batch.starts.clone()
        if pooling == "last":
            picked[: len(batch.lengths)] = batch.cumulative[1:].long() - 1
        if one_token:  # it sees its whole pair; x is then [P, hidden]
            last = self._layers[-1]
            q, k, v = self._project(last, x, rotation)
            context = attend_first(q[picked], k, v, batch, kind=self._attention)
            x = self._run_mlp(last, last.attention_out.add(context, x[picked]))
        else:
            x = x[picked]
        return self._final_norm(x[: len(batch.lengths)]).float()

    def _add_attention(self, layer: _Layer, x: Tensor, batch: PackedBatch, rotation: Rotation) -> Tensor:
        # A function of its own, so that the context is gone before the MLP needs room.
        context = attend(*self._project(layer, x, rotation), batch, kind=self._attention, causal=self._shape.causal)
        return layer.attention_out.add(context, x)

    def _run_mlp(self, layer: _Layer, x: Tensor) -> Tensor:
        """`x` [T, hidden] with the MLP's output added to it in place, some tokens at a time."""
        for rows in x.split(self._mlp_rows):
            added = layer.down.add(self._gated(layer, layer.mlp_norm(rows)), rows)
            if added is not rows:
                rows.copy_(added)
        return x

    def _gated(self, layer: _Layer, normed: Tensor) -> Tensor:
        # A function of its own, so that `up` is gone before the product after it needs room.
        by, name = self._elementwise, self._shape.activation
        gate, up = layer.gate_up(normed)
        return by.gate_(gate, up, name) if by.has_gate(name) else gate.mul_(up)

    def _project(self, layer: _Layer, x: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key (both rotated) and value, each [T, its heads, head_size]."""
        normed = layer.attention_norm(x)
        size = self._shape.head_size
        q, k, v = (part.unflatten(1, (-1, size)) for part in layer.qkv(normed))
        if layer.query_norm and layer.key_norm:
            q, k = layer.query_norm(q), layer.key_norm(k)
        self._elementwise.rotate_(q, rotation)
        self._elementwise.rotate_(k, rotation)
        return q, k, v

    def _layer(self, linear: LinearLoader, name: str) -> _Layer:
        shape, weights = self._shape, linear.weights
        queries, keys = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
        attention, mlp = f"{name}.self_attn", f"{name}.mlp"
        then = None if self._elementwise.has_gate(shape.activation) else shape.activation
        norms = (
            [self._norm(weights, f"{attention}.{part}_norm", shape.head_size) for part in ("q", "k")]
            if shape.head_norms
            else [None, None]
        )
        return _Layer(
            attention_norm=self._norm(weights, f"{name}.input_layernorm"),
            qkv=linear.beside(
                [f"{attention}.{part}_proj" for part in "qkv"], shape.hidden, (queries, keys, keys), bias=shape.qkv_bias
            ),
            attention_out=linear(f"{attention}.o_proj", queries, shape.hidden, bias=shape.out_bias),
            mlp_norm=self._norm(weights, f"{name}.post_attention_layernorm"),
            gate_up=linear.beside(
                [f"{mlp}.gate_proj", f"{mlp}.up_proj"],
                shape.hidden,
                [shape.intermediate] * 2,
                bias=shape.mlp_bias,
                then=then,
            ),
            down=linear(f"{mlp}.down_proj", shape.intermediate, shape.hidden, bias=shape.mlp_bias),
            query_norm=norms[0],
            key_norm=norms[1],
        )

    def _norm(self, weights: WeightReader, name: str, size: int | None = None) -> _Norm:
        weight = weights.take(f"{name}.weight", (size or self._shape.hidden,), dtype=torch.float32)
        return _Norm(weight + self._shape.norm_offset, self._shape.epsilon, self._elementwise)


class LlamaCrossEncoder:
    """A Llama cross-encoder in eval mode; satisfies `RerankModel`.

    kernels: which implementations run, in words, for the report.
    """

    def __init__(self, checkpoint: Checkpoint, **placed: Unpack[Placed]) -> None:
        self._device = placed["device"]
        self._pooling = read_pooling(checkpoint, "avg")
        self._temperature = read_temperature(checkpoint)
        shape = read_llama_shape(checkpoint)
        with open_weights(checkpoint, dtype=placed["dtype"], device=placed["device"]) as weights:
            self._trunk = LlamaTrunk(weights, shape, prefix="model.", **placed)
            self._score = weights.take("score.weight", (1, shape.hidden), dtype=torch.float32)
            weights.ignore(r"^lm_head\.weight$")  # left over from the language model that was trained further
            weights.finish()
        self.kernels = self._trunk.kernels

    def forward(self, pairs: Sequence[EncodedPair]) -> Tensor:
        """Logits of a batch, float32 [len(pairs)], on the model's device."""
        batch = pack(pairs, device=self._device)
        pooled = self._trunk.pool(self._trunk.embed(batch.input_ids), batch, self._pooling)
        return F.linear(pooled, self._score).squeeze(1) / self._temperature


def _mean_of_each_pair(x: Tensor, batch: PackedBatch) -> Tensor:
    """Mean over the tokens of each pair, float32 [pairs, hidden], summed in float32; x: [T, hidden].

    Always in the same order, which an indexed sum over all tokens is not on a GPU.
    """
    if x.device.type == "cpu":
        return torch.cat([run.rows(x).mean(dim=1, dtype=torch.float32) for run in batch.runs])
    return _means_by_pieces(x, batch)


def _means_by_pieces(x: Tensor, batch: PackedBatch) -> Tensor:
    """The same by sums of `_PIECE_TOKENS` tokens, and the sums of these.

    `segment_reduce` has a thread for each channel of a segment, which goes through the tokens one by one: for a pair of
    8,192 tokens that is 192 steps this way in place of 8,192. How a pair is cut depends on its own length alone, and
    there are as many kernels whatever the lengths are.
    """
    lengths = batch.cumulative.diff().long()
    counts = (lengths + (_PIECE_TOKENS - 1)).div_(_PIECE_TOKENS, rounding_mode="floor")
    sizes = [min(_PIECE_TOKENS, left) for length in batch.lengths for left in range(length, 0, -_PIECE_TOKENS)]
    # The same sizes on the device, from what is there: another transfer would be waited for.
    pair = torch.repeat_interleave(counts, output_size=len(sizes))
    before = (torch.arange(len(sizes), device=x.device) - (counts.cumsum(0) - counts)[pair]) * _PIECE_TOKENS
    pieces = (lengths[pair] - before).clamp_(max=_PIECE_TOKENS)
    sums, ends = [], np.cumsum(sizes)
    cuts = np.searchsorted(ends, np.arange(_WIDE_TOKENS, ends[-1], _WIDE_TOKENS), side="right")
    for first, last in pairwise([0, *cuts.tolist(), len(sizes)]):
        begin, end = ends[first] - sizes[first], ends[last - 1]
        sums.append(_sums(x[begin:end].float(), pieces[first:last]))
    return _sums(torch.cat(sums), counts) / lengths[:, None]


def _sums(rows: Tensor, lengths: Tensor) -> Tensor:
    """The sums of neighbouring rows, each of as many as its length says: [len(lengths), channels]."""
    sums: Tensor = torch.segment_reduce(rows, "sum", lengths=lengths, axis=0, unsafe=True)
    return sums
