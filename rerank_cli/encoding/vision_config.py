"""What a Llama-Nemotron VL checkpoint says about images: tile size, vectors of a tile, tiles of an image.

Where both have a key, the processor's own file, processor_config.json, wins over config.json: the published config.json
says 4 tiles (2 for the embedder), but the processor, and whoever measured the models, uses 6. So `max_input_tiles` of
config.json is ignored; an option of the user wins over both files.

A setting with which the published code would compute something else than this program is refused by its key.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

from rerank_cli.checkpoint import Checkpoint
from rerank_cli.encoding.images import DEFAULT_MAX_TILES
from rerank_cli.errors import ModelError

_T = TypeVar("_T", int, bool)

# Keys of config.json and processor_config.json with the one value that is understood, which a missing key means too.
# Other values would change, in this order: the pixel shuffle, which layer gives the output, grids that keep the aspect,
# an extra layer before the shuffle, the least number of tiles (twice), the prompt, the attention of the language model,
# the means of the pixels, a text before every prompt.
_ONLY: dict[str, Any] = {
    "ps_version": "v2",
    "select_layer": -1,
    "keep_aspect_ratio": False,
    "pre_feature_reduction": False,
    "min_dynamic_patch": 1,
    "min_input_tiles": 1,
    "prompt_template": "v1",
    "bidirectional_attention": True,
    "norm_type": "siglip",
    "system_message": "",
}


@dataclass(frozen=True, slots=True)
class VisionGeometry:
    """The sizes that lead from an image to its vectors.

    tile_size, patch_size: pixels of the side of a tile and of a patch. shuffle: patches of a side that make one vector.
    max_tiles, max_tiles_reason: the most parts of an image, and what set this number. thumbnail: images in several
    parts get one.
    """

    tile_size: int
    patch_size: int
    shuffle: int
    max_tiles: int
    max_tiles_reason: str
    thumbnail: bool

    @property
    def patches(self) -> int:
        """How many patches a tile has."""
        return (self.tile_size // self.patch_size) ** 2

    @property
    def tokens_per_tile(self) -> int:
        """How many vectors, and so tokens, a tile has."""
        return self.patches // self.shuffle**2


def read_vision_geometry(checkpoint: Checkpoint, *, max_tiles: int | None = None) -> VisionGeometry:
    """The sizes from the checkpoint's files; `ModelError` with the key where a value is not understood.

    max_tiles: the user's, which replaces the checkpoint's.
    """
    where, processor = checkpoint.config_place, str(checkpoint.path / "processor_config.json")
    for key, only in _ONLY.items():
        for place, values in ((where, checkpoint.config), (processor, checkpoint.processor_config)):
            value = values.get(key)
            if value is not None and value != only:
                raise ModelError(f"{place}: `{key}` is {value!r}, only {only!r} is understood")
    vision = checkpoint.within("vision_config")
    tile, patch = vision.integer("image_size", 224), vision.integer("patch_size", 16)
    ratio = checkpoint.number("downsample_ratio", 0.5)
    shuffle = round(1 / ratio) if ratio > 0 else 0
    if patch < 1 or tile < 1 or shuffle < 1 or shuffle * ratio != 1 or tile % (patch * shuffle):
        raise ModelError(
            f"{where}: `image_size` {tile}, `patch_size` {patch} and `downsample_ratio` {ratio} do not fit together"
        )
    several = _setting(checkpoint, "dynamic_image_size", True)
    declared = checkpoint.processor_config.get("max_input_tiles")
    said = processor if declared is not None else "the default"
    if declared is not None and (type(declared) is not int or declared < 1):
        raise ModelError(f"{processor}: `max_input_tiles` must be a whole number above 0: {declared!r}")
    most, reason = (max_tiles, "--max-input-tiles") if max_tiles else (declared or DEFAULT_MAX_TILES, said)
    geometry = VisionGeometry(
        tile_size=tile,
        patch_size=patch,
        shuffle=shuffle,
        max_tiles=most if several else 1,
        max_tiles_reason=reason if several else "`dynamic_image_size` is false",
        thumbnail=_setting(checkpoint, "use_thumbnail", True),
    )
    for key, own in (("force_image_size", tile), ("num_image_token", geometry.tokens_per_tile)):
        value = _setting(checkpoint, key, own)
        if value != own:
            raise ModelError(f"{where}: `{key}` is {value!r}, `vision_config` makes it {own}")
    return geometry


def _setting(checkpoint: Checkpoint, key: str, default: _T) -> _T:
    """A value of processor_config.json, or else of config.json, or else the default, whose type it must have."""
    for values in (checkpoint.processor_config, checkpoint.config):
        value = values.get(key)
        if value is not None:
            if type(value) is not type(default):
                raise ModelError(f"{checkpoint.path}: `{key}` must be like {default!r}: {value!r}")
            return value
    return default
