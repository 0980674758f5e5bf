"""How much memory a forward really takes, by torch's allocator, to stand beside the estimate; and a layer's product.

On a GPU torch counts by itself. On a CPU it does not, but its profiler sees every allocation and release. What the
forward adds to the loaded model is counted; what libraries allocate past torch is in neither figure.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rerank_cli.checkpoint import Checkpoint
from rerank_cli.checkpoint.families import family_of
from rerank_cli.errors import ModelError
from rerank_cli.models import RerankModel, load_model
from rerank_cli.models.elementwise import Unfused
from rerank_cli.models.int8_linear import Int8Linear
from rerank_cli.models.linear import RowScaledFp8Linear, linear_kind, row_scaled_refusal
from rerank_cli.planning.profiles import ModelFacts
from rerank_cli.records import EncodedPair


@dataclass(frozen=True, slots=True)
class Measured:
    """Peaks of one forward.

    forward_bytes: beyond the loaded model. kernels: as in `RerankModel`. reserved_bytes: what the allocator holds; None
    on a CPU. total_bytes: all that this process takes of the device, its context included; None on a CPU.
    """

    device: str
    forward_bytes: int
    kernels: str
    reserved_bytes: int | None = None
    total_bytes: int | None = None


def layer_product(precision: str, device: str, *, rows: int, inputs: int, outputs: int) -> Callable[[], object]:
    """A function that multiplies as a layer of the models does in `precision` on `device`.

    Each call is 2 * rows * inputs * outputs operations of random numbers: a GPU is faster with zeros and ones, which
    take less power. For FP8 without such products it is that of bf16.
    """
    where = torch.device(device)
    if precision == "int8":
        rounded = Int8Linear(torch.ones(outputs, inputs), torch.zeros(outputs))
        whole = torch.zeros(rows, inputs, dtype=torch.uint8)
        return lambda: rounded(whole)
    dtype = {"fp32": torch.float32, "fp16": torch.float16}.get(precision, torch.bfloat16)
    weight, x = (torch.randn(size, inputs, dtype=dtype, device=where) for size in (outputs, rows))
    if precision == "fp8" and row_scaled_refusal(where) is None:
        product = RowScaledFp8Linear(weight, None, by=Unfused())
        values, scales = Unfused().quantise_rows(x)
        return lambda: product.multiply(values, scales)
    layer = linear_kind(where, dtype)(weight, None)
    return lambda: layer(x)


def blank_checkpoint(facts: ModelFacts) -> Checkpoint:
    """A checkpoint of the shape in a profile file, with zeros for weights; `ModelError` where none is told.

    Memory does not depend on the weights' values, so a model can be measured before it is fetched.
    """
    shape = facts.language
    if shape is None or family_of(facts.architecture).answers:
        raise ModelError(f"{facts.id}: its profile does not tell the shape of the model", hint="fetch its checkpoint")
    language: dict[str, Any] = {
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab_size,
        "max_position_embeddings": facts.max_tokens,
    }
    config: dict[str, Any] = {"architectures": [facts.architecture], "pooling": "avg", "id2label": {"0": "score"}}
    if vision := facts.vision:
        config["llm_config"] = language
        config["vision_config"] = {
            "hidden_size": vision.hidden_size,
            "intermediate_size": vision.intermediate_size,
            "num_hidden_layers": vision.layers,
            "num_attention_heads": vision.heads,
            "patch_size": vision.patch_size,
            "image_size": vision.image_size,
        }
        config["downsample_ratio"] = vision.tokens_per_tile**0.5 / (vision.image_size // vision.patch_size)
    else:
        config |= language
    return Checkpoint(Path(facts.id), facts.id, config, {}, {}, blank=True)


@torch.inference_mode()
def measure_forward(
    checkpoint: Checkpoint, lengths: Sequence[int], *, device: str, precision: str, attention: str, threads: int
) -> Measured:
    """Load the model and run pairs of these lengths through it, once to warm up and once to measure."""
    if device == "cpu":
        torch.set_num_threads(threads)
        model = load_model(checkpoint, device=device, precision=precision, attention=attention)
        pairs = _pairs(checkpoint, lengths)
        model.forward(pairs)
        return Measured(device, cpu_forward_peak(model, pairs), model.kernels)
    free_before = torch.cuda.mem_get_info(device)[0]
    model = load_model(checkpoint, device=device, precision=precision, attention=attention)
    pairs = _pairs(checkpoint, lengths)
    model.forward(pairs)
    loaded = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    model.forward(pairs)
    torch.cuda.synchronize(device)
    return Measured(
        device,
        forward_bytes=torch.cuda.max_memory_allocated(device) - loaded,
        reserved_bytes=torch.cuda.max_memory_reserved(device),
        total_bytes=free_before - torch.cuda.mem_get_info(device)[0],
        kernels=model.kernels,
    )


def _pairs(checkpoint: Checkpoint, lengths: Sequence[int]) -> list[EncodedPair]:
    """Pairs of any ids that the model knows, longest first as the engine hands them over."""
    draw = np.random.default_rng(0)
    language = checkpoint.within("llm_config") if family_of(checkpoint.architecture).images else checkpoint
    highest = max(3, language.integer("vocab_size"))
    return [
        EncodedPair(
            input_ids=draw.integers(2, highest, length, dtype=np.int32), second_start=length // 4, tokens=length
        )
        for length in sorted(lengths, reverse=True)
    ]


def cpu_forward_peak(model: RerankModel, pairs: Sequence[EncodedPair]) -> int:
    """The most bytes that torch's CPU allocator gave out during one forward, beyond what it had given out before."""
    from torch.profiler import ProfilerActivity, profile

    with _silent_stderr(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        model.forward(pairs)
    held = peak = 0
    assert profiler.profiler is not None, "it has been entered"
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Silence stderr: torch's profiler (2.13) writes there when it starts and stops, past Python, at any log level."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
