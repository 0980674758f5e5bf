"""`--precision auto:0.99`: the cheapest precision whose ten best agree with those of fp32 to that share.

Before a run is planned, its first window is read (that of the whole input, so that all shards read the same). The first
whole lists in it, some 200 pairs, are scored in fp32 and then in the precisions of this CPU, the fastest first. The
first precision whose mean overlap reaches the share is taken, else fp32. Its interval is reported but does not decide:
few lists make it wide.

Nothing here is random, and in these precisions a logit depends neither on threads nor on the batch. So a resumed run
finds the same on the same kind of CPU, which its fingerprint demands; the fingerprint has the choice in its plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from rerank_cli.encoding.encoder import Encoded
from rerank_cli.engine import NeedsCalibration
from rerank_cli.errors import UsageError
from rerank_cli.formats.inputs import Input, can_be_reread
from rerank_cli.job.image_parts import encode_parts, pairs_of
from rerank_cli.job.options import JobOptions
from rerank_cli.job.precision_check import LONGEST, Comparison, Logits, places_of_lists
from rerank_cli.job.prepare import Prepared, prepare_inputs, prepare_model
from rerank_cli.job.ranking import ScoredPart, join_parts, pooled
from rerank_cli.job.stop import Stop
from rerank_cli.job.windows import SCORE_WINDOW_PAIRS, cut_windows, wanted_of
from rerank_cli.planning.choices import least_overlap
from rerank_cli.planning.cpu_kernels import cheaper_precisions
from rerank_cli.planning.known_model import KnownModel
from rerank_cli.planning.run_plan import Plan
from rerank_cli.records import Window

if TYPE_CHECKING:
    from rerank_cli.job.scorers import OpensEngine

PAIRS = 200
"""How many pairs of whole lists are compared, about."""


@dataclass(frozen=True, slots=True)
class PrecisionChoice:
    """What was chosen. least: the share that was asked for. tried: the comparison of each precision, or its refusal."""

    least: float
    precision: str
    tried: dict[str, dict[str, Any]]

    @property
    def told(self) -> str:
        """A line for the user."""
        parts = []
        for name, one in self.tried.items():
            if "refusal" in one:
                parts.append(f"{name} cannot be used: {one['refusal']}")
            elif one["top10_overlap"] is None:
                parts.append(f"{name} had no list to compare")
            else:
                low, high = one["interval"]
                parts.append(
                    f"{name} agrees by {one['top10_overlap']:.3f} ({low:.3f} to {high:.3f}) on the ten best of "
                    f"{one['lists']:,} list{'s' * (one['lists'] != 1)}"
                )
        said = "; ".join(parts) or "this CPU has no cheaper one"
        return f"precision auto:{self.least:g}: {self.precision} is used; {said}"


def refuse_unfit_choice(options: JobOptions, inputs: Sequence[Input]) -> None:
    """`UsageError` if `auto:0.99` is impossible here, before anything is read."""
    if least_overlap(options.request.precision) is None:
        return
    asked = f"--precision {options.request.precision}"
    hint = "name one: `--precision bf16`, or `--precision fp32`"
    if not can_be_reread(inputs):
        raise UsageError(f"{asked}: compares the first lists before the run, and a pipe is read once", hint=hint)
    if options.first.scorer is not None:
        raise UsageError(f"{asked}: does not work with --first, which has a precision for each scorer", hint=hint)


def choose_precision(
    options: JobOptions, inputs: list[Input], known: KnownModel, *, open_engine: OpensEngine, stop: Stop
) -> tuple[JobOptions, PrecisionChoice | None]:
    """The options with the precision that `auto:0.99` comes to, and how; unchanged if it was not asked for."""
    least = least_overlap(options.request.precision)
    if least is None:
        return options, None
    exact = _in(options, "fp32")
    prepared = prepare_inputs(exact, inputs, known)
    if prepared.family.embeds:
        raise UsageError(
            f"--precision {options.request.precision}: {prepared.checkpoint.name} embeds, and has no logits to compare",
            hint="name a precision, for example `--precision fp32`",
        )
    tried: dict[str, dict[str, Any]] = {}
    sample = _Sample(prepared, options)
    found = "fp32"
    for name in cheaper_precisions(prepared.machine.cpu):
        plan = prepare_model(_in(options, name), known).plan
        if plan.precision != name:
            tried[name] = {"refusal": next((text for text in plan.warnings if name in text), "not on this machine")}
            continue
        comparison = sample.compare(prepared.plan, plan, open_engine, stop)
        tried[name] = comparison.to_json()
        overlap = comparison.heads.mean_overlap
        if overlap is not None and overlap >= least:
            found = name
            break
    return _in(options, found), PrecisionChoice(least, found, tried)


def _in(options: JobOptions, precision: str) -> JobOptions:
    origins = {**options.request.origins, "precision": f"--precision {options.request.precision}"}
    return replace(options, request=replace(options.request, precision=precision, origins=origins))


class _Sample:
    """The first lists of the input, with their logits in fp32 once these are needed."""

    def __init__(self, prepared: Prepared, options: JobOptions) -> None:
        self._prepared, self._pool, self._is_score = prepared, options.pool, options.pairs
        items = prepared.shape.group(prepared.items)
        lists = wanted_of(items, options.depth, drop_duplicates=options.drop_duplicates)
        window = next((one for one in cut_windows(lists, max_pairs=prepared.plan.window_pairs) if one.lists), None)
        window = window or Window(0, (), (), 0, 0)
        parts: list[ScoredPart] = []
        places: list[int] = []
        for part in encode_parts(window, prepared.encoder):
            parts.append(ScoredPart(part.members, part.encoded, np.zeros(len(part.encoded), dtype=np.float32), {}))
            places = part.places or places
        self.encoded, _ = join_parts(window, parts, places)
        self._entries = self.encoded.encoded
        chosen: dict[int, None] = {}
        for places in places_of_lists(self.encoded):
            chosen |= dict.fromkeys(places[:LONGEST])
            if len(chosen) >= PAIRS:
                break
        self._chosen = list(chosen)
        """Places of the pairs of the first whole lists."""
        self._exact: dict[int, float] | None = None

    def compare(self, exact_plan: Plan, plan: Plan, open_engine: OpensEngine, stop: Stop) -> Comparison:
        """Compare a precision with fp32 on the sample."""
        if self._exact is None:
            self._exact = dict(zip(self._chosen, self._score(exact_plan, open_engine, stop), strict=True))
        logits = np.full(len(self._entries), np.nan, dtype=np.float32)
        logits[self._chosen] = self._score(plan, open_engine, stop)
        comparison = Comparison(PAIRS)
        by_entry = {id(self._entries[place]): value for place, value in self._exact.items()}

        def exact_of(some: list[Encoded]) -> Logits:
            return np.array([by_entry[id(entry)] for entry in some], dtype=np.float32)

        comparison.add(self.encoded, logits, exact_of)
        return comparison

    def _score(self, plan: Plan, open_engine: OpensEngine, stop: Stop) -> Logits:
        """Logits of the chosen pairs; int8 is calibrated on the first window of the run, as in the run."""
        entries = [self._entries[place] for place in self._chosen]
        pairs = pairs_of(entries)
        logits: Logits = np.zeros(0, dtype=np.float32)
        with closing(open_engine(plan, self._prepared.checkpoint, None, on_note=None)) as engine:
            if isinstance(engine, NeedsCalibration) and engine.needs_calibration and pairs:
                of_score = dict.fromkeys(self.encoded.places[:SCORE_WINDOW_PAIRS])
                first = [self._entries[place] for place in of_score] if self._is_score else self._entries
                engine.calibrate(pairs_of(first))
            if pairs:
                pending = engine.submit(pairs, on_batch=lambda pairs, tokens: stop.check())
                while (scores := pending.scores()) is None:
                    engine.wait(1.0)
                    stop.check()
                logits = scores.logits
        return pooled(entries, logits, self._pool)
