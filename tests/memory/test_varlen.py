"""The closed forms where a GPU's varlen kernel runs, against the storages of the very code on torch's meta device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from rerank_cli.checkpoint import Checkpoint
from rerank_cli.models import class_of
from rerank_cli.models.tracker import StorageTracker
from rerank_cli.planning.memory import BatchSize, MemoryModel, Placement, count_weights, estimate, read_model_shape
from rerank_cli.records import EncodedPair
from tests.memory.conftest import BERT_L12, LLAMA_1B, XLMR_LARGE, checkpoint_of, weights_of

FEW = {"num_hidden_layers": 2}
MIXED = sorted(np.random.default_rng(0).integers(20, 480, 290).tolist(), reverse=True)
BATCHES = {
    "equal": [512] * 64,
    "mixed": MIXED,
    "one-long": [8192] + [100] * 245,
    "one-long-and-crumbs": [8192] + [8] * 3072,  # `plan_batches` fills batches up so
}


def followed(config: Mapping[str, Any], lengths: Sequence[int]) -> tuple[int, Checkpoint]:
    checkpoint = Checkpoint(checkpoint_of(config).path, "made up", dict(config), {}, {}, blank=True)
    model = class_of(checkpoint.architecture)(
        checkpoint, device=torch.device("meta"), dtype=torch.float16, attention="varlen"
    )
    assert model.kernels.endswith("varlen")
    pairs = [EncodedPair(np.full(n, 5, dtype=np.int32), 3, n) for n in lengths]
    with torch.no_grad(), StorageTracker(weights_of(model)) as tracker:
        model.forward(pairs)
    return tracker.peak_bytes, checkpoint


def estimated(checkpoint: Checkpoint, lengths: Sequence[int]) -> int:
    shape = read_model_shape(checkpoint)
    model = MemoryModel(shape, count_weights(shape, None))
    return estimate(model, BatchSize.of(lengths), Placement(precision="fp16", capability=(9, 0))).forward


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("config", [LLAMA_1B, BERT_L12, XLMR_LARGE], ids=["llama", "bert", "xlmr"])
def test_a_forward_takes_what_was_estimated_whatever_the_lengths(config: Mapping[str, Any], batch: str) -> None:
    taken, checkpoint = followed({**config, **FEW}, BATCHES[batch])
    assert taken == pytest.approx(estimated(checkpoint, BATCHES[batch]), rel=0.05)
