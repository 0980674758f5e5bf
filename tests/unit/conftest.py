"""Tiny checkpoints with something changed, for the tests of the model families."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

PARITY = Path(__file__).parents[1] / "parity"

Change = Callable[[dict[str, Tensor]], object]


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., Path]:
    """Copies a golden checkpoint.

    tiny("bert", config={...}, tokenizer_config={...}, weights=change): a value None takes the key away; `change` edits
    the tensors in place.
    """

    def copy(
        family: str,
        *,
        config: Mapping[str, Any] | None = None,
        tokenizer_config: Mapping[str, Any] | None = None,
        weights: Change | None = None,
    ) -> Path:
        folder = tmp_path / f"{family}-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(PARITY / f"{family}-ce-open" / "checkpoint", folder)
        for name, changes in (("config.json", config), ("tokenizer_config.json", tokenizer_config)):
            facts = json.loads((folder / name).read_text()) | dict(changes or {})
            (folder / name).write_text(json.dumps({key: value for key, value in facts.items() if value is not None}))
        if weights:
            tensors = load_file(folder / "model.safetensors")
            weights(tensors)
            save_file(tensors, folder / "model.safetensors")
        return folder

    return copy
