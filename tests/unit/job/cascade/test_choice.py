"""What the second scorer reads of a list, and what a run says of its agreement."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest

from rerank_cli.job.agreement import Agreement, first_n, interval
from rerank_cli.job.cascade.choice import (
    Bound,
    Kept,
    ListChoice,
    Rule,
    add_list,
    agreement_document,
    choose,
    make_rule,
)
from rerank_cli.job.first_scorer import Asked, Keep

NAN = float("nan")


def drawn(seed: int, passages: int, error: float) -> tuple[np.ndarray, np.ndarray]:
    """Scores of both scorers, rounded so that there are ties; the second lies at most `error` from the first."""
    chance = np.random.default_rng(seed)
    first = np.round(chance.normal(0, 3, passages), 1)
    return first, first + np.round(chance.uniform(-error, error, passages), 1)


def asked(keep: Keep, number: float = 0, top: int = 3) -> Asked:
    return Asked(same_model=True, precision="int8", model=None, keep=keep, number=number, top=top)


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("top", [1, 3, 10])
def test_within_the_bound_the_first_n_are_those_of_a_full_run_ties_included(seed: int, top: int) -> None:
    first, second = drawn(seed, 5 + seed * 3, 0.8)
    found = choose(first, second, Rule(top, over=0.8 + 1e-9))
    assert first_n(found.second, top) == first_n(second, top)


def test_what_cannot_reach_the_head_is_not_read() -> None:
    first = np.array([9.0, 8.0, 7.0, 1.0, 0.0, 6.9])
    second = np.array([9.0, 8.0, 7.0, 1.0, 0.0, 7.1])
    found = choose(first, second, Rule(3, over=0.5))
    assert found.read == {0, 1, 2, 5}
    assert first_n(found.second, 3) == [0, 1, 5]


def test_a_bound_that_holds_not_is_counted_and_changes_the_head() -> None:
    first, second = np.array([3.0, 2.0, 1.0, 0.0]), np.array([3.0, 2.0, 1.0, 9.0])
    rule, kept = Rule(2, over=0.5), Kept()
    kept.add(choose(first, second, rule), rule)
    assert kept.exceeded == 0  # nobody has read the one that lies beyond it
    kept.add(choose(first + np.array([0, 0, 1.2, 0]), second + np.array([0, 0, 1.0, 0]), rule), rule)
    kept.add(choose(first, second + np.array([0, 1, 0, 0]), rule), rule)
    assert (kept.exceeded, kept.furthest) == (1, 1.0)
    agreement = Agreement(2)
    add_list(agreement, first, second, rule)
    assert agreement_document(agreement)["overlap"] == 0.5


def test_passages_without_a_first_score_are_read_by_the_second() -> None:
    first = np.array([1.0, NAN, 3.0, NAN, 2.0])
    assert ListChoice(first, Rule(1, over=0.1)).wanted() == [1, 2, 3]
    assert ListChoice(first, Rule(1, keep=2)).wanted() == [1, 2, 3, 4]
    assert ListChoice(np.full(3, NAN), Rule(1, keep=1)).wanted() == [0, 1, 2]
    assert ListChoice(np.zeros(0), Rule(1, keep=1)).wanted() == []


def test_where_the_second_scorer_fails_the_next_best_take_the_place() -> None:
    first = np.array([5.0, 4.0, 3.0, 2.0, 1.0])
    second = np.array([NAN, NAN, 3.0, 2.0, 1.0])
    assert choose(first, second, Rule(2, over=0.1)).read == {0, 1, 2, 3}
    assert choose(first, np.full(5, NAN), Rule(2, over=0.1)).read == {0, 1, 2, 3, 4}


@pytest.mark.parametrize(
    ("rule", "passages", "read"),
    [(Rule(3, keep=5), 100, 5), (Rule(3, keep=5), 2, 2), (Rule(3, share=0.1), 100, 10), (Rule(3, share=0.1), 11, 3),
     (Rule(3), 50, 50)],
)  # fmt: skip
def test_numbers_and_shares_of_a_list(rule: Rule, passages: int, read: int) -> None:
    first = np.arange(passages, dtype=np.float64)
    found = choose(first, first, rule)
    assert found.read == set(range(passages - read, passages))


def test_auto_keeps_what_the_sampled_lists_needed_and_half_as_many_again() -> None:
    first = np.arange(100, 0, -1, dtype=np.float64)
    second = first.copy()
    second[19] = 999.0  # the 20th of the first scorer is the best of the second
    assert make_rule(asked("auto"), [(first, first), (first, second)]).keep == 30
    assert make_rule(asked("auto"), [(first, first)]).keep == 6
    assert make_rule(asked("auto"), []).at_once(50) == 50  # nothing was measured, so all is read


def test_the_bound_is_the_largest_excess_over_the_median_and_half_as_much_again() -> None:
    first = np.zeros(101)
    second = np.linspace(-0.4, 0.6, 101)
    rule = make_rule(asked("exact"), [(first, second), (np.array([NAN]), np.array([1.0]))])
    assert rule.bound == Bound(101, pytest.approx(0.1), pytest.approx(0.59), pytest.approx(0.6), pytest.approx(0.85))
    assert rule.over == pytest.approx(0.85)
    assert make_rule(asked("exact"), []).at_once(9) == 9
    assert Rule.of_state(asdict(rule)) == rule


def test_an_interval_is_as_wide_as_few_lists_make_it() -> None:
    assert interval(1.0, 10) == (pytest.approx(0.7225, abs=1e-4), pytest.approx(1.0))  # Wilson 1927, as in statsmodels
    assert interval(0.5, 100) == (pytest.approx(0.4038, abs=1e-4), pytest.approx(0.5962, abs=1e-4))


def test_nothing_agrees_or_differs_without_lists() -> None:
    agreement = Agreement(10)
    add_list(agreement, np.zeros(0), np.zeros(0), Rule(10, keep=10))
    assert agreement_document(agreement) == {"lists": 0, "top_n": 10}
