"""What a run would do: everything is read and tokenised, nothing is scored, weights are not loaded.

The expected time is the number of operations of the forward passes over the speed of a matrix product, measured for a
tenth of a second in the plan's precision; a whole forward reaches 65 to 80 % of it on a CPU (Zen 4, torch 2.13).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from rerank_cli.encoding.encoder import EncodingProblem
from rerank_cli.job.image_parts import encode_parts, image_counts
from rerank_cli.job.options import JobOptions
from rerank_cli.job.prepare import prepare
from rerank_cli.job.windows import cut_windows
from rerank_cli.planning.run_plan import Plan
from rerank_cli.records import Counts
from rerank_cli.report.utilisation import forward_flops, matrix_speed

_SHARE_REACHED = 0.7


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
        bad = sum(error.passage is None for error in window.errors)
        counts.rows_error += bad
        counts.passages_error += len(window.errors) - bad
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
    speed = matrix_speed(prepared.plan) * max(1, len(prepared.plan.engines))
    percentiles = {f"p{q}": int(np.percentile(lengths, q)) for q in (0, 10, 50, 90, 99, 100)} if lengths else {}
    return DryRun(
        counts, percentiles, kept, truncated, unscorable, prepared.plan, flops / (_SHARE_REACHED * speed), speed / 1e9
    )
