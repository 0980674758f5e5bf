"""A machine as the JSON document that `--fixture` reads."""

from __future__ import annotations

import dataclasses
from typing import Any

from rerank_cli.machine.detect import Machine
from rerank_cli.machine.fixture import SCHEMA
from rerank_cli.planning.profiles import show_capability


def machine_to_json(machine: Machine) -> dict[str, Any]:
    return {"schema": SCHEMA, **_to_json(machine)}


def _to_json(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        document = {item.name: _to_json(getattr(value, item.name)) for item in dataclasses.fields(value)}
        if "unread" in document:
            document["unread"] = dict(document["unread"])
        if document.get("compute_capability"):
            document["compute_capability"] = show_capability(tuple(document["compute_capability"]))
        return document
    if isinstance(value, frozenset):
        return sorted(value)
    return [_to_json(item) for item in value] if isinstance(value, tuple) else value
