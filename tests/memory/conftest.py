"""Models of any size without a checkpoint: weights are made up where they would be read, through our own reader."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rerank_cli.checkpoint import Checkpoint
from rerank_cli.models import RerankModel, class_of
from rerank_cli.models.weights import WeightReader
from rerank_cli.records import EncodedPair

LLAMA_1B: dict[str, Any] = {
    "architectures": ["LlamaBidirectionalForSequenceClassification"],
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 128256,
    "pooling": "avg",
    "id2label": {"0": "x"},
}
VL_1B: dict[str, Any] = {
    "architectures": ["LlamaNemotronVLForSequenceClassification"],
    "llm_config": {key: value for key, value in LLAMA_1B.items() if key not in ("architectures", "id2label")},
    "vision_config": {"hidden_size": 1152, "intermediate_size": 4304, "num_attention_heads": 16,
                      "num_hidden_layers": 27, "patch_size": 16, "image_size": 512},
    "force_image_size": 512,
    "downsample_ratio": 0.5,
    "ps_version": "v2",
    "pooling": "avg",
}  # fmt: skip
BERT_L12: dict[str, Any] = {
    "architectures": ["BertForSequenceClassification"],
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "vocab_size": 30522,
    "max_position_embeddings": 8192,
    "type_vocab_size": 2,
    "id2label": {"0": "x"},
}
XLMR_LARGE: dict[str, Any] = {
    "architectures": ["XLMRobertaForSequenceClassification"],
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "vocab_size": 250002,
    "max_position_embeddings": 8194,
    "type_vocab_size": 1,
    "pad_token_id": 1,
    "id2label": {"0": "x"},
}
MODERNBERT_BASE: dict[str, Any] = {
    "architectures": ["ModernBertForSequenceClassification"],
    "hidden_size": 768,
    "intermediate_size": 1152,
    "num_hidden_layers": 22,
    "num_attention_heads": 12,
    "vocab_size": 50368,
    "classifier_pooling": "mean",
    "id2label": {"0": "x"},
}
GTE_BASE: dict[str, Any] = {
    "architectures": ["NewForSequenceClassification"],
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "vocab_size": 250048,
    "type_vocab_size": 1,
    "rope_theta": 20000,
    "rope_scaling": {"type": "ntk", "factor": 8.0},
    "id2label": {"0": "x"},
}
QWEN3_SMALL: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151669,
}


def checkpoint_of(config: Mapping[str, Any], **changes: Any) -> Checkpoint:
    """A checkpoint of which there is nothing but config.json."""
    return Checkpoint(Path("nowhere"), "made up", {**config, **changes}, {}, {})


def pairs_of(lengths: Sequence[int]) -> list[EncodedPair]:
    """Pairs of these lengths."""
    return [EncodedPair(np.ones(length, dtype=np.int32), second_start=2, tokens=length) for length in lengths]


@pytest.fixture
def made_up_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """`WeightReader` gives tensors of the wanted shape and dtype; the checkpoint need not hold any."""

    def take(self: WeightReader, name: str, shape: Sequence[int], *, dtype: torch.dtype | None = None) -> torch.Tensor:
        return torch.full(tuple(shape), 0.01, dtype=dtype or self._dtype)

    monkeypatch.setattr(WeightReader, "take", take)
    monkeypatch.setattr(WeightReader, "finish", lambda self: None)


def build(checkpoint: Checkpoint, dtype: torch.dtype) -> RerankModel:
    """The model of a made-up checkpoint, on the CPU."""
    kind = class_of(checkpoint.architecture)
    model: RerankModel = kind(checkpoint, device=torch.device("cpu"), dtype=dtype, attention="runs")
    return model


def weights_of(model: object) -> list[torch.Tensor]:
    """Every tensor that a model holds, in whatever object it lies."""
    found: dict[int, torch.Tensor] = {}
    seen: set[int] = set()

    def visit(value: object) -> None:
        if id(value) in seen or isinstance(value, type):
            return
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            found[id(value)] = value
        elif isinstance(value, (list, tuple)):
            for item in value:
                visit(item)
        else:
            names = [*getattr(value, "__dict__", {}), *getattr(value, "__dataclass_fields__", {})]
            for name in names:
                visit(getattr(value, name))

    visit(model)
    return list(found.values())
