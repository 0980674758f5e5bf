"""Turns a score into the probability that a passage is relevant, fitted on judgements; scikit-learn's fits in numpy.

isotonic    the rising steps nearest to the judgements (pool adjacent violators), joined by straight lines; constant
            below the lowest and above the highest score seen
platt       1 / (1 + exp(-(slope * score + intercept))), fitted by maximum likelihood (Platt 1999: the targets are
            drawn in by one passage on each side, so that no set of judgements asks for an infinite slope)

A curve looks better on the passages that it was fitted on. So the queries are split into five folds, and each query is
judged by a curve that has not seen it. From these held-out probabilities come the Brier score (mean squared error), the
expected calibration error (mean distance between the probability and the share of relevant passages in ten bins of
equal width, weighted by passages) and the reliability curve. The kind with the lower Brier score is taken.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

Kind = Literal["isotonic", "platt"]
KINDS: tuple[Kind, ...] = get_args(Kind)
BINS = 10
FOLDS = 5

_SEED = 0
_NEWTON_STEPS = 100
_LEAST_QUERIES = 10
_LEAST_OF_EACH = 10

Floats = npt.NDArray[np.float64]
Marks = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Curve:
    """A probability for each score, rising."""

    kind: Kind
    scores: tuple[float, ...] = ()
    """Where the isotonic steps lie; `values` are their probabilities."""
    values: tuple[float, ...] = ()
    slope: float = 0.0
    """Of the sigmoid, with `intercept`."""
    intercept: float = 0.0

    def __call__(self, score: float) -> float:
        """The probability of one passage."""
        if self.kind == "platt":
            return float(sigmoid_of(np.float64(self.slope * score + self.intercept)))
        place = bisect_right(self.scores, score)
        if place in (0, len(self.scores)):
            return self.values[0 if place == 0 else -1]
        low, high = self.scores[place - 1], self.scores[place]
        share = (score - low) / (high - low)
        return self.values[place - 1] + share * (self.values[place] - self.values[place - 1])

    def of(self, scores: Floats) -> Floats:
        """The probabilities of many passages: float64, shaped like `scores`."""
        if self.kind == "platt":
            return np.asarray(sigmoid_of(self.slope * scores + self.intercept))
        return np.interp(scores, self.scores, self.values)


def fit_isotonic(scores: Floats, relevant: Marks) -> Curve:
    """Fit isotonic steps. scores, relevant: [passages]."""
    distinct, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    means = np.bincount(place.ravel(), weights=relevant.astype(np.float64)) / counts
    weights, sizes = counts.astype(np.float64), np.ones(len(distinct), dtype=np.intp)
    while (falls := means[1:] <= means[:-1]).any():
        # Neighbouring blocks that do not rise are one block of the solution, whatever stands around them.
        begins = np.flatnonzero(np.concatenate([[True], ~falls]))
        sums = np.add.reduceat(weights * means, begins)
        weights, sizes = np.add.reduceat(weights, begins), np.add.reduceat(sizes, begins)
        means = sums / weights
    last = np.cumsum(sizes) - 1
    first = last - sizes + 1
    # The two ends of a block are enough: the value is the same between them.
    ends = np.unique(np.concatenate([first, last]))
    steps = np.repeat(means, sizes)[ends]
    return Curve("isotonic", tuple(distinct[ends].tolist()), tuple(steps.tolist()))


def fit_platt(scores: Floats, relevant: Marks) -> Curve:
    """Fit a sigmoid by Newton's method (Lin, Lin and Weng, Machine Learning 2007). scores, relevant: [passages]."""
    positive = int(relevant.sum())
    negative = len(relevant) - positive
    targets = np.where(relevant, (positive + 1) / (positive + 2), 1 / (negative + 2))
    middle, spread = float(scores.mean()), float(scores.std()) or 1.0
    x = (scores - middle) / spread
    a, b = 0.0, math.log((positive + 1) / (negative + 1))
    value = _cross_entropy(a * x + b, targets)
    for _ in range(_NEWTON_STEPS):
        p = sigmoid_of(a * x + b)
        away, bend = p - targets, p * (1 - p)
        slope, level = float((away * x).sum()), float(away.sum())
        if max(abs(slope), abs(level)) <= 1e-10 * len(x):
            break
        aa, ab, bb = float((bend * x * x).sum()) + 1e-12, float((bend * x).sum()), float(bend.sum()) + 1e-12
        det = aa * bb - ab * ab
        step_a, step_b = (bb * slope - ab * level) / det, (aa * level - ab * slope) / det
        size = 1.0
        while (found := _cross_entropy((a - size * step_a) * x + b - size * step_b, targets)) > value and size > 1e-10:
            size /= 2
        if found >= value:
            break
        a, b, value = a - size * step_a, b - size * step_b, found
    return Curve("platt", slope=a / spread, intercept=b - a * middle / spread)


def fit(kind: Kind, scores: Floats, relevant: Marks) -> Curve:
    """Fit a curve of this kind."""
    return fit_platt(scores, relevant) if kind == "platt" else fit_isotonic(scores, relevant)


def reason_against(scores: Floats, relevant: Marks, queries: int) -> str | None:
    """Why these passages cannot be fitted; None where they can."""
    positive = int(relevant.sum())
    if queries < _LEAST_QUERIES:
        return f"{queries} judged queries are too few: a curve takes {_LEAST_QUERIES}"
    if min(positive, len(relevant) - positive) < _LEAST_OF_EACH:
        few = "relevant" if positive < _LEAST_OF_EACH else "other"
        count = positive if few == "relevant" else len(relevant) - positive
        return f"{count} {few} passages are too few: a curve takes {_LEAST_OF_EACH} of each"
    if fit_platt(scores, relevant).slope <= 0:
        return "relevant passages have no higher scores than others, so no score says how probable relevance is"
    return None


def held_out(kind: Kind, scores: Floats, relevant: Marks, fold: npt.NDArray[np.intp]) -> Floats:
    """The probability of each passage by a curve that has not seen its query. fold: of each passage."""
    found = np.empty(len(scores))
    for one in range(FOLDS):
        out = fold == one
        if out.any():
            kept = ~out
            found[out] = fit(kind, scores[kept], relevant[kept]).of(scores[out])
    return found


def errors_of(probabilities: Floats, relevant: Marks) -> dict[str, float]:
    """Brier score and expected calibration error."""
    curve = reliability(probabilities, relevant)
    apart = sum(one["passages"] * abs(one["probability"] - one["relevant"]) for one in curve)
    return {"brier": float(np.mean((probabilities - relevant) ** 2)), "ece": float(apart / len(probabilities))}


def reliability(probabilities: Floats, relevant: Marks) -> list[dict[str, Any]]:
    """For each bin with passages: how many there are, their mean probability, and the share that is relevant."""
    place = np.minimum((probabilities * BINS).astype(np.intp), BINS - 1)
    counts = np.bincount(place, minlength=BINS)
    means = np.bincount(place, weights=probabilities, minlength=BINS)
    shares = np.bincount(place, weights=relevant.astype(np.float64), minlength=BINS)
    return [
        {"passages": int(count), "probability": float(mean / count), "relevant": float(share / count)}
        for count, mean, share in zip(counts, means, shares, strict=True)
        if count
    ]


def sigmoid_of(logits: Any) -> Any:
    """The sigmoid of a number or an array, as `--prob` writes it."""
    return 0.5 * (1 + np.tanh(0.5 * logits))


def threshold_for(precision: float, scores: Floats, relevant: Marks) -> float | None:
    """The lowest score above which a share of `precision` of the passages is relevant; None if there is none."""
    order = np.argsort(-scores, kind="stable")
    ordered, hits = scores[order], np.cumsum(relevant[order])
    last = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))  # equal scores are kept together
    enough = last[hits[last] >= precision * (last + 1) - 1e-12]
    return float(ordered[enough[-1]]) if len(enough) else None


def _cross_entropy(inner: Floats, targets: Floats) -> float:
    return float((np.logaddexp(0, inner) - targets * inner).sum())


def pooled_lists(lists: Sequence[tuple[Floats, Marks]]) -> tuple[Floats, Marks, npt.NDArray[np.intp]]:
    """Scores, marks and the fold of each passage. lists: scores and marks of each query."""
    # Of each query; folds are of equal size and the same every time.
    folds = np.random.Generator(np.random.PCG64(_SEED)).permutation(len(lists)) % FOLDS
    return (
        np.concatenate([scores for scores, _ in lists]) if lists else np.empty(0),
        np.concatenate([marks for _, marks in lists]) if lists else np.empty(0, dtype=bool),
        np.repeat(folds, [len(scores) for scores, _ in lists]),
    )
