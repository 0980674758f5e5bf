"""What goes into the choice of a profile and what comes out of it, as plain values.

MachineFacts      the GPUs, the host, and whether torch can use them
GenericFacts      a model without a profile file
MemoryNeed        the memory model, as the choice asks it
ProfilePlan       one way to run the model
Decision          the plan with its reasons, every rejected profile, and warnings
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from rerank_cli.errors import DoesNotFitError
from rerank_cli.machine.gpu import CudaDevice
from rerank_cli.planning.profiles.model_profiles import GB, GIB, show_capability

GENERIC_PRECISIONS = ("fp16", "bf16", "fp32")
"""What our runtime has on a GPU for any model, the default first."""


@dataclass(frozen=True, slots=True)
class MachineFacts:
    """The machine that the plan is for. gpus: those that CUDA shows, and those that do not work, with the reason.

    host_arch: as `platform.machine()` gives it.

    torch_cuda, torch_reason: whether the installed torch can use CUDA; why not, and the remedy. no_gpu_reason: why the
    driver shows no GPU, where it shows none. cpu_precisions: what the CPU runs in hardware, the default first;
    cpu_lacks: why another one is not there.
    """

    gpus: tuple[CudaDevice, ...] = ()
    host_arch: str = "x86_64"
    torch_cuda: bool = True
    torch_reason: str | None = None
    no_gpu_reason: str | None = None
    cpu_precisions: tuple[str, ...] = ("fp32",)
    cpu_available_bytes: int | None = None
    cpu_lacks: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GenericFacts:
    """A model without a profile file, from its checkpoint.

    precisions: what a GPU runs it in, the default first. hidden_size: None where config.json does not tell it.
    """

    model: str
    max_tokens: int
    precisions: tuple[str, ...] = GENERIC_PRECISIONS
    hidden_size: int | None = None
    engines: int = 1
    performance_engines: int = 2
    performance_min_bytes: int = 80 * GB


class MemoryNeed(Protocol):
    """Bytes that a device must have free for a plan; the memory model answers.

    gpu: None for the CPU; of a GPU its kind may count (capability, SKU), its memory must not. token_budget: the tokens
    a batch may reach, never below max_tokens. Must not fall when max_tokens, token_budget or engines grow.
    """

    def __call__(
        self, gpu: CudaDevice | None, *, precision: str, max_tokens: int, token_budget: int, engines: int
    ) -> int:
        """Bytes for all engines of the device together."""
        ...


@dataclass(frozen=True, slots=True)
class ProfilePlan:
    """One way to run the model on this machine.

    kind: `optimized`, `fallback`, `generic` or `cpu`. engine_count: of each device. needed_bytes: of each device by the
    memory model, None where nothing was asked of it.
    """

    profile: str
    kind: str
    precision: str
    max_tokens: int
    engine_count: int
    token_budget: int
    attention: str
    gpus: tuple[CudaDevice, ...] = ()
    needed_bytes: int | None = None

    @property
    def devices(self) -> tuple[int, ...]:
        """Indices of the GPUs of the chosen group."""
        return tuple(gpu.index for gpu in self.gpus)

    @property
    def total_engines(self) -> int:
        """Engines on all devices together."""
        return self.engine_count * max(1, len(self.gpus))


@dataclass(frozen=True, slots=True)
class Rejection:
    """A profile that was not chosen, on which GPUs, and why."""

    profile: str
    reason: str


@dataclass(frozen=True, slots=True)
class Decision:
    """The plan with everything that led to it."""

    plan: ProfilePlan
    reasons: tuple[str, ...]
    rejected: tuple[Rejection, ...]
    warnings: tuple[str, ...]


class NoProfileFitsError(DoesNotFitError):
    """No profile is left; `rejected` and `warnings` are what a `Decision` would have held."""

    def __init__(
        self, message: str, *, hint: str | None, rejected: Iterable[Rejection], warnings: Iterable[str]
    ) -> None:
        super().__init__(message, hint=hint)
        self.rejected = tuple(rejected)
        self.warnings = tuple(warnings)


def show_gpu(gpu: CudaDevice) -> str:
    """`GPU 0 (NVIDIA L4, 8.9, 22.5 GiB)`."""
    return f"GPU {gpu.index} ({_show_kind(gpu)})"


def show_group(group: Sequence[CudaDevice]) -> str:
    """`GPUs 0, 1 (NVIDIA L4, 8.9, 22.5 GiB)`."""
    return f"GPU{'s' * (len(group) > 1)} {join_names(gpu.index for gpu in group)} ({_show_kind(group[0])})"


def _show_kind(gpu: CudaDevice) -> str:
    memory = "memory unknown" if gpu.total_bytes is None else show_gib(gpu.total_bytes)
    return f"{gpu.name or gpu.sku or 'name unknown'}, {show_capability(gpu.compute_capability)}, {memory}"


def show_gib(size: int | None) -> str:
    """Bytes for a message."""
    return "unknown memory" if size is None else f"{size / GIB:.1f} GiB"


def join_names(names: Iterable[object]) -> str:
    """Names with commas between them."""
    return ", ".join(map(str, names))
