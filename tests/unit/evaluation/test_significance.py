from __future__ import annotations

import itertools

import numpy as np
import pytest

from rerank_cli.evaluation.significance import DRAWN, EXACT_QUERIES, SEED, randomisation_test

SOME = [0.3, -0.1, 0.25, 0.05, 0.4, -0.2, 0.0, 0.15]


def enumerated(differences: list[float]) -> float:
    """All choices of signs, written out."""
    seen = abs(sum(differences))
    sums = [abs(sum(np.multiply(signs, differences))) for signs in itertools.product((1, -1), repeat=len(differences))]
    return sum(value >= seen - 1e-9 for value in sums) / len(sums)


def drawn(number: int) -> list[float]:
    return np.random.default_rng(7).normal(0.02, 0.2, number).tolist()


@pytest.mark.parametrize(
    "differences", [SOME, [1.0], [0.5, 0.5], [1.0, -1.0], [0.1] * 10, [0.1, 0.2, -0.3], [-one for one in SOME]]
)
def test_few_queries_are_tested_against_all_choices_of_signs(differences: list[float]) -> None:
    found = randomisation_test(differences)
    assert found is not None
    assert found.p_value == pytest.approx(enumerated(differences), abs=1e-12)
    changed = sum(one != 0 for one in differences)
    assert (found.method, found.permutations, found.seed) == ("exact", 2**changed, None)


def test_all_differences_to_one_side_have_two_of_all_choices() -> None:
    found = randomisation_test([0.1] * 10)
    assert found is not None
    assert found.p_value == 2 / 2**10


def test_without_a_difference_nothing_speaks_against_chance() -> None:
    found = randomisation_test([0.0, 0.0, 0.0])
    assert found is not None
    assert (found.p_value, found.permutations, found.method) == (1.0, 1, "exact")
    assert randomisation_test([]) is None


def test_many_queries_are_tested_against_choices_drawn_with_a_fixed_seed() -> None:
    differences = drawn(EXACT_QUERIES + 1)
    found = randomisation_test(differences)
    assert found == randomisation_test(differences)
    assert found is not None
    assert (found.method, found.permutations, found.seed) == ("sampled", DRAWN, SEED)
    exact = randomisation_test(differences[:EXACT_QUERIES])
    sampled = randomisation_test([*differences[:EXACT_QUERIES], 1e-15])  # one more query that changes nothing
    assert exact is not None
    assert sampled is not None
    assert (exact.method, sampled.method) == ("exact", "sampled")
    assert sampled.p_value == pytest.approx(exact.p_value, abs=0.008)  # five standard errors


def test_no_p_value_is_zero() -> None:
    found = randomisation_test([0.5] * 100)
    assert found is not None
    assert found.p_value == 1 / (1 + found.permutations)


def test_with_very_many_queries_fewer_choices_are_drawn_and_it_says_how_many() -> None:
    found = randomisation_test([0.1, -0.1] * 50_000)
    assert found is not None
    assert found.permutations == 1000
    assert found.p_value == 1.0


@pytest.mark.parametrize("number", [6, 12])
def test_the_p_value_is_that_of_scipy(number: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    differences = drawn(number)
    expected = stats.permutation_test(
        (differences, [0.0] * number),
        lambda a, b, axis: np.mean(a - b, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=np.inf,
    ).pvalue
    found = randomisation_test(differences)
    assert found is not None
    assert found.p_value == pytest.approx(expected, abs=1e-12)
