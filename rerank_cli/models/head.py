"""The head of an encoder: from the tokens of a pair to its score.

A head is a pooling (`pooling.py`) and a row of layers over the pooled vector, the last of which gives the score:

    BERT, GTE            cls           dense + tanh, classifier
    RoBERTa, XLM-R       cls           classifier.dense + tanh, classifier.out_proj
    ELECTRA              cls           classifier.dense + gelu, classifier.out_proj
    ModernBERT           cls or mean   head.dense + activation, head.norm, classifier
    bare encoder         as the modules of its checkpoint declare it (`module_head.py`)

All of it is computed in float32 whatever the layers are, because logits in 16 bits tie. Where the pooling is `cls`
alone, an encoder computes its last layer for the first token of each pair only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rerank_cli.checkpoint import Checkpoint
from rerank_cli.checkpoint.labels import read_score
from rerank_cli.models.linear import HeadLinear, Linear
from rerank_cli.models.packed import PackedBatch
from rerank_cli.models.pooling import pool
from rerank_cli.models.weights import WeightReader


class Head:
    """A pooling and the layers after it.

    modes: of the pooling; their vectors stand side by side. layers: each from [pairs, channels] to the same, the last
    one to a single channel, the score. skips_prompt: the pooling may leave out the first token. first_token_only: the
    head reads nothing but the first token of each pair.
    """

    def __init__(
        self, modes: Sequence[str], layers: Sequence[Callable[[Tensor], Tensor]], *, skips_prompt: bool = False
    ) -> None:
        self._modes = tuple(modes)
        self._layers = tuple(layers)
        self.first_token_only = self._modes == ("cls",) and not skips_prompt

    def of_tokens(self, x: Tensor, batch: PackedBatch) -> Tensor:
        """Scores, float32 [pairs], from the last layer's output for all tokens, [T, hidden]."""
        return self._run(pool(x, batch, self._modes))

    def of_first_tokens(self, first: Tensor, batch: PackedBatch) -> Tensor:
        """Scores, float32 [pairs], from its output for the first tokens, [P, hidden], P as in `PackedBatch.starts`."""
        return self._run(first[: len(batch.lengths)].float())

    def _run(self, vectors: Tensor) -> Tensor:
        for layer in self._layers:
            vectors = layer(vectors)
        return vectors.squeeze(1)


def dense(
    weights: WeightReader, name: str, inputs: int, outputs: int, *, bias: bool = True, then: str | None = None
) -> Linear:
    """The linear layer `name` of a head, with the activation `then` (a key of `linear.ACTIVATIONS`)."""
    return HeadLinear(
        weights.take(f"{name}.weight", (outputs, inputs), dtype=torch.float32),
        weights.take(f"{name}.bias", (outputs,), dtype=torch.float32) if bias else None,
        then=then,
    )


def score_layer(weights: WeightReader, checkpoint: Checkpoint, name: str, inputs: int) -> Linear:
    """The last layer of a classifier, of which only what the score needs is kept (`checkpoint/labels.py`)."""
    score = read_score(checkpoint)
    weight = weights.take(f"{name}.weight", (score.labels, inputs), dtype=torch.float32)
    bias = weights.take(f"{name}.bias", (score.labels,), dtype=torch.float32)
    kept, kept_bias = weight[score.plus], bias[score.plus]
    if score.minus is not None:
        kept, kept_bias = kept - weight[score.minus], kept_bias - bias[score.minus]
    return HeadLinear(kept[None], kept_bias[None])
