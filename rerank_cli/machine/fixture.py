"""A machine that a JSON document describes: `--fixture FILE`.

A document need not be complete: a field that is left out counts as one that could not be read, so a machine can be
described in three lines. An unknown key is refused, because it is a typing error.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from rerank_cli.errors import InputError
from rerank_cli.machine.cpu import Cpu
from rerank_cli.machine.detect import Machine
from rerank_cli.machine.gpu import Gpu, GpuProcess, MigInstance, parse_capability
from rerank_cli.machine.torch_build import TorchBuild

SCHEMA = "rerank-cli/machine/1"

_T = TypeVar("_T")
_LARGEST = 2**63 - 1
_MOST_BYTES = 2**24


def load_machine_fixture(path: str | Path) -> Machine:
    """The machine that a file describes; `InputError` where it describes none."""
    try:
        with Path(path).open("rb") as stream:  # a part of it alone: /dev/zero has no end
            data = stream.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise InputError(f"{path}: more than {_MOST_BYTES:,} bytes, which no machine's description has")
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text") from error
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON: {error}") from error
    return machine_from_json(document, str(path))


def machine_from_json(document: Any, where: str = "machine") -> Machine:
    """The machine in a document; `where` begins the message of every error."""
    if not isinstance(document, Mapping):
        raise InputError(f"{where}: a machine is a JSON object, not {_kind(document)}")
    schema = document.get("schema", SCHEMA)
    if schema != SCHEMA:
        raise InputError(f"{where}: schema `{schema}` is not known", hint=f"this version reads `{SCHEMA}`")
    return _read(Machine, {key: value for key, value in document.items() if key != "schema"}, where)


def _read_text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{where}: a text is wanted, not {_kind(value)}")
    return value


def _integer(value: Any, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _LARGEST:
        raise InputError(f"{where}: a whole number from 0 is wanted, not {_kind(value)}")
    return value


def _cores(value: Any, where: str) -> int:
    if _integer(value, where) == 0:
        raise InputError(f"{where}: a CPU has at least one core")
    return int(value)


def _boolean(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise InputError(f"{where}: true or false is wanted, not {_kind(value)}")
    return value


def _capability(value: Any, where: str) -> tuple[int, int]:
    capability = parse_capability(value) if isinstance(value, str) else None
    if capability is None:
        raise InputError(f'{where}: a compute capability is wanted, such as "9.0", not {_kind(value)}')
    return capability


def _read_unread(value: Any, where: str) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, Mapping):
        raise InputError(f"{where}: an object of field and reason is wanted, not {_kind(value)}")
    return tuple((key, _read_text(why, f"{where}.{key}")) for key, why in value.items())


def _optional(read: Callable[[Any, str], _T]) -> Callable[[Any, str], _T | None]:
    return lambda value, where: None if value is None else read(value, where)


def _list_of(read: Callable[[Any, str], _T]) -> Callable[[Any, str], tuple[_T, ...]]:
    def read_list(value: Any, where: str) -> tuple[_T, ...]:
        if not isinstance(value, list):
            raise InputError(f"{where}: a list is wanted, not {_kind(value)}")
        return tuple(read(item, f"{where}[{index}]") for index, item in enumerate(value))

    return read_list


def _read(kind: type[_T], document: Any, where: str) -> _T:
    """Read an object of `kind`, each field by its rule."""
    if not isinstance(document, Mapping):
        raise InputError(f"{where}: an object is wanted, not {_kind(document)}")
    rules = _FIELDS[kind]
    for key in document:
        if key not in rules:
            raise InputError(f"{where}: unknown key `{key}`", hint="known keys are " + ", ".join(rules))
    values = {key: rules[key](value, f"{where}.{key}") for key, value in document.items()}
    try:
        return kind(**values)
    except TypeError:
        known = dataclasses.fields(kind)  # type: ignore[arg-type]  # `_T` is not bound to dataclasses
        needed = [item.name for item in known if item.default is dataclasses.MISSING and item.name not in values]
        raise InputError(f"{where}: missing {', '.join(f'`{name}`' for name in needed)}") from None


_MAYBE_TEXT, _MAYBE_INTEGER = _optional(_read_text), _optional(_integer)
_TEXTS = _list_of(_read_text)
_DEVICE: dict[str, Callable[[Any, str], Any]] = {
    "index": _integer,
    "name": _MAYBE_TEXT,
    "uuid": _MAYBE_TEXT,
    "compute_capability": _optional(_capability),
    "total_bytes": _MAYBE_INTEGER,
    "free_bytes": _MAYBE_INTEGER,
    "cuda_index": _MAYBE_INTEGER,
    "reason": _MAYBE_TEXT,
    "unread": _read_unread,
}
_FIELDS: dict[type, dict[str, Callable[[Any, str], Any]]] = {
    GpuProcess: {"pid": _integer, "used_bytes": _MAYBE_INTEGER},
    MigInstance: {
        **_DEVICE,
        "profile": _MAYBE_TEXT,
        "gpu_instance": _MAYBE_INTEGER,
        "compute_instance": _MAYBE_INTEGER,
    },
    Gpu: {
        **_DEVICE,
        "pci_bus_id": _MAYBE_TEXT,
        "memory_source": _MAYBE_TEXT,
        "mig": _MAYBE_TEXT,
        "mig_instances": _list_of(partial(_read, MigInstance)),
        "ecc": _MAYBE_TEXT,
        "throttling": _TEXTS,
        "processes": _list_of(partial(_read, GpuProcess)),
        "virtualization": _MAYBE_TEXT,
        "warnings": _TEXTS,
    },
    Cpu: {
        "name": _read_text,
        "cores": _cores,
        "flags": lambda value, where: frozenset(_TEXTS(value, where)),
        "architecture": _read_text,
        "memory_total_bytes": _MAYBE_INTEGER,
        "memory_available_bytes": _MAYBE_INTEGER,
    },
    TorchBuild: {"version": _read_text, "accelerator": _read_text, "cuda": _MAYBE_TEXT},
    Machine: {
        "cpu": partial(_read, Cpu),
        "gpus": _list_of(partial(_read, Gpu)),
        "driver": _MAYBE_TEXT,
        "cuda": _MAYBE_TEXT,
        "reason": _MAYBE_TEXT,
        "torch": _optional(partial(_read, TorchBuild)),
        "cuda_visible_devices": _MAYBE_TEXT,
        "order_certain": _boolean,
        "warnings": _TEXTS,
    },
}
"""How each field of each class is read; a test holds it against the classes."""


def _kind(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return f"`{text}`" if len(text) <= 40 else f"`{text[:40]}...`"
