"""Reads small files of a checkpoint, JSON above all, up to a limit in size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rerank_cli.errors import ModelError

_MAX_BYTES = 100 * 2**20


def read_json_file(path: Path) -> dict[str, Any]:
    """The JSON object in a file; `ModelError` if it holds anything else."""
    value = _read(path)
    if not isinstance(value, dict):
        raise ModelError(f"{path}: not a JSON object")
    return value


def read_json_list(path: Path) -> list[Any]:
    """The JSON list in a file; `ModelError` if it holds anything else."""
    value = _read(path)
    if not isinstance(value, list):
        raise ModelError(f"{path}: not a JSON list")
    return value


def read_bounded(path: Path, most: int, what: str) -> bytes:
    """All of a file; `ModelError` if it cannot be read or has more than `most` bytes. what: it is, for messages."""
    try:
        with path.open("rb") as stream:
            data = stream.read(most + 1)
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}") from error
    if len(data) > most:
        raise ModelError(f"{path}: more than {most:,} bytes, which no {what} has")
    return data


def _read(path: Path) -> Any:
    data = read_bounded(path, _MAX_BYTES, "configuration")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not JSON: {error}") from error
