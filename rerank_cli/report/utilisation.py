"""The operations of a run's forward passes, and the speed of a device in a plain matrix product.

Operations by the time that computing took, as a share of that speed, tell how well a device was used. Operations are
counted from the shapes of the weights: a kernel that gets along with fewer counts as fast.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

from rerank_cli.checkpoint import Checkpoint
from rerank_cli.encoding.vision_config import read_vision_geometry
from rerank_cli.planning.run_plan import Plan

_MEASURED_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class _Product:
    """What a device's speed is measured with. at_once: products between two waits for the device."""

    rows: int
    channels: int
    at_once: int


_ON_CPU = _Product(2048, 1024, 1)  # as many rows as a batch on a CPU has tokens
# Fewer rows and a wait after each product reach a half to a quarter of an H100's speed: every utilisation would look
# good. Ten are some 15 ms there.
_ON_GPU = _Product(8192, 8192, 10)

# Weights that multiply no token: rows are looked up in them, or they multiply one vector a pair.
_TABLES = re.compile(r"embedding|embed_tokens|^lm_head\.|pooler|^classifier|^score\.")
_TOWER = re.compile(r"(^|\.)(vision_model|mlp1)\.")  # weights for images only


def forward_flops(checkpoint: Checkpoint, *, tokens: int, squares: int, tiles: int = 0) -> float:
    """Operations of an encoder: 2 per weight and token, and 4 * hidden size per layer and squared length.

    A vision tower counts as an encoder of the patches of its tiles.
    """
    towers = [name for name in checkpoint.tensors if _TOWER.search(name)]
    flops = 0.0
    if towers:
        vision = checkpoint.within("vision_config")
        patches = read_vision_geometry(checkpoint).patches
        flops = _encoder_flops(vision, towers, tokens=tiles * patches, squares=tiles * patches**2)
        checkpoint = checkpoint.within("llm_config")
    others = [name for name in checkpoint.tensors if not _TOWER.search(name)]
    return flops + _encoder_flops(checkpoint, others, tokens=tokens, squares=squares)


def _encoder_flops(part: Checkpoint, names: Sequence[str], *, tokens: int, squares: int) -> float:
    shapes = [part.tensors[name].shape for name in names if not _TABLES.search(name)]
    weights = sum(shape[0] * shape[1] for shape in shapes if len(shape) == 2)
    layers, hidden = part.integer("num_hidden_layers", 1), part.integer("hidden_size", 1)
    return 2.0 * weights * tokens + 4.0 * hidden * layers * squares


def matrix_speed(plan: Plan) -> float:
    """Operations a second of a matrix product, measured for 0.1 s in the plan's precision on its device.

    On a CPU it is a layer's, on a GPU one that is large enough for its limit.
    """
    import torch  # not at the top: starting a finished run again must not wait for it

    from rerank_cli.models.measure import layer_product

    torch.set_num_threads(plan.threads)
    size = _ON_CPU if plan.device == "cpu" else _ON_GPU
    with torch.inference_mode():
        product = layer_product(
            plan.precision, plan.device, rows=size.rows, inputs=size.channels, outputs=size.channels
        )
        product()
        _settle(plan.device)
        began, done = time.perf_counter(), 0
        while time.perf_counter() - began < _MEASURED_SECONDS or done < 3:
            for _ in range(size.at_once):
                product()
            _settle(plan.device)
            done += size.at_once
        return 2.0 * size.rows * size.channels**2 * done / (time.perf_counter() - began)


def _settle(device: str) -> None:
    """Wait until a GPU has finished computing."""
    import torch

    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
