"""The closed forms against the storages of the code that really runs, followed under FakeTensorMode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from rerank_cli.models import SeesImages, load_model
from rerank_cli.models.int8_calibration import Int8Model, Seen
from rerank_cli.models.int8_linear import int8_hindrance
from rerank_cli.models.tracker import StorageTracker
from rerank_cli.planning.memory import (
    BatchSize,
    Execution,
    MemoryModel,
    Placement,
    count_weights,
    estimate,
    peak,
    read_model_shape,
)
from rerank_cli.records import ImageBlock, Tiles
from tests.memory.conftest import (
    BERT_L12,
    GTE_BASE,
    LLAMA_1B,
    MODERNBERT_BASE,
    QWEN3_SMALL,
    VL_1B,
    XLMR_LARGE,
    build,
    checkpoint_of,
    pairs_of,
    weights_of,
)

SHAPES = {"llama-1b": LLAMA_1B, "bert-l12": BERT_L12, "xlmr-large": XLMR_LARGE, "modernbert-base": MODERNBERT_BASE}
SHAPES["gte-base"] = GTE_BASE
# The peak is the same from the second layer on (ModernBERT: from the first local one on); fewer layers, quicker tests.
FEW = {"num_hidden_layers": 2}
FEW_OF = {"modernbert-base": {"num_hidden_layers": 4}}


def followed(config: Mapping[str, Any], lengths: Sequence[int], dtype: torch.dtype) -> tuple[int, int]:
    """Peak bytes of a forward, and bytes of the weights."""
    # Not inference_mode: in it operators such as attention reach the tracker whole, and what they hold inside is lost.
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        model = build(checkpoint_of(config), dtype)
        weights = weights_of(model)
        with StorageTracker(weights) as tracker:
            model.forward(pairs_of(lengths))
        return tracker.peak_bytes, sum(weight.nbytes for weight in weights)


def closed_form(config: Mapping[str, Any], lengths: Sequence[int], dtype: torch.dtype) -> int:
    shape = read_model_shape(checkpoint_of(config))
    return peak(shape, BatchSize.of(lengths), Execution(element=dtype.itemsize)).total


@pytest.mark.usefixtures("made_up_weights")
@pytest.mark.parametrize(
    ("pairs", "length"), [(1, 64), (1, 700), (1, 8192), (7, 64), (7, 700), (7, 8192), (64, 64), (64, 700)]
)
@pytest.mark.parametrize("name", SHAPES)
def test_the_closed_form_is_within_2_percent_of_the_tracker(name: str, pairs: int, length: int) -> None:
    config = {**SHAPES[name], **FEW_OF.get(name, FEW)}
    tracked, _ = followed(config, [length] * pairs, torch.float16)
    assert closed_form(config, [length] * pairs, torch.float16) == pytest.approx(tracked, rel=0.02)


@pytest.mark.usefixtures("made_up_weights")
@pytest.mark.parametrize("name", SHAPES)
def test_in_float32_it_is_within_2_percent_as_well(name: str) -> None:
    config = {**SHAPES[name], **FEW_OF.get(name, FEW)}
    for lengths in ([64], [512] * 8, [3000, 200, 200]):
        tracked, _ = followed(config, lengths, torch.float32)
        assert closed_form(config, lengths, torch.float32) == pytest.approx(tracked, rel=0.02), lengths


@pytest.mark.usefixtures("made_up_weights")
@pytest.mark.parametrize("name", SHAPES)
def test_with_all_of_its_layers_the_peak_is_the_same_and_the_weights_are_right(name: str) -> None:
    config = SHAPES[name]
    tracked, weights = followed(config, [512] * 4, torch.float16)
    assert closed_form(config, [512] * 4, torch.float16) == pytest.approx(tracked, rel=0.02)
    # A BERT's last layer leaves the bias of its keys out, some hundred numbers of tens of millions.
    assert count_weights(read_model_shape(checkpoint_of(config)), None).size_bytes(2) == pytest.approx(
        weights, rel=2e-5
    )


@pytest.mark.usefixtures("made_up_weights")
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(sorted(SHAPES)),
    lengths=st.lists(st.integers(64, 900), min_size=1, max_size=12),
    pooling=st.sampled_from(["avg", "last", "cls"]),
)
def test_pairs_of_any_lengths_are_within_2_percent(name: str, lengths: list[int], pooling: str) -> None:
    config = {**SHAPES[name], **FEW_OF.get(name, FEW), "pooling": pooling}
    lengths = sorted(lengths, reverse=True)
    tracked, _ = followed(config, lengths, torch.float16)
    assert closed_form(config, lengths, torch.float16) == pytest.approx(tracked, rel=0.02)


@pytest.mark.usefixtures("made_up_weights")
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_the_norms_of_queries_and_keys_are_counted(dtype: torch.dtype) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        from rerank_cli.models.llama import LlamaTrunk
        from rerank_cli.models.packed import pack
        from rerank_cli.models.weights import WeightReader

        checkpoint = checkpoint_of(QWEN3_SMALL, num_hidden_layers=2)
        shape = _qwen3(checkpoint)
        device = torch.device("cpu")
        with WeightReader(checkpoint, dtype=dtype, device=device) as weights:
            trunk = LlamaTrunk(weights, shape, prefix="model.", device=device, dtype=dtype, attention="runs")
        with StorageTracker(weights_of(trunk)) as tracker:
            batch = pack(pairs_of([600] * 5), device=device)
            trunk.pool(trunk.embed(batch.input_ids), batch, "last")
    assert closed_form(checkpoint.config, [600] * 5, dtype) == pytest.approx(tracker.peak_bytes, rel=0.02)


def _qwen3(checkpoint: Any) -> Any:
    from rerank_cli.models.llama_config import read_llama_shape

    return replace(read_llama_shape(checkpoint), causal=True, head_norms=True)


@pytest.mark.usefixtures("made_up_weights")
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("pairs", "length", "images"),
    [(1, 512, 0), (1, 2048, 1), (4, 2048, 4), (16, 2048, 16), (1, 8192, 1), (30, 8192, 2), (64, 64, 0)],
)
def test_the_whole_vision_language_model_is_within_2_percent(
    pairs: int, length: int, images: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = Placement.execution  # with plain layers in float32 too, as oneDNN takes no fake tensors
    monkeypatch.setattr(Placement, "execution", lambda self, shape: replace(how(self, shape), fused=False))
    config = {**VL_1B, "llm_config": {**VL_1B["llm_config"], **FEW}, "vision_config": {**VL_1B["vision_config"], **FEW}}
    checkpoint = checkpoint_of(config)
    shape = read_model_shape(checkpoint)
    assert shape.vision is not None
    tiles = shape.vision.tiles()
    seen = pairs_of([length] * pairs)
    for place in range(images):
        pixels = np.zeros((tiles, 512, 512, 3), dtype=np.uint8)
        block = ImageBlock(4, tiles * shape.vision.tokens_per_tile, tiles, tiles, Tiles(pixels))
        seen[place] = replace(seen[place], block=block)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        model = build(checkpoint, dtype)
        assert isinstance(model, SeesImages)
        with StorageTracker(weights_of(model)) as tracker:
            model.see(seen)
            model.forward(seen)
    place = Placement(precision="fp32" if dtype == torch.float32 else "fp16", cpu=True)
    estimated = estimate(
        MemoryModel.of_checkpoint(checkpoint), BatchSize.of([length] * pairs), place, tiles=tiles * images
    )
    in_numpy = tiles * images * 3 * 512**2  # the bytes of the tiles, which no tracker of tensors sees
    assert estimated.forward - in_numpy == pytest.approx(tracker.peak_bytes, rel=0.02)


def plain_weights(model: object) -> list[torch.Tensor]:
    """Those that oneDNN has not laid out in its own way."""
    return [weight for weight in weights_of(model) if not weight.is_mkldnn]


@pytest.mark.skipif(int8_hindrance() is not None, reason="this torch has no int8 layers of oneDNN")
@pytest.mark.usefixtures("made_up_weights")
@pytest.mark.parametrize("attention", ["runs", "products"])
@pytest.mark.parametrize("name", ["bert-l12", "modernbert-base"])
def test_in_int8_neither_the_calibration_nor_a_forward_takes_more_than_is_counted(name: str, attention: str) -> None:
    checkpoint, pairs = checkpoint_of(SHAPES[name], **FEW_OF.get(name, FEW)), pairs_of([190] * 3 + [60] * 4)
    model = load_model(checkpoint, device="cpu", precision="int8", attention=attention)
    assert isinstance(model, Int8Model)
    with torch.no_grad():
        with StorageTracker(plain_weights(model)) as calibrating:
            model._observe(pairs, [Seen() for _ in range(model._rounded_layers)])
        model.calibrate([pairs])
        with StorageTracker(plain_weights(model)) as scoring:
            model.forward(pairs)
    place = Placement(cpu=True, precision="int8", attention=attention)
    how = place.execution(read_model_shape(checkpoint))
    counted = peak(read_model_shape(checkpoint), BatchSize.of([190] * 3 + [60] * 4), how).total
    assert scoring.peak_bytes < calibrating.peak_bytes
    assert calibrating.peak_bytes <= 1.02 * counted


def test_the_tracker_counts_a_storage_once_and_forgets_it_when_it_goes() -> None:
    known = torch.zeros(1000)
    with StorageTracker([known]) as tracker:
        first = torch.zeros(100)
        view = first.view(10, 10)[:5]
        known.add_(1)
        assert tracker.current_bytes == 400
        second = first + 1
        assert tracker.current_bytes == 800
        del first, second
        assert tracker.current_bytes == 400
        del view
        assert tracker.current_bytes == 0
    assert tracker.peak_bytes == 800
