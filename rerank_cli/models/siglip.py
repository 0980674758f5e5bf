"""Tiles of images to vectors: a SigLIP 2 tower, pixel shuffle, and the two layers that lead into a language model.

    tiles uint8 [n, size, size, 3]
      -> (x / 255 - 0.5) / 0.5, rounded to bfloat16 whatever the precision, as the models' processors do
      -> patches, one linear layer, position embeddings      [n, patches, channels]
      -> pre-norm layers, final norm
      -> pixel shuffle: 2 x 2 neighbouring patches side by side, row by row    [n, patches / 4, 4 * channels]
      -> norm, linear, GELU, linear                          [n, patches / 4, hidden of the language model]

The pooling head of SigLIP (`head.*`) lies in the published files and is not used.

**Memory.** Tiles stay bytes until a batch of `BATCH_TILES` of them is normalised; batches go across images, so each
but the last is full. The MLP runs over some patches at a time. In 16 bits the weights are used where they lie in
the mapped file, as in `llama.py`.

Source of the maths: transformers' modeling_siglip.py; the shuffle is version 2 of InternVL's (`ps_version` v2), whose
transpositions come to the order above.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rerank_cli.checkpoint import Checkpoint
from rerank_cli.encoding.vision_config import VisionGeometry
from rerank_cli.errors import ModelError
from rerank_cli.models.linear import Linear, LinearLoader, PlainLinear, activation, linear_kind
from rerank_cli.models.norms import LayerNorm, read_norm
from rerank_cli.models.transfer import transfer_for
from rerank_cli.models.weights import WeightReader
from rerank_cli.planning.memory.pieces import BATCH_TILES, mlp_rows
from rerank_cli.records import Tiles

_PROJECTOR_EPSILON = 1e-5  # nn.LayerNorm's own, which config.json does not name


@dataclass(frozen=True, slots=True)
class TowerShape:
    """Sizes of the tower, from `vision_config`."""

    hidden: int
    layers: int
    heads: int
    intermediate: int
    epsilon: float
    activation: str


@dataclass(frozen=True, slots=True)
class _Layer:
    """One pre-norm layer."""

    attention_norm: LayerNorm
    query: Linear
    key: Linear
    value: Linear
    attention_out: Linear
    mlp_norm: LayerNorm
    up: Linear  # with the activation
    down: Linear


class VisionTower:
    """From tiles to the vectors that stand for them in a language model.

    prefix: of the weights' names (`model.` in a reranker). hidden: of the language model.
    """

    def __init__(
        self,
        weights: WeightReader,
        checkpoint: Checkpoint,
        geometry: VisionGeometry,
        *,
        prefix: str,
        hidden: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        shape = read_tower_shape(checkpoint)
        self._shape, self._geometry = shape, geometry
        self._device, self._dtype = device, dtype
        kind = linear_kind(device, dtype) if dtype == torch.float32 else PlainLinear
        linear = LinearLoader(weights, kind)
        self._hidden = hidden
        name = f"{prefix}vision_model."
        if weights.has(f"{name}vision_model.embeddings.patch_embedding.weight"):
            name += "vision_model."  # transformers 4 has one level more
        weights.ignore(rf"^{name.replace('.', '[.]')}head[.]")
        side = geometry.patch_size
        patches = weights.take(f"{name}embeddings.patch_embedding.weight", (shape.hidden, 3, side, side))
        self._patches: Linear = kind(
            patches.flatten(1), weights.take(f"{name}embeddings.patch_embedding.bias", (shape.hidden,))
        )
        self._positions = weights.take(f"{name}embeddings.position_embedding.weight", (geometry.patches, shape.hidden))
        self._layers = [self._layer(linear, f"{name}encoder.layers.{i}") for i in range(shape.layers)]
        self._final_norm = read_norm(weights, f"{name}post_layernorm", shape.hidden, shape.epsilon)
        wide = shape.hidden * geometry.shuffle**2
        self._projector_norm = read_norm(weights, f"{prefix}mlp1.0", wide, _PROJECTOR_EPSILON)
        self._projector_in = linear(f"{prefix}mlp1.1", wide, hidden, then="gelu")
        self._projector_out = linear(f"{prefix}mlp1.3", hidden, hidden)

    def vectors(self, images: Sequence[Tiles]) -> list[Tensor]:
        """The vectors of each image, [tiles * vectors of a tile, hidden], on the tower's device."""
        sizes = [len(image) for image in images]
        tiles = [tile for image in images for tile in image.pixels]
        out = torch.empty(
            len(tiles), self._geometry.tokens_per_tile, self._hidden, dtype=self._dtype, device=self._device
        )
        for start in range(0, len(tiles), BATCH_TILES):
            batch = torch.from_numpy(np.stack(tiles[start : start + BATCH_TILES]))
            there = transfer_for(self._device).to_device(batch)
            out[start : start + BATCH_TILES] = self._project(self._see(there))
        return [part.flatten(0, 1) for part in out.split(sizes)]

    def _see(self, tiles: Tensor) -> Tensor:
        """The tower's last hidden states, [n, patches, channels]; tiles: uint8 [n, size, size, 3]."""
        count = len(tiles)
        x = self._patches(self._cut(tiles))
        x.unflatten(0, (count, -1)).add_(self._positions)
        for layer in self._layers:
            x = self._run_layer(layer, x, count)
        states: Tensor = self._final_norm(x).unflatten(0, (count, -1))
        return states

    def _cut(self, tiles: Tensor) -> Tensor:
        """Tiles as rows of patches, [n * patches, 3 * side^2]."""
        count, side = len(tiles), self._geometry.patch_size
        per_side = self._geometry.tile_size // side
        pixels = normalise(tiles).to(self._dtype).reshape(count, per_side, side, per_side, side, 3)
        return pixels.permute(0, 1, 3, 5, 2, 4).reshape(count * per_side**2, 3 * side**2)

    def _run_layer(self, layer: _Layer, x: Tensor, count: int) -> Tensor:
        x = layer.attention_out.add(self._attend(layer, x, count), x)
        for rows in x.split(mlp_rows(x.device.type != "cpu", x.element_size())):
            added = layer.down.add(layer.up(layer.mlp_norm(rows)), rows)
            if added is not rows:
                rows.copy_(added)
        return x

    def _attend(self, layer: _Layer, x: Tensor, count: int) -> Tensor:
        # A function of its own, so that queries, keys and values are gone before the MLP needs room.
        normed = layer.attention_norm(x)
        # [n, heads, patches, channels of a head]
        q, k, v = (
            part(normed).unflatten(1, (self._shape.heads, -1)).unflatten(0, (count, -1)).transpose(1, 2)
            for part in (layer.query, layer.key, layer.value)
        )
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)

    def _project(self, x: Tensor) -> Tensor:
        """The projector's output of the tower's states: [n, vectors of a tile, hidden]."""
        shuffled = pixel_shuffle(x, self._geometry.shuffle)
        normed = self._projector_norm(shuffled).flatten(0, 1)
        vectors: Tensor = self._projector_out(self._projector_in(normed)).unflatten(0, (len(x), -1))
        return vectors

    def _layer(self, linear: LinearLoader, name: str) -> _Layer:
        hidden, middle, epsilon = self._shape.hidden, self._shape.intermediate, self._shape.epsilon
        query, key, value, out = (
            linear(f"{name}.self_attn.{part}", hidden, hidden) for part in ("q_proj", "k_proj", "v_proj", "out_proj")
        )
        return _Layer(
            attention_norm=read_norm(linear.weights, f"{name}.layer_norm1", hidden, epsilon),
            query=query,
            key=key,
            value=value,
            attention_out=out,
            mlp_norm=read_norm(linear.weights, f"{name}.layer_norm2", hidden, epsilon),
            up=linear(f"{name}.mlp.fc1", hidden, middle, then=self._shape.activation),
            down=linear(f"{name}.mlp.fc2", middle, hidden),
        )


def normalise(tiles: Tensor) -> Tensor:
    """Pixels from bytes, bfloat16, of the same shape."""
    return tiles.float().div_(255).sub_(0.5).div_(0.5).to(torch.bfloat16)


def pixel_shuffle(x: Tensor, factor: int) -> Tensor:
    """`factor` x `factor` neighbouring patches as one vector: [n, patches, channels] to fewer and wider ones."""
    count, patches, channels = x.shape
    side = round(patches**0.5) // factor
    squares = x.reshape(count, side, factor, side, factor, channels).permute(0, 1, 3, 2, 4, 5)
    return squares.reshape(count, side * side, factor * factor * channels)


def read_tower_shape(checkpoint: Checkpoint) -> TowerShape:
    """Sizes from `vision_config`; a missing key has the default of transformers' SiglipVisionConfig."""
    config = checkpoint.within("vision_config")
    where = config.config_place
    kind, channels = config.text("model_type", "siglip_vision_model"), config.integer("num_channels", 3)
    if kind != "siglip_vision_model" or channels != 3:
        raise ModelError(f"{where}: `model_type` {kind} with {channels} channels is not a tower that is known")
    hidden, heads = config.integer("hidden_size", 768), config.integer("num_attention_heads", 12)
    layers = config.integer("num_hidden_layers", 12)
    if heads < 1 or layers < 1 or hidden < 1 or hidden % heads:
        raise ModelError(
            f"{where}: `hidden_size` {hidden}, `num_attention_heads` {heads} and `num_hidden_layers` {layers} do not "
            "fit together"
        )
    name = config.text("hidden_act", "gelu_pytorch_tanh")
    activation(name, where=where)
    return TowerShape(
        hidden=hidden,
        layers=layers,
        heads=heads,
        intermediate=config.integer("intermediate_size", 3072),
        epsilon=config.number("layer_norm_eps", 1e-6),
        activation=name,
    )
