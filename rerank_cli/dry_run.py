"""What a run would do: everything is read and tokenised, nothing is scored, weights are not loaded.

The expected time is the number of operations of the forward passes over the speed of a matrix product, measured for a
tenth of a second in the plan's precision; a whole forward reaches 65 to 80 % of it on a CPU (Zen 4, torch 2.13).
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rerank_cli.checkpoint import Checkpoint
from rerank_cli.counts import Counts
from rerank_cli.encoding import EncodingProblem
from rerank_cli.encoding.vision_config import read_vision_geometry
from rerank_cli.job_options import JobOptions
from rerank_cli.parts import encode_parts, image_counts
from rerank_cli.preparation import prepare
from rerank_cli.run_plan import Plan
from rerank_cli.windows import cut_windows

_SHARE_REACHED = 0.7
_MEASURED_SECONDS = 0.1
_TABLES = re.compile(r"embedding|embed_tokens|^lm_head\.")  # multiply no token: they are looked up in
_TOWER = re.compile(r"(^|\.)(vision_model|mlp1)\.")  # weights that images pass, and text does not


@dataclass(frozen=True, slots=True)
class DryRun:
    """What a run would do.

    tokens: length of each distinct pair before truncation, as percentiles. unscorable: distinct pairs that have no
    logit. seconds: a rough estimate.
    """

    counts: Counts
    tokens: dict[str, int]
    total_tokens: int
    truncated: int
    unscorable: int
    plan: Plan
    seconds: float
    gflops: float


def dry_run(options: JobOptions) -> DryRun:
    """Read and tokenise everything, score nothing: rows, pairs, lengths, truncations and an expected time."""
    prepared = prepare(options)
    counts = Counts()
    lengths: list[int] = []
    kept = squares = truncated = unscorable = 0
    for window in cut_windows(prepared.shape.group(prepared.items), max_pairs=prepared.plan.window_pairs):
        counts.rows_in += window.rows
        counts.rows_error += len(window.errors)
        counts.blank += window.blank
        counts.lists += len(window.lists)
        counts.pairs += sum(len(item.passages) for item in window.lists)
        times = Counter((item.limits, *pair) for item in window.lists for pair in item.pairs)
        pairs = list(times)
        for part in encode_parts(window, prepared.encoder):
            counts.pairs_scored += len(part.encoded)
            counts.add(image_counts(part.encoded))
            for place, entry in zip(part.members, part.encoded, strict=True):
                if isinstance(entry, EncodingProblem):
                    unscorable += 1
                    continue
                lengths.append(sum(pair.tokens for pair in entry))
                kept += sum(pair.kept_tokens for pair in entry)
                squares += sum(pair.kept_tokens**2 for pair in entry)
                truncated += times[pairs[place]] * any(pair.truncated for pair in entry)
                counts.retiled += times[pairs[place]] * any(pair.retiled for pair in entry)
    counts.tokens, counts.truncated = kept, truncated
    flops = forward_flops(prepared.checkpoint, tokens=kept, squares=squares, tiles=counts.tiles)
    speed = _gemm_speed(prepared.plan)
    percentiles = {f"p{q}": int(np.percentile(lengths, q)) for q in (0, 10, 50, 90, 99, 100)} if lengths else {}
    return DryRun(
        counts, percentiles, kept, truncated, unscorable, prepared.plan, flops / (_SHARE_REACHED * speed), speed / 1e9
    )


def forward_flops(checkpoint: Checkpoint, *, tokens: int, squares: int, tiles: int = 0) -> float:
    """Operations of an encoder: 2 per weight that multiplies tokens, and 4 * hidden per layer and squared length.

    A vision tower is such an encoder too, of the patches of its tiles.
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


def _gemm_speed(plan: Plan) -> float:
    """Operations a second of a matrix product in the plan's precision on its device, measured for a moment."""
    torch.set_num_threads(plan.threads)
    from rerank_cli.models import DTYPES

    dtype = DTYPES[plan.precision]
    a = torch.ones(1024, 1024, dtype=dtype, device=plan.device)
    torch.mm(a, a)
    began, rounds = time.perf_counter(), 0
    while time.perf_counter() - began < _MEASURED_SECONDS or rounds < 3:
        torch.mm(a, a).sum().item()
        rounds += 1
    return 2.0 * 1024**3 * rounds / (time.perf_counter() - began)
