"""The keys that the blocks of a profile file may have, and what each value must be.

`read_block` checks one block against its `Keys` and returns plain values (lists become tuples, a capability two whole
numbers); `profile_file.py` checks what values mean together. Messages read `<file>: <entry>: <key> must be <what>: <the
value>`; an unknown key comes with the nearest known one.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any, TypeAlias

from rerank_cli.errors import ProfileError
from rerank_cli.machine.gpu import parse_capability

SCHEMA = 1
PRECISION_BITS = {"fp8": 8, "int8": 8, "fp16": 16, "bf16": 16, "fp32": 32}
"""The precisions a profile may name, with the bits of a weight."""
STATUSES = ("certain", "inferred", "observed", "secondary")

Capability: TypeAlias = tuple[int, int]


class UnfitValueError(Exception):
    """A value that is not what its key wants; the message says what is wanted."""


Check: TypeAlias = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of a block, each with its check, which returns the value to keep or raises `UnfitValueError`."""

    required: Mapping[str, Check]
    optional: Mapping[str, Check]


def read_block(where: str, block: Any, keys: Keys) -> dict[str, Any]:
    """The values of a block after checking each; `where` is file and entry."""
    if not isinstance(block, dict):
        raise ProfileError(f"{where}: must be a table: {show_value(block)}")
    known = [*keys.required, *keys.optional]
    for key in block:
        if key not in known:
            raise ProfileError(f"{where}: unknown key `{key}`", hint=known_names(key, known, "keys"))
    for key in keys.required:
        if key not in block:
            raise ProfileError(f"{where}: key `{key}` is missing", hint=known_names("", known, "keys"))
    checks = {**keys.required, **keys.optional}
    values = {}
    for key, value in block.items():
        try:
            values[key] = checks[key](value)
        except UnfitValueError as wanted:
            raise ProfileError(f"{where}: `{key}` must be {wanted}: {show_value(value)}") from None
    values.pop("schema", None)
    return values


def known_names(key: str, known: list[str], what: str) -> str:
    """A hint: the known name nearest to `key`, where one is near, and all of them."""
    near = difflib.get_close_matches(key, known, n=1)
    guess = f"did you mean `{near[0]}`? " if near else ""
    return f"{guess}known {what} are " + ", ".join(f"`{name}`" for name in known)


def show_value(value: Any, limit: int = 60) -> str:
    """A value for a message, cut at `limit` characters."""
    try:
        text = repr(value)
    except ValueError:  # a whole number of more digits than Python prints
        text = f"a {type(value).__name__}"
    return text if len(text) <= limit else text[: limit - 3] + "..."


_MOST = 10**12  # beyond any count or size here, and safe to multiply as a float


def _check_text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise UnfitValueError("a line of text")
    return value


def _check_count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= _MOST:
        raise UnfitValueError("a whole number above 0")
    return value


def _number_up_to(most: float, wanted: str) -> Check:
    def check(value: Any) -> float:
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value <= most:
            raise UnfitValueError(wanted)  # NaN is not above 0
        return float(value)

    return check


_check_size = _number_up_to(_MOST, "a number above 0")
_check_share = _number_up_to(1, "a number above 0 and at most 1")


def _check_flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise UnfitValueError("true or false")
    return value


def _check_day(value: Any) -> date:
    if type(value) is not date:  # a time of day is a subclass of it
        raise UnfitValueError("a date such as 2026-01-31")
    return value


def _check_capability(value: Any) -> Capability:
    capability = parse_capability(value) if isinstance(value, str) else None
    if capability is None:
        raise UnfitValueError('a compute capability as text, such as "9.0"')
    return capability


def _check_url(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"https?://\S+", value):
        raise UnfitValueError("an http(s) address")
    return value


def _check_table(value: Any) -> Any:
    if not isinstance(value, dict):
        raise UnfitValueError("a table")
    return value


def _one_of(*allowed: str) -> Check:
    def check(value: Any) -> str:
        if not isinstance(value, str) or value not in allowed:
            raise UnfitValueError("one of " + ", ".join(allowed))
        return value

    return check


def _list_of(check: Check, *, what: str, doubles: bool = False) -> Check:
    """A list of at least one; becomes a tuple. doubles: whether equal members are allowed."""

    def check_all(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list) or not value:
            raise UnfitValueError(f"a list of {what}")
        try:
            members = tuple(check(member) for member in value)
        except UnfitValueError as wanted:
            raise UnfitValueError(f"a list of {what}, each {wanted}") from None
        if not doubles and len(set(members)) < len(members):
            raise UnfitValueError(f"a list of {what}, none of them twice")
        return members

    return check_all


_check_tables = _list_of(_check_table, what="tables", doubles=True)
_check_status = _one_of(*STATUSES)
_check_precision = _one_of(*PRECISION_BITS)
_SOURCED: dict[str, Check] = {"source": _check_text, "status": _check_status}

TOP = Keys(
    required={
        "schema": _check_count,
        "sources": _check_table,
        "model": _check_table,
        "engines": _check_table,
        "selection": _check_table,
        "profile": _check_tables,
    },
    optional={"memory": _check_tables},
)
SOURCE = Keys(
    required={"title": _check_text, "url": _check_url, "release": _check_text, "read_on": _check_day}, optional={}
)
MODEL = Keys(
    required={"id": _check_text, "architecture": _check_text, "max_tokens": _check_count, **_SOURCED},
    optional={
        "aliases": _list_of(_check_text, what="model ids"),
        "language": _check_table,
        "vision": _check_table,
    },
)
LANGUAGE = Keys(
    required={
        **dict.fromkeys(
            ("layers", "hidden_size", "intermediate_size", "heads", "kv_heads", "head_dim", "vocab_size"), _check_count
        ),
        **_SOURCED,
    },
    optional={},
)
VISION = Keys(
    required={
        **dict.fromkeys(
            (
                *("layers", "hidden_size", "intermediate_size", "heads", "patch_size", "image_size"),
                *("tokens_per_tile", "max_input_tiles", "parameters", "connector_parameters"),
            ),
            _check_count,
        ),
        **_SOURCED,
    },
    optional={},
)
ENGINES = Keys(
    required={
        "default": _check_count,
        "performance": _check_count,
        "performance_min_gb": _check_size,
        **_SOURCED,
    },
    optional={},
)
SELECTION = Keys(required={"automatic": _check_flag, **_SOURCED}, optional={})
PROFILE = Keys(
    required={
        "name": _check_text,
        "kind": _one_of("optimized", "fallback"),
        "precision": _check_precision,
        "max_tokens": _check_count,
        **_SOURCED,
    },
    optional={
        "compute_capability": _list_of(_check_capability, what="compute capabilities"),
        "sku": _list_of(_check_text, what="SKUs"),
        "on_request": _check_flag,
        "min_memory_gb": _check_size,
        "disk_gb": _check_size,
        "note": _check_text,
    },
)
MEMORY = Keys(
    required={"values": _check_status, "headings": _check_status, "source": _check_text, "table": _check_tables},
    optional={"confidence": _check_table, "note": _check_text},
)
CONFIDENCE = Keys(required=dict.fromkeys(("model", "key", "precision"), _check_share), optional={})
TABLE = Keys(
    required={"compute_capability": _check_capability, "precision": _check_precision, "rows": _check_tables},
    optional={"sku": _check_text, "fit": _check_table},
)
FIT = Keys(
    required=dict.fromkeys(("weights_gib", "kib_per_token", "mask_bytes", "worst_gib"), _check_size), optional={}
)
ROW = Keys(
    required={"gib": _check_size}, optional={"max_batch_size": _check_count, "max_sequence_length": _check_count}
)
