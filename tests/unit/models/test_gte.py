from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from rerank_cli.checkpoint import read_checkpoint
from rerank_cli.errors import ModelError
from rerank_cli.models.gte import GteCrossEncoder

GOLDEN = Path(__file__).parents[2] / "parity" / "gte-multilingual-open" / "checkpoint"


def load(**config: Any) -> GteCrossEncoder:
    checkpoint = read_checkpoint(GOLDEN)
    checkpoint = dataclasses.replace(checkpoint, config={**checkpoint.config, **config})
    return GteCrossEncoder(checkpoint, device=torch.device("cpu"), dtype=torch.float32, attention="runs")


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"rope_scaling": {"type": "ntk", "factor": 8.0, "mixed_b": 0.25}}, "`rope_scaling` is not known"),
        ({"rope_scaling": {"type": "dynamic", "factor": 8.0}}, "`rope_scaling` is not known"),
        ({"rope_scaling": {"type": "ntk"}}, "`rope_scaling` is not known"),
        ({"rope_scaling": {"type": "ntk", "factor": -1.0}}, "`rope_scaling` is not known"),
        ({"rope_scaling": "ntk"}, "`rope_scaling` is not known"),
        ({"rope_parameters": {"rope_type": "linear"}}, "`rope_parameters` is not known"),
        ({"logn_attention_scale": True}, "`logn_attention_scale` is True"),
        ({"layer_norm_type": "rms_norm"}, "`layer_norm_type` is 'rms_norm'"),
        ({"pack_qkv": False}, "`pack_qkv` is False"),
        ({"position_embedding_type": "absolute"}, "`position_embedding_type` is 'absolute'"),
        ({"hidden_act": "mish"}, "activation `mish` is not known"),
        ({"num_attention_heads": 5}, "do not fit together"),
        ({"rope_theta": 0}, "do not fit together"),
    ],
)
def test_another_model_of_the_line_is_refused_by_its_key(config, why):
    with pytest.raises(ModelError) as caught:
        load(**config)
    assert why in caught.value.message


def test_the_frequencies_are_those_of_fixed_ntk():
    model = load(rope_theta=10_000, rope_scaling={"type": "ntk", "factor": 4.0})
    size = 12
    expected = [(10_000 * 4) ** (-2 * i / size) / 4 ** (2 / size) for i in range(size // 2)]
    assert model._frequencies.tolist() == pytest.approx(expected, rel=1e-6)
