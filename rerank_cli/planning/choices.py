"""What a user can choose of a plan, with the defaults: plain values that the command line reads quickly."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from rerank_cli.errors import UsageError

Precision = Literal["auto", "fp32", "bf16", "fp16", "fp8", "int8"]
Policy = Literal["nim-2x", "nim-1x"]
Requirement = Literal["optimized", "fp8"]
POLICIES: tuple[Policy, ...] = get_args(Policy)
REQUIREMENTS: tuple[Requirement, ...] = get_args(Requirement)

BATCH_SIZES, LENGTHS = (1, 8, 16, 30), (1024, 2048, 4096, 8192)
"""The points of NVIDIA's own memory tables: pairs of a batch, tokens of a pair."""

PAIRS, TOKENS = 1_000_000, 200
"""How many pairs of how many tokens a time is given for, where nobody names other numbers."""


@dataclass(frozen=True, slots=True)
class ProfileRequest:
    """What the user asked for; None and `auto` mean "decide".

    device: `auto`, `cpu` or `cuda`; gpus: only these, by index. origins: which option or variable decided a field
    (`{"precision": "NIM_PRECISION"}`), for the reasons. assume_cuda: plan for the GPUs although this torch cannot use
    them (the warning stays).
    """

    precision: str = "auto"
    device: str = "auto"
    gpus: tuple[int, ...] | None = None
    policy: str = "nim-2x"
    require: str | None = None
    performance: bool = False
    profile: str = "auto"
    max_tokens: int | None = None
    token_budget: int | None = None
    engine_count: int | None = None
    assume_cuda: bool = False
    origins: Mapping[str, str] = field(default_factory=dict)

    def origin(self, name: str) -> str:
        """What decided a field: the option of its name, unless `origins` says otherwise."""
        return self.origins.get(name, f"--{name.replace('_', '-')}")


def parse_precision(text: str) -> str:
    """`text` in small letters; `ValueError`, with a hint, for what `--precision` does not take."""
    name = text.lower()
    if name in get_args(Precision) or least_overlap(name) is not None:
        return name
    raise ValueError("not known", f"known are {', '.join(get_args(Precision))}, and auto:0.99 (a share above 0)")


def least_overlap(precision: str) -> float | None:
    """The share of `auto:0.99`; None of any other precision."""
    found = re.fullmatch(r"auto:(0?\.[0-9]{1,6}|1(?:\.0{1,6})?)", precision)
    return float(found[1]) if found and float(found[1]) > 0 else None


def parse_device(text: str, origin: str = "--device") -> tuple[str, tuple[int, ...] | None]:
    """`device` and `gpus` of a request: `cuda` and (0, 1) of `cuda:0,1`. origin: what messages call it."""
    kind, colon, numbers = text.partition(":")
    if kind == "mps":
        # The models might run there; nobody has compared their logits, and this program does not guess.
        raise UsageError(f"{origin} {text}: not supported", hint="`--device cpu` runs on Apple silicon too")
    if not colon:
        return kind, None
    if kind != "cuda" or not re.fullmatch(r"[0-9]{1,3}(,[0-9]{1,3})*", numbers):
        raise UsageError(f"{origin} {text}: not a device", hint="known are auto, cpu, cuda, cuda:0, cuda:0,1, ...")
    return kind, tuple(dict.fromkeys(map(int, numbers.split(","))))


@dataclass(frozen=True, slots=True)
class MemoryRequest:
    """What `mem-estimate` is asked; None and `auto` mean "decide".

    gpu: as `--gpu` describes one. capacity: bytes of the device. room: the answer needs the capacity, so it is looked
    up on this machine where nothing names it. solve: what to look for, `batch-size` or `max-tokens`. first: the cheap
    scorer before the model.
    """

    device: str = "auto"
    precision: str = "auto"
    batch_sizes: tuple[int, ...] | None = None
    max_tokens: tuple[int, ...] | None = None
    engines: int = 1
    images: int = 0
    max_input_tiles: int | None = None
    from_file: str | None = None
    gpu: str | None = None
    capacity: int | None = None
    room: bool = False
    solve: str | None = None
    compare: bool = False
    measure: bool = False
    first: str | None = None
