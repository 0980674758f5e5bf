"""Which profile, GPUs and precision run a model on this machine: tries profiles in order and takes the first that fits.

`select_profile` is a pure function of a request, a model's profiles and a machine. Its steps:

1. A CPU plan where the CPU is asked for, no GPU is usable, or torch cannot use one.
2. Equal GPUs (SKU, compute capability, memory) are a group; an instance of a MIG GPU is a group of its own.
3. In each group the profiles are tried in their order. One is rejected for its precision, its capability or SKU, the
   host, or the memory; the first that is left is the group's. A precision that none can give is dropped with a warning
   (as NVIDIA's runtime does), unless something is required.
4. Memory (`fit.py`): the token budget falls from the wanted one to that of one longest pair, then engines are
   given up, then the next profile is tried, with a budget no larger than that floor. So more memory of a GPU, or
   of all equal GPUs that nothing else uses, never gives a smaller budget.
5. The group with the most engines in all is the plan; of equal ones the optimized, then the larger budget.

Which profiles match, and in which order they are tried, is `matching.py`; the values are in `decision.py`, and the
reasons in words in `why_chosen.py`.

NVIDIA's rule "homogeneous GPUs with sufficient aggregate memory" is applied only to the memory that it publishes for
the fallback. An engine of ours lives on one GPU, so each GPU must have room by the memory model as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from rerank_cli.machine.gpu import FLASH_CAPABILITY, CudaDevice
from rerank_cli.planning.choices import ProfileRequest, least_overlap
from rerank_cli.planning.profiles.decision import (
    Decision,
    GenericFacts,
    MachineFacts,
    MemoryNeed,
    NoProfileFitsError,
    ProfilePlan,
    Rejection,
    join_names,
    show_gib,
    show_gpu,
    show_group,
)
from rerank_cli.planning.profiles.fit import Fit, Need, Wish, fit_device, fit_group
from rerank_cli.planning.profiles.matching import (
    ProfileSearch,
    check_request,
    in_order,
    not_asked_for,
    not_for,
    rules_of,
)
from rerank_cli.planning.profiles.model_profiles import ModelProfiles, Profile
from rerank_cli.planning.profiles.why_chosen import explain_engines, explain_limits, explain_profile


def select_profile(
    request: ProfileRequest,
    model: ModelProfiles | GenericFacts,
    machine: MachineFacts,
    *,
    need: MemoryNeed | None = None,
) -> Decision:
    """The plan for `request` on `machine`.

    need: the memory model; without one nothing is checked to fit. Raises `NoProfileFitsError` where nothing is left or
    what is required is absent, `UsageError` where the request contradicts itself or the model.
    """
    choice = ProfileSearch(request, rules_of(model), machine, need)
    check_request(choice)
    gpus = _usable_gpus(choice)
    if not gpus:
        return _cpu_decision(choice)
    if least_overlap(request.precision):
        raise choice.refusal(
            f"{request.origin('precision')} {request.precision}: compares the precisions of a CPU",
            hint="`--device cpu` runs there; on a GPU `auto` is fp16 or bf16",
        )
    if choice.precision == "int8":
        why = "int8 layers are there for CPUs alone"
        raise choice.refusal(
            f"{choice.precision_origin} int8: {why}", hint="`--device cpu` runs them; a GPU runs fp16, bf16 or fp32"
        )
    candidates = [found for group in _groups(gpus) if (found := _plan_group(choice, group)) is not None]
    if not candidates:
        if request.require is not None:
            raise _unknown_requirement_error(choice)
        hint = _hint_at_shorter_pairs(choice, gpus) or "`--device cpu` runs without a GPU"
        raise choice.refusal(f"no profile of `{choice.rules.model}` fits {choice.failure()}", hint=hint)
    return _best(choice, candidates)


def _usable_gpus(choice: ProfileSearch) -> list[CudaDevice]:
    """The GPUs to plan for; none means the CPU, and the last reason says why."""
    request, machine = choice.request, choice.machine
    gpus: list[CudaDevice] = []
    if request.device == "cpu":
        choice.reasons.append(f"CPU: {request.origin('device')} cpu")
    elif request.profile.startswith("cpu-"):
        choice.reasons.append(f"CPU: {request.origin('profile')} {request.profile}")
    else:
        gpus = _asked_gpus(choice)
        if gpus and not machine.torch_cuda:
            why = machine.torch_reason or "this torch cannot use CUDA"
            choice.warn(f"{len(gpus)} GPU{'s' * (len(gpus) > 1)} present, but {why}")
            gpus = gpus if request.assume_cuda else []
            choice.reasons += [] if gpus else [f"CPU: {why}"]
        elif not gpus:
            choice.reasons.append("CPU: no usable GPU")
    if gpus:
        return gpus
    # The request may need a GPU.
    why = choice.reasons[-1].removeprefix("CPU: ")
    if not machine.gpus and machine.no_gpu_reason:
        why += f": {machine.no_gpu_reason}"
    if request.require is not None:
        raise choice.refusal(f"--require {request.require}: {why}")
    if request.device == "cuda":
        raise choice.refusal(f"{request.origin('device')} cuda: {why}")
    if request.profile != "auto" and not request.profile.startswith("cpu-"):
        raise choice.refusal(f"{request.origin('profile')} {request.profile}: {why}")
    return []


def _asked_gpus(choice: ProfileSearch) -> list[CudaDevice]:
    origin, asked = choice.request.origin("device"), choice.request.gpus
    gpus = []
    for gpu in choice.machine.gpus:
        if asked is not None and gpu.index not in asked:
            choice.reasons.append(f"{show_gpu(gpu)} is left out: {origin}")
        elif gpu.reason is None:
            gpus.append(gpu)
        else:
            choice.warn(f"{show_gpu(gpu)} is not usable: {gpu.reason}")
    missing = sorted(set(asked or ()) - {gpu.index for gpu in gpus})
    if missing:
        raise choice.refusal(f"{origin}: no usable GPU {join_names(missing)}")
    return gpus


def _groups(gpus: Iterable[CudaDevice]) -> list[tuple[CudaDevice, ...]]:
    """Equal GPUs together, in the order of their first. A process sees one MIG instance, so each is alone."""
    groups: dict[object, list[CudaDevice]] = {}
    for place, gpu in enumerate(gpus):
        kind = (gpu.sku or gpu.name, gpu.compute_capability, gpu.total_bytes, place if gpu.mig else None)
        groups.setdefault(kind, []).append(gpu)
    return [tuple(group) for group in groups.values()]


@dataclass(frozen=True, slots=True)
class _Walk:
    """A walk over the profiles: the first that is left, and why the others are not.

    ceiling: the largest token budget of a later walk, which is the floor of a profile that did not fit.
    """

    found: Decision | None
    turned_down: Mapping[str, str]
    ceiling: int | None


def _plan_group(choice: ProfileSearch, group: tuple[CudaDevice, ...]) -> Decision | None:
    """The plan of one group, or None; the profiles that are not chosen go to `rejected`, each once."""
    asked, request, on = choice.precision, choice.request, show_group(group)
    precision_of = {profile.name: profile.precision for profile in choice.rules.profiles}
    walk, warnings = _walk(choice, group, asked), []
    turned_down = walk.turned_down
    if walk.found is None and asked is not None and request.require is None and request.profile == "auto":
        walk = _walk(choice, group, None, ceiling=walk.ceiling)
        # What spoke against the precision that was asked for says more than that it is not the default.
        turned_down = {
            name: turned_down[name] if precision_of[name] == asked else why for name, why in walk.turned_down.items()
        }
        if walk.found is not None:
            warnings.append(
                f"{on}: {choice.precision_origin} {asked} is not available, "
                f"{walk.found.plan.precision} is used (profile `{walk.found.plan.profile}`)"
            )
    nothing_published = choice.rules.profiles[0].kind == "generic"
    choice.rejected += [
        Rejection(profile.name, f"{on}: {turned_down[profile.name]}")
        for profile in choice.rules.profiles
        if profile.name in turned_down
        and (nothing_published or profile.kind != "generic" or profile.precision == asked)
    ]
    if walk.found is None:
        return None
    if group[0].mig and walk.found.plan.kind != "generic":
        what = f"profile `{walk.found.plan.profile}`, with the instance's own memory"
        warnings.append(f"{on} is a MIG instance, which NVIDIA does not support for this model: {what}")
    return replace(walk.found, warnings=(*walk.found.warnings, *warnings))


def _walk(
    choice: ProfileSearch, group: tuple[CudaDevice, ...], precision: str | None, *, ceiling: int | None = None
) -> _Walk:
    """Try the profiles in order. precision: try only this one; None: as the policy says. ceiling: as in `_Walk`."""
    found: Decision | None = None
    turned_down: dict[str, str] = {}
    for profile in in_order(choice):
        why = f"`{found.plan.profile}` comes first" if found else not_asked_for(choice, profile, precision)
        if not why:
            why = not_for(choice, profile, group)
            if not why:
                wish = _wish_for(choice, profile, group[0], ceiling=ceiling)
                available, need = [gpu.available_bytes for gpu in group], _need_of(choice, profile, group[0])
                fit = fit_group(wish, available, need)
                if fit is not None:
                    found = _candidate(choice, profile, group, wish, *fit, turned_down)
                    continue
                free = show_gib(max(available, key=lambda size: size or 0))
                why, ceiling = f"{_describe_need(choice, profile, need)}, {free} are free", wish.floor
            choice.fail(show_group(group), f"`{profile.name}`: {why}")
        turned_down[profile.name] = why
    return _Walk(found, turned_down, ceiling)


def _wish_for(choice: ProfileSearch, profile: Profile, gpu: CudaDevice | None, *, ceiling: int | None = None) -> Wish:
    """What is wanted of a device, or (gpu: None) of the CPU. ceiling: as in `_Walk`."""
    request, rules, longest = choice.request, choice.rules, choice.max_tokens(profile)
    wanted = choice.wanted_budget(profile)
    budget = wanted if ceiling is None else min(wanted, ceiling)
    if gpu is None or request.engine_count is not None:
        engines = more = request.engine_count or 1
    else:
        engines = rules.engines
        more = max(engines, rules.performance_engines) if choice.wants_more_engines(gpu) else engines
    return Wish(budget=budget, floor=min(budget, longest), engines=engines, more_engines=more)


def _need_of(choice: ProfileSearch, profile: Profile, gpu: CudaDevice | None) -> Need | None:
    """The memory model at the precision and length of a profile."""
    model, longest = choice.need, choice.max_tokens(profile)
    if model is None:
        return None

    def need(budget: int, engines: int) -> int:
        return model(
            gpu, precision=profile.precision, max_tokens=longest, token_budget=max(budget, longest), engines=engines
        )

    return need


def _describe_need(choice: ProfileSearch, profile: Profile, need: Need | None) -> str:
    """What a profile needs at least: `fp16 needs 3.1 GiB at 8192 tokens`."""
    needed = None if need is None else need(1, 1)
    return f"{profile.precision} needs {show_gib(needed)} at {choice.max_tokens(profile)} tokens"


def _candidate(
    choice: ProfileSearch,
    profile: Profile,
    group: tuple[CudaDevice, ...],
    wish: Wish,
    fit: Fit,
    places: tuple[int, ...],
    turned_down: Mapping[str, str],
) -> Decision:
    """The plan of one group with its own reasons and warnings."""
    # The varlen kernel needs 16-bit queries too; `runs` goes anywhere.
    capability = group[0].compute_capability
    varlen = capability is not None and capability >= FLASH_CAPABILITY and profile.precision != "fp32"
    plan = ProfilePlan(
        profile=profile.name,
        kind=profile.kind,
        precision=profile.precision,
        max_tokens=choice.max_tokens(profile),
        engine_count=fit.engines,
        token_budget=fit.budget,
        attention="varlen" if varlen else "runs",
        gpus=tuple(group[place] for place in places),
        needed_bytes=fit.needed_bytes,
    )
    why = explain_profile(choice, profile, group[0], turned_down)
    reasons = [f"profile `{profile.name}` on {show_group(plan.gpus)}: {why}"]
    reasons += explain_limits(choice, profile, fit) + explain_engines(choice, group[0], wish, fit)
    for gpu in group:
        if gpu not in plan.gpus:
            reasons.append(f"{show_gpu(gpu)} is left out: only {show_gib(gpu.available_bytes)} are free")
    unknown = choice.need is not None and any(gpu.available_bytes is None for gpu in plan.gpus)
    warnings = (f"{show_group(plan.gpus)}: nothing says that the plan fits",) if unknown else ()
    return Decision(plan, tuple(reasons), (), warnings)


def _best(choice: ProfileSearch, candidates: Sequence[Decision]) -> Decision:
    """The plan of the best group; the others are rejected with what they would have been."""
    allowed, require = [], choice.request.require
    for found in candidates:
        # A precision that is asked for is there: with `--require` no other is tried.
        if require in (None, found.plan.precision, found.plan.kind):
            allowed.append(found)
        else:
            missing = f"{show_group(found.plan.gpus)}: --require {require}"
            choice.rejected.append(Rejection(found.plan.profile, missing))
    if not allowed:
        raise _unknown_requirement_error(choice)

    def rank(found: Decision) -> tuple[bool, int, bool, int, int, int]:
        plan = found.plan
        asked = choice.precision in (None, plan.precision)
        total = sum(gpu.total_bytes or 0 for gpu in plan.gpus)
        return asked, plan.total_engines, plan.kind == "optimized", plan.token_budget, total, -plan.devices[0]

    best = max(allowed, key=rank)
    for plan in (found.plan for found in allowed if found is not best):
        here, there = (
            f"{one.total_engines} engine{'s' * (one.total_engines > 1)} in all "
            f"({one.kind}, {one.precision}, token budget {one.token_budget})"
            for one in (plan, best.plan)
        )
        reason = f"{show_group(plan.gpus)}: {here}; chosen is {show_group(best.plan.gpus)}, {there}"
        choice.rejected.append(Rejection(plan.profile, reason))
        if plan.kind == "optimized" and best.plan.kind != "optimized":
            choice.warn(f"{show_group(plan.gpus)} is idle: it has an optimized profile, but fewer engines in all")
    warnings = (*choice.warnings, *best.warnings)
    return Decision(best.plan, (*choice.reasons, *best.reasons), tuple(choice.rejected), warnings)


def _cpu_decision(choice: ProfileSearch) -> Decision:
    machine, named = choice.machine, choice.request.profile.removeprefix("cpu-")
    asked = named if choice.request.profile.startswith("cpu-") else choice.precision
    precision, why = machine.cpu_precisions[0], "the default on a CPU"
    if asked in machine.cpu_precisions:
        precision, why = asked, choice.request.origin("precision" if choice.precision else "profile")
    elif asked is not None:
        lacks = machine.cpu_lacks.get(asked, "this CPU does not multiply it in hardware")
        choice.warn(f"{choice.precision_origin} {asked}: {lacks}; {precision} is used")
        why = f"{asked} is not available here"
    elif (least := least_overlap(choice.request.precision)) is not None:
        why = f"until the first lists are tried; a cheaper one is taken if their ten best agree by {least:g}"
    profile = Profile(f"cpu-{precision}", "cpu", precision, choice.rules.max_tokens)
    choice.rejected += [Rejection(other.name, f"for GPUs; {choice.reasons[-1]}") for other in choice.rules.profiles]
    wish, need = _wish_for(choice, profile, None), _need_of(choice, profile, None)
    fit = fit_device(wish, machine.cpu_available_bytes, need)
    if fit is None:
        wanted = f"{_describe_need(choice, profile, need)}, {show_gib(machine.cpu_available_bytes)} are available"
        raise choice.refusal(f"`{choice.rules.model}` does not fit in the host's memory: {wanted}")
    plan = ProfilePlan(
        profile=profile.name,
        kind="cpu",
        precision=precision,
        max_tokens=choice.max_tokens(profile),
        engine_count=fit.engines,
        token_budget=fit.budget,
        attention="runs",
        needed_bytes=fit.needed_bytes,
    )
    limits = explain_limits(choice, profile, fit) + explain_engines(choice, None, wish, fit)
    reasons = (*choice.reasons, f"precision {precision}: {why}", *limits)
    return Decision(plan, reasons, tuple(choice.rejected), tuple(choice.warnings))


def _unknown_requirement_error(choice: ProfileSearch) -> NoProfileFitsError:
    why = choice.failure() or "; ".join(rejection.reason for rejection in choice.rejected)
    return choice.refusal(f"--require {choice.request.require}: no such profile of `{choice.rules.model}` here: {why}")


def _hint_at_shorter_pairs(choice: ProfileSearch, gpus: Sequence[CudaDevice]) -> str | None:
    """A hint: the longest power of two of tokens with which a profile has room on the roomiest GPU."""
    gpu = max(gpus, key=lambda gpu: gpu.available_bytes or 0)
    longest = choice.request.max_tokens or choice.rules.max_tokens
    for profile in in_order(choice):
        if not_asked_for(choice, profile, choice.precision) or not_for(choice, profile, (gpu,)):
            continue
        for tokens in (2**power for power in range((longest - 1).bit_length() - 1, 6, -1)):
            need = _need_of(choice, replace(profile, max_tokens=tokens), gpu)
            asked = None if need is None else need(tokens, 1)
            if asked is not None and gpu.available_bytes is not None and asked <= gpu.available_bytes:
                return f"`--max-tokens {tokens}` needs {show_gib(asked)}"
    return None
