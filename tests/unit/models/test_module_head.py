from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from rerank_cli.checkpoint import read_checkpoint
from rerank_cli.errors import ModelError
from rerank_cli.models import load_model
from rerank_cli.models.packed import pack
from rerank_cli.models.pooling import POOLINGS, pool
from rerank_cli.records import EncodedPair

GOLDEN = Path(__file__).parents[2] / "parity" / "ettin-open" / "checkpoint"


def pairs(*lengths: int) -> list[EncodedPair]:
    return [EncodedPair(np.arange(length, dtype=np.int32) + 5, length, length) for length in lengths]


def load(folder: Path) -> Any:
    return load_model(read_checkpoint(folder), device="cpu", precision="fp32", attention="runs")


@pytest.fixture
def ettin(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN, tmp_path / "ettin"))


def change(path: Path, **facts: Any) -> None:
    found = json.loads(path.read_text()) | facts
    path.write_text(json.dumps({key: value for key, value in found.items() if value is not None}))


@pytest.mark.parametrize("mode", POOLINGS)
def test_a_pooling_is_what_its_name_says(mode):
    batch = pack(pairs(9, 9, 4, 1), device=torch.device("cpu"))
    x = torch.randn(len(batch.input_ids), 6)
    start, expected = 0, []
    for length in batch.lengths:
        tokens = x[start : start + length]
        weights = torch.arange(1, length + 1, dtype=torch.float32)[:, None]
        expected.append(
            {
                "cls": tokens[0],
                "lasttoken": tokens[-1],
                "mean": tokens.mean(0),
                "mean_sqrt_len_tokens": tokens.sum(0) / length**0.5,
                "weightedmean": (tokens * weights).sum(0) / weights.sum(),
                "max": tokens.max(0).values,
            }[mode]
        )
        start += length
    assert torch.allclose(pool(x, batch, [mode]), torch.stack(expected), atol=1e-6)
    assert pool(x, batch, [mode, "cls"]).shape == (4, 12)


def test_keys_with_the_prefix_of_the_base_model_are_read_too(ettin):
    plain = load(ettin).forward(pairs(12, 7))
    tensors = load_file(ettin / "model.safetensors")
    save_file({f"model.{name}": tensor for name, tensor in tensors.items()}, ettin / "model.safetensors")
    assert torch.equal(load(ettin).forward(pairs(12, 7)), plain)


@pytest.mark.parametrize(
    ("break_it", "why"),
    [
        (lambda path: (path / "modules.json").unlink(), "modules.json"),
        (lambda path: change(path / "2_Dense" / "config.json", in_features=40), "2_Dense"),
        (lambda path: change(path / "3_LayerNorm" / "config.json", dimension=40), "3_LayerNorm"),
        (lambda path: change(path / "1_Pooling" / "config.json", pooling_mode=["cls", "max"]), "takes 48 channels"),
        (lambda path: change(path / "2_Dense" / "config.json", bias=True), "2_Dense/linear.bias"),
        (lambda path: change(path / "4_Dense" / "config.json", bias=False), "4_Dense/linear.bias"),
        (lambda path: (path / "4_Dense" / "model.safetensors").unlink(), "4_Dense"),
    ],
)
def test_a_head_that_does_not_fit_is_refused_by_name(ettin, break_it: Callable[[Path], Any], why):
    break_it(ettin)
    with pytest.raises(ModelError) as caught:
        load(ettin)
    assert why in caught.value.message + (caught.value.hint or "")


def test_the_head_is_in_float32_whatever_the_layers_are(ettin):
    model = load_model(read_checkpoint(ettin), device="cpu", precision="bf16", attention="runs")
    logits = model.forward(pairs(*range(40, 4, -1)))
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, logits.bfloat16().float())
