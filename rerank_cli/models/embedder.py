"""Texts to vectors: `LlamaNemotronVLModel`, the Nemotron page-image embedder, for its texts.

The language model is a bidirectional Llama (`llama.py`) whose sizes stand in `llm_config` of config.json; a text's
vector is the mean of the last hidden states of all its tokens, in float32, as the model gives it: not normalised.

The vision tower (`vision_model`, `mlp1`) is left in the file: texts do not pass through it. Vectors of images come in
where `embed` looks up the embeddings of tokens.

Source: NVIDIA NeMo AutoModel, llama_nemotron_vl/model.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from rerank_cli.checkpoint import Checkpoint
from rerank_cli.errors import ModelError
from rerank_cli.models.llama import LlamaTrunk, read_llama_shape, read_pooling
from rerank_cli.models.packed import pack
from rerank_cli.models.weights import WeightReader
from rerank_cli.records import EncodedPair


class Embedder(Protocol):
    """A loaded embedding model on one device."""

    dimensions: int

    @property
    def kernels(self) -> str:
        """Which implementations run, in words, for the report."""

    def embed(self, texts: Sequence[EncodedPair]) -> Tensor:
        """A vector for each text, float32 [len(texts), dimensions], on the model's device."""


class NemotronEmbedder:
    """The embedder of the Nemotron VL line in eval mode; satisfies `Embedder`."""

    def __init__(self, checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype, attention: str) -> None:
        self._device = device
        self._pooling = read_pooling(checkpoint, "avg")
        if checkpoint.config.get("bidirectional_attention") is False:
            raise ModelError(f"{checkpoint.path / 'config.json'}: `bidirectional_attention` false is not supported")
        shape = read_llama_shape(checkpoint.within("llm_config"))
        self.dimensions = shape.hidden
        with WeightReader(checkpoint, dtype=dtype, device=device) as weights:
            outer = "model." if weights.has("model.language_model.norm.weight") else ""
            self._trunk = LlamaTrunk(
                weights, shape, prefix=f"{outer}language_model.", device=device, dtype=dtype, attention=attention
            )
            weights.ignore(rf"^{outer}(vision_model|mlp1)\.")
            weights.ignore(rf"^{outer}language_model\.lm_head\.weight$")
            weights.finish()

    @property
    def kernels(self) -> str:
        """Which implementations run, in words, for the report."""
        return self._trunk.kernels

    def embed(self, texts: Sequence[EncodedPair]) -> Tensor:
        """A vector for each text, float32 [len(texts), dimensions], on the model's device."""
        batch = pack(texts, device=self._device)
        return self._trunk.pooled(self._trunk.embed(batch.input_ids), batch, self._pooling)


EMBEDDERS: dict[str, Callable[..., Embedder]] = {"LlamaNemotronVLModel": NemotronEmbedder}
"""Embedding models by architecture. Each is called with (checkpoint, device=, dtype=, attention=)."""
