"""Options and variables into one request for a plan: the one place where NVIDIA's variables are read.

The order is the same in every command: flag, RERANK_ variable, NIM_ variable, default. `auto` on the command line is a
choice as any other, so it wins over a variable.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

import typer

from rerank_cli.cli.declare import decided_by, declared_options, values_into
from rerank_cli.errors import UsageError
from rerank_cli.planning.choices import Precision, ProfileRequest, parse_device

_NIM = {"precision": ("NIM_PRECISION", "NIM_ENGINE_PRECISION"), "engine_count": ("NIM_ENGINE_COUNT",)}
"""NVIDIA's variables by the field that they decide; its pages disagree on the name of the first."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What options and variables ask of a plan, by the field of `ProfileRequest`."""

    values: Mapping[str, Any]
    origins: Mapping[str, str]
    """What decided a field: an option or a variable."""
    notes: tuple[str, ...]
    """Variables that were not used, and why."""


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """A request, and what came with it."""

    request: ProfileRequest
    notes: tuple[str, ...]
    profiles_file: str | None
    """Of `--profile FILE.toml`."""


def read_asked(context: typer.Context, environment: Mapping[str, str] | None = None) -> Asked:
    """What a command's options and its environment (`os.environ`) ask of a plan."""
    environment = os.environ if environment is None else environment
    values = values_into(context, "request")
    origins, notes = _find_origins(context), []
    for field, variables in _NIM.items():
        for name in variables:
            text = environment.get(name, "").strip()
            if text and field in origins:
                notes.append(f"{name}={text} is not used: {origins[field]} comes before it")
            elif text:
                origins[field], values[field] = name, _READ[field](name, text)
    return Asked(values, origins, tuple(notes))


def read_plan_request(
    context: typer.Context, *, assume_cuda: bool = False, environment: Mapping[str, str] | None = None
) -> PlanRequest:
    """The request for a plan that `read_asked` makes. assume_cuda: as in `ProfileRequest`."""
    asked = read_asked(context, environment)
    values = dict(asked.values)
    device, gpus = parse_device(values.pop("device"), asked.origins.get("device", "--device"))
    profile = values.pop("profile")
    file = profile if profile.endswith(".toml") else None
    request = ProfileRequest(
        device=device, gpus=gpus, profile="auto" if file else profile, assume_cuda=assume_cuda,
        origins={"engine_count": "--engines", **asked.origins}, **values,
    )  # fmt: skip
    return PlanRequest(request, asked.notes, file)


def _find_origins(context: typer.Context) -> dict[str, str]:
    """What decided each field of the request that somebody decided: an option or a variable of ours."""
    found = {}
    for name, one in declared_options(context).items():
        above, _, field = (one.into or "").rpartition(".")
        if above == "request" and (decided := decided_by(context, name)):
            found[field] = decided
    return found


def _read_precision(name: str, text: str) -> str:
    known = get_args(Precision)
    if text.casefold() not in known:
        raise UsageError(f"{name} {text}: not known", hint="known are " + ", ".join(known))
    return text.casefold()


def _read_engine_count(name: str, text: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]{0,3}", text, re.ASCII):
        raise UsageError(f"{name} {text}: not a whole number above 0")
    return int(text)


_READ = {"precision": _read_precision, "engine_count": _read_engine_count}
