"""The longest pair of a model, with and without the libraries of the encoders."""

from __future__ import annotations

from pathlib import Path

import pytest

from rerank_cli import encoding
from rerank_cli.checkpoint import locate_checkpoint, read_checkpoint
from rerank_cli.max_tokens import model_max_tokens

PARITY = Path(__file__).parents[1] / "parity"
CHECKPOINTS = [locate_checkpoint(None), *sorted(PARITY.glob("*/checkpoint"))]


@pytest.mark.parametrize("path", CHECKPOINTS, ids=lambda path: path.parent.name)
def test_planning_and_encoding_agree_on_the_longest_pair(path: Path) -> None:
    checkpoint = read_checkpoint(path)
    assert model_max_tokens(checkpoint) == encoding.model_max_tokens(checkpoint)
