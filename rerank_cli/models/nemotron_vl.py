"""The Llama-Nemotron VL rerankers: a vision tower and a bidirectional Llama that reads its vectors among its tokens.

Two stages, each with full batches. `see` runs the tower over the tiles of all images that the next pairs hold, each
distinct image once; `forward` then embeds a batch of pairs by their tokens, lays the vectors over the places of their
images (`ImageBlock`), and goes on as a text reranker: layers, mean over all tokens, one linear layer in float32,
division by `temperature`.

`VisionLanguageTrunk` is all but the head and knows nothing of prompts: the embedder of the same line (`embedder.py`) is
this trunk without the prefix `model.`, whose `pool` is used differently.

Configuration: `llm_config` and `vision_config` are those of the two parts; `pooling` and `temperature` stand at the top
level of config.json and are read there alone, as the published code does. Weights: `model.vision_model.*` (with another
`vision_model.` below it in files of transformers 4), `model.mlp1.*`, `model.language_model.*`, `score.weight`.

Source: NVIDIA NeMo AutoModel's llama_nemotron_vl/model.py and the published code of llama-nemotron-rerank-vl-1b-v2; the
tests compare logits that these gave.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from rerank_cli.checkpoint import Checkpoint
from rerank_cli.encoding.vision_config import read_vision_geometry
from rerank_cli.errors import ModelError
from rerank_cli.models.llama import LlamaTrunk, Placed
from rerank_cli.models.llama_config import Pooling, read_llama_shape, read_pooling, read_temperature
from rerank_cli.models.packed import PackedBatch, pack
from rerank_cli.models.siglip import VisionTower
from rerank_cli.models.weights import WeightReader, open_weights
from rerank_cli.records import EncodedPair, Tiles

# What transformers' LlamaConfig takes for a missing key; a nested config leaves out the defaults.
_LLAMA_DEFAULTS: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "max_position_embeddings": 2048,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "vocab_size": 32000,
}


class VisionLanguageTrunk:
    """Pairs with and without images to one vector each.

    prefix: of the weights' names, with its dot. pooling: of the last hidden states, as `read_pooling` gives it.
    kernels: which implementations run, in words, for the report.
    """

    def __init__(
        self, weights: WeightReader, checkpoint: Checkpoint, *, prefix: str, pooling: Pooling, **placed: Unpack[Placed]
    ) -> None:
        self._pooling = pooling
        self._device = placed["device"]
        language = checkpoint.within("llm_config")
        shape = read_llama_shape(replace(language, config=_LLAMA_DEFAULTS | dict(language.config)))
        self._tower = VisionTower(
            weights,
            checkpoint,
            read_vision_geometry(checkpoint),
            prefix=prefix,
            hidden=shape.hidden,
            device=placed["device"],
            dtype=placed["dtype"],
        )
        self._language = LlamaTrunk(weights, shape, prefix=f"{prefix}language_model.", **placed)
        weights.ignore(rf"^{prefix.replace('.', '[.]')}language_model[.]lm_head[.]weight$")  # of the model it came from
        self._seen: dict[Tiles, Tensor] = {}
        self.hidden = shape.hidden
        self.kernels = self._language.kernels

    def see(self, pairs: Sequence[EncodedPair]) -> None:
        """Run the tower over the images of `pairs`; their vectors are kept until the next call."""
        self._seen = {}
        images = list(dict.fromkeys(_image_of(pair) for pair in pairs if pair.block))
        self._seen = dict(zip(images, self._tower.vectors(images), strict=True))

    def pool(self, pairs: Sequence[EncodedPair]) -> Tensor:
        """One vector a pair, float32 [pairs, hidden]; `see` has seen their images."""
        batch = pack(pairs, device=self._device)
        return self._language.pool(self._embed(pairs, batch), batch, self._pooling)

    def _embed(self, pairs: Sequence[EncodedPair], batch: PackedBatch) -> Tensor:
        """The vectors of the tokens, [T, hidden], those of images in their places."""
        x = self._language.embed(batch.input_ids)
        begin = 0
        for pair in pairs:
            if pair.block:
                first = begin + pair.block.start
                x[first : first + pair.block.length] = self._seen[_image_of(pair)]
            begin += len(pair.input_ids)
        return x


class LlamaNemotronVLCrossEncoder:
    """A Llama-Nemotron VL reranker in eval mode; satisfies `RerankModel` and `SeesImages`.

    kernels: which implementations run, in words, for the report.
    """

    def __init__(self, checkpoint: Checkpoint, **placed: Unpack[Placed]) -> None:
        self._temperature = read_temperature(checkpoint)
        if "pooling" not in checkpoint.config:  # the published code's default is not the one that it writes
            raise ModelError(f"{checkpoint.config_place}: `pooling` is missing")
        pooling = read_pooling(checkpoint, "avg")
        with open_weights(checkpoint, dtype=placed["dtype"], device=placed["device"]) as weights:
            self._trunk = VisionLanguageTrunk(weights, checkpoint, prefix="model.", pooling=pooling, **placed)
            self._score = weights.take("score.weight", (1, self._trunk.hidden), dtype=torch.float32)
            weights.finish()
        self.kernels = self._trunk.kernels

    def see(self, pairs: Sequence[EncodedPair]) -> None:
        """See `SeesImages`."""
        self._trunk.see(pairs)

    def forward(self, pairs: Sequence[EncodedPair]) -> Tensor:
        """Logits of a batch, float32 [len(pairs)], on the model's device."""
        return F.linear(self._trunk.pool(pairs), self._score).squeeze(1) / self._temperature


def _image_of(pair: EncodedPair) -> Tiles:
    assert pair.block is not None and pair.block.image is not None, "the encoder gives a block its tiles"
    return pair.block.image
