"""The memory model: how many bytes a run needs, before anything is loaded; arithmetic, without torch.

    model = MemoryModel.of_checkpoint(checkpoint)
    estimate(model, BatchSize.of([512] * 16), Placement(precision="fp16")).total

    total = engines x (weights + activations + attention workspace + vision + pooled outputs
                       + cuBLAS workspace + context + allocator slack + waiting batches + loading)
            + known pairs

weights      each tensor in the precision that it is held in       weight_bytes.py
peak         the most that one forward of our own holds at once    peak.py, from the sizes in shape.py and in pieces.py
constants    what only a device can tell, as data                  constants.py, constants.toml
published    what NVIDIA prints for its own runtime, beside ours   published.py
estimate     the sum, and the questions asked of it                estimate.py

The published figures are for another runtime (TensorRT engines, with activations about twice those of ours), so they
stand beside the estimate and are never part of it.
"""

from rerank_cli.planning.memory.constants import (
    KNOWN_PAIR_BYTES,
    KNOWN_PAIRS,
    DeviceConstants,
    cublas_workspace_bytes,
    device_constants,
)
from rerank_cli.planning.memory.estimate import (
    ELEMENT_BYTES,
    Estimate,
    MemoryModel,
    Placement,
    estimate,
    need_for,
)
from rerank_cli.planning.memory.peak import BatchSize, Execution, Moment, peak, takes_varlen
from rerank_cli.planning.memory.published import PublishedMemory, published_memory
from rerank_cli.planning.memory.shape import ModelShape, VisionShape, read_model_shape, shape_if_known, shape_of_profile
from rerank_cli.planning.memory.weight_bytes import Weights, count_weights, parameters

__all__ = [
    "ELEMENT_BYTES",
    "KNOWN_PAIRS",
    "KNOWN_PAIR_BYTES",
    "BatchSize",
    "DeviceConstants",
    "Estimate",
    "Execution",
    "MemoryModel",
    "ModelShape",
    "Moment",
    "Placement",
    "PublishedMemory",
    "VisionShape",
    "Weights",
    "count_weights",
    "cublas_workspace_bytes",
    "device_constants",
    "estimate",
    "need_for",
    "parameters",
    "peak",
    "published_memory",
    "read_model_shape",
    "shape_if_known",
    "shape_of_profile",
    "takes_varlen",
]
