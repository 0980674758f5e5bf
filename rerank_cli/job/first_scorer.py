"""What `--first` asks for, and which other options it excludes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from rerank_cli.checkpoint import Checkpoint
from rerank_cli.checkpoint.families import family_of
from rerank_cli.errors import DoesNotFitError, UsageError
from rerank_cli.formats.choices import Selection
from rerank_cli.job.options import NO_FIRST, JobOptions
from rerank_cli.machine.detect import Machine
from rerank_cli.planning.choices import Precision
from rerank_cli.planning.run_plan import Plan, needed_together

Keep = Literal["count", "share", "auto", "exact"]

TOP = 10
"""How many passages at the head of a list should be those of a full run, by default."""

_EXACTER = ("int8", "fp8", "bf16", "fp16", "fp32")
_SHAPES_WITH_RANKS = ("list", "flat")


@dataclass(frozen=True, slots=True)
class Asked:
    """What the options of a cascade mean."""

    same_model: bool
    """The first scorer is the run's own model in a lower precision."""
    precision: str | None
    """Of the first scorer; None for its default."""
    model: str | None
    keep: Keep
    number: float
    """Of passages that are kept, or their share."""
    top: int
    """How many passages at the head of a list should be those of a full run."""


def read_asked(options: JobOptions) -> Asked:
    """What the options ask of a cascade."""
    first = options.first
    assert first.scorer is not None, "else there is no cascade"
    model, precision = read_scorer(first.scorer)
    same = model is None
    keep, number = _read_keep(first.keep or ("exact" if same else "auto"))
    return Asked(same, precision, model, keep, number, first.top or options.selection.top_n or TOP)


def read_scorer(text: str) -> tuple[str | None, str | None]:
    """The model (None: that of the run) and the precision (None: its default) that `--first` names."""
    known = [name for name in get_args(Precision) if name != "auto"]
    head, colon, tail = text.rpartition(":")
    if text in known:
        return None, text
    if colon and tail in known and not Path(text).expanduser().exists():
        return head, tail
    return text, None


def _read_keep(text: str) -> tuple[Keep, float]:
    if text in ("auto", "exact"):
        return ("auto", 0.0) if text == "auto" else ("exact", 0.0)
    return ("share", float(text[:-1]) / 100) if text.endswith("%") else ("count", float(text))


def least_of_second(asked: Asked, passages: int) -> int:
    """How many passages of a list the second scorer reads at least."""
    if asked.keep == "share":
        return min(passages, max(asked.top, math.ceil(asked.number * passages)))
    least = {"count": int(asked.number), "auto": 2 * asked.top, "exact": asked.top}
    return min(passages, least[asked.keep])


def parse_first_keep(text: str) -> str:
    """`text`, if `--first-keep` takes it; else `ValueError`."""
    share = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)%", text)
    if text in ("auto", "exact") or (share and 0 < float(share[1]) <= 100) or re.fullmatch(r"[1-9][0-9]{0,8}", text):
        return text
    raise ValueError("neither a number, a percentage, `auto` nor `exact`", "for example 100, 10%, auto or exact")


def first_options(options: JobOptions, asked: Asked) -> JobOptions:
    """The options of the first scorer, as if it ran alone."""
    request = options.request
    alone = replace(
        options, first=NO_FIRST, calibration=None, qrels=None, selection=Selection(),
        request=replace(
            request, precision=asked.precision or "auto", origins={**request.origins, "precision": "--first"}
        ),
    )  # fmt: skip
    if asked.same_model:
        return alone
    return replace(
        alone, model=asked.model, revision=None, profiles_file=None, label=None, taken_as=None, template=None,
        instruction=None, request=replace(alone.request, profile="auto", max_tokens=None, token_budget=None),
    )  # fmt: skip


def refuse_unusable_cascade(options: JobOptions) -> None:
    """`UsageError` for options that do not go together, before anything is read."""
    first = options.first
    if first.scorer is None:
        return
    for flag, why, hint in _conflicts(options):
        raise UsageError(f"--first: does not work with {flag}: {why}", hint=hint)
    asked = read_asked(options)
    if asked.keep == "exact" and not asked.same_model:
        raise UsageError(
            f"--first-keep exact: the scores of {first.scorer} set no bound on those of another model",
            hint="`--first int8` is the same model in a lower precision; `--first-keep auto` measures the loss",
        )
    if asked.keep == "count" and asked.number < asked.top:
        raise UsageError(
            f"--first-keep {asked.number:g}: fewer than the first {asked.top} passages that should be right",
            hint=f"use `--first-keep {asked.top}` or more, or a smaller `--first-top`",
        )


def _conflicts(options: JobOptions) -> Iterator[tuple[str, str, str]]:
    """The options given that `--first` excludes: the option, why, and a hint."""
    if options.pairs:
        yield "`score`", "its rows are single pairs, not lists", "`rerank-file` reads lists"
    if options.names.embeddings:
        yield "--embeddings", "only passages that the second scorer reads would have vectors", "leave out `--first`"
    if options.blend is not None:
        yield "--blend", "it joins one model's scores with the given order", "leave out one of them"
    if options.selection.threshold is not None:
        yield "--threshold", "scores of two scorers cannot be compared with one limit", "`--top-n N` keeps the best"
    if options.calibration is not None:
        yield "--calibration", "it was measured on the scores of one model", "leave out one of them"
    if options.check_precision is not None:
        yield "--check-precision", "the report already says how well both scorers agree", "leave it out"


def refuse_unfit_cascade(options: JobOptions, asked: Asked, shape: str, name: str, first: Plan, second: Plan) -> None:
    """`UsageError` for a cascade that does not suit the shape of the rows or the models.

    Args:
        options: Of the run.
        asked: The cascade that they ask for.
        shape: Of the rows that are written.
        name: Of the first scorer's model.
        first: The plan of the first scorer.
        second: The plan of the second one.
    """
    top_n = options.selection.top_n
    if shape not in _SHAPES_WITH_RANKS and (top_n is None or top_n > asked.top):
        raise UsageError(
            f"--first: rows of the shape {shape} are ordered by score, and scores of two scorers have no order",
            hint=f"`--top-n {min(top_n or asked.top, asked.top)}` keeps those of the second scorer alone; "
            "`--out-format list` has a rank",
        )
    if options.selection.prob and not asked.same_model:
        raise UsageError(
            f"--prob: the scores of {name} cannot become probabilities of the run's model",
            hint="leave out one of `--prob` and `--first`",
        )
    if asked.same_model:
        refuse_no_lower(first.precision, second.precision)


def refuse_no_lower(first: str, second: str) -> None:
    """`UsageError` if the precision `first` is no lower than that of the run, `second`."""
    if _EXACTER.index(first) >= _EXACTER.index(second):
        raise UsageError(
            f"--first {first}: is not a lower precision than that of the run, {second}",
            hint="raise the run's with `--precision fp32`, or name another model with `--first MODEL`",
        )


def refuse_embedder(checkpoint: Checkpoint) -> None:
    """`UsageError` if the model of the run is an embedder."""
    if family_of(checkpoint.architecture).embeds:
        raise UsageError(
            f"--first: {checkpoint.name} embeds each text once, so a first scorer would save nothing",
            hint="leave out `--first`",
        )


def refuse_both_too_large(first: Plan, second: Plan, machine: Machine) -> None:
    """`DoesNotFitError` if each scorer fits but not both together."""
    needed = needed_together(first, second)
    if needed is None or first.device != second.device:
        return
    devices = {f"cuda:{one.cuda_index}": one.free_bytes for one in machine.devices}
    free = machine.cpu.memory_available_bytes if second.device == "cpu" else devices.get(second.device)
    if free is not None and needed > free:
        raise DoesNotFitError(
            f"--first: both models need {needed / 2**30:.2f} GiB on {second.device}, of which {free / 2**30:.2f} GiB "
            "are free",
            hint="`--engines 1` or a smaller `--token-budget` needs less; without `--first` one model is loaded",
        )
