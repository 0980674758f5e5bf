"""Texts and images to vectors: `LlamaNemotronVLModel`, the Nemotron page-image embedder.

It is the trunk of the VL rerankers (`nemotron_vl.py`) without a head: the vector of a text, of an image or of both is
the mean of the last hidden states of all its tokens, in float32, as the model gives it: not normalised. Where there is
a modules.json, its Pooling replaces the mean and its Normalize is applied. The weights' names begin with `model.` only
where the model was saved as a part of another.

Source: NVIDIA NeMo AutoModel, llama_nemotron_vl/model.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Unpack

import torch.nn.functional as F
from torch import Tensor

from rerank_cli.checkpoint import Checkpoint
from rerank_cli.checkpoint.declared import Normalize
from rerank_cli.checkpoint.similarity import declared_pooling
from rerank_cli.models.llama import Placed
from rerank_cli.models.llama_config import read_pooling
from rerank_cli.models.nemotron_vl import VisionLanguageTrunk
from rerank_cli.models.weights import open_weights
from rerank_cli.records import EncodedPair


class NemotronEmbedder:
    """The embedder of the Nemotron VL line in eval mode; satisfies `RerankModel`, `SeesImages` and `Embeds`."""

    def __init__(self, checkpoint: Checkpoint, **placed: Unpack[Placed]) -> None:
        named = checkpoint
        if declared := declared_pooling(checkpoint):
            named = replace(checkpoint, config={**checkpoint.config, "pooling": declared})
        pooling = read_pooling(named, "avg")
        self._normalises = any(isinstance(module, Normalize) for module in checkpoint.declared.modules)
        with open_weights(checkpoint, dtype=placed["dtype"], device=placed["device"]) as weights:
            prefix = "model." if weights.has("model.language_model.norm.weight") else ""
            self._trunk = VisionLanguageTrunk(weights, checkpoint, prefix=prefix, pooling=pooling, **placed)
            weights.finish()
        self.dimensions = self._trunk.hidden
        self.kernels = self._trunk.kernels

    def see(self, texts: Sequence[EncodedPair]) -> None:
        """See `SeesImages`."""
        self._trunk.see(texts)

    def forward(self, texts: Sequence[EncodedPair]) -> Tensor:
        """A vector for each text, float32 [len(texts), dimensions], on the model's device."""
        vectors = self._trunk.pool(texts)
        return F.normalize(vectors, dim=1) if self._normalises else vectors
