"""`CUDA_VISIBLE_DEVICES` applied to what NVML sees, which ignores it.

CUDA's rules, as the driver has them (CUDA C programming guide, "CUDA Environment Variables"; torch's
`torch/cuda/__init__.py:_parse_visible_devices` follows them, and so does this module, case for case):

* The list is of integers or of UUIDs; its first entry decides. An entry of the other kind, an unknown or ambiguous one,
  or a negative number ends the list: only the entries before it count. So `""` and `-1` show nothing.
* A prefix of a UUID is enough where only one device has it. Anything may follow the digits of a number.
* Nothing is visible where one device is named twice.
* A MIG instance is named by its own UUID, or by `MIG-GPU-<uuid>/<gpu instance>/<compute instance>`.

Integers follow CUDA_DEVICE_ORDER. NVML's order is PCI_BUS_ID; the default is FASTEST_FIRST, which is the same only
where all GPUs are equal. On a mixed machine the numbers are a guess, and a warning says so.

MIG (MIG user guide, "Device enumeration"): a process sees one MIG instance, the first of those visible, and beside it
no whole GPU.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rerank_cli.machine.gpu import Gpu, MigInstance
from rerank_cli.machine.nvml_answers import clean

VARIABLE = "CUDA_VISIBLE_DEVICES"
_ORDER = "CUDA_DEVICE_ORDER"
_LEADING_INTEGER = re.compile(r"[+-]?[0-9]{1,20}(?![0-9])")
_ONE_INSTANCE = f"CUDA shows a process one MIG instance; name this one in {VARIABLE} to use it"
_NOT_BESIDE_MIG = "left out: CUDA shows no whole GPU beside a MIG instance"
_NO_INSTANCE = "MIG is enabled and has no instance; `sudo nvidia-smi mig -cgi PROFILE -C` makes one"


@dataclass(frozen=True, slots=True)
class Visible:
    """The GPUs as CUDA numbers them."""

    gpus: tuple[Gpu, ...]  # with `cuda_index` and `reason` set
    certain: bool  # the numbers are certainly CUDA's
    warnings: tuple[str, ...]


# One thing that a list names: (index of the GPU, slot of its MIG instance or None for the GPU as a whole).
_Name = tuple[int, int | None]


def apply_visibility(gpus: Sequence[Gpu], environment: Mapping[str, str]) -> Visible:
    """Number the GPUs as CUDA does in a process with this environment, and say why CUDA does not show the others."""
    value = environment.get(VARIABLE)
    setting = f"`{VARIABLE}={clean(value) or ''}`"
    warnings: list[str] = []
    named = [(gpu.index, None) for gpu in gpus] if value is None else _list_named(value, setting, gpus, warnings)
    order = _expand(named, gpus, warnings)
    doubts = _find_doubts(value, environment, gpus, order)
    numbers = {name: number for number, name in enumerate(order)}
    numbered = tuple(_number(gpu, numbers, set(named), f"hidden by {setting}") for gpu in gpus)
    return Visible(numbered, not doubts, (*warnings, *doubts))


def _list_named(value: str, setting: str, gpus: Sequence[Gpu], warnings: list[str]) -> list[_Name]:
    """List what the variable names, in its order.

    Args:
        value: The value of the variable.
        setting: The variable and its value, as messages show them.
        gpus: The GPUs of the machine.
        warnings: Takes what CUDA ignores, and why.
    """
    if not gpus:
        return []
    if not value.strip():
        warnings.append(f"{setting} is empty: CUDA sees no GPU")
        return []
    entries: dict[str | int, str] = {}
    for text in value.split(","):
        entry = _read_entry(text, value)
        if entry in entries:
            warnings.append(f"{setting} names `{clean(text)}` twice, so CUDA sees no GPU")
            return []
        entries[entry] = text
        if entry == -1:
            break
    named: list[_Name] = []
    for entry, text in entries.items():
        name = _look_up(entry, gpus)
        if name is None:
            warnings.append(f"{setting}: `{clean(text) or ''}` is no GPU here; CUDA ignores it and all after it")
            break
        if name in named:
            warnings.append(f"{setting} names GPU {name[0]} twice, so CUDA sees no GPU")
            return []
        named.append(name)
    return named


def _read_entry(text: str, value: str) -> str | int:
    """Read one entry as CUDA does: a UUID, a number, or -1 for anything else.

    Args:
        text: The entry.
        value: The whole list, whose start decides between UUIDs and numbers.
    """
    for prefix in ("GPU-", "MIG-"):
        if value.startswith(prefix):
            return text if text.startswith(prefix) else -1
    match = _LEADING_INTEGER.match(text.strip())
    return max(-1, int(match[0])) if match else -1


def _look_up(entry: str | int, gpus: Sequence[Gpu]) -> _Name | None:
    """Find what an entry names; None for an unknown or ambiguous entry."""
    if isinstance(entry, int):
        return (gpus[entry].index, None) if 0 <= entry < len(gpus) else None
    names: list[tuple[str, _Name]] = [(gpu.uuid, (gpu.index, None)) for gpu in gpus if gpu.uuid]
    for gpu in gpus:
        for mig in gpu.mig_instances:
            name = (gpu.index, mig.index)
            if mig.uuid:
                names.append((mig.uuid, name))
            if gpu.uuid and mig.gpu_instance is not None:
                names.append((f"MIG-{gpu.uuid}/{mig.gpu_instance}/{mig.compute_instance or 0}", name))
    exact = {name for text, name in names if text == entry}
    found = exact or {name for text, name in names if text.startswith(entry)}
    return found.pop() if len(found) == 1 else None


def _expand(named: Sequence[_Name], gpus: Sequence[Gpu], warnings: list[str]) -> list[_Name]:
    """Keep what CUDA shows of the named GPUs: those that work, or one MIG instance alone."""
    by_index = {gpu.index: gpu for gpu in gpus}
    whole: list[_Name] = []
    slices: list[_Name] = []
    for index, slot in named:
        gpu = by_index[index]
        if gpu.mig == "enabled":
            slices += [(index, mig.index) for mig in gpu.mig_instances if slot in (None, mig.index) and not mig.reason]
        elif gpu.reason is None:
            whole.append((index, slot))
    if slices and whole:
        shut_out = ", ".join(str(index) for index, _ in whole)
        warnings.append(
            f"CUDA shows no whole GPU beside a MIG instance, so GPU {shut_out} is left out; "
            f"name it in {VARIABLE} to use it"
        )
    return slices[:1] or whole


def _find_doubts(
    value: str | None, environment: Mapping[str, str], gpus: Sequence[Gpu], order: Sequence[_Name]
) -> list[str]:
    """Say why the numbers may differ from CUDA's.

    UUIDs leave no doubt, and neither do equal GPUs that all work.
    """
    if not order or len(gpus) == 1 or (value is not None and value.startswith(("GPU-", "MIG-"))):
        return []
    doubts = []
    remedy = f"name them by UUID in {VARIABLE}"
    if any(gpu.reason for gpu in gpus[: 1 + max(index for index, _ in order)]):
        doubts.append(f"numbers of GPUs are uncertain: CUDA may or may not count the GPU that does not work; {remedy}")
    alike = len({(gpu.name, gpu.compute_capability, gpu.total_bytes) for gpu in gpus if not gpu.reason}) <= 1
    if not alike and environment.get(_ORDER) != "PCI_BUS_ID":
        doubts.append(
            f"numbers of GPUs are uncertain: they are not all alike, and CUDA counts the fastest first, while the "
            f"order here is that of the PCI bus; {remedy}, or set {_ORDER}=PCI_BUS_ID"
        )
    return doubts


def _number(gpu: Gpu, numbers: Mapping[_Name, int], named: set[_Name], hidden: str) -> Gpu:
    """Set the CUDA number of a GPU, or the reason why it has none."""
    is_named = any(index == gpu.index for index, _ in named)
    if gpu.mig == "enabled":
        instances: list[MigInstance] = []
        for mig in gpu.mig_instances:
            shown, why = numbers.get((gpu.index, mig.index)), mig.reason
            if shown is None and why is None:
                why = _ONE_INSTANCE if named & {(gpu.index, None), (gpu.index, mig.index)} else hidden
            instances.append(replace(mig, cuda_index=shown, reason=why))
        why = "MIG is enabled: work runs on its instances"
        if not gpu.mig_instances:
            why = dict(gpu.unread).get("mig_instances", _NO_INSTANCE)
        return replace(gpu, mig_instances=tuple(instances), reason=gpu.reason or (why if is_named else hidden))
    number = numbers.get((gpu.index, None))
    if number is not None or gpu.reason:
        return replace(gpu, cuda_index=number)
    return replace(gpu, reason=_NOT_BESIDE_MIG if is_named else hidden)
