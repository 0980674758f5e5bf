"""The bytes of models whose products are in FP8: the tensors that are really held, and those held on the way there.

A CPU multiplies with a scale a row too, so what `--precision fp8` loads on a GPU can be added up here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from rerank_cli.checkpoint import Checkpoint, read_checkpoint
from rerank_cli.checkpoint.families import family_of
from rerank_cli.models import load_model
from rerank_cli.models.elementwise import Unfused
from rerank_cli.models.linear import LinearLoader, PlainLinear, RowScaledFp8Linear
from rerank_cli.models.tracker import StorageTracker
from rerank_cli.models.weights import open_weights
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
from rerank_cli.planning.memory.weight_bytes import Products, Weights
from tests.memory.conftest import LLAMA_1B, checkpoint_of, pairs_of, weights_of

PARITY = Path(__file__).parents[1] / "parity"
GOLDENS = [
    "llama-rerank-open", "automodel-ce-open", "qwen3-reranker-open", "mxbai-v2-open", "bge-gemma-open",
    "nemotron-vl-rerank-open",
]  # fmt: skip
STORED = PARITY / "nemotron-vl-embed-fp8-open" / "checkpoint"
SMALL = {**LLAMA_1B, "hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 4,
         "num_key_value_heads": 1, "num_hidden_layers": 2, "vocab_size": 100}  # fmt: skip
ON_A_GPU = Placement(precision="fp8", capability=(8, 9))
CPU = torch.device("cpu")


def blank(config: dict[str, Any]) -> Checkpoint:
    return Checkpoint(Path("nowhere"), "made up", dict(config), {}, {}, blank=True)


def by_shape(config: dict[str, Any]) -> MemoryModel:
    shape = read_model_shape(checkpoint_of(config))
    return MemoryModel(shape, count_weights(shape, None))


@pytest.mark.parametrize("by", ["headers", "shape"])
@pytest.mark.parametrize("name", GOLDENS)
def test_the_tensors_of_a_model_in_fp8_have_the_bytes_that_are_estimated(name: str, by: str) -> None:
    checkpoint = read_checkpoint(PARITY / name / "checkpoint")
    model = load_model(checkpoint, device="cpu", precision="fp8", attention="runs")
    held = weights_of(model)
    assert sum(tensor.dtype == torch.float8_e4m3fn for tensor in held) > 0
    shape = read_model_shape(checkpoint)
    found = count_weights(shape, checkpoint if by == "headers" else None)
    # What no checkpoint holds: rotary frequencies, the scale of embeddings, the direction from one answer to the other.
    made = 4 * (shape.head_size // 2) + 2 + 4 * shape.hidden * family_of(checkpoint.architecture).answers
    assert found.size_bytes(2, fp8=True) == sum(tensor.nbytes for tensor in held) - made


def test_products_that_a_checkpoint_stores_in_fp8_have_the_bytes_that_are_estimated() -> None:
    checkpoint = read_checkpoint(STORED)
    found = count_weights(read_model_shape(checkpoint), checkpoint)
    with open_weights(checkpoint, dtype=torch.bfloat16, device=CPU) as weights:
        loader = LinearLoader(weights, PlainLinear, fp8=True)
        names = [name.removesuffix(".weight") for name, info in checkpoint.tensors.items() if info.dtype == "F8_E4M3"]
        shapes = [checkpoint.tensors[f"{name}.weight"].shape for name in names]
        layers = [loader(name, shape[1], shape[0], bias=False) for name, shape in zip(names, shapes, strict=True)]
    held = sum(tensor.nbytes for tensor in weights_of(layers))
    assert found.stored.matrices == len(layers) > 0
    in_16_bits = 2 * found.stored.numbers
    assert found.size_bytes(2, fp8=True) == found.size_bytes(2) - in_16_bits + held


def test_while_a_matrix_is_rounded_it_is_held_in_16_bits_beside_its_copy() -> None:
    rows, columns = 6000, 512
    with torch.no_grad(), StorageTracker() as tracker:
        RowScaledFp8Linear(torch.zeros(rows, columns, dtype=torch.bfloat16), None, by=Unfused())
    held = rows * columns + 4 * rows
    found = Weights(0, 0, Products.of([(rows, columns), (16, 16)]))
    assert found.loading_bytes(fp8=True) == pytest.approx(tracker.peak_bytes - held, rel=0.01)
    assert found.loading_bytes() == 0


@pytest.mark.parametrize("lengths", [[64], [700] * 7, [3000, 200, 200], [5000]], ids=str)
def test_the_forward_with_products_in_fp8_is_within_2_percent_of_the_tracker(lengths: Sequence[int]) -> None:
    model = load_model(blank(SMALL), device="cpu", precision="fp8", attention="runs")
    with torch.no_grad(), StorageTracker(weights_of(model)) as tracker:
        model.forward(pairs_of(lengths))
    found = peak(read_model_shape(checkpoint_of(SMALL)), BatchSize.of(lengths), Execution(element=2, fp8=True)).total
    assert found == pytest.approx(tracker.peak_bytes, rel=0.02)


def test_a_1b_model_in_fp8_takes_three_fifths_and_its_table_of_embeddings_stays() -> None:
    model = by_shape(LLAMA_1B)
    narrow, fp8 = (estimate(model, BatchSize.of([512] * 16), Placement(precision=name)) for name in ("fp16", "fp8"))
    products = 16 * (2 * 2048 * 2048 + 2 * 512 * 2048 + 3 * 8192 * 2048)
    rows = 16 * (2 * 2048 + 2 * 512 + 2 * 8192 + 2048)
    assert narrow.weights - fp8.weights == products - 4 * rows
    assert fp8.weights / narrow.weights == pytest.approx(0.606, abs=0.001)


def test_loading_counts_where_it_takes_more_than_a_forward() -> None:
    model = by_shape(LLAMA_1B)
    short, long = (estimate(model, BatchSize.of([length]), ON_A_GPU) for length in (8, 8192))
    matrix = 2 * 2048 * 8192 + 8 * 2048 * 8192  # the one in 16 bits, and 2,048 of its rows in float32, twice
    assert short.loading + short.forward == matrix
    assert long.loading == 0
    assert estimate(model, BatchSize.of([8]), Placement()).loading == 0


@pytest.mark.parametrize(
    ("place", "fp8"),
    [
        (Placement(precision="fp8"), True),
        (Placement(precision="fp8", capability=(8, 9)), True),
        (Placement(precision="fp8", capability=(8, 6)), False),
        (Placement(precision="fp16", capability=(9, 0)), False),
    ],
)
def test_weights_in_16_bits_become_fp8_where_that_is_asked_for_and_can_be_multiplied(
    place: Placement, fp8: bool
) -> None:
    checkpoint = read_checkpoint(PARITY / "llama-rerank-open" / "checkpoint")
    assert place.fp8(count_weights(read_model_shape(checkpoint), checkpoint)) == fp8


@pytest.mark.parametrize(
    ("place", "fp8"),
    [
        (Placement(precision="fp16"), True),
        (Placement(precision="bf16", capability=(8, 9)), True),
        (Placement(precision="fp8", capability=(9, 0)), True),
        (Placement(precision="fp32", capability=(9, 0)), False),
        (Placement(precision="fp16", capability=(8, 0)), False),
        (Placement(cpu=True, precision="fp32"), False),
    ],
)
def test_weights_that_are_stored_in_fp8_stay_so_where_they_can_be_multiplied(place: Placement, fp8: bool) -> None:
    checkpoint = read_checkpoint(STORED)
    assert place.fp8(count_weights(read_model_shape(checkpoint), checkpoint)) == fp8


def test_a_family_without_products_in_fp8_has_none() -> None:
    checkpoint = read_checkpoint(PARITY / "bert-ce-open" / "checkpoint")
    assert not ON_A_GPU.fp8(count_weights(read_model_shape(checkpoint), checkpoint))


def test_the_estimate_counts_as_many_waiting_batches_as_the_host_may_be_ahead() -> None:
    model = by_shape(SMALL)
    assert estimate(model, BatchSize.of([512]), Placement()).waiting == 8 * (24 * 512 + 8 * 16 + 12 * 3)
    assert estimate(model, BatchSize.of([512]), Placement(cpu=True)).waiting == 0
