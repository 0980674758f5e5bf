"""The sum, what is asked of it, and the constants beside it."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_cli.checkpoint import locate_checkpoint, read_checkpoint
from rerank_cli.errors import ModelError
from rerank_cli.job.score_store.memory_table import MemoryTable
from rerank_cli.machine.cpu import Cpu
from rerank_cli.machine.gpu import CudaDevice
from rerank_cli.planning.known_model import KnownModel
from rerank_cli.planning.memory import (
    BatchSize,
    Estimate,
    MemoryModel,
    Placement,
    cublas_workspace_bytes,
    device_constants,
    estimate,
    need_for,
    published_memory,
)
from rerank_cli.planning.memory.question import MemoryQuestion
from rerank_cli.planning.profiles import load_all_profiles
from rerank_cli.planning.profiles.fit import largest

MIB = 2**20
PROFILES = {found.model.id.rpartition("/")[2]: found for found in load_all_profiles()}
BUILTIN = MemoryModel.of_checkpoint(read_checkpoint(locate_checkpoint(None)))
TEXT = MemoryModel.of_profile(PROFILES["llama-nemotron-rerank-1b-v2"].model)
VISION = MemoryModel.of_profile(PROFILES["llama-nemotron-rerank-vl-1b-v2"].model)
DEBERTA = MemoryModel.of_checkpoint(
    read_checkpoint(Path(__file__).parents[3] / "parity" / "deberta-ce-open" / "checkpoint")
)
MODELS = [BUILTIN, TEXT, VISION, DEBERTA]
H100 = CudaDevice(0, sku="NVIDIA-H100-80GB-HBM3", compute_capability=(9, 0))
T4 = CudaDevice(0, sku="Tesla-T4", compute_capability=(7, 5))
NIM = json.loads((Path(__file__).parents[3] / "data" / "nim" / "memory_footprint.json").read_text())["rows"]


def test_the_total_is_every_part_times_the_engines_and_the_known_pairs_once() -> None:
    parts = [item.name for item in fields(Estimate) if item.name not in ("engines", "lanes", "known_pairs")]
    one = Estimate(*range(1, len(parts) + 1))
    assert one.total == sum(range(1, len(parts) + 1))
    assert Estimate(*range(1, len(parts) + 1), known_pairs=7, engines=3).total == 3 * one.total + 7


def test_scores_that_are_kept_are_counted_on_a_cpu_alone() -> None:
    table = MemoryTable()
    on_cpu, on_gpu = (
        estimate(BUILTIN, BatchSize.of([8]), Placement(cpu=cpu, precision="fp32")) for cpu in (True, False)
    )
    assert (on_cpu.known_pairs, on_gpu.known_pairs) == (table._keys.nbytes + table._values.nbytes, 0)


@given(
    model=st.sampled_from(MODELS),
    place=st.sampled_from(
        [
            Placement(),
            Placement(capability=(7, 5)),
            Placement(cpu=True, precision="fp32", cores=8),
            Placement(precision="fp8"),
        ]
    ),
    pairs=st.integers(1, 100),
    length=st.integers(8, 8000),
    images=st.integers(0, 30),
    more=st.tuples(st.integers(0, 20), st.integers(0, 192), st.integers(0, 3)),
)
def test_the_estimate_never_falls_when_batch_length_images_or_engines_grow(
    model: MemoryModel, place: Placement, pairs: int, length: int, images: int, more: tuple[int, int, int]
) -> None:
    def total(pairs: int, length: int, images: int, engines: int) -> int:
        there = Placement(place.cpu, place.precision, place.sku, place.capability, place.cores, engines)
        found = MemoryQuestion(model, there, images=images).at(pairs, length).estimate
        assert found is not None
        return found.total

    extra_pairs, extra_length, extra = more
    grown = total(pairs + extra_pairs, length + extra_length, images + extra, 1 + extra)
    assert grown >= total(pairs, length, images, 1)


@given(
    model=st.sampled_from(MODELS),
    gpu=st.sampled_from([H100, T4, None]),
    precision=st.sampled_from(["fp32", "bf16", "fp16", "fp8"]),
    max_tokens=st.integers(8, 8192),
    budget=st.integers(1, 65536),
    more=st.tuples(st.integers(0, 1000), st.integers(0, 5000), st.integers(0, 3)),
    flags=st.sampled_from([frozenset(), frozenset({"avx512_bf16"}), frozenset({"avx512_bf16", "amx_tile"})]),
)
def test_what_a_profile_needs_never_falls(
    model: MemoryModel,
    gpu: CudaDevice | None,
    precision: str,
    max_tokens: int,
    budget: int,
    more: tuple[int, int, int],
    flags: frozenset[str],
) -> None:
    need = need_for(model, cpu=Cpu("a CPU", cores=4, flags=flags))
    least = need(gpu, precision=precision, max_tokens=max_tokens, token_budget=budget, engines=1)
    grown = need(
        gpu, precision=precision, max_tokens=max_tokens + more[0], token_budget=budget + more[1], engines=1 + more[2]
    )
    assert grown >= least > 0


@given(pairs=st.integers(1, 64), length=st.integers(8, 512))
def test_what_a_profile_needs_covers_every_batch_of_its_budget(pairs: int, length: int) -> None:
    needed = need_for(TEXT)(H100, precision="fp16", max_tokens=length, token_budget=pairs * length, engines=1)
    place = Placement(sku=H100.sku, capability=H100.compute_capability)
    assert needed >= estimate(TEXT, BatchSize.of([length] * pairs), place).total


def test_profile_selection_takes_the_memory_model_as_it_is() -> None:
    from rerank_cli.planning.choices import ProfileRequest
    from rerank_cli.planning.profiles import MachineFacts, select_profile

    profiles = PROFILES["llama-nemotron-rerank-1b-v2"]

    def budget(gigabytes: float) -> int:
        gpu = CudaDevice(0, compute_capability=(8, 9), total_bytes=round(gigabytes * 10**9))
        plan = select_profile(ProfileRequest(), profiles, MachineFacts((gpu,)), need=need_for(TEXT)).plan
        assert plan.needed_bytes is not None
        assert plan.needed_bytes <= gigabytes * 10**9
        return plan.token_budget

    assert budget(24) == 32768
    assert 8192 <= budget(3.7) < budget(24)


def test_an_old_gpu_repeats_keys_and_values_and_a_new_one_does_not() -> None:
    batch = BatchSize.of([8192] * 8)  # of one pair the MLP takes most
    old, new = (estimate(TEXT, batch, Placement(capability=capability)) for capability in ((7, 5), (8, 0)))
    assert old.activations + old.attention_workspace > new.activations + new.attention_workspace


def test_vision_is_the_larger_of_tower_and_language_model() -> None:
    long, short = BatchSize.of([8192] * 30), BatchSize.of([64])
    without = estimate(VISION, long, Placement())
    one_tile = estimate(VISION, long, Placement(), tiles=1)
    # Beside a long batch the tower fits in: embeddings are all that comes to it.
    assert one_tile.vision == 2 * 256 * 2048
    assert one_tile.activations == without.activations
    towering = estimate(VISION, short, Placement(), tiles=210)
    kept, patches = 210 * 2 * 256 * 2048, 8 * 1024
    tower = patches * 2 * (3 * 1152 + 2 * 4304) + 8 * 3 * 512 * 512  # 8 tiles at a time, and their MLP at once
    assert towering.activations + towering.attention_workspace + towering.vision == kept + tower
    on_cpu = estimate(VISION, long, Placement(cpu=True), tiles=1)
    assert on_cpu.vision == one_tile.vision + 3 * 512 * 512  # where the pixels lie in the same memory
    assert estimate(TEXT, short, Placement(), tiles=210).vision == 0


def test_an_image_is_at_most_one_a_pair() -> None:
    def vision(images: int, pairs: int) -> int:
        found = MemoryQuestion(VISION, Placement(), images=images, max_input_tiles=1).at(pairs, 300).estimate
        assert found is not None
        return found.vision

    assert vision(images=5, pairs=2) == vision(images=2, pairs=2) > vision(images=1, pairs=2)


def test_a_cpu_has_no_cublas_and_a_context_of_its_own() -> None:
    found = estimate(BUILTIN, BatchSize.of([512]), Placement(cpu=True, precision="fp32", cores=2))
    assert found.cublas_workspace == 0
    assert found.context == device_constants(None, cpu=True).context_bytes != device_constants(None).context_bytes


@pytest.mark.parametrize(
    ("capability", "size"), [((8, 0), 8320 * 1024), ((8, 9), 8320 * 1024), ((9, 0), 32 * MIB), (None, 32 * MIB)]
)
def test_cublas_gets_what_torch_gives_it(capability: tuple[int, int] | None, size: int) -> None:
    assert cublas_workspace_bytes(capability) == size


def test_constants_that_nobody_measured_are_marked() -> None:
    unknown = device_constants("NVIDIA-L4")
    assert unknown.status == "default"
    assert unknown.source
    assert 300 * MIB <= unknown.context_bytes <= 1024 * MIB
    assert 0.05 <= unknown.slack_share <= 0.2


@given(answer=st.integers(0, 100_000), limit=st.integers(1, 100_000))
def test_the_largest_that_fits_is_found(answer: int, limit: int) -> None:
    assert largest(lambda number: number <= answer, limit) == min(answer, limit)


def test_solving_gives_the_last_that_fits() -> None:
    question = MemoryQuestion(TEXT, Placement(), capacity=24 * 2**30)
    pairs, length = question.largest_batch(4096), question.longest_pair(30, 8192)
    assert question.at(pairs, 4096).fits
    assert not question.at(pairs + 1, 4096).fits
    assert length == 8192
    tight = MemoryQuestion(TEXT, Placement(), capacity=5 * 2**30)
    length = tight.longest_pair(30, 8192)
    assert tight.at(30, length).fits
    assert not tight.at(30, length + 1).fits
    assert MemoryQuestion(TEXT, Placement(), capacity=2**30).largest_batch(64) == 0


def test_real_lengths_make_a_batch_of_the_longest() -> None:
    question = MemoryQuestion(BUILTIN, Placement(), lengths=(500, 400, 30, 20))
    assert question.batch(2, 512) == BatchSize.of([500, 400])
    assert question.batch(3, 450) == BatchSize.of([450, 400, 30])
    assert question.batch(9, 512).pairs == 4


@pytest.mark.parametrize("row", NIM, ids=lambda row: f"{row['model'][-9:]}-{row['sku'] or row['compute_capability']}")
def test_every_published_value_comes_back_exactly(row: dict) -> None:
    profiles = PROFILES[row["model"].rpartition("/")[2]]
    capability = tuple(map(int, row["compute_capability"].split(".")))
    sku = f"NVIDIA-{row['sku']}" if row["sku"] else None
    tables = profiles.published_tables(precision=row["precision"], compute_capability=capability, sku=sku)
    found = published_memory(tables, row["max_batch_size"] or 7, row["max_seq_len"] or 777)
    assert found is not None
    assert found.gib == row["memory_gib"]
    assert found.kind == ("published" if row["max_batch_size"] else "published-any")


def test_there_are_88_of_them() -> None:
    assert len(NIM) == 88


def test_between_published_points_the_value_is_marked_and_beyond_them_there_is_none() -> None:
    profiles = PROFILES["llama-nemotron-rerank-500m-v2"]
    tables = profiles.published_tables(precision="fp16", compute_capability=(8, 9), sku="NVIDIA-L4")
    between = published_memory(tables, 8, 4096)
    assert between is not None
    assert between.kind == "interpolated"
    assert 2.27 < between.gib < 9.81
    assert published_memory(tables, 30, 8192) is None
    assert published_memory((), 1, 8192) is None


def test_without_a_gpu_the_tables_of_all_are_found() -> None:
    profiles = PROFILES["llama-nemotron-rerank-500m-v2"]
    assert len(profiles.published_tables(precision="fp16", compute_capability=None, sku=None)) == 7


def test_a_model_is_known_by_its_checkpoint_or_by_its_profile() -> None:
    by_profile = KnownModel("a", PROFILES["llama-nemotron-rerank-1b-v2"], "")
    assert by_profile.memory_model() == TEXT
    assert replace(by_profile, checkpoint=read_checkpoint(locate_checkpoint(None))).memory_model() == BUILTIN
    with pytest.raises(ModelError, match="does not tell the shape"):
        KnownModel("a", PROFILES["llama-nemotron-rerank-500m-v2"], "").memory_model()
