"""From scores to probabilities: scikit-learn's fits, and what is said of them on queries that they have not seen."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.calibration import _SigmoidCalibration
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import brier_score_loss, precision_recall_curve

from rerank_cli.evaluation.calibration import (
    Curve,
    errors_of,
    fit_isotonic,
    fit_platt,
    held_out,
    reason_against,
    reliability,
    threshold_for,
)

Floats = npt.NDArray[np.float64]
Marks = npt.NDArray[np.bool_]


def passages(count: int, seed: int = 0, digits: int = 6) -> tuple[Floats, Marks]:
    """Scores, and whether each passage is relevant: more often the higher it is."""
    generator = np.random.default_rng(seed)
    scores = (3 * generator.normal(size=count) - 2).round(digits)
    return scores, generator.random(count) < 1 / (1 + np.exp(1 - 0.7 * scores))


@pytest.mark.parametrize("count", [30, 400, 5000])
@pytest.mark.parametrize("digits", [0, 1, 6])
def test_both_kinds_are_those_of_scikit_learn(count: int, digits: int) -> None:
    scores, relevant = passages(count, digits=digits)
    asked = np.concatenate([np.linspace(-15, 15, 301), scores[:50]])
    isotonic = fit_isotonic(scores, relevant)
    theirs = IsotonicRegression(out_of_bounds="clip").fit(scores, relevant.astype(float)).predict(asked)
    assert np.abs(isotonic.of(asked) - theirs).max() < 1e-12
    assert [isotonic(one) for one in asked.tolist()] == pytest.approx(theirs.tolist(), abs=1e-12)
    platt = fit_platt(scores, relevant)
    sigmoid = _SigmoidCalibration().fit(scores, relevant.astype(float)).predict(asked)
    assert np.abs(platt.of(asked) - sigmoid).max() < 1e-6  # theirs ends where L-BFGS does
    assert [platt(one) for one in asked.tolist()] == pytest.approx(platt.of(asked).tolist(), abs=1e-15)


def test_judgements_that_a_score_parts_cleanly_give_a_finite_curve() -> None:
    scores = np.array([*range(20)], dtype=np.float64)
    platt = fit_platt(scores, scores >= 10)
    assert np.isfinite([platt.slope, platt.intercept]).all()
    assert 0 < platt(0.0) < 0.1 < 0.9 < platt(19.0) < 1


def test_errors_and_reliability_are_sums_written_out() -> None:
    scores, relevant = passages(2000)
    probabilities = 1 / (1 + np.exp(-scores))
    errors = errors_of(probabilities, relevant)
    assert errors["brier"] == pytest.approx(brier_score_loss(relevant, probabilities), abs=1e-12)
    expected = 0.0
    for low in range(10):
        inside = (probabilities >= low / 10) & ((probabilities < (low + 1) / 10) | (low == 9))
        if inside.any():
            expected += inside.mean() * abs(probabilities[inside].mean() - relevant[inside].mean())
    assert errors["ece"] == pytest.approx(expected, abs=1e-12)
    assert sum(one["passages"] for one in reliability(probabilities, relevant)) == 2000


def test_a_curve_is_judged_on_queries_that_it_has_not_seen() -> None:
    scores, relevant = passages(100)
    fold = np.repeat(np.arange(5), 20)
    values = held_out("isotonic", scores, relevant, fold)
    out = fold == 3
    assert values[out] == pytest.approx(fit_isotonic(scores[~out], relevant[~out]).of(scores[out]))
    noise = np.random.default_rng(1).random(100) < 0.5  # on the passages themselves steps would look good
    own = errors_of(fit_isotonic(scores, noise).of(scores), noise)["brier"]
    assert errors_of(held_out("isotonic", scores, noise, fold), noise)["brier"] > own


@pytest.mark.parametrize("precision", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("digits", [0, 6])
def test_a_threshold_is_the_lowest_of_those_with_the_precision(precision: float, digits: int) -> None:
    scores, relevant = passages(1000, digits=digits)
    found, _, thresholds = precision_recall_curve(relevant, scores)
    enough = thresholds[found[:-1] >= precision]
    assert threshold_for(precision, scores, relevant) == (enough.min() if len(enough) else None)


def test_no_threshold_where_nothing_is_relevant() -> None:
    assert threshold_for(0.9, np.array([1.0, 2.0]), np.array([False, False])) is None


@pytest.mark.parametrize(
    ("scores", "relevant", "queries", "reason"),
    [
        (np.arange(100.0), np.arange(100) > 50, 9, "too few"),
        (np.arange(100.0), np.arange(100) > 95, 50, "4 relevant passages are too few"),
        (np.arange(100.0), np.arange(100) > 4, 50, "5 other passages are too few"),
        (np.arange(100.0), np.arange(100) < 50, 50, "no higher scores"),
        (np.ones(100), np.arange(100) < 50, 50, "no higher scores"),
        (np.arange(100.0), np.arange(100) > 50, 50, None),
    ],
)
def test_what_cannot_be_fitted_says_why(scores: Floats, relevant: Marks, queries: int, reason: str | None) -> None:
    found = reason_against(scores, relevant, queries)
    assert (found is None) if reason is None else (found is not None and reason in found)


def test_a_curve_of_one_step_is_flat() -> None:
    assert Curve("isotonic", (1.0,), (0.25,))(7.0) == 0.25
