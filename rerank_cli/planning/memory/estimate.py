"""Bytes that a model needs at one point: a batch, a precision, a device.

    estimate(model, batch, place)   every part by itself, and the total
    need_for(model)                 the total, as `select_profile` asks for it

The total never falls when batch, length or engines grow. Every engine is a process of its own, so everything but the
scores that the run keeps is multiplied by their number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from rerank_cli.checkpoint import Checkpoint
from rerank_cli.machine.cpu import Cpu
from rerank_cli.machine.gpu import FLASH_CAPABILITY, FP8_CAPABILITY, CudaDevice
from rerank_cli.planning.cpu_kernels import AMX, cpu_attention
from rerank_cli.planning.memory.constants import (
    KNOWN_PAIR_BYTES,
    KNOWN_PAIRS,
    DeviceConstants,
    cublas_workspace_bytes,
    device_constants,
)
from rerank_cli.planning.memory.peak import (
    BatchSize,
    Execution,
    input_bytes,
    peak,
    pixel_bytes,
    takes_varlen,
    tower_peak,
)
from rerank_cli.planning.memory.pieces import AHEAD, BATCH_TILES, PART_IMAGES
from rerank_cli.planning.memory.shape import ModelShape, read_model_shape, shape_of_profile
from rerank_cli.planning.memory.weight_bytes import Weights, count_weights
from rerank_cli.planning.profiles import Capability, ModelFacts

_FLOAT = 4
ELEMENT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 2, "int8": 2}
"""Bytes of an activation, and of a weight once loaded: 8-bit weights are dequantised to 16 bits on a GPU.

Except the weights of products in FP8, which take one byte (`Placement.fp8`). On a CPU int8 is calibrated in float32,
with weights in float32: they are its peak.
"""


@dataclass(frozen=True, slots=True)
class MemoryModel:
    """What the memory model knows of a model."""

    shape: ModelShape
    weights: Weights

    @classmethod
    def of_checkpoint(cls, checkpoint: Checkpoint) -> MemoryModel:
        """Of a checkpoint's config.json and the headers of its weights."""
        shape = read_model_shape(checkpoint)
        return cls(shape, count_weights(shape, checkpoint))

    @classmethod
    def of_profile(cls, facts: ModelFacts) -> MemoryModel:
        """Of the shape in a profile file; `ModelError` where there is none."""
        shape = shape_of_profile(facts)
        return cls(shape, count_weights(shape, None))


@dataclass(frozen=True, slots=True)
class Placement:
    """Where and how a model runs.

    cores: threads of a CPU. A capability of None is taken for a recent GPU. lanes: batches that an engine computes side
    by side. attention: of a CPU (`planning/cpu_kernels.py`).
    """

    cpu: bool = False
    precision: str = "fp16"
    sku: str | None = None
    capability: Capability | None = None
    cores: int = 1
    engines: int = 1
    lanes: int = 1
    attention: str = "runs"

    def execution(self, shape: ModelShape) -> Execution:
        """How the forward runs there, as `models/__init__.py` and `models/attention.py` decide it."""
        element = ELEMENT_BYTES[self.precision]
        if not self.cpu:
            old = self.capability is not None and self.capability < FLASH_CAPABILITY
            flash = not old and element != _FLOAT
            varlen = flash and takes_varlen(shape.head_size)
            return Execution(element=element, repeats_heads=not flash, varlen=varlen, side_by_side=True)
        llama = shape.forward in ("llama", "vl")
        products = self.attention == "products"
        amx = self.attention == AMX
        if self.precision == "int8":
            return Execution(element=_FLOAT, fused=True, products=products, threads=self.cores)
        # oneDNN's layers take float32 anywhere and bfloat16 where a CPU has it; Llama's take float32 alone.
        fused = self.precision == "fp32" or (self.precision == "bf16" and not llama)
        return Execution(element=element, fused=fused, products=products, threads=self.cores, amx=amx)

    def fp8(self, weights: Weights) -> bool:
        """The products are in FP8 there, as `models/llama.py` and `models/linear.py` decide it."""
        if self.cpu:
            return self.precision == "fp8" and not weights.stored.matrices
        if self.capability is not None and self.capability < FP8_CAPABILITY:
            return False
        if weights.stored.matrices:
            return ELEMENT_BYTES[self.precision] != _FLOAT
        return self.precision == "fp8" and weights.products.matrices > 0

    @property
    def constants(self) -> DeviceConstants:
        """Context and slack of the device."""
        return device_constants(self.sku, cpu=self.cpu)


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bytes of one engine by what holds them, the number of engines, and the bytes of all together.

    activations, attention_workspace: at the peak of the forward. vision: image embeddings and pixels, and what the
    tower needs beyond the peak of the language model; the two do not run at once. pooled: what comes out of the layers.
    waiting: ids or tiles of batches that a GPU has and has not begun. loading: what rounding the weights to FP8 needs
    beyond a forward.
    known_pairs: scores that a run on a CPU keeps, once for all engines; the cache of a store is no larger.
    lanes: forwards at a time. Images are seen by one tower for all of them, and counted with each: a cautious figure.
    """

    weights: int
    activations: int
    attention_workspace: int
    vision: int
    pooled: int
    cublas_workspace: int
    context: int
    slack: int
    waiting: int = 0
    loading: int = 0
    known_pairs: int = 0
    engines: int = 1
    lanes: int = 1

    @property
    def forward(self) -> int:
        """What one forward needs beside the weights."""
        return self.activations + self.attention_workspace + self.vision + self.pooled

    @property
    def total(self) -> int:
        """Bytes of all engines together."""
        one = self.weights + self.lanes * self.forward + self.cublas_workspace + self.context + self.slack
        one += self.waiting + self.loading
        return one * self.engines + self.known_pairs


def estimate(model: MemoryModel, batch: BatchSize, place: Placement, *, tiles: int = 0) -> Estimate:
    """What `model` needs for `batch` at `place`. tiles: of all images of the batch together."""
    shape, constants, fp8 = model.shape, place.constants, place.fp8(model.weights)
    how = replace(place.execution(shape), fp8=fp8)
    moment = peak(shape, batch, how)
    vision = pixels = 0
    if shape.vision is not None and tiles:
        pixels = pixel_bytes(shape.vision, min(tiles, BATCH_TILES))
        vision = how.element * tiles * shape.vision.tokens_per_tile * shape.hidden  # a vector for each token of a tile
        if how.threads:
            vision += pixel_bytes(shape.vision, tiles)  # a GPU sees a batch of them at a time
        vision += max(moment.total, tower_peak(shape.vision, tiles, how)) - moment.total
    pooled = _FLOAT * batch.pairs * (shape.hidden + 1)
    forward = moment.total + vision + pooled
    return Estimate(
        weights=model.weights.size_bytes(how.element, fp8=fp8),
        activations=moment.total - moment.attention_workspace,
        attention_workspace=moment.attention_workspace,
        vision=vision,
        pooled=pooled,
        cublas_workspace=0 if place.cpu else cublas_workspace_bytes(place.capability),
        context=constants.context_bytes,
        slack=constants.slack_bytes + int(constants.slack_share * forward * place.lanes),
        waiting=0 if place.cpu else AHEAD * max(input_bytes(batch), pixels),
        loading=max(0, model.weights.loading_bytes(fp8=fp8) - forward),
        known_pairs=KNOWN_PAIRS * KNOWN_PAIR_BYTES if place.cpu else 0,
        engines=place.engines,
        lanes=place.lanes,
    )


def need_for(model: MemoryModel, *, cpu: Cpu | None = None, lanes: int = 1) -> Callable[..., int]:
    """The memory model as `profiles.select_profile` asks it; satisfies `profiles.MemoryNeed`.

    A batch of a token budget is taken at its hungriest: pairs of every length, and for a model with vision as many
    tiles as its tokens can hold, or as the tower sees before the batches of a part. cpu: of the machine. lanes: of each
    engine.
    """

    def need(gpu: CudaDevice | None, *, precision: str, max_tokens: int, token_budget: int, engines: int) -> int:
        place = Placement(
            cpu=gpu is None,
            precision=precision,
            sku=gpu.sku if gpu else None,
            capability=gpu.compute_capability if gpu else None,
            cores=cpu.cores if cpu else 1,
            engines=engines,
            lanes=lanes,
            attention=cpu_attention(cpu, precision, model.shape) if cpu else "runs",
        )
        vision = model.shape.vision
        tiles = 0
        if vision:
            tiles = max(max(token_budget, max_tokens) // vision.tokens_per_tile, PART_IMAGES * vision.tiles())
        return estimate(model, BatchSize.within(token_budget, max_tokens), place, tiles=tiles).total

    return need
