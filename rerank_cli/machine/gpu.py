"""The values of a GPU, whether they come from the driver or from a user who describes one (`--gpu`)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches

from rerank_cli.errors import UsageError
from rerank_cli.machine.gpu_names import CARDS, find_card
from rerank_cli.machine.memory_size import parse_memory

NVML = "nvml"
HOST_MEMORY = "host MemAvailable"
DESCRIBED = "--gpu"
"""The three sources of a GPU's memory size."""

FLASH_CAPABILITY = (8, 0)
"""The least compute capability of torch's flash and varlen kernels for attention."""
FP8_CAPABILITY = (8, 9)
"""The least that multiplies float8 (torch's _scaled_mm) and stores it (Triton): Ada and Hopper."""

_CAPABILITY = re.compile(r"([1-9][0-9]?)\.([0-9])")
_EXAMPLE = "for example `--gpu 9.0:80GiB:NVIDIA-H100-80GB-HBM3` or `--gpu 8.9:24GB`"


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A process that computes on a GPU. used_bytes: None where the driver does not tell (containers, WSL)."""

    pid: int
    used_bytes: int | None


@dataclass(frozen=True, slots=True)
class MigInstance:
    """A slice of a GPU in MIG mode, which CUDA treats as a device of its own.

    profile: as NVIDIA names it, `3g.40gb`. cuda_index, reason, unread: as in `Gpu`.
    """

    index: int
    uuid: str | None = None
    name: str | None = None
    profile: str | None = None
    compute_capability: tuple[int, int] | None = None
    total_bytes: int | None = None
    free_bytes: int | None = None
    gpu_instance: int | None = None
    compute_instance: int | None = None
    cuda_index: int | None = None
    reason: str | None = None
    unread: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Gpu:
    """One physical GPU; a field that could not be read is None.

    index: NVML's, in the order of the PCI bus.
    memory_source: `nvml`, `host MemAvailable` (CPU and GPU share the memory), or `--gpu`.
    mig, ecc: `enabled`, `disabled`, or None where the GPU has no such mode.
    throttling: what slows its clocks at this moment.
    processes: those of others.
    virtualization: `none`, `passthrough`, `vgpu`, `host vgpu`, `host vsga`.
    cuda_index: the number CUDA gives it in a process started here, None where it gives none.
    reason: why it cannot be used as a whole, None where it can.
    unread: (field, why) for each field that could not be read; `memory` stands for both sizes. `ecc_errors` and
    `remapped_rows` are no fields, but would have given warnings.
    """

    index: int
    name: str | None = None
    uuid: str | None = None
    pci_bus_id: str | None = None
    compute_capability: tuple[int, int] | None = None
    total_bytes: int | None = None
    free_bytes: int | None = None
    memory_source: str | None = None
    mig: str | None = None
    mig_instances: tuple[MigInstance, ...] = ()
    ecc: str | None = None
    throttling: tuple[str, ...] = ()
    processes: tuple[GpuProcess, ...] = ()
    virtualization: str | None = None
    cuda_index: int | None = None
    reason: str | None = None
    warnings: tuple[str, ...] = ()
    unread: tuple[tuple[str, str], ...] = ()

    @property
    def sku(self) -> str | None:
        """The product name as NIM writes it: blanks as hyphens."""
        return sku_of(self.name)

    @property
    def other_processes_bytes(self) -> int | None:
        """Memory that other processes hold, None where the driver does not tell for one of them."""
        sizes = [process.used_bytes for process in self.processes]
        return None if None in sizes else sum(size for size in sizes if size is not None)


@dataclass(frozen=True, slots=True)
class CudaDevice:
    """What CUDA counts as one device: a whole GPU, or one MIG instance of it with the instance's own memory.

    What could not be read is None. index: of the GPU, as in `Gpu`. uuid: what `CUDA_VISIBLE_DEVICES` may name it by.
    name: of a MIG instance it ends in the profile. sku: the name with hyphens for blanks; other spellings are
    understood. mig: the instance; None for a whole GPU. cuda_index: the number CUDA gives it, None where it gives none.
    reason: why it cannot be used, None where it can.
    """

    index: int
    uuid: str | None = None
    name: str | None = None
    sku: str | None = None
    compute_capability: tuple[int, int] | None = None
    total_bytes: int | None = None
    free_bytes: int | None = None
    mig: MigInstance | None = None
    cuda_index: int | None = None
    reason: str | None = None

    @classmethod
    def of(cls, gpu: Gpu, mig: MigInstance | None = None) -> CudaDevice:
        """The device that `gpu` is, or an instance of it."""
        own = mig or gpu
        name = own.name or gpu.name
        return cls(
            index=gpu.index,
            uuid=own.uuid,
            name=name,
            sku=sku_of(name),
            compute_capability=gpu.compute_capability or own.compute_capability,
            total_bytes=own.total_bytes,
            free_bytes=own.free_bytes,
            mig=mig,
            cuda_index=own.cuda_index,
        )

    @property
    def available_bytes(self) -> int | None:
        """Memory that a plan may fill: what is free, or all of it where only that is known."""
        return self.total_bytes if self.free_bytes is None else self.free_bytes


def sku_of(name: str | None) -> str | None:
    """`NVIDIA H100 80GB HBM3` as `NVIDIA-H100-80GB-HBM3`.

    Source: profile names of the Reranking NIM 1.x, compared with the names that NVML gives.
    """
    return "-".join(name.split()) if name else None


def parse_capability(text: str) -> tuple[int, int] | None:
    """(9, 0) of `9.0`; None where the text is no compute capability."""
    match = _CAPABILITY.fullmatch(text)
    return (int(match[1]), int(match[2])) if match else None


def parse_gpu(text: str, index: int = 0) -> Gpu:
    """The GPU that `--gpu NAME` or `--gpu CAPABILITY:MEMORY[:NAME]` describes: empty, and CUDA device `index`.

    GB is 10^9 bytes and GiB 2^30. The name may hold blanks, or hyphens in their place.
    """
    if (card := find_card(text)) is not None:
        return _make_gpu(index, card.full_name, card.compute_capability, card.total_bytes)
    if re.match(r"\s*[A-Za-z][^:]*$", text):
        names = {name.casefold(): name for name in (card.name for card in CARDS)}
        near = [names[name] for name in get_close_matches(text.strip().casefold(), names, n=3)]
        known = ", ".join(near or [card.name for card in CARDS])
        raise UsageError(
            f"--gpu {text}: no card of this name is known",
            hint=f"{'did you mean' if near else 'known are'} {known}{'?' * bool(near)} Others: {_EXAMPLE}",
        )
    capability, _, rest = text.strip().partition(":")
    memory, _, name = rest.partition(":")
    parsed = parse_capability(capability.strip())
    if parsed is None:
        raise UsageError(f"--gpu {text}: the compute capability is not of the form 9.0: `{capability}`", hint=_EXAMPLE)
    total = parse_memory(memory)
    if total is None:
        wrong = f"the memory is not a number with a unit: `{memory}`" if memory.strip() else "the memory is missing"
        raise UsageError(f"--gpu {text}: {wrong}", hint=f"units are MB, MiB, GB, GiB, TB, TiB; {_EXAMPLE}")
    if total <= 0:
        raise UsageError(f"--gpu {text}: a GPU without memory runs nothing", hint=_EXAMPLE)
    return _make_gpu(index, name.strip() or None, parsed, total)


def _make_gpu(index: int, name: str | None, capability: tuple[int, int], total: int) -> Gpu:
    return Gpu(
        index=index,
        name=name,
        compute_capability=capability,
        total_bytes=total,
        free_bytes=total,
        memory_source=DESCRIBED,
        cuda_index=index,
    )
