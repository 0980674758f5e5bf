"""Shapes from config.json and profiles, and the bytes of the weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rerank_cli.checkpoint import Checkpoint, TensorInfo, locate_checkpoint, read_checkpoint
from rerank_cli.errors import ModelError
from rerank_cli.planning.memory import count_weights, parameters, read_model_shape, shape_of_profile
from rerank_cli.planning.profiles import load_all_profiles

PARITY = Path(__file__).parents[3] / "parity"
# A shape without a checkpoint knows of one label and no head in modules.
PACKED = sorted(
    path.parent.name
    for path in PARITY.glob("*/checkpoint")
    if not path.parent.name.startswith(("deberta", "ettin", "monobert"))
)
MODELS = {found.model.id.rpartition("/")[2]: found.model for found in load_all_profiles()}
VL: dict[str, Any] = {
    "architectures": ["LlamaNemotronVLForSequenceClassification"],
    "llm_config": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "vocab_size": 128267,
    },
    "vision_config": {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "patch_size": 16,
        "image_size": 512,
    },
    "downsample_ratio": 0.5,
    "max_input_tiles": 4,
}


def bare(config: dict[str, Any], tensors: dict[str, TensorInfo] | None = None) -> Checkpoint:
    return Checkpoint(Path("nowhere"), "made up", config, {}, tensors or {})


@pytest.mark.parametrize("element", [2, 4])
@pytest.mark.parametrize("name", PACKED)
def test_headers_and_sizes_give_the_same_bytes(name: str, element: int) -> None:
    checkpoint = read_checkpoint(PARITY / name / "checkpoint")
    shape = read_model_shape(checkpoint)
    assert count_weights(shape, checkpoint).size_bytes(element) == count_weights(shape, None).size_bytes(element)


def test_8_bit_weights_count_as_what_they_become() -> None:
    checkpoint = read_checkpoint(locate_checkpoint(None))
    shape = read_model_shape(checkpoint)
    assert count_weights(shape, checkpoint).size_bytes(4) == 4 * parameters(shape)
    assert count_weights(shape, checkpoint).size_bytes(4) > 3.9 * sum(
        path.stat().st_size for path in checkpoint.weight_files
    )


def test_the_published_numbers_of_parameters_come_out() -> None:
    assert parameters(shape_of_profile(MODELS["llama-nemotron-rerank-1b-v2"])) == 1_235_816_448
    # embed-vl has 1,678,252,480 (mteb) with a vocabulary of 128,266, the unused vision head, and no score.
    shape = replace(shape_of_profile(MODELS["llama-nemotron-rerank-vl-1b-v2"]), vocabulary=128_266)
    assert parameters(shape) == 1_678_252_480 - 15_238_352 + 2_048


def test_a_vision_config_gives_the_shape_that_the_profile_tells() -> None:
    told = shape_of_profile(MODELS["llama-nemotron-rerank-vl-1b-v2"])
    read = read_model_shape(bare(VL))
    assert read.vision is not None
    assert told.vision is not None
    assert replace(read, vision=None) == replace(told, vision=None)
    assert read.vision == told.vision


def test_what_the_language_part_is_called_does_not_matter() -> None:
    named = {**VL, "llm_config": {**VL["llm_config"], "architectures": 62}}
    assert read_model_shape(bare(named)) == read_model_shape(bare(VL))


def test_a_vision_config_that_names_nothing_means_what_the_tower_takes_it_for() -> None:
    from rerank_cli.encoding.vision_config import read_vision_geometry
    from rerank_cli.models.siglip import read_tower_shape

    checkpoint = bare({**VL, "vision_config": {"model_type": "siglip_vision_model"}, "force_image_size": 224})
    vision, tower = read_model_shape(checkpoint).vision, read_tower_shape(checkpoint)
    geometry = read_vision_geometry(checkpoint)
    assert vision is not None
    assert (vision.hidden, vision.intermediate, vision.layers, vision.heads) == (
        tower.hidden, tower.intermediate, tower.layers, tower.heads
    )  # fmt: skip
    assert (vision.image, vision.patch, vision.tokens_per_tile) == (
        geometry.tile_size, geometry.patch_size, geometry.tokens_per_tile
    )  # fmt: skip


def test_the_processor_alone_says_how_many_tiles_an_image_has() -> None:
    in_config = read_model_shape(bare({**VL, "max_input_tiles": 4})).vision
    in_processor = read_model_shape(replace(bare(VL), processor_config={"max_input_tiles": 2})).vision
    assert in_config is not None and in_config.max_input_tiles == 6
    assert in_processor is not None and in_processor.max_input_tiles == 2


def test_heads_and_norms_are_counted_in_float32_and_unused_weights_not_at_all() -> None:
    def tensor(*shape: int, dtype: str = "BF16") -> TensorInfo:
        return TensorInfo(Path("x"), dtype, shape, 0, 0)

    checkpoint = bare(
        {"architectures": ["LlamaBidirectionalForSequenceClassification"], **VL["llm_config"]},
        {
            "model.layers.0.self_attn.q_proj.weight": tensor(10, 10, dtype="F8_E4M3"),
            "model.layers.0.self_attn.q_proj.weight_scale": tensor(dtype="F32"),
            "model.norm.weight": tensor(7),
            "score.weight": tensor(1, 5),
            "lm_head.weight": tensor(1000, 10),
            "model.rotary_emb.inv_freq": tensor(32),
        },
    )
    assert count_weights(read_model_shape(checkpoint), checkpoint).size_bytes(2) == 100 * 2 + 7 * 4 + 5 * 4


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"hidden_size": None}, "hidden_size"),
        ({"num_attention_heads": 0}, "at least 1"),
        ({"intermediate_size": "big"}, "intermediate_size"),
        ({"max_position_embeddings": "many"}, "max_position_embeddings"),
    ],
)
def test_a_config_without_its_sizes_is_refused_by_name(
    changes: dict[str, Any], told: str, tiny: Callable[..., Path]
) -> None:
    with pytest.raises(ModelError, match=told):
        read_model_shape(read_checkpoint(tiny("bert", config=changes)))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"llm_config": None}, "llm_config"),
        ({"vision_config": {"patch_size": 1024}}, "impossible"),
        ({"downsample_ratio": 0}, "impossible"),
        ({"downsample_ratio": 1e-3}, "impossible"),  # no token of a tile is left
    ],
)
def test_a_vision_model_without_its_parts_is_refused_by_name(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ModelError, match=told):
        read_model_shape(bare({**VL, **changes}))


def test_a_profile_without_a_shape_says_so() -> None:
    with pytest.raises(ModelError, match="does not tell the shape"):
        shape_of_profile(MODELS["llama-nemotron-rerank-500m-v2"])


def test_modernbert_has_a_window_where_it_has_local_layers(tiny: Callable[..., Path]) -> None:
    def shape(**config: Any) -> tuple[int | None, int]:
        found = read_model_shape(read_checkpoint(tiny("modernbert", config={"layer_types": None, **config})))
        return found.window, found.rotary_kinds

    assert shape(global_attn_every_n_layers=3, local_attention=20) == (10, 2)
    assert shape(global_attn_every_n_layers=1) == (None, 1)
    assert shape(layer_types=["full_attention"] * 4) == (None, 1)
