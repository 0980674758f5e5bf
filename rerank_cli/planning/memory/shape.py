"""The sizes of a model that the memory model needs: from config.json or, without a checkpoint, from a profile."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from rerank_cli.checkpoint import Checkpoint
from rerank_cli.checkpoint.families import BERT_LIKE, Forward, family_of
from rerank_cli.errors import ModelError
from rerank_cli.planning.profiles import ModelFacts

PaddedAttention = Literal["fused", "scores", "positions"]
"""How a classifier that transformers runs attends: by a fused kernel, by a matrix of scores, or by several of them."""

# Encoders whose attention transformers 5 leaves to torch's fused kernels, and those that make one matrix of scores; all
# others are taken for the hungriest. A test asks transformers.
_FUSED = {
    "AlbertForSequenceClassification", "Data2VecTextForSequenceClassification", "DistilBertForSequenceClassification",
    "ErnieForSequenceClassification", "EuroBertForSequenceClassification", "GteForSequenceClassification",
    "NomicBertForSequenceClassification", "RoCBertForSequenceClassification",
    "RobertaPreLayerNormForSequenceClassification", "XLMRobertaXLForSequenceClassification",
    "XmodForSequenceClassification",
}  # fmt: skip
_SCORES = {
    "ConvBertForSequenceClassification", "MPNetForSequenceClassification",
    "MegatronBertForSequenceClassification", "RemBertForSequenceClassification", "RoFormerForSequenceClassification",
}  # fmt: skip
_COMPOSED = {"gelu_new", "gelu_fast", "gelu_10", "quick_gelu", "mish"}  # activations of several operators
_COMPOSED_BY_DEFAULT = {"AlbertForSequenceClassification"}
# What other families than BERT's call their sizes; source: `attribute_map` of transformers' configurations.
_SYNONYMS = {
    "hidden_size": ("dim", "d_model", "n_embd", "emb_dim"),
    "num_attention_heads": ("n_heads", "n_head", "num_heads", "encoder_attention_heads"),
    "num_hidden_layers": ("n_layers", "n_layer", "num_layers", "encoder_layers"),
    "intermediate_size": ("hidden_dim", "d_inner", "d_ff", "n_inner", "encoder_ffn_dim"),
    "max_position_embeddings": ("n_positions", "max_seq_len"),
}
_FOUR_TIMES = 4  # the hidden size: an MLP's, where config.json does not tell it

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
    either side, None where no layer is local. head_norms: queries and keys are normalised (Qwen3). Of a model that
    transformers runs: how it attends, how many relative positions it reads whole for each pair, and whether
    the activation of its MLP is made of several operators. activation: of a BERT-like encoder's MLP.
    """

    forward: Forward
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
    padded_attention: PaddedAttention = "positions"
    relative_positions: int = 0
    wide_activation: bool = False
    activation: str = ""
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
    forward = family_of(architecture).forward
    if forward == "padded":
        return _read_padded(checkpoint, architecture)
    if forward != "vl":
        return _read_language(checkpoint, forward, architecture)
    text = replace(checkpoint, config=checkpoint.within("llm_config").config)
    language = replace(_read_language(text, "llama", architecture), forward="vl")
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
        forward=family_of(facts.architecture).forward,
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
    # The attention-pooling head is in the file and never used.
    h, i = vision.hidden_size, vision.intermediate_size
    head = (4 * h + 4) * h + (2 * h + 1) * i + 4 * h
    return VisionShape(
        hidden=vision.hidden_size,
        intermediate=vision.intermediate_size,
        layers=vision.layers,
        heads=vision.heads,
        patch=vision.patch_size,
        image=vision.image_size,
        tokens_per_tile=vision.tokens_per_tile,
        max_input_tiles=vision.max_input_tiles,
        parameters=vision.parameters - head + vision.connector_parameters,
    )


def _read_language(checkpoint: Checkpoint, forward: Forward, architecture: str) -> ModelShape:
    hidden, heads = checkpoint.integer("hidden_size"), checkpoint.integer("num_attention_heads")
    layers, intermediate = checkpoint.integer("num_hidden_layers"), checkpoint.integer("intermediate_size")
    if min(hidden, heads, layers, intermediate) < 1:
        raise ModelError(f"{checkpoint.path / 'config.json'}: sizes must be at least 1: {hidden=}, {heads=}, {layers=}")
    given = {key for key, value in checkpoint.config.items() if value is not None}
    shape = ModelShape(
        forward=forward,
        architecture=architecture,
        hidden=hidden,
        intermediate=intermediate,
        layers=layers,
        heads=heads,
        kv_heads=checkpoint.integer("num_key_value_heads") if "num_key_value_heads" in given else heads,
        head_size=checkpoint.integer("head_dim") if "head_dim" in given else hidden // heads,
        vocabulary=checkpoint.integer("vocab_size"),
    )
    if forward in BERT_LIKE:
        keys = ("max_position_embeddings", "type_vocab_size")
        positions, types = (checkpoint.integer(key) if key in given else 0 for key in keys)
        activation = checkpoint.text("hidden_act", "gelu")
        return replace(shape, positions=positions, types=types, activation=activation)
    if forward == "modernbert":
        kinds = checkpoint.config.get("layer_types")
        local = "sliding_attention" in kinds if isinstance(kinds, list) else None
        if local is None:
            local = layers > 1 and checkpoint.integer("global_attn_every_n_layers", 3) > 1
        window = checkpoint.integer("local_attention", 128) // 2 if local else None
        return replace(shape, rotary_kinds=1 + local, window=window)
    if forward == "gte":
        return replace(shape, rotary_kinds=1, types=checkpoint.integer("type_vocab_size", 1))
    return replace(shape, head_norms=architecture.startswith("Qwen3For"))


def shape_if_known(checkpoint: Checkpoint | None) -> ModelShape | None:
    """The sizes of a model; None where they are not known, for a reason that loading it tells."""
    try:
        return read_model_shape(checkpoint) if checkpoint else None
    except ModelError:
        return None


def _read_padded(checkpoint: Checkpoint, architecture: str) -> ModelShape:
    """The sizes of a model that transformers runs, whatever its family calls them."""
    config = dict(checkpoint.config)
    for name, others in _SYNONYMS.items():
        found = next((config[other] for other in others if config.get(other) is not None), None)
        if config.get(name) is None and found is not None:
            config[name] = found
    blocks = config.get("block_sizes")  # Funnel's layers
    if config.get("num_hidden_layers") is None and isinstance(blocks, list):
        config["num_hidden_layers"] = sum(block for block in blocks if isinstance(block, int))
    if config.get("intermediate_size") is None and isinstance(config.get("hidden_size"), int):
        config["intermediate_size"] = _FOUR_TIMES * config["hidden_size"]
    named = replace(checkpoint, config=config)
    shape = _read_language(named, "padded", architecture)
    positions, types = (
        named.integer(key) if config.get(key) is not None else 0
        for key in ("max_position_embeddings", "type_vocab_size")
    )
    attention: PaddedAttention = "positions"
    if architecture in _FUSED or architecture in _SCORES:
        attention = "fused" if architecture in _FUSED else "scores"
    composed = named.text("hidden_act", "gelu_new" if architecture in _COMPOSED_BY_DEFAULT else "gelu") in _COMPOSED
    return replace(
        shape,
        positions=positions,
        types=types,
        padded_attention=attention,
        relative_positions=_relative_positions(named),
        wide_activation=composed,
    )


def _relative_positions(checkpoint: Checkpoint) -> int:
    """Rows of DeBERTa-v2's table of relative positions, which it reads whole for every pair; 0 for all others."""
    if checkpoint.architecture != "DebertaV2ForSequenceClassification":
        return 0
    for key in ("position_buckets", "max_relative_positions", "max_position_embeddings"):
        value = checkpoint.config.get(key)
        if type(value) is int and value > 0:
            return 2 * value
    return 0


def _read_vision(checkpoint: Checkpoint, language_hidden: int) -> VisionShape:
    given = checkpoint.within("vision_config").config
    block: dict[str, Any] = _SIGLIP | {key: value for key, value in given.items() if value is not None}
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
    # Tiles are read from processor_config.json alone; `encoding/vision_config.py` says why, and refuses wrong ones.
    tiles = checkpoint.processor_config.get("max_input_tiles")
    return VisionShape(
        hidden=hidden,
        intermediate=intermediate,
        layers=layers,
        heads=tower.integer("num_attention_heads"),
        patch=patch,
        image=image,
        tokens_per_tile=tokens,
        max_input_tiles=tiles if type(tiles) is int and tiles > 0 else _MAX_INPUT_TILES,
        parameters=tower_parameters + connector,
    )
