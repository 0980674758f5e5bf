"""The weights and stages of VL reranker and embedder: key layouts, refusals, batches, precisions."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from rerank_cli.checkpoint import Checkpoint, read_checkpoint
from rerank_cli.encoding.encoder import ImageLimits, open_encoder, split_pair
from rerank_cli.errors import ModelError
from rerank_cli.models import load_model
from rerank_cli.models.siglip import pixel_shuffle
from rerank_cli.records import EncodedPair, ImagePassage, ImageSource
from tests.unit.images import encoded, picture

FOLDER = Path(__file__).parents[2] / "parity" / "nemotron-vl-rerank-open" / "checkpoint"
Weights = dict[str, torch.Tensor]


def some_pairs() -> list[EncodedPair]:
    """Texts and images of one tile, some of them the same."""
    checkpoint = read_checkpoint(FOLDER)
    pictures = [ImageSource(encoded(picture(30 + 40 * number, 100))) for number in range(3)]
    passages: list[Any] = ["a text", "another text that is longer", *(ImagePassage("", one) for one in pictures)]
    passages += [ImagePassage("with a text", one) for one in pictures[:2]]
    encoder = open_encoder(checkpoint, max_tokens=1000, images=ImageLimits(max_tiles=1))
    return [entry[0] for entry in encoder.encode([("what?", one) for one in passages]) if isinstance(entry, tuple)]


PAIRS = some_pairs()


def logits(checkpoint: Checkpoint, pairs: list[EncodedPair] = PAIRS, precision: str = "fp32") -> torch.Tensor:
    model: Any = load_model(checkpoint, device="cpu", precision=precision, attention="runs")
    with torch.inference_mode():
        model.see(pairs)
        result: torch.Tensor = model.forward(pairs)
    return result


def rewritten(
    folder: Path, change: Callable[[Weights], Weights], *, source: Path = FOLDER, **config: Any
) -> Checkpoint:
    shutil.copytree(source, folder)
    save_file(change(load_file(source / "model.safetensors")), folder / "model.safetensors")
    whole = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(whole))
    return read_checkpoint(folder)


def flattened(weights: Weights) -> Weights:
    return {name.replace("vision_model.vision_model.", "vision_model."): tensor for name, tensor in weights.items()}


def without_head(weights: Weights) -> Weights:
    return {name: tensor for name, tensor in weights.items() if ".head." not in name}


@pytest.mark.parametrize("change", [flattened, without_head, lambda weights: flattened(without_head(weights))])
def test_the_keys_of_the_tower_may_be_nested_or_flat_with_its_head_or_without(
    change: Callable[[Weights], Weights], tmp_path: Path
) -> None:
    assert torch.equal(logits(rewritten(tmp_path / "m", change)), logits(read_checkpoint(FOLDER)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: {**w, "model.mlp1.4.weight": torch.zeros(2)}, "does not have: `model.mlp1.4.weight`"),
        (lambda w: {n: t for n, t in w.items() if n != "model.mlp1.1.bias"}, "`model.mlp1.1.bias` is missing"),
        (lambda w: {**w, "score.weight": torch.zeros(2, 64)}, r"`score.weight` has shape \[2, 64\]"),
        (lambda w: {n.removeprefix("model."): t for n, t in w.items()}, "is missing"),
    ],
)
def test_weights_that_are_not_those_of_the_model_are_refused_by_name(
    change: Callable[[Weights], Weights], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=message):
        logits(rewritten(tmp_path / "m", change))


@pytest.mark.parametrize(
    ("key", "other"),
    [
        ("pooling", None),
        ("pooling", "max"),
        ("temperature", 0),
        ("llm_config", []),
        ("vision_config", {"model_type": "radio"}),
        ("vision_config", {"hidden_act": "mish"}),
        ("vision_config", {"num_attention_heads": 5}),
    ],
)
def test_a_config_of_another_kind_is_refused_by_its_key(key: str, other: Any) -> None:
    checkpoint = read_checkpoint(FOLDER)
    value = {**checkpoint.config[key], **other} if isinstance(other, dict) else other
    config = {name: entry for name, entry in checkpoint.config.items() if name != key}
    config |= {} if value is None else {key: value}
    told = "mish" if other == {"hidden_act": "mish"} else next(iter(other)) if isinstance(other, dict) else key
    with pytest.raises(ModelError, match=told):
        logits(replace(checkpoint, config=config))


def test_keys_that_are_left_out_are_what_transformers_takes_for_them(tmp_path: Path) -> None:
    config = json.loads((FOLDER / "config.json").read_text())
    for key in ("num_channels", "patch_size", "layer_norm_eps", "hidden_act", "model_type"):
        del config["vision_config"][key]
    for key in ("attention_bias", "mlp_bias", "hidden_act"):
        del config["llm_config"][key]
    checkpoint = replace(read_checkpoint(FOLDER), config=config)
    assert torch.equal(logits(checkpoint), logits(read_checkpoint(FOLDER)))


def test_pooling_and_temperature_are_those_of_the_top_level() -> None:
    checkpoint = read_checkpoint(FOLDER)
    inner = {**checkpoint.config["llm_config"], "pooling": "cls", "temperature": 9.0}
    hotter = replace(checkpoint, config={**checkpoint.config, "llm_config": inner, "temperature": 4.0})
    assert torch.allclose(logits(hotter) * 4, logits(checkpoint))


def test_batches_and_their_order_do_not_change_a_logit() -> None:
    checkpoint = read_checkpoint(FOLDER)
    alone = torch.cat([logits(checkpoint, [pair]) for pair in PAIRS])
    order = list(range(len(PAIRS)))
    random.Random(3).shuffle(order)
    together = logits(checkpoint, [PAIRS[place] for place in order])
    assert torch.allclose(together, alone[order], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.15), ("fp16", 0.02)])
def test_16_bits_are_near_to_32(precision: str, tolerance: float) -> None:
    checkpoint = read_checkpoint(FOLDER)
    assert torch.allclose(logits(checkpoint, precision=precision), logits(checkpoint), rtol=0, atol=tolerance)


def test_an_image_is_seen_once_and_forgotten_with_the_next() -> None:
    model: Any = load_model(read_checkpoint(FOLDER), device="cpu", precision="fp32", attention="runs")
    with torch.inference_mode():
        model.see(PAIRS)
        assert len(model._trunk._seen) == 3
        model.see(PAIRS[:2])
    assert model._trunk._seen == {}


def test_weights_in_16_bits_are_used_where_they_lie_in_the_file(tmp_path: Path) -> None:
    checkpoint = rewritten(tmp_path / "m", lambda w: {name: tensor.bfloat16() for name, tensor in w.items()})
    model: Any = load_model(checkpoint, device="cpu", precision="bf16", attention="runs")
    mapped = Path("/proc/self/maps")
    if not mapped.exists():
        pytest.skip("the mapping of files is told by Linux")
    spans = [
        tuple(int(number, 16) for number in line.split()[0].split("-"))
        for line in mapped.read_text().splitlines()
        if str(tmp_path) in line
    ]
    tower = model._trunk._tower
    for linear in (tower._patches, tower._layers[0].query, tower._layers[-1].down, tower._projector_in):
        assert any(low <= linear._weight.data_ptr() < high for low, high in spans)
    with safe_open(tmp_path / "m" / "model.safetensors", "pt") as file:
        assert file.get_tensor("model.mlp1.1.weight").dtype == torch.bfloat16


# The embedder is the same trunk.


EMBEDDER = FOLDER.parents[1] / "nemotron-vl-embed-open" / "checkpoint"


def vectors(checkpoint: Checkpoint) -> torch.Tensor:
    """Of a query, a text, an image, and both together."""
    page = ImageSource(encoded(picture(70, 90)))
    passages = ["a text", ImagePassage("", page), ImagePassage("a text", page)]
    encoder: Any = open_encoder(checkpoint, max_tokens=1000, images=ImageLimits(max_tiles=1))
    pairs = [entry[0] for entry in encoder.encode([("what?", one) for one in passages])]
    texts = [split_pair(pairs[0])[0], *(split_pair(pair)[1] for pair in pairs)]
    model = load_model(checkpoint, device="cpu", precision="fp32", attention="runs")
    with torch.inference_mode():
        model.see(texts)
        return model.forward(texts)


def within_a_model(weights: Weights) -> Weights:
    return {f"model.{name}": tensor for name, tensor in weights.items()}


@pytest.mark.parametrize(
    "change",
    [flattened, without_head, within_a_model, lambda weights: within_a_model(flattened(without_head(weights)))],
)
def test_the_embedders_keys_may_be_nested_or_flat_and_within_a_model(
    change: Callable[[Weights], Weights], tmp_path: Path
) -> None:
    found = vectors(rewritten(tmp_path / "m", change, source=EMBEDDER))
    assert torch.equal(found, vectors(read_checkpoint(EMBEDDER)))
    assert len(found.unique(dim=0)) == 4


def test_an_embedder_without_its_tower_is_refused(tmp_path: Path) -> None:
    towerless = rewritten(
        tmp_path / "m", lambda w: {name: t for name, t in w.items() if "vision_model" not in name}, source=EMBEDDER
    )
    with pytest.raises(ModelError, match="vision_model"):
        vectors(towerless)


def test_the_shuffle_puts_squares_of_patches_side_by_side() -> None:
    grid = torch.arange(16).reshape(1, 16, 1)
    assert pixel_shuffle(grid, 2).tolist() == [[[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]]
