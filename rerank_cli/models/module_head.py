"""The head of a bare encoder, as the modules of its checkpoint declare it (`checkpoint/declared`).

A Pooling, and then Dense, LayerNorm and Normalize in any order; the last Dense gives the score. Each module is a layer
of the head. The order, activations, biases and residuals are all read from the checkpoint.

Source of the maths: sentence-transformers 6.2, base/modules/dense.py and normalize.py, and
sentence_transformer/modules/layer_norm.py.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from rerank_cli.checkpoint import Checkpoint
from rerank_cli.checkpoint.declared import DeclaredLayerNorm, Dense, Module, Normalize
from rerank_cli.checkpoint.families import family_of
from rerank_cli.errors import ModelError
from rerank_cli.models.head import Head, dense
from rerank_cli.models.norms import read_norm
from rerank_cli.models.weights import WeightReader

_EPSILON = 1e-5  # torch's default, which the module keeps
_LEAST_LENGTH = 1e-12  # a shorter vector is divided by this


def prefix_of_names(checkpoint: Checkpoint, base: str) -> str:
    """What the names of an encoder's weights begin with: `base.`, which a bare encoder may leave out."""
    bare = family_of(checkpoint.architecture).headless
    return "" if bare and not any(name.startswith(f"{base}.") for name in checkpoint.tensors) else f"{base}."


def read_module_head(weights: WeightReader, checkpoint: Checkpoint, hidden: int) -> Head:
    """The head of a checkpoint whose modules give a score; `ModelError` where they do not fit together.

    hidden: channels of a token.
    """
    declared = checkpoint.declared
    if declared.pooling is None or not declared.head:
        raise ModelError(
            f"{checkpoint.path}: {checkpoint.architecture} has no head, and no modules.json declares one: it is an "
            "embedding model, or a model that is still to be trained",
            hint="a reranker has `...ForSequenceClassification` in config.json, or modules that end in scores",
        )
    size = hidden * len(declared.pooling.modes)
    layers: list[Callable[[Tensor], Tensor]] = []
    for module in declared.head:
        layer, size = _layer(weights, checkpoint, module, size)
        layers.append(layer)
    return Head(declared.pooling.modes, layers, skips_prompt=declared.pooling.skips_prompt)


def _layer(
    weights: WeightReader, checkpoint: Checkpoint, module: Module, size: int
) -> tuple[Callable[[Tensor], Tensor], int]:
    """A module as a layer for vectors of `size` channels, and how many channels its output has."""
    if isinstance(module, Normalize):
        return partial(F.normalize, dim=1, eps=_LEAST_LENGTH), size
    assert isinstance(module, (Dense, DeclaredLayerNorm)), "the reader of modules.json has checked the chain"
    wanted = module.inputs if isinstance(module, Dense) else module.size
    if wanted != size:
        raise ModelError(
            f"{checkpoint.path / module.folder / 'config.json'}: the module takes {wanted} channels, and what stands "
            f"before it gives {size}"
        )
    if isinstance(module, DeclaredLayerNorm):
        return read_norm(weights, f"{module.folder}/norm", size, _EPSILON, dtype=torch.float32), size
    linear = dense(weights, f"{module.folder}/linear", size, module.outputs, bias=module.bias)
    # A class of torch.nn; the reader of modules.json knows which names there may be.
    activate: Callable[[Tensor], Tensor] = getattr(torch.nn, module.activation)()
    adds, narrow = module.residual, None
    if adds and size != module.outputs:
        narrow = dense(weights, f"{module.folder}/residual", size, module.outputs, bias=False)

    def run(x: Tensor) -> Tensor:
        y = activate(linear(x))
        return y + (narrow(x) if narrow else x) if adds else y

    return run, module.outputs
