"""The bound for classifiers that transformers runs, against the storages that their own code keeps alive."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from rerank_cli.checkpoint import Checkpoint
from rerank_cli.models.tracker import padded_peak
from rerank_cli.planning.memory import BatchSize, Execution, peak, read_model_shape
from rerank_cli.planning.memory.shape import _FUSED, _SCORES

SIZES: dict[str, Any] = {
    "hidden_size": 384, "num_attention_heads": 6, "num_hidden_layers": 2, "intermediate_size": 1536,
    "vocab_size": 100, "max_position_embeddings": 1026, "type_vocab_size": 2, "pad_token_id": 0, "num_labels": 1,
}  # fmt: skip
DEBERTA = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "type_vocab_size": 0}
DEBERTA_V2 = {**DEBERTA, "position_buckets": 64, "share_att_key": True, "norm_rel_ebd": "layer_norm"}
DISTIL = {"dim": 384, "n_heads": 6, "n_layers": 2, "hidden_dim": 1536, "hidden_size": None,
          "num_attention_heads": None, "num_hidden_layers": None, "intermediate_size": None}  # fmt: skip
MODELS = {
    "Albert": ("albert", {"embedding_size": 64}),
    "DistilBert": ("distilbert", DISTIL),
    "Ernie": ("ernie", {}),
    "Gte": ("gte", {}),
    "XLMRobertaXL": ("xlm-roberta-xl", {}),
    "MPNet": ("mpnet", {}),
    "RoFormer": ("roformer", {}),
    "Deberta": ("deberta", DEBERTA),
    "DebertaV2": ("deberta-v2", DEBERTA_V2),
}


def checkpoint_of(name: str, folder: Path) -> Checkpoint:
    kind, more = MODELS[name]
    facts = {**SIZES, **more, "architectures": [f"{name}ForSequenceClassification"], "model_type": kind}
    config = {key: value for key, value in facts.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))
    return Checkpoint(folder, name, config, {}, {})


@pytest.mark.parametrize("name", MODELS)
def test_the_bound_holds_and_is_not_far_from_what_the_model_takes(name: str, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(name, tmp_path)
    shape = read_model_shape(checkpoint)
    assert (shape.hidden, shape.heads, shape.layers, shape.intermediate) == (384, 6, 2, 1536)
    for pairs, length in ((4, 512), (1, 1000)):
        taken = padded_peak(checkpoint, pairs=pairs, length=length, dtype=torch.float32)
        bound = peak(shape, BatchSize.of([length] * pairs), Execution(element=4)).total
        assert taken <= bound <= 1.8 * taken, (pairs, length)


def test_transformers_leaves_to_its_kernels_what_is_said_to_be_fused() -> None:
    known = {name: getattr(transformers, name)._supports_sdpa for name in (*_FUSED, *_SCORES)}
    assert {name for name, fused in known.items() if fused} == set(_FUSED)
