"""Why a profile, its limits and its number of engines were chosen, in words."""

from __future__ import annotations

from collections.abc import Mapping

from rerank_cli.machine.gpu import CudaDevice
from rerank_cli.planning.profiles.fit import Fit, Wish
from rerank_cli.planning.profiles.matching import ProfileSearch, in_order
from rerank_cli.planning.profiles.model_profiles import GB, Profile, show_capability


def explain_profile(choice: ProfileSearch, profile: Profile, gpu: CudaDevice, turned_down: Mapping[str, str]) -> str:
    """Why this profile. turned_down: by name, why those before it were not taken."""
    request = choice.request
    if request.profile != "auto":
        return f"{request.origin('profile')} {request.profile}"
    asked = choice.precision == profile.precision
    if profile.kind == "fallback":
        optimized = [one for one in in_order(choice) if one.kind == "optimized" and one.name in turned_down]
        same = [one for one in optimized if one.precision == profile.precision]
        why = turned_down[(same or optimized)[-1].name] if optimized else "the model has none"
        return f"no optimized profile is left: {why}"
    if profile.kind == "generic":
        published = choice.rules.profiles[0].kind != "generic"
        no_profile = "no published profile has it" if published else f"no profile file for {choice.rules.model}"
        default = "bf16, in which it was trained" if profile.precision == "bf16" else f"{profile.precision} by default"
        decided = f"{choice.precision_origin} {profile.precision}" if asked else default
        return f"{decided}, {no_profile}"
    matched = f"compute capability {show_capability(gpu.compute_capability)}"
    if profile.skus:
        matched = f"SKU {gpu.sku or gpu.name}"
    decided = choice.precision_origin if asked else f"policy {request.policy}"
    return f"{matched}, {profile.precision} by {decided}"


def explain_limits(choice: ProfileSearch, profile: Profile, fit: Fit) -> list[str]:
    """What decided the longest pair and the token budget, a sentence each."""
    request, reasons = choice.request, []
    if request.max_tokens is None:
        limit = "the profile" if profile.kind in ("optimized", "fallback") else "what the model reads"
        reasons.append(f"max tokens {profile.max_tokens}: {limit}")
    else:
        says = f"the profile says {profile.max_tokens}"
        reasons.append(f"max tokens {request.max_tokens}: {request.origin('max_tokens')} ({says})")
    decided = "the default" if request.token_budget is None else request.origin("token_budget")
    if request.token_budget is None and profile.kind != "cpu" and choice.rules.hidden_size:
        decided = f"the default for a hidden size of {choice.rules.hidden_size}"
    wanted = choice.wanted_budget(profile)
    if fit.budget < wanted:
        decided = f"more does not fit ({wanted} is {decided})"
    return [*reasons, f"token budget {fit.budget}: {decided}"]


def explain_engines(choice: ProfileSearch, gpu: CudaDevice | None, wish: Wish, fit: Fit) -> list[str]:
    """What decided the number of engines. gpu: None on a CPU."""
    request, large = choice.request, f"{choice.rules.performance_min_bytes / GB:g} GB"
    decided = "the default"
    if request.engine_count is not None:
        decided = request.origin("engine_count")
    elif request.performance and gpu is None:
        decided = f"{request.origin('performance')} is for GPUs"
    elif request.performance and gpu is not None and not choice.wants_more_engines(gpu):
        decided = f"{request.origin('performance')} adds engines from {large} on"
    elif request.performance and fit.engines > wish.engines:
        decided = f"{request.origin('performance')}, on at least {large}"
    if fit.engines < wish.engines:
        decided = f"more do not fit ({wish.engines} is {decided})"
    elif fit.engines < wish.more_engines:
        decided = f"{wish.more_engines} do not fit beside this token budget ({request.origin('performance')})"
    return [f"engines {fit.engines}: {decided}"]
