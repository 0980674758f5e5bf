"""The answer of `profile-select` becomes the plan of a run, and what a run cannot do yet is said."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rerank_cli.checkpoint import read_checkpoint
from rerank_cli.errors import DoesNotFitError, UsageError
from rerank_cli.machine.cpu import Cpu
from rerank_cli.machine.detect import Machine
from rerank_cli.machine.gpu import Gpu
from rerank_cli.machine.torch_build import TorchBuild
from rerank_cli.planning.choices import ProfileRequest
from rerank_cli.planning.known_model import find_model, with_checkpoint
from rerank_cli.planning.profile_answer import MachinePlan, profile_rows
from rerank_cli.planning.run_plan import Plan, plan_model, plan_run

ONE_B, SMALL = (f"nvidia/llama-nemotron-rerank-{size}-v2" for size in ("1b", "500m"))
PARITY = Path(__file__).parents[2] / "parity"
GB, GIB = 10**9, 2**30
CPU = Cpu(
    "a CPU", 6, frozenset({"avx512_bf16"}), "x86_64", memory_total_bytes=64 * GIB, memory_available_bytes=60 * GIB
)


def gpu(index: int, total: int = 80 * GIB, capability: tuple[int, int] = (9, 0), name: str = "NVIDIA H100") -> Gpu:
    return Gpu(
        index=index, name=name, compute_capability=capability, total_bytes=total, free_bytes=total, cuda_index=index
    )


def answer(machine: Machine, model: str | None = ONE_B, **asked: Any) -> MachinePlan:
    return plan_model(ProfileRequest(**asked), find_model(model), machine)


def run(machine: Machine, model: str | None = ONE_B, **asked: Any) -> Plan:
    return plan_run(answer(machine, model, **asked), cuda_devices=len(machine.gpus))


@pytest.mark.parametrize(
    ("model", "precision"),
    [("mxbai-v2", "bf16"), ("qwen3-reranker", "bf16"), ("jina-v2", "bf16"), ("automodel-ce", "bf16"),
     ("bge-gemma", "bf16"), ("xlmr-ce", "fp16"), ("gte-multilingual", "fp16"), ("ettin", "fp16")],
)  # fmt: skip
def test_a_gpu_runs_a_model_in_the_narrow_type_that_it_was_trained_in(model: str, precision: str) -> None:
    """Gemma's too, whose rerankers are stored in float32: its numbers leave the range of fp16."""
    folder = str(PARITY / f"{model}-open" / "checkpoint")
    assert run(Machine(cpu=CPU, gpus=(gpu(0),)), folder).precision == precision
    assert run(Machine(cpu=CPU, gpus=(gpu(0, capability=(7, 5)),)), folder).precision == "fp16"
    assert run(Machine(cpu=CPU), folder).precision == "fp32"


def test_the_type_of_most_weights_counts_where_config_json_names_none(tiny: Callable[..., Path]) -> None:
    def narrow(tensors: dict[str, Tensor]) -> None:
        tensors.update({name: tensor.bfloat16() for name, tensor in tensors.items() if "LayerNorm" not in name})

    folder = tiny("bert", config={"torch_dtype": None}, weights=narrow)
    assert run(Machine(cpu=CPU, gpus=(gpu(0),)), str(folder)).precision == "bf16"
    folder = tiny("bert", config={"torch_dtype": None})
    assert run(Machine(cpu=CPU, gpus=(gpu(0),)), str(folder)).precision == "fp16"


def test_a_narrow_model_has_larger_batches_on_a_gpu_and_needs_more_memory() -> None:
    machine = Machine(cpu=CPU, gpus=(gpu(0),))
    built_in = run(machine, None)  # of hidden size 384
    assert built_in.token_budget == 65_536
    assert "token budget 65536: the default for a hidden size of 384" in built_in.reasons
    half = run(machine, None, token_budget=32_768)
    assert built_in.needed_bytes is not None
    assert half.needed_bytes is not None
    assert half.needed_bytes < built_in.needed_bytes
    assert run(machine).token_budget == 32_768


def test_a_run_has_everything_of_the_answer() -> None:
    machine = Machine(cpu=CPU, gpus=(gpu(0),))
    planned, plan = answer(machine).plan, run(machine)
    assert planned is not None
    for name in ("profile", "kind", "precision", "max_tokens", "token_budget", "attention", "needed_bytes"):
        assert getattr(plan, name) == getattr(planned, name), name
    assert (plan.device, plan.reasons, plan.warnings) == ("cuda:0", answer(machine).reasons, ())
    assert plan.window_pairs > run(Machine(cpu=CPU)).window_pairs


@pytest.mark.parametrize(
    ("gpus", "cores", "model", "processes"),
    [
        (0, 6, "nemotron-vl-rerank-open", 1),
        (1, 1, "nemotron-vl-rerank-open", 1),
        (1, 6, "nemotron-vl-rerank-open", 5),
        (1, 64, "nemotron-vl-embed-open", 8),
        (4, 6, "nemotron-vl-rerank-open", 2),
        (1, 64, "bert-ce-open", 0),
    ],
)
def test_processes_that_read_images_have_the_cores_that_no_engine_keeps_busy(
    gpus: int, cores: int, model: str, processes: int
) -> None:
    machine = Machine(cpu=replace(CPU, cores=cores), gpus=tuple(gpu(index) for index in range(gpus)))
    checkpoint = read_checkpoint(PARITY / model / "checkpoint")
    known = with_checkpoint(find_model(str(PARITY / model / "checkpoint")), checkpoint)
    planned = plan_model(ProfileRequest(engine_count=1), known, machine)
    assert plan_run(planned, cuda_devices=gpus).image_processes == processes


def test_a_cpu_without_options_runs_fp32_on_all_cores_within_its_caches() -> None:
    plan = run(Machine(cpu=CPU), None)
    assert (plan.profile, plan.kind, plan.device, plan.precision) == ("cpu-fp32", "cpu", "cpu", "fp32")
    assert (plan.max_tokens, plan.token_budget, plan.window_pairs, plan.threads) == (512, 2048, 512, 6)
    assert plan.attention == "runs"
    assert plan.needed_bytes is not None and plan.needed_bytes > 0


def test_a_plan_has_an_engine_for_each_copy_on_each_device() -> None:
    machine = Machine(cpu=CPU, gpus=(gpu(0), gpu(1)))
    plan = run(machine)
    assert (plan.device, plan.engines, plan.threads) == ("cuda:0", ("cuda:0", "cuda:1"), CPU.cores // 2)
    two = run(machine, device="cuda", gpus=(1,), engine_count=2)
    assert (two.device, two.engines) == ("cuda:1", ("cuda:1", "cuda:1"))
    both = run(machine, engine_count=2)
    assert both.engines == ("cuda:0", "cuda:1", "cuda:0", "cuda:1")  # neighbours in the queue on different devices
    on_cpu = run(Machine(cpu=CPU), None, engine_count=2)
    assert (on_cpu.engines, on_cpu.threads) == (("cpu", "cpu"), CPU.cores // 2)
    assert run(Machine(cpu=CPU), None, engine_count=100).threads == 1
    assert not [warning for warning in (*plan.warnings, *both.warnings, *on_cpu.warnings) if "engine" in warning]


def test_a_device_that_torch_does_not_see_is_refused_wherever_it_stands() -> None:
    machine = Machine(cpu=CPU, gpus=(gpu(0), gpu(1)))
    with pytest.raises(DoesNotFitError, match="cuda:1: torch sees 1 CUDA device"):
        plan_run(answer(machine), cuda_devices=1)


def test_8_bits_are_computed_in_16_and_it_is_said() -> None:
    plan = run(Machine(cpu=CPU, gpus=(gpu(0),)), precision="fp8")
    assert plan.precision == "fp16"
    assert "fp8" in plan.profile
    assert any(warning.startswith("fp8 is computed in fp16") for warning in plan.warnings)


def test_a_checkpoint_in_fp8_is_no_replacement_to_warn_of() -> None:
    known = with_checkpoint(find_model(ONE_B), read_checkpoint(PARITY / "nemotron-vl-embed-fp8-open" / "checkpoint"))
    plan = plan_run(
        plan_model(ProfileRequest(precision="fp8"), known, Machine(cpu=CPU, gpus=(gpu(0),))), cuda_devices=1
    )
    assert (plan.profile, plan.precision) == ("optimized-fp8", "fp16")
    assert not any("fp8" in warning for warning in plan.warnings)


VNNI = replace(CPU, flags=CPU.flags | {"avx512_vnni"})


def checkpoint_plan(family: str, cpu: Cpu = VNNI, **asked: Any) -> MachinePlan:
    known = with_checkpoint(find_model(ONE_B), read_checkpoint(PARITY / f"{family}-ce-open" / "checkpoint"))
    return plan_model(ProfileRequest(**asked), known, Machine(cpu=cpu))


def test_int8_runs_on_a_cpu_that_has_it_only_when_it_is_asked_for() -> None:
    plan = run(Machine(cpu=VNNI), None, precision="int8")
    assert (plan.profile, plan.precision, plan.device, plan.warnings) == ("cpu-int8", "int8", "cpu", ())
    assert run(Machine(cpu=VNNI), None, profile="cpu-int8").precision == "int8"
    assert run(Machine(cpu=VNNI), None).precision == "fp32"
    rows = {row["name"]: row for row in profile_rows(answer(Machine(cpu=VNNI), None))}
    assert rows["cpu-int8"]["reason"] == "only when it is asked for (`--precision int8`)"
    assert "cpu-int8" not in {row["name"] for row in profile_rows(answer(Machine(cpu=CPU), None))}


@pytest.mark.parametrize(
    ("family", "cpu", "why"),
    [
        ("bert", CPU, "int8 needs a CPU that multiplies int8 in hardware (VNNI), this one does not"),
        ("deberta", VNNI, "only BERT, RoBERTa and XLM-R classifiers and ModernBERT have int8 layers, not DebertaV2F"),
    ],
)
def test_int8_that_is_not_to_be_had_is_fp32_with_a_warning(family: str, cpu: Cpu, why: str) -> None:
    plan = plan_run(checkpoint_plan(family, cpu, precision="int8"), cuda_devices=0)
    assert plan.precision == "fp32"
    assert any(why in warning and "fp32 is used" in warning for warning in plan.warnings)


def test_int8_on_a_gpu_is_refused() -> None:
    with pytest.raises(DoesNotFitError, match="--precision int8: int8 layers are there for CPUs alone"):
        run(Machine(cpu=VNNI, gpus=(gpu(0),)), precision="int8")
    assert run(Machine(cpu=VNNI, gpus=(gpu(0),)), None, precision="int8", device="cpu").precision == "int8"


def test_int8_is_weighed_as_the_float32_model_it_is_calibrated_with() -> None:
    exact, rounded = (run(Machine(cpu=VNNI), None, precision=precision) for precision in ("fp32", "int8"))
    assert exact.needed_bytes and rounded.needed_bytes
    assert exact.needed_bytes <= rounded.needed_bytes < 1.3 * exact.needed_bytes


def test_an_answer_without_a_plan_stops_the_run_with_its_error() -> None:
    with pytest.raises(UsageError, match="--max-tokens 9000"):
        run(Machine(cpu=CPU), max_tokens=9000, origins={"max_tokens": "--max-tokens"})


def test_a_gpu_that_torch_does_not_see_stops_the_run() -> None:
    with pytest.raises(DoesNotFitError, match="cuda:0: torch sees 0 CUDA devices"):
        plan_run(answer(Machine(cpu=CPU, gpus=(gpu(0),))), cuda_devices=0)


def test_a_gpu_that_only_torch_sees_is_warned_about() -> None:
    plan = plan_run(answer(Machine(cpu=CPU, reason="nvidia-ml-py is not installed")), cuda_devices=1)
    assert plan.device == "cpu"
    assert any("torch sees 1 CUDA device: nvidia-ml-py is not installed" in warning for warning in plan.warnings)


def test_a_torch_that_cannot_use_the_gpu_runs_on_the_cpu_and_profile_select_says_so() -> None:
    machine = Machine(cpu=CPU, gpus=(gpu(0),), torch=TorchBuild("2.13.0+cpu", "cpu"))
    plan = plan_run(answer(machine), cuda_devices=0)
    assert plan.device == "cpu"
    assert any("is a CPU build" in warning for warning in plan.warnings)
    shown = answer(machine, assume_cuda=True)
    assert shown.device == "cuda:0"
    assert any("`rerank-file` run on the CPU" in warning for warning in shown.warnings)


# Memory.


def test_a_card_with_little_memory_gets_a_smaller_token_budget_and_then_a_no() -> None:
    def card(size: float) -> MachinePlan:
        return answer(Machine(cpu=CPU, gpus=(gpu(0, int(size * GB), (8, 9), "NVIDIA L4"),)))

    roomy, tight, refused = (card(size) for size in (24, 3.7, 2))
    assert roomy.plan is not None and tight.plan is not None
    assert roomy.plan.token_budget == 32768 > tight.plan.token_budget >= 8192
    assert any("more does not fit" in reason for reason in tight.reasons)
    assert isinstance(refused.error, DoesNotFitError)
    assert "are free" in refused.error.message


def test_engines_are_given_up_after_the_token_budget() -> None:
    def card(size: float) -> tuple[int, int]:
        plan = answer(Machine(cpu=CPU, gpus=(gpu(0, int(size * GB), (8, 9), "NVIDIA L4"),)), engine_count=2).plan
        assert plan is not None
        return plan.engine_count, plan.token_budget

    assert card(24) == (2, 32768)
    assert card(7.5)[0] == 2
    assert card(7.5)[1] < 32768
    assert card(5) == (1, 8192)


@given(
    size=st.integers(3 * GB, 100 * GB),
    more=st.integers(0, 60 * GB),
    capability=st.sampled_from([(7, 5), (8, 0), (8, 9), (9, 0), (12, 1)]),
    engines=st.sampled_from([None, 1, 2, 3]),
    performance=st.booleans(),
    model=st.sampled_from([ONE_B, "nvidia/llama-nemotron-rerank-vl-1b-v2"]),
)
def test_more_gpu_memory_never_gives_a_smaller_token_budget(
    size: int, more: int, capability: tuple[int, int], engines: int | None, performance: bool, model: str
) -> None:
    def budget(total: int) -> int:
        machine = Machine(cpu=CPU, gpus=(gpu(0, total, capability),))
        plan = answer(machine, model, engine_count=engines, performance=performance).plan
        return plan.token_budget if plan else 0

    assert budget(size + more) >= budget(size)


def test_a_host_with_too_little_memory_says_no() -> None:
    small = replace(CPU, memory_available_bytes=2 * GIB)
    assert isinstance(answer(Machine(cpu=small)).error, DoesNotFitError)
    assert answer(Machine(cpu=small), None).plan is not None


def test_a_model_of_unknown_shape_is_not_checked_and_that_is_said() -> None:
    planned = answer(Machine(cpu=CPU, gpus=(gpu(0),)), SMALL)
    assert planned.plan is not None and planned.plan.needed_bytes is None
    assert any("memory is not checked" in reason for reason in planned.reasons)


def test_a_classifier_whose_sizes_have_other_names_is_not_checked_and_runs() -> None:
    known = find_model(str(PARITY / "deberta-ce-open" / "checkpoint"))
    assert known.checkpoint is not None
    nameless = replace(known.checkpoint, config={"architectures": ["DistilBertForSequenceClassification"], "dim": 8})
    planned = plan_model(ProfileRequest(), replace(known, checkpoint=nameless), Machine(cpu=CPU))
    assert planned.plan is not None
    assert any("memory is not checked" in reason for reason in planned.reasons)


# The model.


def test_a_checkpoint_that_reads_less_than_its_profile_says_limits_every_profile() -> None:
    checkpoint = read_checkpoint(PARITY / "llama-rerank-open" / "checkpoint")
    short = replace(checkpoint, tokenizer_config={**checkpoint.tokenizer_config, "model_max_length": 2048})
    known = with_checkpoint(find_model(ONE_B), short)
    assert known.max_tokens == 2048
    assert "at most 2048 tokens" in known.reason
    plan = plan_model(ProfileRequest(), known, Machine(cpu=CPU, gpus=(gpu(0, capability=(7, 5)),))).plan
    assert plan is not None and plan.max_tokens == 2048


def test_a_model_in_the_cache_is_weighed_by_its_own_headers(tmp_path: Path) -> None:
    """In a process of its own: huggingface_hub reads the variable when it is imported."""
    folder = tmp_path / "models--nvidia--llama-nemotron-rerank-1b-v2"
    shutil.copytree(PARITY / "llama-rerank-open" / "checkpoint", folder / "snapshots" / ("0" * 40))
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0" * 40)
    script = (
        f"from rerank_cli.planning.known_model import find_model\nprint(find_model({ONE_B!r}).checkpoint.parameters)"
    )
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) == read_checkpoint(PARITY / "llama-rerank-open" / "checkpoint").parameters
