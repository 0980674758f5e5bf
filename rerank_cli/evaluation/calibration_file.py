"""A calibration as a file: the curve, the model whose scores it takes, and what it was fitted on.

Scores of another model, or of the same model with another prompt, mean something else, and nothing in the numbers shows
it. So the file names the model by the digest of its files, as every report does, and the options that change a score; a
run with another model or other options is refused. Texts in another language get scores of the same model, which may
mean less. So the file also notes the share of unknown tokens and the scores of the best passages, and a run in which
they are far off gets a warning (`shift`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import rerank_cli
from rerank_cli.errors import InputError, UsageError
from rerank_cli.evaluation.calibration import KINDS, Curve
from rerank_cli.storage import path_of

SCHEMA = "rerank-cli/calibration/1"

BOUND = ("instruction", "label", "template", "taken_as", "special_tokens", "truncate", "pool")
"""Options that change what a score means; the file holds their values."""

_FLAGS = {"taken_as": "--as"}
_UNKNOWN_MORE = 0.02
"""Unknown tokens that a run may have beyond those of the file, as a share of all."""

_MOST_BYTES = 2**26
_FIT_AGAIN = "fit one for this run: `rerank-cli evaluate OUT --qrels FILE --calibrate-to FILE`"


@dataclass(frozen=True, slots=True)
class Calibration:
    """A calibration that was read. document: the whole file."""

    path: str
    curve: Curve
    document: Mapping[str, Any]

    def refuse_other(self, model: Mapping[str, Any], score: str, asked: Mapping[str, Any]) -> None:
        """`UsageError` if the scores of a run are not of the kind that was fitted.

        Args:
            model: `name` and `sha256` of the run's model.
            score: What the run's score is called.
            asked: The run's value of each of `BOUND`.
        """
        mine = self.document["model"]
        if mine["sha256"] != model["sha256"]:
            raise UsageError(
                f"--calibration {self.path}: was fitted on scores of {mine['name']} ({mine['sha256'][:12]}), and this "
                f"run is of {model['name']} ({model['sha256'][:12]})",
                hint=_FIT_AGAIN,
            )
        if self.document["score"] != score:
            raise UsageError(f"--calibration {self.path}: is of a {self.document['score']}, and this run has a {score}")
        for name in BOUND:
            was, now = self.document["asked"].get(name), asked.get(name)
            if was != now:
                flag = _FLAGS.get(name, "--" + name.replace("_", "-"))
                raise UsageError(
                    f"--calibration {self.path}: was fitted with {flag} {_shown(was)}, and this run has {_shown(now)}",
                    hint=_FIT_AGAIN,
                )

    def of_run(self, report: Mapping[str, Any]) -> dict[str, Any]:
        """What the report of a run says about its calibration."""
        return {"file": self.path, "kind": self.curve.kind, "warnings": list(self.shift(report))}

    def shift(self, report: Mapping[str, Any]) -> Iterator[str]:
        """Warnings about what is unlike the data of the fit. report: of a finished run."""
        was, now = (
            float((one.get("unknown_tokens") or {}).get("share", 0.0)) for one in (self.document["seen"], report)
        )
        if now > was + _UNKNOWN_MORE:
            yield (
                f"{now:.1%} of the tokens are unknown to the model, and {was:.1%} were where {self.path} was fitted: "
                "the texts are in another language or script, and `probability` may not hold"
            )
        best, middle = _best_of(self.document["seen"]), _best_of(report)
        if best and middle and not best["p5"] <= middle["p50"] <= best["p95"]:
            yield (
                f"the best passage of a query has a {self.document['score']} of {middle['p50']:.2f} in the middle, and "
                f"had {best['p50']:.2f} where {self.path} was fitted: the texts are of another kind or language, and "
                "`probability` may not hold"
            )


def document_of(
    curve: Curve, report: Mapping[str, Any], facts: Mapping[str, Any], *, file: str, qrels: str, relevant_from: int
) -> dict[str, Any]:
    """The content of the file. report: of the run that scored `file`. facts: from `fit_system`."""
    shape: dict[str, Any] = {"slope": curve.slope, "intercept": curve.intercept}
    if curve.kind == "isotonic":
        shape = {"scores": curve.scores, "probabilities": curve.values}
    scores = report.get("scores") or {}
    return {
        "schema": SCHEMA,
        "version": rerank_cli.__version__,
        "kind": curve.kind,
        **shape,
        "score": scores.get("score", "logit"),
        "model": {name: report["model"][name] for name in ("name", "sha256")},
        "asked": {name: report["options"].get(name) for name in BOUND},
        "fitted_on": {"file": file, "qrels": qrels, "relevant_from": relevant_from, **facts},
        "seen": {
            "unknown_tokens": report.get("unknown_tokens"),
            "scores": {"by_rank": scores.get("by_rank", [])[:1]},
        },
    }


def read_calibration(path: str) -> Calibration:
    """Read a calibration; `InputError` if the file holds none."""
    try:
        with path_of(path).open("rb") as stream:
            data = stream.read(_MOST_BYTES + 1)
    except OSError as error:
        raise InputError(f"--calibration {path}: {error.strerror}") from error
    if len(data) > _MOST_BYTES:
        raise InputError(f"--calibration {path}: more than {_MOST_BYTES:,} bytes, which no calibration has")
    try:
        document = json.loads(data)
    except ValueError as error:
        raise InputError(f"--calibration {path}: not JSON: {error}") from error
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise InputError(
            f"--calibration {path}: no calibration", hint="`rerank-cli evaluate ... --calibrate-to FILE` writes one"
        )
    try:
        return Calibration(path, _curve(document), _checked(document))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"--calibration {path}: damaged: {error}") from error


def report_of(file: str, named: str | None = None) -> dict[str, Any]:
    """The report of the run that scored `file`: the one at `named`, else the one beside the file."""
    path = path_of(named or f"{file}.report.json")
    try:
        report: Any = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise InputError(
            f"{path}: does not exist; it would say which model has scored {file}",
            hint="`--run-report FILE` names the report of the run",
        ) from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: no report: {error}") from error
    if not isinstance(report, dict) or not isinstance(report.get("model"), dict) or "sha256" not in report["model"]:
        raise InputError(f"{path}: no report of a run")
    output = report.get("output") or {}
    if named is None and output.get("bytes") != path_of(file).stat().st_size:
        raise InputError(
            f"{path}: is the report of another output: {output.get('bytes')} bytes, {file} has "
            f"{path_of(file).stat().st_size}",
            hint="`--run-report FILE` names the report of the run that has scored these rows",
        )
    return report


def _curve(document: Mapping[str, Any]) -> Curve:
    kind = document["kind"]
    if kind not in KINDS:
        raise ValueError(f"the kind is {kind!r}")
    if kind == "platt":
        slope, intercept = float(document["slope"]), float(document["intercept"])
        if not (math.isfinite(slope) and math.isfinite(intercept)):
            raise ValueError("its slope or intercept is no finite number")
        return Curve("platt", slope=slope, intercept=intercept)
    scores = tuple(map(float, document["scores"]))
    values = tuple(map(float, document["probabilities"]))
    rises = all(a < b for a, b in pairwise(scores))
    in_range = all(0 <= value <= 1 for value in values)
    if not scores or len(scores) != len(values) or not rises or not in_range or not all(map(math.isfinite, scores)):
        raise ValueError("its steps are no curve")
    return Curve("isotonic", scores, values)


def _checked(document: dict[str, Any]) -> dict[str, Any]:
    for name in ("model", "asked", "seen"):
        if not isinstance(document[name], dict):
            raise TypeError(f"`{name}` is no object")
    for name in ("name", "sha256"):
        if not isinstance(document["model"][name], str):
            raise TypeError(f"`model.{name}` is no text")
    if not isinstance(document["score"], str):
        raise TypeError("`score` is no text")
    return document


def _shown(value: object) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def _best_of(report: Mapping[str, Any]) -> Mapping[str, float] | None:
    """Percentiles of the scores at rank 1; None where the report has none."""
    ranks = (report.get("scores") or {}).get("by_rank") or [None]
    first: Mapping[str, float] | None = ranks[0]
    return first if first and first.get("from") == 1 and first.get("to") == 1 else None
