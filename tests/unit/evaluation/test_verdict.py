from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from rerank_cli.evaluation.t_distribution import quantile, two_tails
from rerank_cli.evaluation.verdict import ALPHA, PairedTest, decide, holm, paired_test


@pytest.mark.parametrize("freedom", [1, 2, 3, 10, 24, 92, 224, 1_000, 100_000])
@pytest.mark.parametrize("t", [0.0, 0.01, 0.5, 1.0, 1.96, 2.5, 5.0, 20.0])
def test_the_tails_are_those_of_scipy(t: float, freedom: int) -> None:
    assert two_tails(t, freedom) == pytest.approx(2 * scipy.stats.t.sf(t, freedom), abs=1e-9)


@pytest.mark.parametrize("freedom", [1, 2, 10, 92, 100_000])
def test_the_quantiles_are_those_of_scipy(freedom: int) -> None:
    assert quantile(0.95, freedom) == pytest.approx(scipy.stats.t.ppf(0.975, freedom), rel=1e-7)


@pytest.mark.parametrize("seed", range(5))
def test_the_paired_test_is_scipys(seed: int) -> None:
    generator = np.random.default_rng(seed)
    old, new = generator.random(40), generator.random(40)
    found, wanted = paired_test(new - old), scipy.stats.ttest_rel(new, old)
    low, high = wanted.confidence_interval(0.95)
    assert found.t == pytest.approx(wanted.statistic)
    assert found.p_t == pytest.approx(wanted.pvalue, abs=1e-9)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-9)
    permuted = scipy.stats.permutation_test(
        (new, old), lambda a, b: np.mean(a - b), permutation_type="samples", n_resamples=20_000, rng=generator
    )
    assert found.p_randomisation == pytest.approx(permuted.pvalue, abs=0.02)


def test_holm_is_the_step_down_correction() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5]) == [0.5]
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def of(mean: float, deviation: float, queries: int) -> PairedTest:
    """Differences with exactly this mean and deviation."""
    values = np.random.default_rng(3).normal(size=queries)
    values = (values - values.mean()) / values.std(ddof=1)
    return paired_test(mean + deviation * values)


@pytest.mark.parametrize(
    ("mean", "deviation", "queries", "word", "too_small"),
    [
        (0.05, 0.2, 200, "ship", False),
        (-0.05, 0.2, 200, "don't ship", False),
        (0.02, 0.2, 200, "undecided", False),
        (-0.02, 0.2, 200, "undecided", False),
        (0.004, 0.05, 10_000, "don't ship", True),  # real, and less than .01
        (0.0, 0.05, 10_000, "don't ship", True),
    ],
)
def test_the_verdict_follows_tests_and_interval(
    mean: float, deviation: float, queries: int, word: str, too_small: bool
) -> None:
    (found,) = decide([of(mean, deviation, queries)])
    assert (found.word, found.too_small) == (word, too_small)


def test_a_gain_that_is_worth_less_may_be_smaller() -> None:
    test = of(0.004, 0.05, 10_000)
    assert decide([test], ship_at=0.001)[0].word == "ship"


def test_several_verdicts_are_corrected_together() -> None:
    barely = of(0.03, 0.2, 200)
    assert barely.p_value < ALPHA < 3 * barely.p_value
    assert decide([barely])[0].word == "ship"
    assert [one.word for one in decide([barely, of(0, 0.2, 200), of(0, 0.2, 200)])] == ["undecided"] * 3


def test_the_queries_that_are_missing_find_the_difference_in_four_of_five_collections() -> None:
    (found,) = decide([of(0.03, 0.25, 100)])
    assert found.more_queries is not None
    whole = 100 + found.more_queries
    needed = ((scipy.stats.norm.ppf(0.975) + scipy.stats.norm.ppf(0.8)) * 0.25 / 0.03) ** 2
    assert needed <= whole <= 1.1 * needed


@pytest.mark.parametrize("differences", [[0.1], [0.0], [0.2, 0.2, 0.2]])
def test_a_few_queries_decide_nothing(differences: list[float]) -> None:
    (found,) = decide([paired_test(differences)])
    assert found.word == "undecided"


def test_orders_that_are_equal_are_no_reason_to_ship() -> None:
    (found,) = decide([paired_test([0.0] * 30)])
    assert (found.word, found.too_small, found.test.p_value) == ("don't ship", True, 1.0)
