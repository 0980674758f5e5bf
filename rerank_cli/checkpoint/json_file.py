"""JSON files of a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rerank_cli.errors import ModelError


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
        return json.loads(path.read_bytes())
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not JSON: {error}") from error
