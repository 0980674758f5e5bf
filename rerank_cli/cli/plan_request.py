"""Turns options and variables into a request for a plan; NVIDIA's variables are read here only.

The order is the same in every command: flag, RERANK_ variable, NIM_ variable, default. `auto` on the command line is a
choice like any other, so it wins over a variable.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

import typer

from rerank_cli.cli.declare import decided_by, declared_options, values_into
from rerank_cli.errors import UsageError
from rerank_cli.machine.libraries import missing_library
from rerank_cli.planning.choices import Precision, ProfileRequest, parse_device

if TYPE_CHECKING:
    from rerank_cli.planning.known_model import KnownModel

_NIM = {"precision": ("NIM_PRECISION", "NIM_ENGINE_PRECISION"), "engine_count": ("NIM_ENGINE_COUNT",)}
"""NVIDIA's variables by the field that they set; its pages disagree on the name of the first."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What options and variables ask of a plan, by field of `ProfileRequest`."""

    values: Mapping[str, Any]
    origins: Mapping[str, str]
    """The option or variable that decided a field."""
    notes: tuple[str, ...]
    """Variables that were not used, and why."""


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """A request, with notes and the profiles file that was named."""

    request: ProfileRequest
    notes: tuple[str, ...]
    profiles_file: str | None
    """Of `--profile FILE.toml`."""


def read_asked(context: typer.Context, environment: Mapping[str, str] | None = None) -> Asked:
    """What a command's options and its environment (`os.environ`) ask of a plan."""
    environment = os.environ if environment is None else environment
    values = values_into(context, "request")
    origins: dict[str, str] = {}
    for name, one in declared_options(context).items():
        above, _, field = (one.into or "").rpartition(".")
        if above == "request" and (decided := decided_by(context, name)):
            origins[field] = decided
    notes = []
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


@dataclass(frozen=True, slots=True)
class AskedModel:
    """The model that a command plans for, and notes on it."""

    known: KnownModel
    notes: tuple[str, ...] = ()


OF_MODEL = ("revision", "online", "label", "taken_as", "template")
"""The options beside `--model` that tell which model it is and how it is scored."""


def find_asked_model(
    model: str | None,
    *,
    online: bool,
    revision: str | None = None,
    label: int | None = None,
    taken_as: str | None = None,
    template: str | None = None,
    profiles_file: str | None = None,
) -> AskedModel:
    """Find the model; it is refused in the cases and words in which `score` refuses it."""
    from rerank_cli.encoding.scoring import check_scoring
    from rerank_cli.planning.known_model import find_model, with_choices

    known = find_model(model, revision=revision, online=online, profiles_file=profiles_file)
    known = with_choices(known, label=label, taken_as=taken_as)
    if known.checkpoint is None:
        return AskedModel(known)
    try:
        check_scoring(known.checkpoint, own_template=template is not None)
    except ModuleNotFoundError as error:  # planning does not need the libraries that scoring needs
        missing = missing_library(error)
        if missing is None:
            raise
        return AskedModel(known, (f"whether {known.name} can be scored was not looked at: {missing.message}",))
    return AskedModel(known)


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
