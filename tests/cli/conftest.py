"""What the command-line tests share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_model() -> str:
    """A real BERT cross-encoder of 2 layers and 48 channels, random weights: loads and scores in milliseconds."""
    return str(Path(__file__).parents[1] / "parity" / "bert-ce-open" / "checkpoint")
