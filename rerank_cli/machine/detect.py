"""A machine: its GPUs as CUDA numbers them, its CPU, the installed torch, and what keeps them from working together."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rerank_cli.machine.cpu import Cpu, detect_cpu, host_memory
from rerank_cli.machine.cuda_visible import VARIABLE, apply_visibility
from rerank_cli.machine.gpu import CudaDevice, Gpu, parse_gpu
from rerank_cli.machine.nvml_answers import clean
from rerank_cli.machine.nvml_driver import ANSWER_SECONDS, DriverQuestion
from rerank_cli.machine.torch_build import TorchBuild, detect_torch_build, torch_warnings


@dataclass(frozen=True, slots=True)
class Machine:
    """What one process can use."""

    cpu: Cpu
    gpus: tuple[Gpu, ...] = ()  # all that the driver counts, in its order, unusable ones included
    driver: str | None = None  # version of the driver
    cuda: str | None = None  # newest CUDA that the driver runs
    reason: str | None = None  # why NVML shows no GPU; None where it shows one
    torch: TorchBuild | None = None  # None where torch is not installed, or the machine was only described
    cuda_visible_devices: str | None = None
    order_certain: bool = True  # every `cuda_index` is certainly CUDA's own
    warnings: tuple[str, ...] = ()  # those of each GPU too, with its number

    @property
    def devices(self) -> tuple[CudaDevice, ...]:
        """What CUDA shows a process started here, in CUDA's order; empty where work runs on the CPU."""
        shown = [CudaDevice.of(gpu) for gpu in self.gpus if gpu.cuda_index is not None]
        instances = [(gpu, mig) for gpu in self.gpus for mig in gpu.mig_instances if mig.cuda_index is not None]
        shown += [CudaDevice.of(gpu, mig) for gpu, mig in instances]
        return tuple(sorted(shown, key=lambda device: device.cuda_index or 0))


def detect_machine(
    *,
    timeout_seconds: float = ANSWER_SECONDS,
    environment: Mapping[str, str] | None = None,
    root: Path = Path("/"),
) -> Machine:
    """Describe this machine; never fails.

    Args:
        timeout_seconds: About how long a driver may take, whatever state it is in.
        environment: The environment of CUDA and of the child that asks the driver (`os.environ`).
        root: The folder that holds `proc` and `sys`.
    """
    environment = os.environ if environment is None else environment
    question = DriverQuestion(timeout_seconds, environment, root)
    cpu = detect_cpu(root)
    torch = detect_torch_build()
    answer = question.answer(host_memory(root))
    visible = apply_visibility(answer.gpus, environment)
    of_gpus = []
    for gpu in visible.gpus:
        name = f" ({gpu.name})" if gpu.name else ""
        of_gpus += [f"GPU {gpu.index}{name}: {warning}" for warning in gpu.warnings]
    machine = Machine(
        cpu=cpu,
        gpus=visible.gpus,
        driver=answer.driver,
        cuda=answer.cuda,
        reason=answer.reason,
        torch=torch,
        cuda_visible_devices=None if VARIABLE not in environment else clean(environment[VARIABLE]) or "",
        order_certain=visible.certain,
        warnings=(*answer.warnings, *visible.warnings, *of_gpus),
    )
    if not machine.devices:
        return machine
    return replace(machine, warnings=(*machine.warnings, *torch_warnings(torch, machine.cuda)))


def describe_machine(descriptions: Sequence[str], *, root: Path = Path("/")) -> Machine:
    """A machine with the GPUs that `--gpu` describes and the CPU of this one."""
    gpus = tuple(parse_gpu(description, index) for index, description in enumerate(descriptions))
    return Machine(cpu=detect_cpu(root), gpus=gpus)
