"""Which profiles are for a GPU at all, in which order they are tried, and why the others are not.

A profile is rejected first for its name or precision (what was asked for), then for the hardware. Every reason that
applies is given: a GB10 in an Arm host gets two. Memory is looked at later, in `selection.py`.

Policies (source: NVIDIA's Optimization pages of the 1.x and 2.x releases, whose defaults are opposite): `nim-2x`, fp16
unless fp8 is asked for; `nim-1x`, the lowest precision first. Where a model's file says that automatic selection does
not apply (`automatic = false`), no policy goes beyond what stands there without `on_request`.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field

from rerank_cli.errors import UsageError
from rerank_cli.machine.gpu import FP8_CAPABILITY, CudaDevice
from rerank_cli.planning.choices import POLICIES, REQUIREMENTS, ProfileRequest, least_overlap
from rerank_cli.planning.profiles.decision import (
    GENERIC_PRECISIONS,
    GenericFacts,
    MachineFacts,
    MemoryNeed,
    NoProfileFitsError,
    Rejection,
    join_names,
)
from rerank_cli.planning.profiles.model_profiles import GB, ModelProfiles, Profile, same_sku, show_capability
from rerank_cli.planning.profiles.schema import PRECISION_BITS, Capability

LEAST_CAPABILITY: Capability = (8, 0)
"""No optimized profile is for less."""
CPU_TOKEN_BUDGET = 2048
"""Tokens of a batch on a CPU: 2,048 to 4,096 measured best on Zen 4, where activations stay in the caches."""
_GPU_BUDGETS = (32_768, 131_072)  # the least and the most tokens of a batch on a GPU that has room
_GPU_NUMBERS = 2**25  # of a batch, tokens times hidden size: 64 MiB in 16 bits
# Where torch's own kernels multiply these (bfloat16: Ampere; float8: Ada and Hopper).
_PRECISION_NEEDS: dict[str, Capability] = {"bf16": (8, 0), "fp8": FP8_CAPABILITY}
_NARROW = "fp16"  # every GPU multiplies it
_ARM = ("aarch64", "arm64")


@dataclass(frozen=True, slots=True)
class Rules:
    """A model's profiles, from its file or made from its checkpoint's facts, in order of preference."""

    model: str
    max_tokens: int
    profiles: tuple[Profile, ...]
    automatic: bool
    hidden_size: int | None
    engines: int
    performance_engines: int
    performance_min_bytes: int


def rules_of(model: ModelProfiles | GenericFacts) -> Rules:
    """The rules of a model; a file's profiles are followed by the precisions that only our runtime has: bf16, fp32."""
    if isinstance(model, GenericFacts):
        return Rules(
            model=model.model,
            max_tokens=model.max_tokens,
            profiles=tuple(_generic(precision, model.max_tokens) for precision in model.precisions),
            automatic=False,
            hidden_size=model.hidden_size,
            engines=model.engines,
            performance_engines=model.performance_engines,
            performance_min_bytes=model.performance_min_bytes,
        )
    published = {profile.precision for profile in model.profiles}
    beyond = [precision for precision in GENERIC_PRECISIONS if precision not in published]
    return Rules(
        model=model.model.id,
        max_tokens=model.model.max_tokens,
        profiles=(*model.profiles, *(_generic(precision, model.model.max_tokens) for precision in beyond)),
        automatic=model.selection.automatic,
        hidden_size=model.model.language.hidden_size if model.model.language else None,
        engines=model.engines.default,
        performance_engines=model.engines.performance,
        performance_min_bytes=model.engines.performance_min_bytes,
    )


def _generic(precision: str, max_tokens: int) -> Profile:
    return Profile(f"generic-{precision}", "generic", precision, max_tokens, on_request=True)


def auto_precision(model: ModelProfiles | GenericFacts, capability: Capability | None) -> str:
    """What `auto` is on a GPU of this capability: fp16, or bf16 for a model that was trained in it.

    capability: None for the answer on most GPUs.
    """
    wanted = model.precisions[0] if isinstance(model, GenericFacts) else _NARROW
    return _NARROW if capability is not None and _lacks(wanted, capability) else wanted


def gpu_token_budget(hidden_size: int | None) -> int:
    """Tokens of a batch on a GPU that has room: the narrower the model, the more.

    A forward launches as many kernels for few rows as for many, and each launch waits for the interpreter's lock, which
    the tokenizer's thread holds half of the time; of a model of hidden size 384 a batch of 32,768 tokens is computed in
    some 3 ms, in which the host must launch its hundred kernels (reckoned; measured on no card yet:
    `benchmarks.gpu_kernels` tries the budgets).
    """
    least, most = _GPU_BUDGETS
    power = (_GPU_NUMBERS // max(1, hidden_size or most)).bit_length() - 1
    return max(least, min(most, 1 << max(0, power)))


@dataclass(slots=True)
class ProfileSearch:
    """The inputs of a choice, and what is said on the way.

    failures: by group of GPUs, what spoke against the profiles that were asked for; the message if none is left.
    """

    request: ProfileRequest
    rules: Rules
    machine: MachineFacts
    need: MemoryNeed | None
    reasons: list[str] = field(default_factory=list)
    rejected: list[Rejection] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    failures: dict[str, list[str]] = field(default_factory=dict)

    @property
    def precision(self) -> str | None:
        """The precision that is asked for, by `--require fp8` too; None for `auto`.

        None for `auto:0.99` as well: the run itself asks for the one it has found (`job/precision_choice.py`).
        """
        if self.request.precision != "auto" and least_overlap(self.request.precision) is None:
            return self.request.precision
        return "fp8" if self.request.require == "fp8" else None

    @property
    def precision_origin(self) -> str:
        """The option or variable that asks for the precision."""
        return self.request.origin("precision" if self.request.precision != "auto" else "require")

    def wanted_budget(self, profile: Profile) -> int:
        """Tokens of a batch, as far as memory allows."""
        longest = self.max_tokens(profile)
        on_gpu = max(gpu_token_budget(self.rules.hidden_size), longest)
        return self.request.token_budget or (CPU_TOKEN_BUDGET if profile.kind == "cpu" else on_gpu)

    def wants_more_engines(self, gpu: CudaDevice) -> bool:
        """Performance mode is asked for, on a GPU that is large enough."""
        return self.request.performance and (gpu.total_bytes or 0) >= self.rules.performance_min_bytes

    def warn(self, text: str) -> None:
        """Add a warning, unless it is there already."""
        if text not in self.warnings:
            self.warnings.append(text)

    def fail(self, group: str, why: str) -> None:
        """Note once what spoke against a profile on a group."""
        reasons = self.failures.setdefault(group, [])
        if why not in reasons:
            reasons.append(why)

    def failure(self) -> str:
        """All that was noted, group by group."""
        return "; ".join(f"{group}: {'; '.join(reasons)}" for group, reasons in self.failures.items())

    def refusal(self, message: str, *, hint: str | None = None) -> NoProfileFitsError:
        """The error to raise, with what was said on the way."""
        return NoProfileFitsError(message, hint=hint, rejected=self.rejected, warnings=self.warnings)

    def max_tokens(self, profile: Profile) -> int:
        """The longest pair: as asked, else the profile's."""
        return self.request.max_tokens or profile.max_tokens


def check_request(choice: ProfileSearch) -> None:
    """Raise `UsageError` for values that are not known, or that contradict each other or the model."""
    request = choice.request
    for name, value, known in (
        ("precision", request.precision, ("auto", *PRECISION_BITS)),
        ("policy", request.policy, POLICIES),
        ("require", request.require or REQUIREMENTS[0], REQUIREMENTS),
        ("device", request.device, ("auto", "cpu", "cuda")),
    ):
        if value not in known and not (name == "precision" and least_overlap(value)):
            raise UsageError(f"{request.origin(name)} {value}: not known", hint="known are " + ", ".join(known))
    if request.require == "fp8" and request.precision not in ("auto", "fp8"):
        raise UsageError(f"{request.origin('precision')} {request.precision}: contradicts `--require fp8`")
    for name, number in (
        ("max_tokens", request.max_tokens),
        ("token_budget", request.token_budget),
        ("engine_count", request.engine_count),
    ):
        if number is not None and number < 1:
            raise UsageError(f"{request.origin(name)} {number}: must be at least 1")
    most = choice.rules.max_tokens
    if request.max_tokens is not None and request.max_tokens > most:
        asked = f"{request.origin('max_tokens')} {request.max_tokens}"
        raise UsageError(f"{asked}: {choice.rules.model} reads at most {most} tokens")
    if request.profile == "auto":
        return
    asked = f"{request.origin('profile')} {request.profile}"
    profiles = {profile.name: profile.precision for profile in choice.rules.profiles}
    profiles |= {f"cpu-{precision}": precision for precision in choice.machine.cpu_precisions}
    precision = profiles.get(request.profile)
    if precision is None:
        near = difflib.get_close_matches(request.profile, profiles, n=1)
        guess = f"did you mean `{near[0]}`? " if near else ""
        raise UsageError(f"{asked}: not known", hint=f"{guess}known are auto, {join_names(profiles)}")
    if choice.precision not in (None, precision):
        raise UsageError(f"{asked}: is {precision}, not {choice.precision}")


def in_order(choice: ProfileSearch) -> list[Profile]:
    """Profiles in the order of the policy: as in the file, or (nim-1x) optimized ones of the lowest precision first."""
    profiles = list(choice.rules.profiles)
    if choice.request.policy != "nim-1x" or not choice.rules.automatic:
        return profiles
    optimized = [profile for profile in profiles if profile.kind == "optimized"]
    others = [profile for profile in profiles if profile.kind != "optimized"]
    return sorted(optimized, key=lambda profile: PRECISION_BITS[profile.precision]) + others


def not_asked_for(choice: ProfileSearch, profile: Profile, precision: str | None) -> str:
    """Why a profile is not what was asked for; empty where it is. precision: None as the policy says."""
    request = choice.request
    if request.profile != "auto":
        return "" if profile.name == request.profile else f"{request.origin('profile')} {request.profile}"
    if precision is not None:
        return "" if profile.precision == precision else f"it is {profile.precision}, not {precision}"
    if profile.kind == "generic":
        # The first is the default, and fp16 where the card lacks that.
        first = choice.rules.profiles[0]
        unasked = first.kind == "generic" and profile.precision in (first.precision, _NARROW)
    else:
        unasked = not profile.on_request or (choice.rules.automatic and request.policy == "nim-1x")
    asked = f"{profile.precision} is chosen only when it is asked for (`--precision {profile.precision}`)"
    return "" if unasked else asked


def not_for(choice: ProfileSearch, profile: Profile, group: Sequence[CudaDevice]) -> str:
    """Why a profile is not for these GPUs, memory model aside; empty where it is."""
    if profile.kind == "optimized":
        return "; ".join(_why_not_optimized(choice, profile, group[0]))
    if profile.kind == "fallback":  # the published need, of all equal GPUs together
        known = [gpu.total_bytes for gpu in group if gpu.total_bytes is not None]
        if profile.min_memory_bytes is None or len(known) < len(group) or sum(known) >= profile.min_memory_bytes:
            return ""
        together = " together" if len(group) > 1 else ""
        return f"it needs {profile.min_memory_bytes / GB:g} GB, {sum(known) / GB:.2f} GB are there{together}"
    capability = group[0].compute_capability
    if not _lacks(profile.precision, capability):
        return ""
    needs = f"{profile.precision} needs compute capability {show_capability(_PRECISION_NEEDS[profile.precision])}"
    return f"{needs}, this is {show_capability(capability)}"


def _lacks(precision: str, capability: Capability | None) -> bool:
    """Whether a GPU does not multiply in this precision, or may not."""
    least = _PRECISION_NEEDS.get(precision)
    return least is not None and (capability is None or capability < least)


def _why_not_optimized(choice: ProfileSearch, profile: Profile, gpu: CudaDevice) -> list[str]:
    capability, sku, least = gpu.compute_capability, gpu.sku or gpu.name, profile.min_memory_bytes
    reasons = []
    if capability is not None and capability < LEAST_CAPABILITY:
        reasons.append(f"compute capability {show_capability(capability)} is below {show_capability(LEAST_CAPABILITY)}")
    elif profile.compute_capabilities and capability not in profile.compute_capabilities:
        known = join_names(map(show_capability, profile.compute_capabilities))
        reasons.append(f"compute capability {show_capability(capability)} is not exactly one of {known}")
    if profile.skus and not any(same_sku(sku, one) for one in profile.skus):
        reasons.append(f"SKU {sku or 'unknown'} is not one of {join_names(profile.skus)}")
    if gpu.mig:
        reasons.append("a MIG instance")
    if choice.machine.host_arch.casefold() in _ARM:
        reasons.append(f"the host is {choice.machine.host_arch}, optimized profiles are for x86")
    if least is not None and gpu.total_bytes is not None and gpu.total_bytes < least:
        reasons.append(f"it needs {least / GB:g} GB")
    return reasons
