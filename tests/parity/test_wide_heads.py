"""Encoders with heads that the varlen kernel takes: what `tests/gpu` holds a GPU against is right on a CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rerank_cli.checkpoint import read_checkpoint
from rerank_cli.models import class_of, load_model
from tests.parity.wide import ENCODERS, wide_cases, wide_checkpoint


@pytest.mark.parametrize("name", ENCODERS)
def test_a_model_with_wider_heads_has_the_logits_of_transformers(name, tmp_path):
    path, pairs, expected = wide_cases(name, tmp_path)
    model = load_model(read_checkpoint(path), device="cpu", precision="fp32", attention="runs")
    with torch.inference_mode():
        found = np.concatenate([model.forward([pair]).numpy() for pair in pairs])
    assert np.abs(found - expected).max() <= 2e-4
    assert np.abs(expected).max() > 0.5


@pytest.mark.parametrize("name", ENCODERS)
def test_its_heads_meet_the_varlen_kernel(name, tmp_path):
    checkpoint = read_checkpoint(wide_checkpoint(name, tmp_path))
    family = class_of(checkpoint.architecture)
    model = family(checkpoint, device=torch.device("meta"), dtype=torch.float16, attention="varlen")
    assert model.kernels.endswith("varlen")
