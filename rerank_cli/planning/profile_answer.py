"""How a model would run on a machine, with everything that led to it, as one document; loads neither model nor torch.

    answer = plan_machine(request, model, machine)      the plan, or why there is none; never raises for that
    answer.to_json()                                    what `profile-select` prints
    environment_of(answer)                              the same plan as RERANK_ variables

`profiles.select_profile` decides; this module turns a detected machine into what it asks for, and its answer into the
document. Three rules are made here:

* GPUs go by the driver's numbers, those of `nvidia-smi`, in every message and in `devices`. CUDA's numbers differ where
  CUDA_VISIBLE_DEVICES hides some; they are `cuda_index`, and `device` has them as `--device` takes them.
* A torch that cannot use the GPUs is a warning, not a CPU plan, where the request assumes CUDA (`profile-select`): the
  question is how the model should run here. A run does not assume it and goes to the CPU.
* A GPU that does not work is a warning. One that CUDA_VISIBLE_DEVICES or MIG leaves out was left out on purpose, so it
  is only a reason. Where the variable is set, CUDA does not show which of the two it is: a reason too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rerank_cli.checkpoint.families import int8_refusal
from rerank_cli.errors import DoesNotFitError, ModelError, RerankError
from rerank_cli.machine.cpu import FEATURES, Cpu
from rerank_cli.machine.cuda_visible import apply_visibility
from rerank_cli.machine.detect import Machine
from rerank_cli.machine.gpu import CudaDevice, Gpu, MigInstance
from rerank_cli.machine.torch_build import torch_warnings
from rerank_cli.planning.choices import ProfileRequest
from rerank_cli.planning.cpu_kernels import AMX, cpu_attention
from rerank_cli.planning.known_model import KnownModel
from rerank_cli.planning.memory import shape_if_known
from rerank_cli.planning.profiles import (
    MachineFacts,
    MemoryNeed,
    NoProfileFitsError,
    Profile,
    ProfilePlan,
    Rejection,
    select_profile,
    show_capability,
)
from rerank_cli.planning.profiles.matching import rules_of
from rerank_cli.storage import is_url

SCHEMA = "rerank-cli/profile-select/1"


@dataclass(frozen=True, slots=True)
class MachinePlan:
    """The answer: a plan, or the error that says why there is none; both with what led to them.

    device: the plan's devices as `--device` takes them. machine, model: None where the error came before them.
    """

    machine: Machine | None = None
    model: KnownModel | None = None
    plan: ProfilePlan | None = None
    device: str | None = None
    reasons: tuple[str, ...] = ()
    rejected: tuple[Rejection, ...] = ()
    warnings: tuple[str, ...] = ()
    error: RerankError | None = None

    def to_json(self, *, with_profiles: bool = False) -> dict[str, Any]:
        """The document; every key but `profiles` and `error` is always there."""
        machine, plan = self.machine, self.plan
        document: dict[str, Any] = {
            "schema": SCHEMA,
            "driver": machine and machine.driver,
            "cuda": machine and machine.cuda,
            "gpus": [row for gpu in (machine.gpus if machine else ()) for row in gpu_rows(gpu)],
            "cpu": machine
            and {
                **_fields(machine.cpu, "name", "architecture", "cores"),
                **_fields(machine.cpu, "memory_total_bytes", "memory_available_bytes"),
                **{feature: machine.cpu.has(feature) for feature in FEATURES},
            },
            "torch": machine and machine.torch and _fields(machine.torch, "version", "accelerator", "cuda"),
            "model": self.model and self.model.to_json(),
            "plan": plan
            and {
                **_fields(plan, "profile", "kind", "precision", "max_tokens"),
                **_fields(plan, "engine_count", "token_budget", "attention"),
                "devices": list(plan.devices),
                "device": self.device,
                "needed_bytes": plan.needed_bytes,
            },
            "reasons": list(self.reasons),
            "rejected": [_fields(rejection, "profile", "reason") for rejection in self.rejected],
            "warnings": list(self.warnings),
        }
        if with_profiles:
            document["profiles"] = profile_rows(self)
        if self.error is not None:
            document["error"] = {"exit_code": self.error.exit_code, **_fields(self.error, "message", "hint")}
        return document


def plan_machine(
    request: ProfileRequest,
    model: KnownModel,
    machine: Machine,
    *,
    need: MemoryNeed | None = None,
    notes: Iterable[str] = (),
) -> MachinePlan:
    """The plan for `request`, whose `gpus` are CUDA's numbers, as `--device` gives them.

    need: the memory model; without one nothing is checked to fit. notes: reasons known before. A request that cannot be
    met is the answer's `error`.
    """
    if not machine.devices and machine.cuda_visible_devices is None:
        # A described machine has no numbers of CUDA: it gets those of a process that hides no GPU.
        machine = replace(machine, gpus=apply_visibility(machine.gpus, {}).gpus)
    hindrances = torch_warnings(machine.torch, machine.cuda) if machine.torch and machine.devices else []
    facts = _machine_facts(machine, hindrances, model)
    reasons = [*notes, model.reason, *([machine.reason] if machine.reason else []), *_left_out(machine)]
    known = [warning for warning in machine.warnings if warning not in hindrances]  # `select_profile` warns of those
    answer = MachinePlan(machine=machine, model=model, reasons=tuple(reasons), warnings=tuple(dict.fromkeys(known)))
    try:
        asked = _by_driver_number(request, machine)
        decision = select_profile(asked, model.profiles, facts, need=need)
    except NoProfileFitsError as error:
        warnings = tuple(dict.fromkeys((*known, *error.warnings)))
        return replace(answer, rejected=error.rejected, warnings=warnings, error=error)
    except RerankError as error:
        return replace(answer, error=error)
    plan = decision.plan
    if plan.kind == "cpu":
        plan = replace(plan, attention=cpu_attention(machine.cpu, plan.precision, shape_if_known(model.checkpoint)))
        if plan.attention == AMX:
            reasons.append("layers by the kernel for AMX tiles: the CPU has them")
    numbers = sorted(gpu.cuda_index or 0 for gpu in plan.gpus)
    return replace(
        answer,
        plan=plan,
        device=f"cuda:{','.join(map(str, numbers))}" if numbers else "cpu",
        reasons=(*reasons, *decision.reasons),
        rejected=decision.rejected,
        warnings=tuple(dict.fromkeys((*known, *decision.warnings))),
    )


def environment_of(answer: MachinePlan, model: str | None = None) -> dict[str, str]:
    """The plan as the variables that every command reads; `model`: as it was asked for.

    Empty where there is no plan. A folder's path is made absolute, as variables outlive the working directory.
    """
    plan = answer.plan
    if plan is None or answer.device is None:
        return {}
    variables = {
        "RERANK_DEVICE": answer.device,
        "RERANK_PROFILE": plan.profile,
        "RERANK_PRECISION": plan.precision,
        "RERANK_MAX_TOKENS": str(plan.max_tokens),
        "RERANK_TOKEN_BUDGET": str(plan.token_budget),
        "RERANK_ENGINES": str(plan.engine_count),
    }
    if model is None or is_url(model):
        return variables if model is None else {"RERANK_MODEL": model, **variables}
    folder = Path(model).expanduser()
    return {"RERANK_MODEL": str(folder.absolute()) if folder.is_dir() else model, **variables}


def _machine_facts(machine: Machine, hindrances: Sequence[str], model: KnownModel) -> MachineFacts:
    """What `select_profile` asks of a machine. hindrances: what keeps torch from using its GPUs."""
    sick: list[Gpu] = []  # GPUs that do not work, where no variable hides any
    if machine.cuda_visible_devices is None:
        sick = [gpu for gpu in machine.gpus if gpu.cuda_index is None and not gpu.mig_instances]
    torch_reason = None
    if hindrances:
        why = hindrances[0].removeprefix("GPU present, but ")
        torch_reason = f"{why}. Until then `score` and `rerank-file` run on the CPU"
    unusable = [replace(CudaDevice.of(gpu), reason=_why_unread(gpu) or "it does not answer") for gpu in sick]
    return MachineFacts(
        gpus=(*machine.devices, *unusable),
        host_arch=machine.cpu.architecture or "x86_64",
        torch_cuda=not hindrances,
        torch_reason=torch_reason,
        no_gpu_reason=machine.reason,
        cpu_precisions=_cpu_precisions(machine.cpu, model),
        cpu_lacks={"int8": refusal} if (refusal := _why_no_int8(machine.cpu, model)) else {},
        cpu_available_bytes=machine.cpu.memory_available_bytes,
    )


def _cpu_precisions(cpu: Cpu, model: KnownModel) -> tuple[str, ...]:
    """What the model runs on this CPU, the default first: bf16 and int8 are faster, but move logits (`run_plan.py`)."""
    there = {"bf16": cpu.has("bf16"), "fp16": cpu.has("fp16"), "int8": _why_no_int8(cpu, model) is None}
    return ("fp32", *(precision for precision, has in there.items() if has))


def _why_no_int8(cpu: Cpu, model: KnownModel) -> str | None:
    """Why the model does not run in int8 on this CPU; None where it does."""
    if not cpu.has("vnni"):
        return "int8 needs a CPU that multiplies int8 in hardware (VNNI), this one does not"
    checkpoint = model.checkpoint
    if checkpoint is None:
        return f"only a checkpoint would tell whether {model.name} has int8 layers"
    try:
        return int8_refusal(checkpoint.architecture, checkpoint.config)
    except ModelError as error:  # loading the model raises it again
        return error.message


def _left_out(machine: Machine) -> list[str]:
    """The GPUs and MIG instances that this process cannot use, grouped by the reason."""
    names: dict[str, list[str]] = {}
    for gpu in machine.gpus:
        has_warning = machine.cuda_visible_devices is None and not gpu.mig_instances
        if gpu.cuda_index is None and gpu.reason and not has_warning:
            names.setdefault(gpu.reason, []).append(f"GPU {gpu.index}")
        for mig in gpu.mig_instances:
            if mig.cuda_index is None and mig.reason:
                names.setdefault(mig.reason, []).append(f"GPU {gpu.index} MIG {mig.profile or mig.index}")
    return [f"left out: {', '.join(those)}: {why}" for why, those in names.items()]


def _by_driver_number(request: ProfileRequest, machine: Machine) -> ProfileRequest:
    """The request with the driver's numbers of GPUs in place of CUDA's."""
    if request.gpus is None:
        return request
    numbers = {device.cuda_index: device.index for device in machine.devices}
    unknown = [number for number in request.gpus if number not in numbers]
    if unknown:
        there = f"CUDA shows {len(numbers)} device{'s' * (len(numbers) != 1)} here" + (
            f": {machine.reason}" if machine.reason else ""
        )
        raise DoesNotFitError(f"{request.origin('device')} cuda:{unknown[0]}: {there}")
    return replace(request, gpus=tuple(numbers[number] for number in request.gpus))


# The document.


def gpu_rows(gpu: Gpu) -> list[dict[str, Any]]:
    """The rows of a GPU: itself, then its MIG instances under its number.

    `mig` is null for an ordinary GPU, `enabled` for one that is divided, and an instance's profile (`3g.40gb`).
    """
    whole = {
        **_row(gpu),
        "mig": "enabled" if gpu.mig == "enabled" else None,
        "reason": _why_unread(gpu),
        "cuda_index": gpu.cuda_index,
        "pci_bus_id": gpu.pci_bus_id,
        "memory_source": gpu.memory_source,
        "other_processes_bytes": gpu.other_processes_bytes,
        "ecc": gpu.ecc,
        "throttling": list(gpu.throttling),
        "virtualization": gpu.virtualization,
        "unread": dict(gpu.unread),
    }
    rows = [whole]
    for mig in gpu.mig_instances:
        capability = CudaDevice.of(gpu, mig).compute_capability
        rows.append(
            {
                **whole,
                **_row(mig),
                "index": gpu.index,
                "compute_capability": None if capability is None else show_capability(capability),
                "mig": mig.profile or "instance",
                "reason": _why_unread(mig),
                "cuda_index": mig.cuda_index,
                "memory_source": None if mig.total_bytes is None else "nvml",
                "other_processes_bytes": None,
                "unread": dict(mig.unread),
            }
        )
    return rows


def _row(device: Gpu | MigInstance) -> dict[str, Any]:
    capability = device.compute_capability
    row = _fields(device, "index", "uuid", "name", "compute_capability", "total_bytes", "free_bytes")
    return {**row, "compute_capability": None if capability is None else show_capability(capability)}


def _why_unread(device: Gpu | MigInstance) -> str | None:
    """Why a device cannot be used; else why facts that a plan needs could not be read; else None."""
    if device.reason:
        return device.reason
    unread = dict(device.unread)
    if device.total_bytes is None and "memory" in unread:
        unread |= {"total_bytes": unread["memory"]}
    asked = ("name", "uuid", "compute_capability", "total_bytes", "free_bytes")
    missing = [f"{name}: {unread[name]}" for name in asked if getattr(device, name) is None and name in unread]
    return "; ".join(missing) or None


def profile_rows(answer: MachinePlan) -> list[dict[str, Any]]:
    """Every profile of the model, whether it is chosen, and why it is not."""
    if answer.model is None or answer.machine is None:
        return []
    rules = rules_of(answer.model.profiles)
    on_cpu = [
        Profile(f"cpu-{precision}", "cpu", precision, rules.max_tokens)
        for precision in _cpu_precisions(answer.machine.cpu, answer.model)
    ]
    return [_profile_row(profile, answer) for profile in (*rules.profiles, *on_cpu)]


def _profile_row(profile: Profile, answer: MachinePlan) -> dict[str, Any]:
    plan = answer.plan
    chosen = plan is not None and plan.profile == profile.name
    # Why each group of GPUs turned it down; else how to ask for it.
    reason = "; ".join(rejection.reason for rejection in answer.rejected if rejection.profile == profile.name)
    if not reason and answer.error is not None:
        reason = answer.error.message
    elif not reason:
        by_device = profile.kind == "cpu" and not (plan is not None and plan.kind == "cpu")
        asked = "`--device cpu`" if by_device else f"`--precision {profile.precision}`"
        reason = f"only when it is asked for ({asked})"
    return {
        **_fields(profile, "name", "kind", "precision", "max_tokens"),
        "compute_capabilities": [show_capability(capability) for capability in profile.compute_capabilities],
        "skus": list(profile.skus),
        **_fields(profile, "min_memory_bytes", "disk_bytes", "note", "status"),
        "source": profile.source and {**_fields(profile.source, "title", "url", "release"),
                                      "read_on": profile.source.read_on.isoformat()},
        "chosen": chosen,
        "reason": None if chosen else reason,
    }  # fmt: skip


def _fields(value: object, *names: str) -> dict[str, Any]:
    return {name: getattr(value, name) for name in names}
