"""Bytes of a loaded model: each tensor of the checkpoint in the precision that it is held in.

`models/weights.py` converts every tensor to the run's precision as it reads it; 8-bit weights are dequantised then, so
an 8-bit checkpoint is no smaller once it is loaded. Heads and Llama's norms stay in float32. What a family does not use
is not loaded. Without a checkpoint the tensors follow from the shape.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from rerank_cli.checkpoint import Checkpoint
from rerank_cli.memory.shape import Family, ModelShape

_FLOAT = 4
_KEPT_WIDE: dict[Family, re.Pattern[str]] = {
    "bert": re.compile(r"^(bert\.pooler\.dense|classifier)\."),
    "roberta": re.compile(r"^classifier\."),
    "modernbert": re.compile(r"^(head|classifier)\."),
    "llama": re.compile(r"norm\.weight$|^score\."),
    "vl": re.compile(r"language_model\..*norm\.weight$|^score\."),
}
"""Weights in float32 whatever the precision."""
_NOT_LOADED = re.compile(
    r"(^|\.)(position_ids|token_type_ids|rotary_emb\.inv_freq|num_batches_tracked)$"
    r"|^lm_head\.weight$|^roberta\.pooler\.|vision_model\.head\."
    r"|\.(scale|zero|weight_scale|input_scale|k_scale|v_scale)$"
)
_HELD_AS_THEY_ARE = {"I64", "I32", "I16", "BOOL"}


@dataclass(frozen=True, slots=True)
class Weights:
    """Numbers of a model's weights. narrow: held in the precision of the run. wide: in float32 whatever it is."""

    narrow: int
    wide: int

    def size_bytes(self, element: int) -> int:
        """Bytes with `element` bytes for each narrow one."""
        return self.narrow * element + self.wide * _FLOAT


def count_weights(shape: ModelShape, checkpoint: Checkpoint | None) -> Weights:
    """The weights that are loaded: by the headers of the checkpoint, or without one by the shape."""
    if checkpoint is None:
        wide = wide_parameters(shape)
        return Weights(parameters(shape) - wide, wide)
    kept_wide = _KEPT_WIDE.get(shape.family)
    narrow = wide = 0
    for name, info in checkpoint.tensors.items():
        if info.dtype in _HELD_AS_THEY_ARE or _NOT_LOADED.search(name):
            continue
        size = math.prod(info.shape)
        if kept_wide is not None and kept_wide.search(name):
            wide += size
        else:
            narrow += size
    return Weights(narrow, wide)


def parameters(shape: ModelShape) -> int:
    """Weights that a model of this shape loads."""
    h, i, layers = shape.hidden, shape.intermediate, shape.layers
    if shape.family in ("llama", "vl"):
        qwen = shape.architecture == "Qwen2ForCausalLM"
        attention = 2 * h * shape.queries + 2 * h * shape.keys + (shape.queries + 2 * shape.keys) * qwen
        vision = shape.vision.parameters if shape.vision else 0
        return shape.vocabulary * h + layers * (attention + 3 * h * i) + vision + wide_parameters(shape)
    if shape.family == "modernbert":
        return shape.vocabulary * h + layers * (4 * h * h + 3 * h * i + 2 * h) + h + wide_parameters(shape)
    tables = (shape.vocabulary + shape.positions + shape.types + 2) * h
    return tables + layers * (4 * (h + 1) * h + (2 * h + 1) * i + 5 * h) + wide_parameters(shape)


def wide_parameters(shape: ModelShape) -> int:
    """Those in float32 whatever the precision: heads, and Llama's norms."""
    h = shape.hidden
    if shape.family in ("llama", "vl"):
        scores = shape.architecture.endswith("ForSequenceClassification")
        return (2 * shape.layers + 1 + scores) * h + 2 * shape.layers * shape.head_size * shape.head_norms
    return h * h + 2 * h + 1  # dense with its bias (ModernBERT: a norm instead), and one logit
