"""A machine and a request become one document: numbers of GPUs, reasons, what the document always holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rerank_cli.errors import DoesNotFitError, ModelError, ProfileError
from rerank_cli.machine.cpu import Cpu
from rerank_cli.machine.detect import Machine
from rerank_cli.machine.gpu import Gpu, MigInstance
from rerank_cli.machine.torch_build import TorchBuild
from rerank_cli.planning.choices import ProfileRequest
from rerank_cli.planning.known_model import find_model
from rerank_cli.planning.profile_answer import MachinePlan, environment_of, plan_machine
from rerank_cli.planning.profiles import ModelProfiles

ONE_B = "nvidia/llama-nemotron-rerank-1b-v2"
PARITY = Path(__file__).parents[2] / "parity"
GIB = 2**30
CPU = Cpu(name="a CPU", cores=4, flags=frozenset({"avx512_bf16"}), architecture="x86_64")
HIDDEN = "hidden by `CUDA_VISIBLE_DEVICES=1`"


def gpu(index: int, cuda_index: int | None, *, capability: tuple[int, int] | None = (9, 0), **facts: Any) -> Gpu:
    memory = {"total_bytes": 80 * GIB, "free_bytes": 80 * GIB}
    name = "NVIDIA H100 80GB HBM3"
    return Gpu(index=index, name=name, compute_capability=capability, cuda_index=cuda_index, **{**memory, **facts})


def plan(machine: Machine, model: str = ONE_B, **asked: Any) -> MachinePlan:
    return plan_machine(ProfileRequest(assume_cuda=True, **asked), find_model(model), machine)


def test_devices_are_the_drivers_numbers_and_device_is_cudas() -> None:
    machine = Machine(cpu=CPU, gpus=(gpu(0, None, reason=HIDDEN), gpu(1, 0)), cuda_visible_devices="1")
    answer = plan(machine)
    assert answer.plan is not None
    assert (answer.plan.devices, answer.device) == ((1,), "cuda:0")
    assert f"left out: GPU 0: {HIDDEN}" in answer.reasons
    assert answer.warnings == ()


def test_a_device_is_asked_for_by_cudas_number() -> None:
    gpus = (gpu(0, 2), gpu(1, 0), gpu(2, 1))
    answer = plan(Machine(cpu=CPU, gpus=gpus, cuda_visible_devices="1,2,0"), device="cuda", gpus=(2, 0))
    assert answer.plan is not None
    assert (answer.plan.devices, answer.device) == ((1, 0), "cuda:0,2")
    assert any(reason.startswith("GPU 2 ") and "left out: --device" in reason for reason in answer.reasons)


def test_a_device_that_cuda_does_not_show_is_refused_by_cudas_number() -> None:
    machine = Machine(cpu=CPU, gpus=(gpu(0, None, reason=HIDDEN), gpu(1, 0)), cuda_visible_devices="1")
    answer = plan(machine, device="cuda", gpus=(1,))
    assert isinstance(answer.error, DoesNotFitError)
    assert answer.error.message == "--device cuda:1: CUDA shows 1 device here"


def test_a_gpu_that_does_not_work_is_a_warning_where_nothing_is_hidden() -> None:
    sick = Gpu(index=1, reason="GPU is lost")
    answer = plan(Machine(cpu=CPU, gpus=(gpu(0, 0), sick)))
    assert answer.plan is not None
    assert answer.plan.devices == (0,)
    assert len(answer.warnings) == 1
    assert "GPU 1" in answer.warnings[0] and "GPU is lost" in answer.warnings[0]
    assert not any("left out" in reason for reason in answer.reasons)


def test_a_mig_instance_brings_its_own_memory_and_the_others_their_reason() -> None:
    shown = MigInstance(0, uuid="MIG-a", profile="1g.5gb", total_bytes=5 * GIB, free_bytes=5 * GIB, cuda_index=0)
    other = MigInstance(1, uuid="MIG-b", profile="3g.40gb", total_bytes=40 * GIB, reason="only one is shown")
    whole = gpu(0, None, mig="enabled", mig_instances=(shown, other), reason="work runs on its instances")
    answer = plan(Machine(cpu=CPU, gpus=(whole,)))
    assert answer.plan is not None
    assert answer.plan.kind == "fallback"
    assert answer.plan.gpus[0].total_bytes == 5 * GIB
    assert "left out: GPU 0 MIG 3g.40gb: only one is shown" in answer.reasons
    assert [warning for warning in answer.warnings if "is a MIG instance" in warning] == list(answer.warnings)
    rows = answer.to_json()["gpus"]
    assert [(row["index"], row["mig"], row["uuid"], row["cuda_index"]) for row in rows] == [
        (0, "enabled", None, None), (0, "1g.5gb", "MIG-a", 0), (0, "3g.40gb", "MIG-b", None)
    ]  # fmt: skip
    assert [row["total_bytes"] for row in rows] == [80 * GIB, 5 * GIB, 40 * GIB]
    assert {row["compute_capability"] for row in rows} == {"9.0"}


def test_a_machine_described_without_cudas_numbers_is_numbered() -> None:
    answer = plan(Machine(cpu=CPU, gpus=(gpu(0, None), gpu(1, None))))
    assert answer.device == "cuda:0,1"


def test_a_cpu_build_of_torch_gives_the_gpu_plan_and_a_warning_with_the_remedy() -> None:
    machine = Machine(cpu=CPU, gpus=(gpu(0, 0),), cuda="13.0", torch=TorchBuild("2.13.0+cpu", "cpu"))
    answer = plan(machine)
    assert answer.device == "cuda:0"
    assert len(answer.warnings) == 1
    assert "CPU build" in answer.warnings[0] and "pip install" in answer.warnings[0]


def test_a_warning_that_the_machine_already_has_is_said_once() -> None:
    machine = Machine(cpu=CPU, gpus=(gpu(0, 0),), torch=TorchBuild("2.13.0+cpu", "cpu"))
    warned = plan(machine).warnings
    again = plan(Machine(cpu=CPU, gpus=machine.gpus, torch=machine.torch, warnings=warned))
    assert again.warnings == warned


@pytest.mark.parametrize(
    ("architecture", "kind"), [("aarch64", "fallback"), ("x86_64", "optimized"), ("", "optimized")]
)
def test_the_hosts_architecture_counts(architecture: str, kind: str) -> None:
    cpu = Cpu(name="a CPU", cores=1, flags=frozenset(), architecture=architecture)
    answer = plan(Machine(cpu=cpu, gpus=(gpu(0, 0),)))
    assert answer.plan is not None and answer.plan.kind == kind


def test_without_a_gpu_the_reason_of_the_driver_comes_before_the_plan() -> None:
    answer = plan(Machine(cpu=CPU, reason="no driver library"))
    assert answer.plan is not None
    assert (answer.plan.kind, answer.plan.precision, answer.device) == ("cpu", "fp32", "cpu")
    assert answer.reasons.index("no driver library") < answer.reasons.index("CPU: no usable GPU")


def test_who_asks_for_a_gpu_is_told_why_there_is_none() -> None:
    answer = plan(Machine(cpu=CPU, reason="no driver library"), device="cuda")
    assert answer.error is not None
    assert answer.error.message == "--device cuda: no usable GPU: no driver library"


def test_the_cpu_runs_bf16_where_it_multiplies_it_and_only_when_asked() -> None:
    answer = plan(Machine(cpu=CPU), precision="bf16")
    assert answer.plan is not None and answer.plan.profile == "cpu-bf16"


def test_a_gap_in_a_gpus_facts_has_its_reason_in_the_row() -> None:
    unread = (("compute_capability", "Not Supported"), ("memory", "Unknown Error"), ("ecc", "Not Supported"))
    odd = gpu(0, 0, capability=None, total_bytes=None, free_bytes=None, unread=unread)
    row = plan(Machine(cpu=CPU, gpus=(odd,))).to_json()["gpus"][0]
    assert row["compute_capability"] is None
    assert row["reason"] == "compute_capability: Not Supported; total_bytes: Unknown Error"
    assert row["unread"] == dict(unread)


def test_the_memory_model_is_asked_and_what_it_says_is_in_the_plan() -> None:
    def need(*arguments: Any, token_budget: int, engines: int, **more: Any) -> int:
        return engines * (60 * GIB + token_budget * 2**20)

    answer = plan_machine(ProfileRequest(), find_model(ONE_B), Machine(cpu=CPU, gpus=(gpu(0, 0),)), need=need)
    document = answer.to_json()
    assert document["plan"]["token_budget"] < 32768
    assert document["plan"]["needed_bytes"] == 60 * GIB + document["plan"]["token_budget"] * 2**20 <= 80 * GIB


# Which profiles a model has.


@pytest.mark.parametrize("model", [ONE_B, "llama-nemotron-rerank-1b-v2", "nvidia/llama-3.2-nv-rerankqa-1b-v2"])
def test_a_model_with_a_profile_file_needs_no_checkpoint(model: str) -> None:
    known = find_model(model)
    assert isinstance(known.profiles, ModelProfiles)
    assert known.checkpoint is None
    assert known.to_json()["architecture"] == "LlamaBidirectionalForSequenceClassification"


def test_a_folder_is_known_by_what_is_in_it_and_not_by_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "llama-nemotron-rerank-1b-v2"
    folder.symlink_to(PARITY / "bert-ce-open" / "checkpoint")
    known = find_model(str(folder))
    assert not isinstance(known.profiles, ModelProfiles)
    assert "BertForSequenceClassification" in known.reason
    assert known.to_json()["profiles"] is None


def test_a_path_that_is_not_there_is_no_model_although_its_last_part_is_one(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such directory"):
        find_model(str(tmp_path / "llama-nemotron-rerank-1b-v2"))


def test_a_profile_file_takes_the_place_of_the_shipped_ones(tmp_path: Path) -> None:
    shipped = find_model(ONE_B).profiles
    assert isinstance(shipped, ModelProfiles)
    mine = tmp_path / "mine.toml"
    mine.write_text(Path(shipped.file).read_text().replace('"optimized-fp16"', '"my-fp16"'))
    answer = plan_machine(
        ProfileRequest(), find_model(None, profiles_file=str(mine)), Machine(cpu=CPU, gpus=(gpu(0, 0),))
    )
    assert answer.plan is not None and answer.plan.profile == "my-fp16"
    with pytest.raises(ProfileError, match=r"missing\.toml"):
        find_model(None, profiles_file=str(tmp_path / "missing.toml"))


# The document and the variables.

ALWAYS = {
    "schema", "driver", "cuda", "gpus", "cpu", "torch", "model", "plan", "reasons", "rejected", "warnings"
}  # fmt: skip


def test_every_key_is_there_in_every_answer() -> None:
    machine = Machine(cpu=CPU, gpus=(gpu(0, 0),))
    answers = [
        MachinePlan(error=ModelError("bad")),
        plan(machine),
        plan(machine, require="optimized", precision="fp32"),
    ]
    for answer in answers:
        document = json.loads(json.dumps(answer.to_json(), allow_nan=False))
        assert set(document) == ALWAYS | ({"error"} if answer.error else set())
    assert [answer.error is None for answer in answers] == [False, True, False]


def test_a_refusal_keeps_what_was_rejected_and_warned_about() -> None:
    gpus = (gpu(0, 0, capability=(7, 5)), Gpu(index=1, reason="GPU is lost"))
    machine = Machine(cpu=CPU, gpus=gpus, warnings=("hot",))
    document = plan(machine, require="optimized").to_json(with_profiles=True)
    assert document["plan"] is None
    assert document["error"]["exit_code"] == 6
    assert {rejection["profile"] for rejection in document["rejected"]} >= {"optimized-fp16", "fallback-fp16"}
    assert document["warnings"][0] == "hot"
    assert "GPU is lost" in document["warnings"][1]
    assert not any(row["chosen"] for row in document["profiles"])
    assert all(row["reason"] for row in document["profiles"])


@pytest.mark.parametrize("asked", [{}, {"device": "cpu"}, {"precision": "bf16"}, {"precision": "fp8"}])
def test_one_profile_is_chosen_and_every_other_has_a_reason(asked: dict[str, Any]) -> None:
    answer = plan(Machine(cpu=CPU, gpus=(gpu(0, 0),)), **asked)
    assert answer.plan is not None
    rows = answer.to_json(with_profiles=True)["profiles"]
    assert [row["name"] for row in rows if row["chosen"]] == [answer.plan.profile]
    assert all(bool(row["reason"]) != row["chosen"] for row in rows)
    assert {"optimized-fp8", "optimized-fp16", "fallback-fp16", "cpu-fp32", "cpu-bf16"} <= {row["name"] for row in rows}
    published = next(row for row in rows if row["name"] == "optimized-fp8")
    assert published["compute_capabilities"] == ["8.9", "9.0", "10.0", "12.0"]
    assert published["source"]["url"].startswith("https://")


def test_the_variables_are_the_plan() -> None:
    answer = plan(Machine(cpu=CPU, gpus=(gpu(0, 0), gpu(1, 1))), performance=True)
    assert environment_of(answer, ONE_B) == {
        "RERANK_MODEL": ONE_B, "RERANK_DEVICE": "cuda:0,1", "RERANK_PROFILE": "optimized-fp16",
        "RERANK_PRECISION": "fp16", "RERANK_MAX_TOKENS": "8192", "RERANK_TOKEN_BUDGET": "32768", "RERANK_ENGINES": "2",
    }  # fmt: skip
    assert environment_of(MachinePlan(error=ModelError("bad"))) == {}
