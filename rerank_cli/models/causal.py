"""Language models that rerank by their next word, packed: Qwen3-Reranker, mxbai-rerank v2, bge-reranker-v2-gemma.

The three are causal and Llama's close kin:

    Qwen3ForCausalLM    normalises each head's queries and keys
    Qwen2ForCausalLM    has biases in the projections to queries, keys and values
    GemmaForCausalLM    scales its embeddings by the root of their size, adds 1 to the weights of its norms, gelu

so they run through `LlamaTrunk`, with the last layer computed for the last token alone. Of the vocabulary only the rows
of the answers are multiplied, in float32. What is asked and what counts as an answer: `encoding/yes_no.py`.

Gemma's `gelu` is taken as config.json has it, as the reference code of bge-reranker-v2-gemma does on transformers 4;
transformers 5 takes it for the tanh approximation, and logits of the golden cases move by up to 6e-4.

Source of the maths: transformers' modeling_qwen3.py, modeling_qwen2.py and modeling_gemma.py, against which the tests
compare.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from rerank_cli.checkpoint import Checkpoint
from rerank_cli.encoding.encoder import answer_ids
from rerank_cli.errors import ModelError
from rerank_cli.models.llama import LlamaTrunk
from rerank_cli.models.llama_config import LlamaShape, read_llama_shape, read_switch
from rerank_cli.models.packed import pack
from rerank_cli.models.weights import WeightReader, open_weights
from rerank_cli.records import EncodedPair


class YesNoModel:
    """A language model whose answer is the logit; satisfies `RerankModel`."""

    def __init__(
        self, checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype, attention: str, fp8: bool = False
    ) -> None:
        self._device = device
        shape = _read_shape(checkpoint)
        answers = answer_ids(checkpoint)
        if max(answers) >= shape.vocabulary:
            raise ModelError(
                f"{checkpoint.tokenizer_file}: the answer's token {max(answers)} is beyond the model's `vocab_size` "
                f"{shape.vocabulary}"
            )
        with open_weights(checkpoint, dtype=dtype, device=device) as weights:
            self._trunk = LlamaTrunk(
                weights, shape, prefix="model.", device=device, dtype=dtype, attention=attention, fp8=fp8
            )
            words = self._trunk.words
            if _is_tied(checkpoint, weights):
                weights.ignore(r"^lm_head\.weight$")
            else:
                words = weights.take("lm_head.weight", (shape.vocabulary, shape.hidden))
            weights.finish()
        rows = words[answers].float()
        self._direction = rows[0] - rows[1] if len(answers) == 2 else rows[0]

    @property
    def kernels(self) -> str:
        """Which implementations run, in words, for the report."""
        return self._trunk.kernels

    def forward(self, pairs: Sequence[EncodedPair]) -> Tensor:
        """Logits of a batch, float32 [len(pairs)], on the model's device."""
        batch = pack(pairs, device=self._device)
        return self._trunk.pooled(self._trunk.embed(batch.input_ids), batch, "last") @ self._direction


def _is_tied(checkpoint: Checkpoint, weights: WeightReader) -> bool:
    """The table of the output is that of the input."""
    if checkpoint.config.get("tie_word_embeddings") is None:
        return not weights.has("lm_head.weight")
    return read_switch(checkpoint, "tie_word_embeddings")


def _read_shape(checkpoint: Checkpoint) -> LlamaShape:
    where = str(checkpoint.path / "config.json")
    for key in ("use_sliding_window", "use_bidirectional_attention"):
        if read_switch(checkpoint, key):
            raise ModelError(f"{where}: `{key}` is not supported for {checkpoint.architecture}")
    if set(checkpoint.config.get("layer_types") or ["full_attention"]) != {"full_attention"}:
        raise ModelError(f"{where}: `layer_types` other than `full_attention` are not supported")
    gemma = checkpoint.architecture == "GemmaForCausalLM"
    shape = read_llama_shape(checkpoint, activation_default="gelu_pytorch_tanh" if gemma else "silu")
    shape = replace(shape, causal=True)
    if gemma:
        return replace(shape, norm_offset=1.0, embedding_scale=math.sqrt(shape.hidden))
    if checkpoint.architecture == "Qwen2ForCausalLM":
        return replace(shape, qkv_bias=True, out_bias=False)
    return replace(shape, head_norms=True)
