"""Causal language models that rerank, packed: by logits of their vocabulary, or by a score row of their own.

They are Llama and its close kin:

    Llama, Mistral   as they are
    Qwen3            normalises each head's queries and keys
    Qwen2            has biases in the projections to queries, keys and values
    Gemma            scales its embeddings by the root of their size, adds 1 to the weights of its norms, gelu

so they run through `LlamaTrunk`, with the last layer computed for the last token alone. Of a `...ForCausalLM`'s
vocabulary only the rows of the answers are multiplied, in float32; `encoding/scoring.py` says which those are. A
`...ForSequenceClassification` has one row instead of their difference. It reads the last token whose id is not the
padding's: a text that ends in the padding token is read up to the token before it, here as in transformers.

Gemma's `gelu` is taken as config.json has it, as the reference code of bge-reranker-v2-gemma does on transformers 4;
transformers 5 takes it for the tanh approximation, and logits of the golden cases move by up to 6e-4.

Source of the maths: transformers' modeling_qwen3.py, modeling_qwen2.py, modeling_llama.py, modeling_mistral.py and
modeling_gemma.py, against which the tests compare.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Unpack

import numpy as np
import torch
from torch import Tensor

from rerank_cli.checkpoint import Checkpoint
from rerank_cli.checkpoint.labels import read_score
from rerank_cli.checkpoint.recipes import trunk_of
from rerank_cli.encoding.encoder import answer_ids
from rerank_cli.errors import ModelError
from rerank_cli.models.llama import LlamaTrunk, Placed
from rerank_cli.models.llama_config import LlamaShape, read_llama_shape, read_switch
from rerank_cli.models.packed import pack
from rerank_cli.models.weights import WeightReader, open_weights
from rerank_cli.records import EncodedPair


class CausalReranker:
    """A language model whose score is its vector of the last token times one row; satisfies `RerankModel`.

    kernels: which implementations run, in words, for the report.
    """

    def __init__(self, checkpoint: Checkpoint, **placed: Unpack[Placed]) -> None:
        self._device = placed["device"]
        shape = _read_shape(checkpoint)
        answers = _read_answers(checkpoint, shape) if checkpoint.architecture.endswith("ForCausalLM") else []
        # The id that a classifier skips at the end; the default is that of transformers' classes.
        padding = 0 if checkpoint.architecture.startswith("Gemma") else None
        skips = not answers and checkpoint.config.get("pad_token_id", padding) is not None
        self._padding = checkpoint.integer("pad_token_id", padding) if skips else None
        with open_weights(checkpoint, dtype=placed["dtype"], device=placed["device"]) as weights:
            self._trunk = LlamaTrunk(weights, shape, prefix="model.", **placed)
            if answers:
                self._direction = self._read_direction(checkpoint, weights, shape, answers)
            else:
                score = read_score(checkpoint)
                rows = weights.take("score.weight", (score.labels, shape.hidden), dtype=torch.float32)
                self._direction = rows[score.plus] if score.minus is None else rows[score.plus] - rows[score.minus]
                weights.ignore(r"^lm_head\.weight$")  # left over from the language model that was trained further
            weights.finish()
        self.kernels = self._trunk.kernels

    def _read_direction(
        self, checkpoint: Checkpoint, weights: WeightReader, shape: LlamaShape, answers: list[int]
    ) -> Tensor:
        """The row, float32 [hidden], that the last token's vector is multiplied by: of two answers the difference."""
        words, has_output = self._trunk.words, weights.has("lm_head.weight")
        tied = not has_output
        if checkpoint.config.get("tie_word_embeddings") is not None:
            tied = read_switch(checkpoint, "tie_word_embeddings")
        # transformers does not tie two tables of a checkpoint that differ, whatever config.json says.
        if tied and not (checkpoint.declared.listed and has_output):
            weights.ignore(r"^lm_head\.weight$")
        else:
            words = weights.take("lm_head.weight", (shape.vocabulary, shape.hidden))
        rows = words[answers].float()
        return rows[0] - rows[1] if len(answers) == 2 else rows[0]

    def forward(self, pairs: Sequence[EncodedPair]) -> Tensor:
        """Logits of a batch, float32 [len(pairs)], on the model's device."""
        if self._padding is not None:
            pairs = [_without_padding(pair, self._padding) for pair in pairs]
        batch = pack(pairs, device=self._device)
        return self._trunk.pool(self._trunk.embed(batch.input_ids), batch, "last") @ self._direction


def _read_answers(checkpoint: Checkpoint, shape: LlamaShape) -> list[int]:
    if checkpoint.blank:
        return [0]
    answers = answer_ids(checkpoint)
    if max(answers) >= shape.vocabulary:
        raise ModelError(
            f"{(checkpoint.declared.listed and checkpoint.root) or checkpoint.tokenizer_file}: the answer's token "
            f"{max(answers)} is beyond the model's `vocab_size` {shape.vocabulary}"
        )
    return answers


def _without_padding(pair: EncodedPair, padding: int) -> EncodedPair:
    """The pair up to its last token that is not `padding`, which cannot see what follows it."""
    if pair.input_ids[-1] != padding:
        return pair
    other = np.flatnonzero(pair.input_ids != padding)
    kept = int(other[-1]) + 1 if len(other) else 1
    return replace(pair, input_ids=pair.input_ids[:kept], second_start=min(pair.second_start, kept))


def _read_shape(checkpoint: Checkpoint) -> LlamaShape:
    where = str(checkpoint.path / "config.json")
    for key in ("use_sliding_window", "use_bidirectional_attention"):
        if read_switch(checkpoint, key):
            raise ModelError(f"{where}: `{key}` is not supported for {checkpoint.architecture}")
    if checkpoint.config.get("is_causal") not in (None, True):
        raise ModelError(
            f"{where}: `is_causal` is {checkpoint.config['is_causal']!r}: {checkpoint.architecture} is computed with "
            "causal attention only",
            hint="LlamaBidirectionalForSequenceClassification is computed without",
        )
    if others := set(checkpoint.config.get("layer_types") or []) - {"full_attention"}:
        shown = ", ".join(f"`{one}`" for one in sorted(map(str, others)))
        raise ModelError(f"{where}: `layer_types` other than `full_attention` are not supported: {shown}")
    kind = trunk_of(checkpoint.architecture)
    shape = read_llama_shape(checkpoint, activation_default="gelu_pytorch_tanh" if kind == "Gemma" else "silu")
    shape = replace(shape, causal=True)
    if kind == "Gemma":
        return replace(shape, norm_offset=1.0, embedding_scale=math.sqrt(shape.hidden))
    if kind == "Qwen2":
        return replace(shape, qkv_bias=True, out_bias=False)
    return replace(shape, head_norms=kind == "Qwen3")
