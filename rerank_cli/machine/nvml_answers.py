"""GPUs, and the warnings about them, from the lines that `nvml_child.py` writes; why a fact is missing.

A GPU whose memory NVML does not tell gets the host's, but only where CPU and GPU are known to share it: a discrete card
with a broken driver says "not supported" as well.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from rerank_cli.machine import nvml_child as nvml
from rerank_cli.machine.cpu import HostMemory
from rerank_cli.machine.gpu import HOST_MEMORY, NVML, Gpu, GpuProcess, MigInstance

_MIB = 2**20

_DEAD = {15, 16}
"""GpuIsLost and ResetRequired: whatever else a GPU still answers, it runs nothing."""

_SHARED_MEMORY_NAME = re.compile(r"\b(GB10|Orin|Thor|Xavier|Tegra|Jetson|nvgpu)\b", re.IGNORECASE)
_SHARED_MEMORY_CAPABILITIES = {(7, 2), (8, 7), (10, 1), (11, 0), (12, 1)}
"""Xavier, Orin, Thor (10.1 until CUDA 13 called it 11.0), GB10 of DGX Spark.

Sources: XuehaiPan/nvitop#208 (GB10), nvidia-cosmos/cosmos-reason1#61 (Thor), rbonghi/jetson_stats#867 (Orin),
sgl-project/sglang#10075 (the capabilities). Grace Hopper and Grace Blackwell have GPU memory of their own.
"""

_THROTTLING = {
    0x4: ("power cap", False),
    0x8: ("hardware slowdown", True),
    0x20: ("software thermal slowdown", True),
    0x40: ("hardware thermal slowdown", True),
    0x80: ("power brake", True),
}
"""Bits of nvmlClocksEventReasons: the name, and whether it is worth a warning. A power cap is normal under load."""

_VIRTUALIZATION = {0: "none", 1: "passthrough", 2: "vgpu", 3: "host vgpu", 4: "host vsga"}
_MODES = {0: "disabled", 1: "enabled"}
_ESSENTIAL = ("handle", "compute_capability", "memory", "mig")
"""Without an answer to these (an error is an answer) nothing can be planned on a GPU."""
_QUIET = {"ecc_errors", "remapped_rows"}
"""Questions whose answers only give warnings: a GPU that does not know them is not worth a word."""

Of = tuple[int | None, int | None]
SYSTEM: Of = (None, None)


@dataclass(slots=True)
class Device:
    """What was said of one device. failed: (code, text). pending: the function that has not answered."""

    said: dict[str, Any] = field(default_factory=dict)
    failed: dict[str, tuple[int | None, str]] = field(default_factory=dict)
    pending: str | None = None


@dataclass(slots=True)
class Answers:
    """The child's lines, sorted by device.

    fault: why NVML could not be asked. done: the child has said all. silence: why it has not, where it has not.
    """

    devices: dict[Of, Device] = field(default_factory=dict)
    fault: tuple[int | None, str] | None = None
    done: bool = False
    silence: str = "not asked"

    def device(self, of: Of) -> Device:
        """What was said of a device, which may be nothing."""
        return self.devices.get(of, Device())

    def pending(self, gpu: int | None) -> list[str]:
        """The functions that a GPU, its MIG instances included, has not answered; None: those of the machine."""
        return [device.pending for of, device in self.devices.items() if of[0] == gpu and device.pending]

    def why(self, of: Of, name: str) -> str:
        """Why a device has no answer to a question."""
        device = self.device(of)
        for failed in (name, "handle"):
            if failed in device.failed:
                return device.failed[failed][1]
        pending = self.pending(of[0])
        return f"{self.silence} ({', '.join(pending)})" if pending else self.silence

    def unread(self, of: Of, questions: Iterable[nvml.DeviceField]) -> dict[str, str]:
        """Why each field without a value has none."""
        device = self.device(of)
        fields = [question.field for question in questions if question.field not in device.said]
        unknown = (nvml.NOT_SUPPORTED, nvml.FUNCTION_NOT_FOUND)
        quiet = {name for name in _QUIET if device.failed.get(name, (None, ""))[0] in unknown}
        return {name: self.why(of, name) for name in fields if name not in quiet}


def collect(lines: Iterable[bytes]) -> Answers:
    """The lines that the child has written, complete or not."""
    answers = Answers()
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:  # the last line of a child that was killed
            continue
        if "of" not in event:
            answers.done = True
            answers.fault = tuple(event["fault"]) if "fault" in event else None
            continue
        device = answers.devices.setdefault((event["of"][0], event["of"][1]), Device())
        device.pending = event["function"] if "asks" in event else None
        if "says" in event:
            device.said[event["says"]] = event["value"]
        elif "fails" in event:
            device.failed[event["fails"]] = (event["code"], f"{event['text']} ({event['function']})")
    return answers


def read_gpu(index: int, answers: Answers, host: HostMemory) -> Gpu:
    """GPU `index`. host: the memory to report where CPU and GPU share it."""
    device = answers.device((index, None))
    said = device.said
    unread = answers.unread((index, None), nvml.GPU_QUESTIONS)
    name, capability = clean(said.get("name")), _capability(said.get("compute_capability"))
    # The mode now and after the next reset, of a GPU that has one.
    mig, ecc = (_MODES.get((said.get(name) or [-1])[0]) for name in ("mig", "ecc"))
    if mig == "enabled" and "mig_slots" not in said:
        unread["mig_instances"] = answers.why((index, None), "mig_slots")
    memory = _memory(device, unread)
    source = None if memory is None else NVML
    shares = (name and _SHARED_MEMORY_NAME.search(name)) or capability in _SHARED_MEMORY_CAPABILITIES
    if memory is None and "memory" in said | device.failed and shares:
        memory, source = (host.total_bytes, host.available_bytes), HOST_MEMORY
    total, free = memory or (None, None)
    throttling = said.get("throttling") or 0
    slots = sorted(of[1] for of in answers.devices if of[0] == index and of[1] is not None)
    empty = (nvml.NOT_FOUND, nvml.INVALID_ARGUMENT)
    instances = [
        _read_instance(index, slot, answers)
        for slot in slots
        if answers.device((index, slot)).failed.get("handle", (None, ""))[0] not in empty
    ]
    return Gpu(
        index=index,
        name=name,
        uuid=clean(said.get("uuid")),
        pci_bus_id=clean(said.get("pci_bus_id")),
        compute_capability=capability,
        total_bytes=total,
        free_bytes=free,
        memory_source=source,
        mig=mig,
        mig_instances=tuple(instances),
        ecc=ecc,
        throttling=tuple(text for bit, (text, _) in _THROTTLING.items() if throttling & bit),
        # All but this process, and but number 0, which Jetsons list (wentbackward/nv-monitor#17).
        processes=tuple(
            GpuProcess(pid, used) for pid, used in said.get("processes") or () if pid and pid != os.getpid()
        ),
        virtualization=_VIRTUALIZATION.get(said.get("virtualization", -1)),
        reason=_explain_unusable(index, answers),
        warnings=tuple(_warnings(said)),
        unread=tuple(unread.items()),
    )


def clean(text: str | None) -> str | None:
    """A name fit to print: no control characters; None where nothing is left."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text or "").strip() or None


def _explain_unusable(index: int, answers: Answers) -> str | None:
    """Say why work cannot run on this GPU; None where it can."""
    device = answers.device((index, None))
    if dead := _find_death(device):
        return dead
    if "handle" in device.failed:
        return device.failed["handle"][1]
    for name in _ESSENTIAL:
        if name not in device.said and name not in device.failed:
            return answers.why((index, None), name)
    if not any(question.field in device.said for question in nvml.GPU_QUESTIONS):
        return device.failed["name"][1]
    return None


def _find_death(device: Device) -> str | None:
    return next((text for code, text in device.failed.values() if code in _DEAD), None)


def _memory(device: Device, unread: dict[str, str]) -> tuple[int | None, int | None] | None:
    """Total and free bytes, or None with the reason in `unread`."""
    if "memory" not in device.said:
        return None
    total, free = device.said["memory"]
    if total == 0:
        unread["memory"] = "the driver reports 0 bytes (nvmlDeviceGetMemoryInfo)"
        return None
    if free > total:
        unread["free_bytes"] = f"the driver reports {free} bytes free of {total} (nvmlDeviceGetMemoryInfo)"
        return total, None
    return total, free


def _read_instance(gpu: int, slot: int, answers: Answers) -> MigInstance:
    device = answers.device((gpu, slot))
    said = device.said
    unread = answers.unread((gpu, slot), nvml.MIG_QUESTIONS)
    memory = _memory(device, unread)
    unread.pop("memory_mib", None)  # the second source of the memory, of interest only where the first fails
    if memory is None and said.get("memory_mib"):
        # Seen in containers: the memory of an instance may not be asked for, its size may
        # (NVIDIA/nvidia-container-toolkit#1363).
        memory = (said["memory_mib"] * _MIB, None)
    total, free = memory or (None, None)
    name = clean(said.get("name"))  # `NVIDIA H100 80GB HBM3 MIG 1g.10gb` ends in the profile
    _, marker, profile = (name or "").rpartition(" MIG ")
    return MigInstance(
        index=slot,
        uuid=clean(said.get("uuid")),
        name=name,
        profile=(profile.strip() or None) if marker else None,
        compute_capability=_capability(said.get("compute_capability")),
        total_bytes=total,
        free_bytes=free,
        gpu_instance=said.get("gpu_instance"),
        compute_instance=said.get("compute_instance"),
        reason=_find_death(device) if "handle" in device.said else answers.why((gpu, slot), "handle"),
        unread=tuple(unread.items()),
    )


def _warnings(said: dict[str, Any]) -> list[str]:
    throttling = said.get("throttling") or 0
    warnings = [
        f"slowed down now: {text}" for bit, (text, serious) in _THROTTLING.items() if serious and throttling & bit
    ]
    now, pending = said.get("mig") or (0, 0)
    if now != pending:
        warnings.append(f"MIG will be {_MODES.get(pending)} after the next reset of the GPU")
    if said.get("ecc_errors"):
        warnings.append(f"{said['ecc_errors']} uncorrected memory errors since the driver was loaded")
    _, _, waiting, failed = said.get("remapped_rows") or (0, 0, 0, 0)
    if failed:
        warnings.append("a broken row of memory could not be remapped; the GPU should be replaced")
    elif waiting:
        warnings.append("a broken row of memory waits to be remapped; reset the GPU")
    return warnings


def _capability(said: list[int] | None) -> tuple[int, int] | None:
    return (said[0], said[1]) if said else None
