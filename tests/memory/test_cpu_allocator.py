"""The closed forms against what torch's CPU allocator gave out in a real forward."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rerank_cli.checkpoint import locate_checkpoint, read_checkpoint
from rerank_cli.errors import ModelError
from rerank_cli.machine.amx import library
from rerank_cli.machine.cpu import usable_cores
from rerank_cli.models import load_model
from rerank_cli.models.measure import blank_checkpoint, cpu_forward_peak, measure_forward
from rerank_cli.models.packed import pack
from rerank_cli.models.product_attention import attend_by_products
from rerank_cli.models.tracker import StorageTracker
from rerank_cli.planning.memory import BatchSize, Execution, MemoryModel, Placement, estimate, read_model_shape
from rerank_cli.planning.memory.peak import _attention_workspace
from rerank_cli.planning.profiles import load_all_profiles
from tests.memory.conftest import BERT_L12, LLAMA_1B, MODERNBERT_BASE, build, checkpoint_of, pairs_of

LLAMA_SMALL = {**LLAMA_1B, "hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 4,
               "num_key_value_heads": 1, "num_hidden_layers": 2, "vocab_size": 100}  # fmt: skip
MODERNBERT_SMALL = {**MODERNBERT_BASE, "hidden_size": 384, "intermediate_size": 576, "num_attention_heads": 6,
                    "num_hidden_layers": 4, "vocab_size": 100}  # fmt: skip
SIZES = [(1, 300), (8, 128), (3, 200)]


@pytest.mark.parametrize(("pairs", "length"), SIZES)
def test_the_built_in_model_takes_what_is_estimated(pairs: int, length: int) -> None:
    checkpoint = read_checkpoint(locate_checkpoint(None))
    place = Placement(cpu=True, precision="fp32", cores=usable_cores())
    estimated = estimate(MemoryModel.of_checkpoint(checkpoint), BatchSize.of([length] * pairs), place)
    lengths = [length] * pairs
    measured = measure_forward(
        checkpoint, lengths, device="cpu", precision="fp32", attention="runs", threads=place.cores
    )
    if "oneDNN" not in measured.kernels:
        pytest.skip("this CPU has no oneDNN, so activations are not fused")
    assert estimated.forward == pytest.approx(measured.forward_bytes, rel=0.05)


@pytest.mark.skipif(library() is None, reason="no AMX here, or amx.cpp was not compiled")
@pytest.mark.parametrize(("pairs", "length", "threads"), [(1, 300, 1), (8, 128, 2), (40, 60, 1)])
def test_layers_by_tiles_take_what_is_estimated(pairs: int, length: int, threads: int) -> None:
    checkpoint = read_checkpoint(locate_checkpoint(None))
    place = Placement(cpu=True, precision="bf16", cores=threads, attention="amx")
    estimated = estimate(MemoryModel.of_checkpoint(checkpoint), BatchSize.of([length] * pairs), place)
    measured = measure_forward(
        checkpoint, [length] * pairs, device="cpu", precision="bf16", attention="amx", threads=threads
    )
    assert "AMX tiles" in measured.kernels
    assert estimated.forward == pytest.approx(measured.forward_bytes, rel=0.05)


@pytest.mark.usefixtures("made_up_weights")
@pytest.mark.parametrize(("pairs", "length"), SIZES)
@pytest.mark.parametrize("config", [LLAMA_SMALL, MODERNBERT_SMALL], ids=["llama", "modernbert"])
def test_other_families_take_what_is_estimated(config: Mapping[str, Any], pairs: int, length: int) -> None:
    checkpoint = checkpoint_of(config)
    place = Placement(cpu=True, precision="fp32", cores=torch.get_num_threads())
    estimated = estimate(MemoryModel.of_checkpoint(checkpoint), BatchSize.of([length] * pairs), place)
    with torch.inference_mode():
        model = build(checkpoint, torch.float32)
        model.forward(pairs_of([length] * pairs))
        measured = cpu_forward_peak(model, pairs_of([length] * pairs))
    assert estimated.forward == pytest.approx(measured, rel=0.05)


@pytest.mark.parametrize("name", ["llama-nemotron-rerank-1b-v2", "llama-nemotron-rerank-vl-1b-v2"])
def test_a_model_is_measured_by_its_profile_alone(name: str) -> None:
    facts = next(profiles.model for profiles in load_all_profiles() if profiles.model.id.endswith(f"/{name}"))
    assert facts.language is not None
    small = {"layers": 2, "hidden_size": 256, "intermediate_size": 1024, "heads": 4, "kv_heads": 1, "head_dim": 64}
    facts = replace(facts, language=replace(facts.language, **small, vocab_size=100))
    if facts.vision:
        tower = {"layers": 2, "hidden_size": 64, "intermediate_size": 128, "heads": 2}
        facts = replace(facts, vision=replace(facts.vision, **tower))
    estimated = estimate(
        MemoryModel.of_profile(facts), BatchSize.of([300]), Placement(cpu=True, precision="fp32", cores=usable_cores())
    )
    measured = measure_forward(
        blank_checkpoint(facts), [300], device="cpu", precision="fp32", attention="runs", threads=usable_cores()
    )
    assert estimated.forward == pytest.approx(measured.forward_bytes, rel=0.05)


def test_a_profile_without_a_shape_cannot_be_measured() -> None:
    facts = next(profiles.model for profiles in load_all_profiles() if profiles.model.language is None)
    with pytest.raises(ModelError, match="does not tell the shape"):
        blank_checkpoint(facts)


def test_the_measurement_counts_a_release() -> None:
    class TwoTensors:
        """Satisfies `RerankModel`: makes three tensors of 4 MB, and holds two of them at a time."""

        def forward(self, pairs: object) -> torch.Tensor:
            first = torch.zeros(1_000_000)
            second = torch.zeros(1_000_000)
            del first
            return second + torch.zeros(1_000_000)[:1].sum()

    assert cpu_forward_peak(TwoTensors(), []) == pytest.approx(8_000_000, rel=0.01)


def test_a_padded_classifier_can_be_followed_without_its_weights() -> None:
    from rerank_cli.models.tracker import padded_peak

    folder = Path(__file__).parents[1] / "parity" / "deberta-ce-open" / "checkpoint"
    checkpoint = read_checkpoint(folder)
    model = load_model(checkpoint, device="cpu", precision="fp32", attention="runs")
    with torch.inference_mode():
        model.forward(pairs_of([60] * 8))
        measured = cpu_forward_peak(model, pairs_of([60] * 8))
    followed = padded_peak(checkpoint, pairs=8, length=60, dtype=torch.float32)
    assert followed == pytest.approx(measured, rel=0.1)
    bound = estimate(MemoryModel.of_checkpoint(checkpoint), BatchSize.of([60] * 8), Placement(precision="fp32"))
    assert bound.forward >= followed


@pytest.mark.parametrize("lengths", [[512], [300, 290, 17], [100] * 5, [40] * 30], ids=str)
@pytest.mark.parametrize("config", [BERT_L12, LLAMA_SMALL], ids=["all-heads", "shared-keys"])
def test_attention_by_products_takes_what_is_estimated(config: Mapping[str, Any], lengths: list[int]) -> None:
    shape = read_model_shape(checkpoint_of(config))
    batch = pack(pairs_of(lengths), device=torch.device("cpu"))
    rows = len(batch.input_ids)
    q, out = (torch.randn(rows, shape.heads, shape.head_size).bfloat16() for _ in range(2))
    k, v = (torch.randn(rows, shape.kv_heads, shape.head_size).bfloat16() for _ in range(2))
    with torch.no_grad(), StorageTracker([q, k, v, out]) as tracker:
        assert not attend_by_products(q, k, v, batch.runs, out, scale=0.1)
    estimated = _attention_workspace(shape, BatchSize.of(lengths), Execution(products=True, threads=1))
    assert estimated == pytest.approx(tracker.peak_bytes, rel=0.03)
