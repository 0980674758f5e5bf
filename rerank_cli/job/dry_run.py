"""What a run would do: everything is read and tokenised, but nothing is scored and no weights are loaded.

The expected time is the number of operations of the forward passes, divided by the speed of a matrix product that is
measured for a tenth of a second in the plan's precision; on a CPU a whole forward pass reaches 65 to 80 % of that speed
(Zen 4, torch 2.13). For a card that is not here it is calculated (`planning/card_time.py`), without the program's
start.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rerank_cli.encoding.encoder import EncodingProblem
from rerank_cli.errors import UsageError
from rerank_cli.job.duplicates import count_duplicates
from rerank_cli.job.first_scorer import Asked, least_of_second, read_asked
from rerank_cli.job.image_parts import EncodedPart, encode_parts
from rerank_cli.job.options import JobOptions
from rerank_cli.job.prepare import Prepared, find_known, prepare
from rerank_cli.job.ranking import ScoredPart, image_counts, join_parts, rank_window, without_pixels
from rerank_cli.job.windows import cut_windows, wanted_of
from rerank_cli.journal.store_log import probe
from rerank_cli.machine.detect import Machine, describe_machine
from rerank_cli.planning.card_time import PairLengths, PairTime
from rerank_cli.planning.compare_cards import time_of_plan
from rerank_cli.planning.run_plan import Plan, needed_together, plan_model
from rerank_cli.records import Counts, RowError
from rerank_cli.report.observations import UnknownTokens
from rerank_cli.report.utilisation import forward_flops, matrix_speed
from rerank_cli.storage import UrlPath, is_on_hub
from rerank_cli.storage.upload import refuse_unwritable

_SHARE_REACHED = 0.7


@dataclass(frozen=True, slots=True)
class DryRun:
    """What a run would do."""

    counts: Counts
    tokens: dict[str, int]
    """Percentiles of the lengths of distinct pairs before truncation."""
    total_tokens: int
    truncated: int
    unscorable: int
    """Distinct pairs that cannot get a logit."""
    plan: Plan
    seconds: float
    """A rough estimate."""
    gflops: float
    first_error: tuple[str, int, str] | None = None
    """File, row and message of the first bad row."""
    elsewhere: tuple[Elsewhere, ...] = ()
    """The same run on other cards."""
    unknown_tokens: dict[str, Any] | None = None
    """As in a report; None if the model knows all tokens."""
    first: FirstScorer | None = None


@dataclass(frozen=True, slots=True)
class FirstScorer:
    """The cheap scorer of a run with two scorers."""

    model: str
    precision: str
    keep: str
    pairs_of_second: int
    """Pairs that the second scorer reads at least; the rest depends on the scores of the first window."""
    needed_bytes: int | None
    """Of both models; None if not known."""


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """The run on another card. time: None if the model does not fit or the time is not known; `reason` says why."""

    gpu: str
    precision: str | None
    time: PairTime | None
    reason: str | None = None


def dry_run(options: JobOptions, gpus: Sequence[str] = ()) -> DryRun:
    """Read and tokenise everything, score nothing: rows, pairs, lengths, truncations and an expected time.

    gpus: further cards to estimate the time for, as `--gpu` names them.
    """
    machines = [describe_machine([gpu]) for gpu in gpus]  # refused before anything is read
    if gpus and options.first.scorer is not None:
        raise UsageError("--gpu: the time of two scorers on another card is not estimated", hint="leave out `--first`")
    prepared = prepare(options)
    _try_outputs(options)
    counts = Counts()
    lengths: list[int] = []
    kept = squares = truncated = unscorable = of_second = 0
    asked = read_asked(options) if prepared.first else None
    first: RowError | None = None
    unknown = UnknownTokens()
    lists = wanted_of(prepared.shape.group(prepared.items), options.depth, drop_duplicates=options.drop_duplicates)
    for window in cut_windows(lists, max_pairs=prepared.plan.window_pairs):
        counts.add(
            {
                "rows_in": window.rows, "blank": window.blank, "lists": len(window.lists),
                "near_duplicates": count_duplicates(window.lists),
            }
        )  # fmt: skip
        counts.pairs += sum(len(item.passages) for item in window.lists)
        of_second += sum(least_of_second(asked, len(item.passages)) for item in window.lists) if asked else 0
        times = Counter((item.limits, *pair) for item in window.lists for pair in item.pairs)
        pairs = list(times)
        scored: list[ScoredPart] = []
        places: list[int] = []
        for part in encode_parts(window, prepared.encoder):
            scored.append(_without_logits(part))
            places = part.places or places
            counts.pairs_scored += len(part.encoded)
            counts.add(image_counts(part.encoded))
            for place, entry in zip(part.members, part.encoded, strict=True):
                if isinstance(entry, EncodingProblem):
                    unscorable += 1
                    continue
                unknown.add(entry)
                lengths.append(sum(pair.tokens for pair in entry))
                kept += sum(len(pair.input_ids) for pair in entry)
                squares += sum(len(pair.input_ids) ** 2 for pair in entry)
                truncated += times[pairs[place]] * any(pair.truncated for pair in entry)
                counts.retiled += times[pairs[place]] * any(pair.retiled for pair in entry)
        bad = [*window.errors, *rank_window(*join_parts(window, scored, places))[1]]
        rows = sum(error.passage is None for error in bad)
        counts.rows_error += rows
        counts.passages_error += len(bad) - rows
        first = first or (min(bad, key=lambda error: error.row) if bad else None)
    counts.tokens, counts.truncated = kept, truncated
    counts.rows_out = counts.rows_in - counts.rows_error
    flops = forward_flops(prepared.checkpoint, tokens=kept, squares=squares, tiles=counts.tiles)
    speed = matrix_speed(prepared.plan) * max(1, len(prepared.plan.engines))
    seconds = flops / (_SHARE_REACHED * speed)
    first_scorer, of_first = _first_scorer(prepared, asked, of_second, kept, squares, counts)
    if first_scorer:
        seconds = of_first + seconds * of_second / max(1, counts.pairs)
    percentiles = {f"p{q}": int(np.percentile(lengths, q)) for q in (0, 10, 50, 90, 99, 100)} if lengths else {}
    return DryRun(
        counts, percentiles, kept, truncated, unscorable, prepared.plan, seconds, speed / 1e9,
        (first.file, first.row, first.message) if first else None,
        tuple(_estimate_elsewhere(gpu, machine, options, PairLengths(counts.pairs_scored, kept, squares),
                         images=counts.images > 0)
              for gpu, machine in zip(gpus, machines, strict=True)),
        unknown.document(), first_scorer,
    )  # fmt: skip


def _first_scorer(
    prepared: Prepared, asked: Asked | None, of_second: int, kept: int, squares: int, counts: Counts
) -> tuple[FirstScorer | None, float]:
    """The cheap scorer of a run with two, and its seconds.

    Args:
        prepared: The run.
        asked: What its options ask of two scorers; None for a run with one.
        of_second: Pairs that the second scorer reads.
        kept: Tokens of all pairs.
        squares: Sum of their squared lengths.
        counts: Of the run.
    """
    first = prepared.first
    if first is None or asked is None:
        return None, 0.0
    flops = forward_flops(first.checkpoint, tokens=kept, squares=squares, tiles=counts.tiles)
    speed = matrix_speed(first.plan) * max(1, len(first.plan.engines))
    total = needed_together(first.plan, prepared.plan)
    told = FirstScorer(first.checkpoint.name, first.plan.precision, asked.keep, of_second, total)
    return told, flops / (_SHARE_REACHED * speed)


def _try_outputs(options: JobOptions) -> None:
    """Refuse URLs that cannot be written to."""
    for path in options.names.files.values():
        if is_on_hub(path):
            refuse_unwritable(path)
        elif isinstance(path, UrlPath):
            probe(path)


def _estimate_elsewhere(
    gpu: str, machine: Machine, options: JobOptions, lengths: PairLengths, *, images: bool
) -> Elsewhere:
    """The run on the card `gpu`; `lengths` are those by the plan for this machine."""
    request = replace(options.request, device="auto", gpus=None, assume_cuda=True)
    known = find_known(options)
    answer = plan_model(request, known, machine)
    plan = answer.plan
    if plan is None or not plan.gpus:
        refused = [one.reason for one in answer.rejected] or list(answer.reasons)
        return Elsewhere(gpu, None, None, answer.error.message if answer.error else refused[-1])
    return Elsewhere(gpu, plan.precision, *time_of_plan(plan, known, lengths, images=images))


def _without_logits(part: EncodedPart) -> ScoredPart:
    """The part as if it were scored, to find rows that are bad whatever their logits are."""
    kept = [without_pixels(entry) for entry in part.encoded]
    return ScoredPart(part.members, kept, np.zeros(len(kept), dtype=np.float32), {})
