"""JSON files of a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rerank_cli.errors import ModelError

_MAX_BYTES = 100 * 2**20


def read_json_file(path: Path) -> dict[str, Any]:
    """The JSON object in a file; `ModelError` naming the file where it holds anything else."""
    value = _read(path)
    if not isinstance(value, dict):
        raise ModelError(f"{path}: not a JSON object")
    return value


def read_json_list(path: Path) -> list[Any]:
    """The JSON list in a file; else as `read_json_file`."""
    value = _read(path)
    if not isinstance(value, list):
        raise ModelError(f"{path}: not a JSON list")
    return value


def _read(path: Path) -> Any:
    try:
        with path.open("rb") as stream:
            data = stream.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise ModelError(f"{path}: more than {_MAX_BYTES:,} bytes, which no configuration has")
        return json.loads(data)
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not JSON: {error}") from error
