"""Options and variables into one request for a plan: what `profile-select` and the commands of a run share."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from rerank_cli.errors import UsageError

if TYPE_CHECKING:
    from rerank_cli.planning.profiles import ProfileRequest


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """What is asked for. notes: variables that were not heard. profiles_file: of `--profile FILE.toml`."""

    request: ProfileRequest
    notes: tuple[str, ...]
    profiles_file: str | None


_DECIDING = {
    **{name: name for name in ("device", "precision", "policy", "require", "performance", "profile")},
    **{name: name for name in ("max_tokens", "token_budget")},
    "engines": "engine_count",
}
"""Parameters and the fields of the request that they decide."""


def _origins(context: typer.Context) -> dict[str, str]:
    """What decided each field of the request that somebody decided: an option or a variable of ours."""
    origins = {}
    for name, field in _DECIDING.items():
        source = context.get_parameter_source(name)
        if source is not None and source.name == "ENVIRONMENT":
            origins[field] = f"RERANK_{name.upper()}"
        elif source is not None and source.name == "COMMANDLINE":
            origins[field] = f"--{name.replace('_', '-')}"
    return origins


def read_plan_request(
    context: typer.Context, *, assume_cuda: bool = False, environment: Mapping[str, str] | None = None
) -> PlanRequest:
    """What a command's options and its environment (`os.environ`) ask for; NVIDIA's variables come after ours.

    assume_cuda: as in `ProfileRequest`. A command without an option asks for its default.
    """
    from rerank_cli.planning.profiles import ProfileRequest, parse_device

    environment = os.environ if environment is None else environment
    given, origins = context.params, _origins(context)
    notes: list[str] = []
    precision, engines = given["precision"], given["engines"]
    nim = _of_nim("precision", ("NIM_PRECISION", "NIM_ENGINE_PRECISION"), origins, environment, notes)
    if nim is not None:
        precision = nim.casefold()
    nim = _of_nim("engine_count", ("NIM_ENGINE_COUNT",), origins, environment, notes)
    if nim is not None:
        if not re.fullmatch(r"[1-9][0-9]{0,3}", nim):
            raise UsageError(f"NIM_ENGINE_COUNT {nim}: not a whole number above 0")
        engines = int(nim)
    device, gpus = parse_device(given["device"], origins.get("device", "--device"))
    file = given["profile"] if given["profile"].endswith(".toml") else None
    request = ProfileRequest(
        precision=precision,
        device=device,
        gpus=gpus,
        profile=given["profile"] if file is None else "auto",
        max_tokens=given["max_tokens"],
        token_budget=given["token_budget"],
        engine_count=engines,
        assume_cuda=assume_cuda,
        origins={"engine_count": "--engines", **origins},
        **{name: given[name] for name in ("policy", "require", "performance") if name in given},
    )
    return PlanRequest(request, tuple(notes), file)


def _of_nim(
    field: str, names: tuple[str, ...], origins: dict[str, str], environment: Mapping[str, str], notes: list[str]
) -> str | None:
    """The first of NVIDIA's variables that is set, unless something before it decided; the others are noted."""
    chosen = None
    for name in names:
        value = environment.get(name, "").strip()
        if not value:
            continue
        if field in origins:
            notes.append(f"{name}={value} is not used: {origins[field]} comes before it")
        else:
            origins[field], chosen = name, value
    return chosen
