"""Which profile is chosen, on every row of the support matrix and beside it, and what memory does to the plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rerank_cli.errors import UsageError
from rerank_cli.machine.gpu import CudaDevice, MigInstance, parse_capability
from rerank_cli.planning.choices import ProfileRequest
from rerank_cli.planning.profiles import (
    Decision,
    GenericFacts,
    MachineFacts,
    ModelProfiles,
    NoProfileFitsError,
    load_all_profiles,
    select_profile,
)
from rerank_cli.planning.profiles.fit import Wish, fit_device, fit_group
from rerank_cli.planning.profiles.matching import auto_precision

DATA = Path(__file__).parents[3] / "data" / "nim"
MATRIX = json.loads((DATA / "support_matrix.json").read_text())
GPUS = json.loads((DATA / "gpu_compute_capability.json").read_text())["gpus"]
MODELS = {found.model.id: found for found in load_all_profiles()}
ONE_B, SMALL, VISION = (f"nvidia/llama-nemotron-rerank-{name}-v2" for name in ("1b", "500m", "vl-1b"))
GIB = 2**30
H100, L4, T4, A100 = "NVIDIA H100 80GB HBM3", "NVIDIA L4", "Tesla T4", "NVIDIA A100-SXM4-80GB"


def gpu(capability: str | None, gib: float | None = 24, name: str | None = None, **facts: Any) -> CudaDevice:
    """One GPU, all of its memory free unless `free_bytes` says otherwise."""
    total = None if gib is None else int(gib * GIB)
    facts = {"index": 0, "total_bytes": total, "free_bytes": total, **facts}
    return CudaDevice(name=name, compute_capability=parse_capability(capability) if capability else None, **facts)


def choose(
    model: str | GenericFacts, *gpus: CudaDevice, need: Any = None, machine: dict[str, Any] | None = None, **asked: Any
) -> Decision:
    facts = MODELS[model] if isinstance(model, str) else model
    return select_profile(ProfileRequest(**asked), facts, MachineFacts(gpus=gpus, **(machine or {})), need=need)


def packed_need(gpu: CudaDevice | None, *, precision: str, max_tokens: int, token_budget: int, engines: int) -> int:
    """A memory model of the usual form: weights, activations of each token, a context; for each engine."""
    weights = {"fp8": 1.4, "fp16": 2.3, "bf16": 2.3, "fp32": 4.6}[precision] * GIB
    return int(engines * (weights + 61_440 * token_budget + GIB / 2))


def refused(*args: Any, **asked: Any) -> NoProfileFitsError:
    with pytest.raises(NoProfileFitsError) as error:
        choose(*args, **asked)
    assert error.value.exit_code == 6
    return error.value


# The support matrix: every model, every capability or SKU, every precision.


def matrix_cases() -> list[Any]:
    """(model, capability, name, asked precision, expected precision, whether optimized, max tokens)."""
    cases = []
    for row in MATRIX["optimized_by_cc"] + MATRIX["optimized_by_sku"]:
        name = row.get("sku", "a card").replace("NVIDIA-", "NVIDIA ", 1)
        for asked in ("auto", "fp16", "fp8"):
            expected = asked if asked in row["precisions"] else "fp16"
            label = f"{row['model'][7:]} {row.get('sku', row['cc'])} {asked}"
            cases.append(pytest.param(row["model"], row["cc"], name, asked, expected, id=label))
    return cases


@pytest.mark.parametrize(("model", "capability", "name", "asked", "expected"), matrix_cases())
def test_every_row_of_the_support_matrix(model: str, capability: str, name: str, asked: str, expected: str) -> None:
    decision = choose(model, gpu(capability, 80, name), precision=asked)
    plan = decision.plan
    assert (plan.kind, plan.profile, plan.precision) == ("optimized", f"optimized-{expected}", expected)
    assert (plan.max_tokens, plan.engine_count, plan.devices, plan.attention) == (8192, 1, (0,), "varlen")
    unavailable = asked not in ("auto", expected)
    assert [asked in warning for warning in decision.warnings] == [True] * unavailable
    others = {"optimized-fp8", "optimized-fp16", "fallback-fp16"} - {plan.profile}
    assert {rejection.profile for rejection in decision.rejected} == others
    assert all(rejection.reason for rejection in decision.rejected)


@pytest.mark.parametrize(("model", "max_tokens"), [(ONE_B, 4096), (SMALL, 4096), (VISION, 8192)])
@pytest.mark.parametrize("capability", ["6.1", "7.0", "7.5", "8.7", "8.8", "10.3", "11.0", "12.1", "13.0", None])
@pytest.mark.parametrize("asked", ["auto", "fp16", "fp8"])
def test_a_capability_that_is_not_in_the_matrix_gets_the_fallback(
    model: str, max_tokens: int, capability: str | None, asked: str
) -> None:
    decision = choose(model, gpu(capability, 24, "NVIDIA Something New"), precision=asked)
    plan = decision.plan
    assert (plan.kind, plan.precision, plan.max_tokens) == ("fallback", "fp16", max_tokens)
    if model != VISION:
        why = next(rejection.reason for rejection in decision.rejected if rejection.profile == "optimized-fp16")
        if asked != "fp8":
            assert f"capability {capability or 'unknown'} is " in why
        assert capability is None or capability in decision.reasons[0]
    assert len(decision.warnings) == (asked == "fp8")
    below = capability is None or tuple(map(int, capability.split("."))) < (8, 0)
    assert plan.attention == ("runs" if below else "varlen")


@pytest.mark.parametrize("facts", GPUS, ids=lambda facts: facts["name"])
def test_every_known_gpu_is_decided_by_its_capability_alone(facts: dict[str, Any]) -> None:
    exact = {row["cc"] for row in MATRIX["optimized_by_cc"]}
    plan = choose(ONE_B, gpu(facts["cc"], 24, f"NVIDIA {facts['name']}")).plan
    assert plan.kind == ("optimized" if facts["cc"] in exact else "fallback")


@pytest.mark.parametrize(
    "name",
    ["NVIDIA H200", "NVIDIA H100 PCIe", "NVIDIA A100-SXM4-40GB", "NVIDIA RTX PRO 6000 Blackwell Workstation Edition",
     "NVIDIA L40S", "NVIDIA GB200", "NVIDIA H100 80GB HBM3 MIG 3g.40gb", "H100", "", None],
)  # fmt: skip
def test_a_sku_that_the_vision_model_does_not_list_gets_the_fallback(name: str | None) -> None:
    plan = choose(VISION, gpu("9.0", 80, name)).plan
    assert (plan.kind, plan.max_tokens) == ("fallback", 8192)


@pytest.mark.parametrize("spelling", ["NVIDIA H100 NVL", "NVIDIA-H100-NVL", "H100-NVL", "nvidia h100 nvl"])
def test_a_sku_is_known_in_any_spelling(spelling: str) -> None:
    assert choose(VISION, gpu("9.0", 94, spelling)).plan.kind == "optimized"
    assert choose(VISION, gpu("9.0", 94, None, sku=spelling)).plan.kind == "optimized"


def test_gb10_in_its_arm_host_learns_both_reasons() -> None:
    decision = choose(ONE_B, gpu("12.1", 119, "NVIDIA GB10"), machine={"host_arch": "aarch64"})
    assert (decision.plan.kind, decision.plan.precision, decision.plan.max_tokens) == ("fallback", "fp16", 4096)
    assert "12.1 is not exactly one of 8.0, 8.6, 8.9, 9.0, 10.0, 12.0" in decision.reasons[0]
    assert "aarch64" in decision.reasons[0]


@pytest.mark.parametrize("arch", ["aarch64", "arm64"])
def test_an_arm_host_gets_the_fallback_though_the_capability_matches(arch: str) -> None:
    decision = choose(ONE_B, gpu("9.0", 96, "NVIDIA GH200 480GB"), machine={"host_arch": arch}, precision="fp8")
    assert decision.plan.kind == "fallback"
    reasons = [rejection.reason for rejection in decision.rejected if rejection.profile == "optimized-fp8"]
    assert len(reasons) == 1
    assert arch in reasons[0]


# Policies, precision, requirements.


def test_the_two_policies_have_opposite_defaults() -> None:
    card = gpu("9.0", 80, H100)
    assert choose(ONE_B, card).plan.precision == "fp16"
    assert choose(ONE_B, card, policy="nim-1x").plan.precision == "fp8"
    assert choose(ONE_B, card, policy="nim-1x", precision="fp16").plan.precision == "fp16"
    assert choose(ONE_B, gpu("8.6"), policy="nim-1x").plan.profile == "optimized-fp16"
    assert choose(ONE_B, gpu("7.5"), policy="nim-1x").plan.profile == "fallback-fp16"


def test_the_vision_model_goes_beyond_fp16_only_when_asked() -> None:
    card = gpu("9.0", 80, H100)
    for policy in ("nim-2x", "nim-1x"):
        assert choose(VISION, card, policy=policy).plan.precision == "fp16"
        assert choose(VISION, card, policy=policy, precision="fp8").plan.precision == "fp8"


def test_a_precision_that_is_not_available_is_said_with_what_asked_for_it() -> None:
    decision = choose(ONE_B, gpu("8.0", 80, A100), precision="fp8", origins={"precision": "NIM_ENGINE_PRECISION"})
    assert decision.plan.profile == "optimized-fp16"
    assert decision.warnings == (
        "GPU 0 (NVIDIA A100-SXM4-80GB, 8.0, 80.0 GiB): NIM_ENGINE_PRECISION fp8 is not available, fp16 is used "
        "(profile `optimized-fp16`)",
    )
    (rejection,) = (one for one in decision.rejected if one.profile == "optimized-fp8")
    assert "8.0 is not exactly one of 8.9, 9.0, 10.0, 12.0" in rejection.reason


def test_what_is_required_is_there_or_the_exit_code_is_6() -> None:
    assert choose(ONE_B, gpu("9.0", 80, H100), require="fp8").plan.precision == "fp8"
    assert choose(ONE_B, gpu("8.0"), require="optimized").plan.kind == "optimized"
    error = refused(ONE_B, gpu("8.0", 40, "NVIDIA A100"), require="fp8")
    assert "--require fp8" in error.message
    assert "8.0 is not exactly one of 8.9" in error.message
    assert {rejection.profile for rejection in error.rejected} >= {"optimized-fp8", "fallback-fp16"}
    assert "12.1" in refused(ONE_B, gpu("12.1"), require="optimized").message
    assert "--require" in refused(ONE_B, gpu("8.0"), require="optimized", precision="fp8").message
    assert "no usable GPU" in refused(ONE_B, require="optimized").message
    assert "--require" in refused(ONE_B, gpu("9.0"), require="optimized", device="cpu").message


def test_a_required_profile_decides_between_groups() -> None:
    gpus = (gpu("7.5", 15, T4), gpu("7.5", 15, T4, index=1), gpu("8.9", 22, L4, index=2))
    assert choose(ONE_B, *gpus).plan.devices == (0, 1)
    assert choose(ONE_B, *gpus, require="optimized").plan.devices == (2,)
    assert choose(ONE_B, *gpus, precision="fp8").plan.devices == (2,)


@pytest.mark.parametrize("model", [ONE_B, GenericFacts("some/model", 512)])
def test_precisions_beyond_the_published_ones_run_where_the_card_has_them(model: str | GenericFacts) -> None:
    assert choose(model, gpu("8.0"), precision="bf16").plan.profile == "generic-bf16"
    assert choose(model, gpu("9.0"), precision="fp32").plan.attention == "runs"
    fp32 = choose(model, gpu("7.5"), precision="fp32").plan
    assert (fp32.profile, fp32.kind, fp32.attention) == ("generic-fp32", "generic", "runs")
    decision = choose(model, gpu("7.5"), precision="bf16")
    assert decision.plan.precision == "fp16"
    assert "bf16 is not available" in decision.warnings[0]
    assert any("bf16 needs compute capability 8.0" in rejection.reason for rejection in decision.rejected)


def test_a_model_without_a_file_is_generic() -> None:
    decision = choose(GenericFacts("BAAI/bge-reranker-v2-m3", 8192), gpu("12.1"), machine={"host_arch": "aarch64"})
    plan = decision.plan
    assert (plan.profile, plan.kind, plan.precision, plan.max_tokens) == ("generic-fp16", "generic", "fp16", 8192)
    assert "no profile file for BAAI/bge-reranker-v2-m3" in decision.reasons[0]


BF16 = GenericFacts("some/decoder", 8192, ("bf16", "fp16", "fp32"))


def test_a_model_that_was_trained_in_bf16_runs_in_it_where_the_card_has_it() -> None:
    decision = choose(BF16, gpu("8.0"))
    assert decision.plan.profile == "generic-bf16"
    assert "bf16, in which it was trained, no profile file for some/decoder" in decision.reasons[0]
    older = choose(BF16, gpu("7.5"))
    assert (older.plan.profile, older.warnings) == ("generic-fp16", ())
    assert "fp16 by default" in older.reasons[0]
    assert any("bf16 needs compute capability 8.0" in rejection.reason for rejection in older.rejected)
    assert choose(BF16, gpu("8.0"), precision="fp16").plan.profile == "generic-fp16"
    assert choose(BF16, gpu("8.0"), precision="fp32").plan.profile == "generic-fp32"
    assert choose(BF16, device="cpu").plan.precision == "fp32"
    for facts in (BF16, GenericFacts("some/model", 512)):
        for capability in ("7.5", "8.0"):
            run = choose(facts, gpu(capability)).plan.precision
            assert auto_precision(facts, parse_capability(capability)) == run
    assert auto_precision(BF16, None) == "bf16"
    assert auto_precision(MODELS[ONE_B], None) == "fp16"


@pytest.mark.parametrize(
    ("hidden_size", "budget"),
    [(None, 32_768), (1, 131_072), (256, 131_072), (257, 65_536), (384, 65_536), (512, 65_536), (513, 32_768),
     (768, 32_768), (1024, 32_768), (8192, 32_768), (2**40, 32_768)],
)  # fmt: skip
def test_a_narrow_model_has_more_tokens_in_a_batch_on_a_gpu(hidden_size: int | None, budget: int) -> None:
    facts = GenericFacts("some/model", 512, hidden_size=hidden_size)
    decision = choose(facts, gpu("9.0", 80), need=packed_need)
    assert decision.plan.token_budget == budget
    assert decision.plan.needed_bytes == packed_need(
        None, precision="fp16", max_tokens=512, token_budget=budget, engines=1
    )
    told = "the default" + (f" for a hidden size of {hidden_size}" if hidden_size else "")
    assert f"token budget {budget}: {told}" in decision.reasons
    assert choose(facts, gpu("9.0", 80), token_budget=1000).plan.token_budget == 1000
    assert choose(facts, device="cpu").plan.token_budget == 2048
    small = choose(facts, gpu("9.0", 80, free_bytes=int(3.5 * GIB)), need=packed_need).plan
    assert 512 <= small.token_budget < 32_768


def test_a_profile_can_be_named() -> None:
    card = gpu("9.0", 80, H100)
    decision = choose(ONE_B, card, profile="optimized-fp8", origins={"profile": "RERANK_PROFILE"})
    assert decision.plan.precision == "fp8"
    assert "RERANK_PROFILE optimized-fp8" in decision.reasons[0]
    assert choose(ONE_B, card, profile="fallback-fp16").plan.max_tokens == 4096
    assert choose(ONE_B, card, profile="cpu-fp32").plan.kind == "cpu"
    assert "7.5 is below 8.0" in refused(ONE_B, gpu("7.5"), profile="optimized-fp16").message
    assert "no usable GPU" in refused(ONE_B, profile="optimized-fp16").message
    assert "--device cpu" in refused(ONE_B, card, profile="optimized-fp16", device="cpu").message
    with pytest.raises(UsageError) as error:
        choose(ONE_B, card, profile="optimised-fp8")
    assert "did you mean `optimized-fp8`?" in (error.value.hint or "")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"precision": "fp7"}, "--precision fp7: not known"),
        ({"policy": "nim-3x"}, "--policy nim-3x: not known"),
        ({"require": "speed"}, "--require speed: not known"),
        ({"device": "tpu"}, "--device tpu: not known"),
        ({"precision": "fp16", "require": "fp8"}, "--precision fp16: contradicts `--require fp8`"),
        ({"profile": "optimized-fp8", "precision": "fp16"}, "--profile optimized-fp8: is fp8, not fp16"),
        ({"max_tokens": 8193}, f"--max-tokens 8193: {ONE_B} reads at most 8192 tokens"),
        ({"token_budget": 0}, "--token-budget 0: must be at least 1"),
        (
            {"engine_count": 0, "origins": {"engine_count": "NIM_ENGINE_COUNT"}},
            "NIM_ENGINE_COUNT 0: must be at least 1",
        ),
    ],
)
def test_a_request_that_contradicts_itself_is_a_usage_error(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as error:
        choose(ONE_B, gpu("9.0"), **asked)
    assert error.value.message == message


# Machines: none, several, mixed, MIG, broken.


def test_no_gpu_is_an_answer() -> None:
    decision = choose(ONE_B, need=packed_need)
    plan = decision.plan
    assert (plan.profile, plan.kind, plan.precision, plan.devices) == ("cpu-fp32", "cpu", "fp32", ())
    assert (plan.max_tokens, plan.token_budget, plan.attention) == (8192, 2048, "runs")
    assert "CPU: no usable GPU" in decision.reasons
    assert {rejection.profile for rejection in decision.rejected} >= {"optimized-fp16", "fallback-fp16"}
    assert "no usable GPU" in refused(ONE_B, device="cuda").message


def test_a_cpu_has_precisions_of_its_own() -> None:
    machine = {"cpu_precisions": ("fp32", "bf16")}
    assert choose(ONE_B, machine=machine, precision="bf16").plan.profile == "cpu-bf16"
    decision = choose(ONE_B, machine=machine, precision="fp8")
    assert decision.plan.precision == "fp32"
    assert decision.warnings[0] == "--precision fp8: this CPU does not multiply it in hardware; fp32 is used"


def test_the_memory_of_the_host_counts_on_a_cpu() -> None:
    enough = packed_need(None, precision="fp32", max_tokens=8192, token_budget=8192, engines=1)
    machine = {"cpu_available_bytes": 2 * enough}
    assert choose(ONE_B, need=packed_need, machine=machine, engine_count=3).plan.engine_count == 2
    error = refused(ONE_B, need=packed_need, machine={"cpu_available_bytes": enough - 1})
    assert "does not fit in the host's memory: fp32 needs 5.6 GiB at 8192 tokens" in error.message


def test_gpus_that_torch_cannot_use_are_planned_for_only_when_asked() -> None:
    machine = {"torch_cuda": False, "torch_reason": "torch is a CPU build: pip install torch --index-url ..."}
    decision = choose(ONE_B, gpu("9.0", 80, H100), machine=machine)
    assert decision.plan.kind == "cpu"
    assert decision.warnings == ("1 GPU present, but torch is a CPU build: pip install torch --index-url ...",)
    assumed = choose(ONE_B, gpu("9.0", 80, H100), machine=machine, assume_cuda=True)
    assert assumed.plan.kind == "optimized"
    assert assumed.warnings == decision.warnings


def test_equal_gpus_are_one_group() -> None:
    plan = choose(ONE_B, *(gpu("8.0", 80, A100, index=index) for index in range(8))).plan
    assert plan.devices == tuple(range(8))
    assert (plan.engine_count, plan.total_engines) == (1, 8)


def test_mixed_gpus_use_the_group_with_the_most_engines() -> None:
    gpus = (gpu("9.0", 80, H100), gpu("8.9", 22, L4, index=1), gpu("8.9", 22, L4, index=2))
    decision = choose(ONE_B, *gpus)
    assert decision.plan.devices == (1, 2)
    (rejection,) = (one for one in decision.rejected if one.profile == "optimized-fp16")
    assert rejection.reason.startswith("GPU 0 (NVIDIA H100 80GB HBM3, 9.0, 80.0 GiB): 1 engine in all")
    assert choose(ONE_B, *gpus[:2]).plan.devices == (0,)  # as many engines on each: the larger card
    assert choose(ONE_B, *gpus, performance=True).plan.devices == (0,)  # two engines on the one: the larger card


def test_gpus_of_one_name_and_another_memory_are_two_groups() -> None:
    plan = choose(ONE_B, gpu("8.0", 40, "NVIDIA A100"), gpu("8.0", 80, "NVIDIA A100", index=1)).plan
    assert plan.devices == (1,)


def test_an_optimized_group_that_is_passed_over_is_warned_about() -> None:
    gpus = (gpu("9.0", 80, H100), gpu("7.5", 15, T4, index=1), gpu("7.5", 15, T4, index=2))
    decision = choose(ONE_B, *gpus)
    assert (decision.plan.kind, decision.plan.devices) == ("fallback", (1, 2))
    assert any("GPU 0" in warning and "idle" in warning for warning in decision.warnings)
    assert choose(ONE_B, *gpus, gpus=(0,)).plan.kind == "optimized"


def test_equal_gpus_reach_the_published_need_of_the_fallback_together() -> None:
    small = [gpu("7.5", 2.5, T4, index=index) for index in range(2)]  # 2.68 GB each, 3.6 GB are needed
    assert choose(ONE_B, *small).plan.devices == (0, 1)
    assert "it needs 3.6 GB, 2.68 GB are there" in refused(ONE_B, small[0]).message
    other = gpu("7.5", 2.4, "Tesla T4 other", index=1)
    assert "3.6 GB" in refused(ONE_B, small[0], other).message  # not equal: not together
    assert "7.3 GB" in refused(VISION, gpu("8.6", 6, "NVIDIA GeForce RTX 3060")).message


def test_a_mig_instance_is_used_with_its_own_memory_and_a_warning() -> None:
    large = gpu("9.0", 39.5, f"{H100} MIG 3g.40gb", mig=MigInstance(0), uuid="MIG-1")
    small = gpu("9.0", 9.75, f"{H100} MIG 1g.10gb", mig=MigInstance(0), uuid="MIG-2")
    decision = choose(ONE_B, small, large, need=packed_need)
    assert decision.plan.kind == "fallback"
    assert [chosen.uuid for chosen in decision.plan.gpus] == ["MIG-1"]
    assert ["MIG" in warning for warning in decision.warnings] == [True]
    assert "a MIG instance" in decision.reasons[0]
    assert len(choose(ONE_B, small, small).plan.gpus) == 1  # a process sees one instance


def test_an_unusable_gpu_is_a_warning_and_the_others_work() -> None:
    lost = gpu(None, None, None, index=0, reason="GPU is lost")
    decision = choose(ONE_B, lost, gpu("8.0", 80, A100, index=1))
    assert decision.plan.devices == (1,)
    assert "GPU is lost" in decision.warnings[0]
    assert choose(ONE_B, lost).plan.kind == "cpu"
    assert "no usable GPU 0" in refused(ONE_B, lost, gpu("8.0", index=1), device="cuda", gpus=(0,)).message


def test_unknown_memory_is_planned_for_with_a_warning() -> None:
    decision = choose(ONE_B, gpu("12.1", None, "NVIDIA GB10"), need=packed_need)
    assert (decision.plan.kind, decision.plan.token_budget) == ("fallback", 32768)
    assert "nothing says that the plan fits" in decision.warnings[0]


# Engines and memory.


def test_performance_mode_has_two_engines_from_80_gb_on() -> None:
    for gib, engines in ((81_559 / 1024, 2), (40, 1), (79_999_999_999 / GIB, 1), (80e9 / GIB, 2)):
        decision = choose(ONE_B, gpu("9.0", gib, H100), performance=True, need=packed_need)
        assert decision.plan.engine_count == engines
        assert any("--performance" in reason for reason in decision.reasons)
    assert choose(ONE_B, gpu("9.0", 80, H100), need=packed_need).plan.engine_count == 1
    assert choose(ONE_B, gpu("9.0", 80, H100), performance=True, engine_count=3).plan.engine_count == 3


def test_performance_mode_takes_no_budget_for_its_engine() -> None:
    one = packed_need(None, precision="fp16", max_tokens=8192, token_budget=32768, engines=1)
    busy = gpu("9.0", 80, H100, free_bytes=one + 1000)
    decision = choose(ONE_B, busy, performance=True, need=packed_need)
    assert (decision.plan.engine_count, decision.plan.token_budget) == (1, 32768)
    assert any("2 do not fit beside this token budget" in reason for reason in decision.reasons)


def test_the_budget_is_lowered_before_engines_are_given_up() -> None:
    def free(budget: int, engines: int) -> CudaDevice:
        needed = packed_need(None, precision="fp16", max_tokens=8192, token_budget=budget, engines=engines)
        return gpu("8.9", 22.5, L4, free_bytes=needed)

    def plan(card: CudaDevice) -> tuple[int, int]:
        chosen = choose(ONE_B, card, engine_count=2, need=packed_need).plan
        return chosen.engine_count, chosen.token_budget

    assert plan(free(32768, 2)) == (2, 32768)
    assert plan(free(20480, 2)) == (2, 20480)
    assert plan(free(8192, 2)) == (2, 8192)
    assert plan(free(8191, 2)) == (1, 8192)
    assert plan(free(8192, 1)) == (1, 8192)


def test_a_profile_that_does_not_fit_gives_way_to_the_next() -> None:
    at_floor = packed_need(None, precision="fp16", max_tokens=8192, token_budget=8192, engines=1)
    decision = choose(ONE_B, gpu("8.9", 22.5, L4, free_bytes=at_floor - 1), need=packed_need)
    assert (decision.plan.profile, decision.plan.max_tokens) == ("fallback-fp16", 4096)
    assert decision.plan.token_budget < 8192
    assert "fp16 needs 3.3 GiB at 8192 tokens, 3.3 GiB are free" in decision.reasons[0]


def test_a_profile_of_shorter_pairs_has_no_larger_budget_than_the_one_it_stands_in_for() -> None:
    def need(gpu: CudaDevice | None, *, precision: str, max_tokens: int, token_budget: int, engines: int) -> int:
        return engines * token_budget * max_tokens  # a mask of every pair, as of padded attention

    at_floor = 8192 * 8192
    assert choose(ONE_B, gpu("8.9", free_bytes=at_floor), need=need).plan.token_budget == 8192
    less = choose(ONE_B, gpu("8.9", free_bytes=at_floor - 1), need=need).plan
    assert (less.kind, less.token_budget) == ("fallback", 8192)  # 4,096 tokens a pair would leave room for 16,383


def test_where_nothing_fits_the_message_says_what_would() -> None:
    error = refused(VISION, gpu("8.9", 22.5, L4, free_bytes=int(2.9 * GIB)), need=packed_need)
    assert f"no profile of `{VISION}` fits GPU 0 (NVIDIA L4, 8.9, 22.5 GiB): " in error.message
    assert "`fallback-fp16`: fp16 needs 3.3 GiB at 8192 tokens, 2.9 GiB are free" in error.message
    assert error.hint == "`--max-tokens 1024` needs 2.9 GiB"
    assert choose(VISION, gpu("8.9", 22.5, L4, free_bytes=int(2.9 * GIB)), need=packed_need, max_tokens=1024)


def test_a_busy_gpu_is_left_out_where_the_others_do_better_without_it() -> None:
    gpus = [gpu("8.0", 80, A100, index=index) for index in range(3)]
    gpus[1] = gpu("8.0", 80, A100, index=1, free_bytes=GIB)
    decision = choose(ONE_B, *gpus, need=packed_need)
    assert decision.plan.devices == (0, 2)
    assert any("GPU 1" in reason and "left out" in reason for reason in decision.reasons)


def test_overrides_are_in_the_reasons() -> None:
    decision = choose(
        ONE_B, gpu("7.5"), max_tokens=8192, token_budget=9000, engine_count=2,
        origins={"engine_count": "NIM_ENGINE_COUNT", "max_tokens": "RERANK_MAX_TOKENS"},
    )  # fmt: skip
    assert (decision.plan.max_tokens, decision.plan.token_budget, decision.plan.engine_count) == (8192, 9000, 2)
    assert "max tokens 8192: RERANK_MAX_TOKENS (the profile says 4096)" in decision.reasons
    assert "token budget 9000: --token-budget" in decision.reasons
    assert "engines 2: NIM_ENGINE_COUNT" in decision.reasons


NEEDS = st.builds(
    lambda weights, a_token, mask, context: (
        lambda gpu, *, precision, max_tokens, token_budget, engines: (
            engines * (weights * (2 if precision == "fp16" else 1) + a_token * token_budget + context)
            + mask * token_budget * max_tokens * engines
        )
    ),
    st.integers(1, 4 * GIB), st.integers(0, 2**18), st.integers(0, 16), st.integers(0, GIB),
)  # fmt: skip
REQUESTS = st.fixed_dictionaries(
    {
        "precision": st.sampled_from(["auto", "fp16", "fp8", "bf16"]),
        "policy": st.sampled_from(["nim-2x", "nim-1x"]),
        "performance": st.booleans(),
        "engine_count": st.none() | st.integers(1, 4),
        "max_tokens": st.none() | st.sampled_from([128, 512, 4096, 8192]),
        "token_budget": st.none() | st.integers(1, 100_000),
    }
)


@settings(max_examples=300, deadline=None)
@given(
    model=st.sampled_from(
        [*MODELS.values(), GenericFacts("some/model", 8192), GenericFacts("some/narrow model", 8192, hidden_size=256)]
    ),
    need=NEEDS, asked=REQUESTS, capability=st.sampled_from([(7, 5), (8, 0), (8, 9), (9, 0)]),
    sizes=st.lists(st.integers(1, 16 * GIB) | st.integers(GIB, 200 * GIB), min_size=2, max_size=8),
    count=st.integers(1, 3),
)  # fmt: skip
def test_more_gpu_memory_never_gives_a_smaller_budget(
    model: ModelProfiles | GenericFacts,
    need: Any,
    asked: dict[str, Any],
    capability: tuple[int, int],
    sizes: list[int],
    count: int,
) -> None:
    budget = 0  # of less memory; 0 where nothing fits
    for size in sorted(sizes):
        known = {"name": H100, "compute_capability": capability, "total_bytes": size}
        cards = [CudaDevice(index, **known) for index in range(count)]
        try:
            plan = select_profile(ProfileRequest(**asked), model, MachineFacts(tuple(cards)), need=need).plan
        except NoProfileFitsError:
            assert budget == 0, "what fits in less memory fits in more"
            continue
        assert plan.token_budget >= budget
        assert plan.needed_bytes is not None
        assert plan.needed_bytes <= size
        budget = plan.token_budget


@settings(max_examples=200, deadline=None)
@given(
    weights=st.integers(0, 10_000), available=st.integers(0, 100_000), budget=st.integers(1, 30_000),
    floor=st.integers(1, 20_000), engines=st.integers(1, 3),
)  # fmt: skip
def test_a_device_holds_the_largest_budget_to_a_step_and_then_the_most_engines(
    weights: int, available: int, budget: int, floor: int, engines: int
) -> None:
    def need(tokens: int, count: int) -> int:
        return count * (weights + tokens)

    wish = Wish(budget=budget, floor=min(floor, budget), engines=engines, more_engines=engines)
    fit = fit_device(wish, available, need)
    if fit is None:
        assert need(wish.floor, 1) > available
        return
    assert fit.needed_bytes == need(fit.budget, fit.engines) <= available
    if fit.engines < engines:
        assert fit.budget == wish.floor
        assert need(wish.floor, fit.engines + 1) > available
    elif fit.budget < budget:
        assert need(min(fit.budget + 256, budget), engines) > available


def test_an_engine_is_added_only_beside_the_whole_budget() -> None:
    wish = Wish(budget=3000, floor=1000, engines=1, more_engines=2)
    plans = [fit_device(wish, size, lambda tokens, count: tokens + 10 * count) for size in (2900, 3010, 3020)]
    assert [(fit.engines, fit.budget) for fit in plans if fit] == [(1, 2792), (1, 3000), (2, 3000)]


@settings(max_examples=200, deadline=None)
@given(
    weights=st.integers(0, 10_000), a_token=st.integers(1, 5),
    available=st.lists(st.integers(0, 200_000), min_size=1, max_size=5),
    budget=st.integers(1, 20_000), floor=st.integers(1, 20_000), engines=st.integers(1, 3), more=st.integers(0, 2),
)  # fmt: skip
def test_a_group_has_the_most_engines_that_one_plan_can_give(
    weights: int, a_token: int, available: list[int], budget: int, floor: int, engines: int, more: int
) -> None:
    def need(tokens: int, count: int) -> int:
        return count * (weights + a_token * tokens)

    wish = Wish(budget=budget, floor=min(floor, budget), engines=engines, more_engines=engines + more)
    single = [fit_device(wish, free, need) for free in available]
    found = fit_group(wish, available, need)
    if found is None:
        assert not any(single)
        return
    fit, places = found
    assert wish.floor <= fit.budget <= wish.budget
    assert all(need(fit.budget, fit.engines) <= available[place] for place in places)
    possible = [one.engines * sum(other is not None and other.engines >= one.engines for other in single)
                for one in single if one is not None]  # fmt: skip
    assert fit.engines * len(places) == max(possible)
