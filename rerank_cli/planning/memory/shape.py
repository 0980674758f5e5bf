"""What the memory model must know of a model: sizes from config.json, or from a profile where no checkpoint is at hand.

The families are those of `rerank_cli/models`, which cannot be asked here because it loads torch; a test holds the two
tables against each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from rerank_cli.checkpoint import Checkpoint
from rerank_cli.errors import ModelError
from rerank_cli.planning.profiles import ModelFacts

Family = Literal["bert", "roberta", "modernbert", "llama", "vl", "padded"]
"""Whose forward runs: the packed ones, the vision-language model, or any other classifier, padded by transformers."""

FAMILIES: Mapping[str, Family] = {
    "BertForSequenceClassification": "bert",
    "RobertaForSequenceClassification": "roberta",
    "XLMRobertaForSequenceClassification": "roberta",
    "CamembertForSequenceClassification": "roberta",
    "ModernBertForSequenceClassification": "modernbert",
    "LlamaBidirectionalForSequenceClassification": "llama",
    "Qwen3ForCausalLM": "llama",
    "Qwen2ForCausalLM": "llama",
    "GemmaForCausalLM": "llama",
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen3ForSequenceClassification": "llama",
    "Qwen2ForSequenceClassification": "llama",
    "GemmaForSequenceClassification": "llama",
    "LlamaForSequenceClassification": "llama",
    "MistralForSequenceClassification": "llama",
    "LlamaNemotronVLForSequenceClassification": "vl",
    "LlamaNemotronVLModel": "vl",
}
_MAX_INPUT_TILES = 6  # the default of the processor of the Nemotron VL models
_SIGLIP = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "patch_size": 16, "image_size": 224,
}  # fmt: skip
"""What transformers' SiglipVisionConfig takes for a missing key, and so `models/siglip.py`."""


@dataclass(frozen=True, slots=True)
class VisionShape:
    """A vision tower and what joins it to the text.

    parameters: of both, without a head that is never used. max_input_tiles: without the thumbnail of an image of
    several tiles.
    """

    hidden: int
    intermediate: int
    layers: int
    heads: int
    patch: int
    image: int
    tokens_per_tile: int
    max_input_tiles: int
    parameters: int

    @property
    def patches(self) -> int:
        """Patches of one tile."""
        return (self.image // self.patch) ** 2

    def tiles(self, max_input_tiles: int | None = None) -> int:
        """The most tiles of one image, its thumbnail among them."""
        most = max_input_tiles or self.max_input_tiles
        return most + (most > 1)


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of a model, in the words of `rerank_cli/models`.

    rotary_kinds: how many tables of rotary angles a ModernBERT keeps. window: tokens that its local layers reach to
    either side, None where no layer is local. head_norms: queries and keys are normalised (Qwen3).
    """

    family: Family
    architecture: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    positions: int = 0
    types: int = 0
    rotary_kinds: int = 0
    window: int | None = None
    head_norms: bool = False
    vision: VisionShape | None = None

    @property
    def queries(self) -> int:
        """Channels of all query heads."""
        return self.heads * self.head_size

    @property
    def keys(self) -> int:
        """Channels of all key heads; the values have as many."""
        return self.kv_heads * self.head_size


def read_model_shape(checkpoint: Checkpoint) -> ModelShape:
    """The sizes of a checkpoint; `ModelError` naming the key that config.json lacks."""
    architecture = checkpoint.architecture
    family = FAMILIES.get(architecture, "padded")
    if family != "vl":
        return _read_language(checkpoint, family, architecture)
    text = replace(checkpoint, config=_block(checkpoint, "llm_config"))
    language = replace(_read_language(text, "llama", architecture), family="vl")
    return replace(language, vision=_read_vision(checkpoint, language.hidden))


def shape_of_profile(facts: ModelFacts) -> ModelShape:
    """The sizes that a profile file tells of a model; `ModelError` where it tells none."""
    language = facts.language
    if language is None:
        raise ModelError(
            f"{facts.id}: its profile does not tell the shape of the model",
            hint="pass the folder of the checkpoint; `--compare nim` shows the published rows without it",
        )
    return ModelShape(
        family=FAMILIES.get(facts.architecture, "padded"),
        architecture=facts.architecture,
        hidden=language.hidden_size,
        intermediate=language.intermediate_size,
        layers=language.layers,
        heads=language.heads,
        kv_heads=language.kv_heads,
        head_size=language.head_dim,
        vocabulary=language.vocab_size,
        vision=_vision_of_profile(facts),
    )


def _vision_of_profile(facts: ModelFacts) -> VisionShape | None:
    vision = facts.vision
    if vision is None:
        return None
    tower = _used_of_siglip(vision.parameters, vision.hidden_size, vision.intermediate_size)
    return VisionShape(
        hidden=vision.hidden_size,
        intermediate=vision.intermediate_size,
        layers=vision.layers,
        heads=vision.heads,
        patch=vision.patch_size,
        image=vision.image_size,
        tokens_per_tile=vision.tokens_per_tile,
        max_input_tiles=vision.max_input_tiles,
        parameters=tower + vision.connector_parameters,
    )


def _block(checkpoint: Checkpoint, key: str) -> dict[str, Any]:
    block = checkpoint.config.get(key)
    if not isinstance(block, dict):
        raise ModelError(f"{checkpoint.path / 'config.json'}: `{key}` must be an object: {block!r}")
    return block


def _read_language(checkpoint: Checkpoint, family: Family, architecture: str) -> ModelShape:
    hidden, heads = checkpoint.integer("hidden_size"), checkpoint.integer("num_attention_heads")
    layers, intermediate = checkpoint.integer("num_hidden_layers"), checkpoint.integer("intermediate_size")
    if min(hidden, heads, layers, intermediate) < 1:
        raise ModelError(f"{checkpoint.path / 'config.json'}: sizes must be at least 1: {hidden=}, {heads=}, {layers=}")
    given = {key for key, value in checkpoint.config.items() if value is not None}
    shape = ModelShape(
        family=family,
        architecture=architecture,
        hidden=hidden,
        intermediate=intermediate,
        layers=layers,
        heads=heads,
        kv_heads=checkpoint.integer("num_key_value_heads") if "num_key_value_heads" in given else heads,
        head_size=checkpoint.integer("head_dim") if "head_dim" in given else hidden // heads,
        vocabulary=checkpoint.integer("vocab_size"),
    )
    if family in ("bert", "roberta", "padded"):
        keys = ("max_position_embeddings", "type_vocab_size")
        positions, types = (checkpoint.integer(key) if key in given else 0 for key in keys)
        return replace(shape, positions=positions, types=types)
    if family == "modernbert":
        local = _has_local_layers(checkpoint, layers)
        window = checkpoint.integer("local_attention", 128) // 2 if local else None
        return replace(shape, rotary_kinds=1 + local, window=window)
    return replace(shape, head_norms=architecture.startswith("Qwen3For"))


def _has_local_layers(checkpoint: Checkpoint, layers: int) -> bool:
    kinds = checkpoint.config.get("layer_types")
    if isinstance(kinds, list):
        return "sliding_attention" in kinds
    return layers > 1 and checkpoint.integer("global_attn_every_n_layers", 3) > 1


def _read_vision(checkpoint: Checkpoint, language_hidden: int) -> VisionShape:
    block = _SIGLIP | {key: value for key, value in _block(checkpoint, "vision_config").items() if value is not None}
    tower = replace(checkpoint, config=block)
    patch, image = tower.integer("patch_size"), tower.integer("image_size")
    shrink = checkpoint.number("downsample_ratio", 0.5)
    hidden, intermediate = tower.integer("hidden_size"), tower.integer("intermediate_size")
    layers = tower.integer("num_hidden_layers")
    possible = min(hidden, intermediate, layers, patch) >= 1 and image >= patch and 0 < shrink <= 1
    patches = (image // patch) ** 2 if possible else 0
    tokens = round(patches * shrink**2)
    if not possible or tokens < 1:
        raise ModelError(f"{checkpoint.path / 'config.json'}: `vision_config` holds impossible sizes: {block!r}")
    joined = round(hidden / shrink**2)
    tower_parameters = (
        (3 * patch**2 + 1) * hidden  # the patches' convolution
        + patches * hidden
        + layers * (4 * (hidden + 1) * hidden + (2 * hidden + 1) * intermediate + 5 * hidden)
        + 2 * hidden
    )
    connector = 2 * joined + (joined + 1) * language_hidden + (language_hidden + 1) * language_hidden
    return VisionShape(
        hidden=hidden,
        intermediate=intermediate,
        layers=layers,
        heads=tower.integer("num_attention_heads"),
        patch=patch,
        image=image,
        tokens_per_tile=tokens,
        max_input_tiles=_declared_tiles(checkpoint),
        parameters=tower_parameters + connector,
    )


def _declared_tiles(checkpoint: Checkpoint) -> int:
    """Of processor_config.json alone, as `encoding/vision_config.py` says why; what is wrong there is its to refuse."""
    declared = checkpoint.processor_config.get("max_input_tiles")
    return declared if type(declared) is int and declared > 0 else _MAX_INPUT_TILES


def _used_of_siglip(parameters: int, hidden: int, intermediate: int) -> int:
    """Parameters of a tower without its attention-pooling head, which is in the file and never used."""
    head = (4 * hidden + 4) * hidden + (2 * hidden + 1) * intermediate + 4 * hidden
    return parameters - head
