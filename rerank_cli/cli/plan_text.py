"""A `MachinePlan` as text for people: the machine, the plan, and on request the reasons."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

from rerank_cli.cli.console import wrap_words
from rerank_cli.errors import printable
from rerank_cli.planning.faster_hint import faster_on
from rerank_cli.planning.profile_answer import MachinePlan, gpu_rows, profile_rows
from rerank_cli.planning.profiles.decision import ProfilePlan, join_names, show_gib

_WORDS = {
    "optimized": "the profile was made for this very GPU, and is the fastest that is known for it.",
    "fallback": "the profile runs on any GPU with enough memory, and is not tuned for this one.",
    "generic": "no profile file names this model; precision and sizes follow from its files and the machine.",
    "cpu": "the model runs on the processor.",
    "max tokens": "the longest pair, query and passage together; what is longer is cut as `--truncate` says.",
    "engines": "copies of the model that are loaded at a time, each on one device.",
    "token budget": "the tokens that one batch may hold. A larger one needs more memory and keeps a GPU busier.",
    "varlen": "pairs of different lengths lie in a batch one behind the other, with no padding between them.",
    "runs": "pairs of one length are computed together, one length after the other, so there is no padding.",
    "sdpa": "torch's own attention; pairs of one length are computed together, so there is no padding.",
}
_LABEL = 14  # columns of the left side: the longest label and two blanks


def plan_lines(answer: MachinePlan, *, list_profiles: bool, explain: bool) -> Iterator[str]:
    """The lines of an answer, without its warnings."""
    plan = answer.plan
    yield from _machine_lines(answer)
    if plan is not None:
        yield ""
        yield from _plan_lines(plan, answer.device or "")
    if list_profiles:
        yield from ("", "profiles")
        for row in profile_rows(answer):
            yield from _profile_lines(row)
    if explain and plan is not None:
        yield from ("", "words")
        said = (plan.kind, "max tokens", "engines", "token budget", *plan.attention.split())
        for word in [one for one in dict.fromkeys(said) if one in _WORDS]:
            yield from _wrap(f"  {word}: ", _WORDS[word])
    if explain and answer.reasons:
        yield from ("", "reasons")
        for reason in answer.reasons:
            yield from _wrap("  ", reason)
    if explain and answer.rejected:
        yield from ("", "rejected")
        width = max(len(rejection.profile) for rejection in answer.rejected)
        for rejection in answer.rejected:
            yield from _wrap("  " + rejection.profile.ljust(width + 2), rejection.reason)


def faster_lines(answer: MachinePlan) -> Iterator[str]:
    """A line on what would be faster here, if something is known."""
    machine, plan = answer.machine, answer.plan
    if machine is None or plan is None or plan.kind != "cpu":
        return
    checkpoint = answer.model.checkpoint if answer.model else None
    if told := faster_on(machine.cpu, device="cpu", precision=plan.precision, checkpoint=checkpoint):
        yield ""
        yield from _pair("faster", told)


def _machine_lines(answer: MachinePlan) -> Iterator[str]:
    if answer.model is not None:
        yield from _pair("model", answer.model.name)
    machine = answer.machine
    if machine is None:
        return
    if machine.driver is not None:
        yield from _pair("driver", machine.driver + (f", CUDA {machine.cuda}" if machine.cuda else ""))
    if machine.reason is not None:
        yield from _pair("GPUs", f"none: {machine.reason}")
    same: dict[str, list[int]] = {}
    for gpu in machine.gpus:
        for row in gpu_rows(gpu):
            same.setdefault(_gpu_text(row), []).append(row["index"])
    for text, numbers in same.items():
        several = len(set(numbers)) > 1
        label = f"GPU{'s' * several} {join_names(dict.fromkeys(numbers))}"
        yield from _pair(label, text)
    if not machine.devices:
        free = f", {show_gib(machine.cpu.memory_available_bytes)} available"
        yield from _pair("CPU", f"{machine.cpu.name}, {machine.cpu.cores} cores{free}")


def _gpu_text(row: dict[str, Any]) -> str:
    """`NVIDIA L4, 8.9, 22.0 of 22.5 GiB free`, or why it cannot be used."""
    name = row["name"] or "name unknown"
    if row["cuda_index"] is None and row["reason"]:
        return f"{name}: {row['reason']}"
    capability = row["compute_capability"] or "compute capability unknown"
    total, free = row["total_bytes"], row["free_bytes"]
    memory = show_gib(total)
    if total is not None and free is not None:
        memory = f"{show_gib(free).removesuffix(' GiB')} of {memory} free"
    remarks = [row["reason"]] if row["reason"] else []
    if row["memory_source"] not in (None, "nvml", "--gpu"):
        remarks.append(f"memory by {row['memory_source']}")
    return f"{name}, {capability}, {memory}" + (f" ({'; '.join(remarks)})" if remarks else "")


def _plan_lines(plan: ProfilePlan, device: str) -> Iterator[str]:
    each = " on each device" if len(plan.gpus) > 1 else ""
    kind = "" if plan.profile.startswith(plan.kind) else f" ({plan.kind})"
    yield from _pair("profile", f"{plan.profile}{kind}")
    yield from _pair("device", device)
    yield from _pair("precision", plan.precision)
    yield from _pair("max tokens", f"{plan.max_tokens}")
    yield from _pair("engines", f"{plan.engine_count}{each}")
    yield from _pair("token budget", f"{plan.token_budget}")
    yield from _pair("attention", plan.attention)
    if plan.needed_bytes is not None:
        yield from _pair("memory", f"{show_gib(plan.needed_bytes)} of each device")


def _profile_lines(row: dict[str, Any]) -> Iterator[str]:
    gpus = "any GPU"
    if row["compute_capabilities"]:
        gpus = f"compute capability {join_names(row['compute_capabilities'])}"
    elif row["skus"]:
        gpus = join_names(row["skus"])
    elif row["kind"] == "cpu":
        gpus = "the CPU"
    mark = "*" if row["chosen"] else " "
    yield from _wrap(f"{mark} ", f"{row['name']}: {row['precision']}, {row['max_tokens']} tokens, {gpus}")
    yield from _wrap("    ", "chosen" if row["chosen"] else f"not chosen: {row['reason']}")


def _pair(label: str, text: str) -> Iterator[str]:
    """A label and its text; a label that is too long for its column has its own line."""
    label = printable(label)
    if len(label) + 2 > _LABEL:
        yield label
        label = ""
    yield from _wrap(label.ljust(_LABEL), text)


def _wrap(head: str, text: str) -> Iterator[str]:
    """`head` and `text` in lines that fit the terminal; the further ones stand below the text."""
    columns = max(60, min(120, shutil.get_terminal_size((100, 24)).columns))
    yield from wrap_words(printable(text), columns, head=head) or [head.rstrip()]
