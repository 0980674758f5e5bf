"""Which depth and blend are best, and is choosing them better than not choosing? Cross-fitting over queries.

A setting is a depth and a blend. The best of thirty settings on some queries looks better than it is, because luck on
these queries helped to choose it. So the queries are split many times, and each is judged by a setting that was chosen
without it. The mean of these values is what choosing brings on new queries. If that is not clearly more than the plain
order of the scores brings, nothing is recommended.

Within a split, a setting is preferred to the plain order only if it is better by more than one standard error of their
difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rerank_cli.evaluation.blend import Blend, order_by_score

SPLITS = 40
FOLDS = 5
CLEARLY = 1.645
"""Standard errors by which choosing must beat not choosing."""

_SEED = 0
_WEIGHTS = (0.1, 0.3, 0.5, 0.7)
_DEPTHS = (5, 10, 20, 30, 40, 50, 100, 200)
_LEAST_QUERIES = 10

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Setting:
    """One way to use the scores."""

    depth: int | None = None
    """None is all candidates."""
    blend: Blend | None = None
    """None is the model alone."""

    @property
    def options(self) -> str:
        """The setting as options of `rerank-file`."""
        parts = ([f"--depth {self.depth}"] if self.depth else []) + ([f"--blend {self.blend}"] if self.blend else [])
        return " ".join(parts)


PLAIN = Setting()


@dataclass(frozen=True, slots=True)
class Choice:
    """What choosing brings."""

    place: int
    """Of the setting that was chosen on all queries; 0 is the plain order."""
    values: Floats
    """The value of each query, by settings that were chosen without it."""
    gain: float
    """By how much the mean of `values` is above the plain order's."""
    error: float
    """Standard error of the gain."""

    @property
    def is_better(self) -> bool:
        """Whether choosing clearly beats not choosing, and has chosen something."""
        return self.place > 0 and self.gain > 0 and self.gain > CLEARLY * self.error


def settings_for(longest: int) -> list[Setting]:
    """The settings that are tried for lists of up to `longest` candidates, the plain one first."""
    depths: list[int | None] = [None, *(depth for depth in _DEPTHS if depth < longest)]
    blends: list[Blend | None] = [None, *(Blend(kind, weight) for kind in ("rrf", "z") for weight in _WEIGHTS)]
    return [Setting(depth, blend) for depth in depths for blend in blends]


def values_of(scores: Floats, gains: Floats, settings: Sequence[Setting], measure: TopMeasure) -> Floats:
    """The measure of each query by each setting: [settings, queries]. scores, gains: in the given order."""
    return np.stack(
        [
            measure.of(np.take_along_axis(gains, order_by_score(scores, depth=one.depth, blend=one.blend), axis=1))
            for one in settings
        ]
    )


def choose(values: Floats, *, splits: int = SPLITS, folds: int = FOLDS) -> Choice:
    """Choose among settings by their values, [settings, queries]; the first is the plain order."""
    queries = values.shape[1]
    differences = values - values[0]
    place = int(_choose_setting(differences.sum(1)[None], (differences**2).sum(1)[None], np.array([queries]))[0])
    if queries < _LEAST_QUERIES:
        return Choice(0, values[0], 0.0, 0.0)
    generator = np.random.Generator(np.random.PCG64(_SEED))
    fold_of = np.argsort(generator.random((splits, queries)), axis=1) % folds  # folds of equal size
    total = np.zeros(queries)
    for fold in range(folds):
        out = fold_of == fold  # [splits, queries]
        kept = (~out).astype(np.float64)
        chosen = _choose_setting(kept @ differences.T, kept @ (differences**2).T, kept.sum(1))
        total += np.where(out, differences[chosen], 0.0).sum(0)
    gains = total / splits
    return Choice(place, values[0] + gains, float(gains.mean()), float(gains.std(ddof=1) / np.sqrt(queries)))


def _choose_setting(sums: Floats, squares: Floats, counts: npt.NDArray[np.float64]) -> npt.NDArray[np.intp]:
    """The best setting for each row of sums over queries: [rows]. sums, squares: [rows, settings]."""
    count = counts[:, None]
    means = sums / count
    errors = np.sqrt(np.maximum(squares / count - means**2, 0) / np.maximum(count - 1, 1))
    worth = np.where(means > errors, means, 0.0)
    worth[:, 0] = 0.0
    return np.asarray(np.argmax(worth, axis=1))


@dataclass(frozen=True, slots=True)
class TopMeasure:
    """nDCG@k, RR@k, P@k or Success@k of many queries at once, with the values of ir-measures."""

    name: str
    cutoff: int | None
    best: Floats
    """The discounted gains of a perfect order of each query's judgements: [queries]. Only nDCG uses them."""

    def of(self, gains: Floats) -> Floats:
        """The values of lists with these gains (0: not relevant), best first: [queries, n]."""
        top = gains[:, : self.cutoff]
        if self.name == "nDCG":
            sums = (top / _discounts(top.shape[1])).sum(1)
            return np.asarray(np.divide(sums, self.best, out=np.zeros_like(sums), where=self.best > 0))
        relevant = top > 0
        if self.name == "RR":
            first = relevant.argmax(axis=1) if top.shape[1] else np.zeros(len(top), dtype=np.intp)
            return np.asarray(np.where(relevant.any(1), 1.0 / (first + 1), 0.0))
        if self.name == "Success":
            return np.asarray(relevant.any(1), dtype=np.float64)
        assert self.cutoff is not None, "P has a cutoff"
        return np.asarray(relevant.sum(1) / self.cutoff)


KNOWN = ("nDCG", "RR", "P", "Success")


def best_gains(grades: Sequence[int], cutoff: int | None) -> float:
    """The discounted gains of a perfect order."""
    ordered = np.sort(np.maximum(np.asarray(grades, dtype=np.float64), 0))[::-1][:cutoff]
    return float((ordered / _discounts(len(ordered))).sum())


def _discounts(count: int) -> Floats:
    return np.asarray(np.log2(np.arange(2, count + 2, dtype=np.float64)))
