"""Bytes of a loaded model: each tensor of the checkpoint in the precision that it is held in.

`models/weights.py` converts every tensor to the run's precision as it reads it; 8-bit weights are dequantised then, so
an 8-bit checkpoint is no smaller once it is loaded. Heads and Llama's norms stay in float32. What a family does not use
is not loaded. Without a checkpoint the tensors follow from the shape.

The products of a Llama's layers are the exception, where a device multiplies in FP8 (`models/linear.py`): they take a
byte a weight, and their scales. With `--precision fp8` each is rounded when it is loaded, with a scale for every row,
and the matrix in 16 bits is held beside it meanwhile, one at a time. A checkpoint in FP8 brings them as they are, with
two scales each. Embeddings, biases, norms, heads and vision towers are never in FP8.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from rerank_cli.checkpoint import Checkpoint
from rerank_cli.checkpoint.families import Forward
from rerank_cli.planning.memory.pieces import CHUNK, FP8_MULTIPLE
from rerank_cli.planning.memory.shape import ModelShape

_FLOAT = 4
_FP8 = "F8_E4M3"
_PRODUCT = re.compile(r"^(?!.*vision_model\.).*layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)\.weight$")
_KEPT_WIDE: dict[Forward, re.Pattern[str]] = {
    "bert": re.compile(r"^(bert\.pooler\.dense|classifier)\.|/"),
    "roberta": re.compile(r"^classifier\.|/"),
    "electra": re.compile(r"^classifier\.|/"),
    "modernbert": re.compile(r"^(head|classifier)\.|/"),
    "gte": re.compile(r"^(new\.pooler\.dense|classifier)\."),
    "llama": re.compile(r"norm\.weight$|^score\."),
    "vl": re.compile(r"language_model\..*norm\.weight$|^score\."),
}
"""Weights in float32 whatever the precision; those with a `/` are of modules in folders of their own."""
_NOT_LOADED = re.compile(
    r"(^|\.)(position_ids|token_type_ids|rotary_emb\.inv_freq|num_batches_tracked)$"
    r"|^lm_head\.weight$|^(roberta\.|electra\.)?pooler\.|vision_model\.head\."
    r"|\.(scale|zero|weight_scale|input_scale|k_scale|v_scale)$"
)
_HELD_AS_THEY_ARE = {"I64", "I32", "I16", "BOOL"}


@dataclass(frozen=True, slots=True)
class Products:
    """The matrices, each [outputs, inputs], that can be held in FP8.

    numbers: elements of all of them. rows: outputs of all of them. matrices: how many there are. rounding: the most
    bytes that are held beside the model while one of them is rounded: itself in 16 bits, and some of its rows in
    float32, twice.
    """

    numbers: int = 0
    rows: int = 0
    matrices: int = 0
    rounding: int = 0

    @classmethod
    def of(cls, shapes: Iterable[tuple[int, ...]]) -> Products:
        """Those of `shapes` that the kernel takes."""
        fitting = [(rows, columns) for rows, columns in shapes if not (rows % FP8_MULTIPLE or columns % FP8_MULTIPLE)]
        return cls(
            numbers=sum(rows * columns for rows, columns in fitting),
            rows=sum(rows for rows, _ in fitting),
            matrices=len(fitting),
            rounding=max(
                (columns * (2 * rows + 2 * _FLOAT * min(rows, CHUNK)) for rows, columns in fitting), default=0
            ),
        )


@dataclass(frozen=True, slots=True)
class Weights:
    """Numbers of a model's weights. narrow: held in the precision of the run. wide: in float32 whatever it is.

    products: those of the narrow ones that can be rounded to FP8 when they are loaded. stored: those that are in FP8 in
    the checkpoint; where there are such, nothing is rounded.
    """

    narrow: int
    wide: int
    products: Products = Products()
    stored: Products = Products()

    def size_bytes(self, element: int, *, fp8: bool = False) -> int:
        """Bytes with `element` bytes for each narrow one. fp8: the device multiplies in FP8 what can be."""
        size = self.narrow * element + self.wide * _FLOAT
        if not fp8:
            return size
        if self.stored.matrices:
            return size - self.stored.numbers * (element - 1) + 2 * _FLOAT * self.stored.matrices
        return size - self.products.numbers * (element - 1) + _FLOAT * self.products.rows

    def loading_bytes(self, *, fp8: bool = False) -> int:
        """The most bytes that are held beside the model while it is loaded; fp8: as in `size_bytes`."""
        return self.products.rounding if fp8 and not self.stored.matrices else 0


def count_weights(shape: ModelShape, checkpoint: Checkpoint | None) -> Weights:
    """The weights that are loaded: by the headers of the checkpoint, or without one by the shape."""
    llama = shape.forward in ("llama", "vl")
    if checkpoint is None:
        wide = wide_parameters(shape)
        h, i, q, k = shape.hidden, shape.intermediate, shape.queries, shape.keys
        matrices = [(q, h), (k, h), (k, h), (h, q), (i, h), (i, h), (h, i)] * shape.layers  # each (outputs, inputs)
        return Weights(parameters(shape) - wide, wide, Products.of(matrices if llama else []))
    kept_wide = _KEPT_WIDE.get(shape.forward)
    narrow = wide = 0
    for name, info in checkpoint.tensors.items():
        if info.dtype in _HELD_AS_THEY_ARE or _NOT_LOADED.search(name):
            continue
        size = math.prod(info.shape)
        if kept_wide is not None and kept_wide.search(name):
            wide += size
        else:
            narrow += size
    products = [info for name, info in checkpoint.tensors.items() if llama and _PRODUCT.search(name)]
    stored = Products.of(info.shape for info in products if info.dtype == _FP8)
    return Weights(narrow, wide, Products.of(info.shape for info in products), stored)


def parameters(shape: ModelShape) -> int:
    """Weights that a model of this shape loads."""
    h, i, layers = shape.hidden, shape.intermediate, shape.layers
    if shape.forward in ("llama", "vl"):
        qwen = shape.architecture.startswith("Qwen2For")
        attention = 2 * h * shape.queries + 2 * h * shape.keys + (shape.queries + 2 * shape.keys) * qwen
        vision = shape.vision.parameters if shape.vision else 0
        return shape.vocabulary * h + layers * (attention + 3 * h * i) + vision + wide_parameters(shape)
    if shape.forward == "gte":
        table = (shape.vocabulary + shape.types + 2) * h
        return table + layers * (4 * (h + 1) * h + 3 * h * i + 5 * h) + wide_parameters(shape)
    if shape.forward == "modernbert":
        return shape.vocabulary * h + layers * (4 * h * h + 3 * h * i + 2 * h) + h + wide_parameters(shape)
    tables = (shape.vocabulary + shape.positions + shape.types + 2) * h
    return tables + layers * (4 * (h + 1) * h + (2 * h + 1) * i + 5 * h) + wide_parameters(shape)


def wide_parameters(shape: ModelShape) -> int:
    """Those in float32 whatever the precision: heads, and Llama's norms."""
    h = shape.hidden
    if shape.forward in ("llama", "vl"):
        scores = shape.architecture.endswith("ForSequenceClassification")
        return (2 * shape.layers + 1 + scores) * h + 2 * shape.layers * shape.head_size * shape.head_norms
    return h * h + 2 * h + 1  # dense with its bias (ModernBERT: a norm instead), and one logit
