from __future__ import annotations

import itertools
import json
from dataclasses import asdict

import numpy as np
import pytest

from rerank_cli.encoding.pairs import EncodedWindow
from rerank_cli.job.agreement import Agreement, first_n
from rerank_cli.job.precision_check import Comparison, tau_b
from rerank_cli.records import CandidateList, EncodedPair, Window


def logits(*numbers: float) -> np.ndarray:
    return np.array(numbers, dtype=np.float32)


def encoded(*sizes: int) -> EncodedWindow:
    """A window of lists of these sizes, all pairs distinct."""
    lists = tuple(CandidateList(rows=(), query=f"q{n}", passages=("p",) * size) for n, size in enumerate(sizes))
    entry = (EncodedPair(input_ids=np.array([1, 2], dtype=np.int32), second_start=1, tokens=2),)
    window = Window(number=0, lists=lists, errors=(), rows=sum(sizes), blank=0)
    return EncodedWindow(window, [entry] * sum(sizes), list(range(sum(sizes))))


def exactly(*numbers: float):
    """fp32 that gives these logits in turn, and remembers how many it was asked for."""
    asked: list[int] = []

    def exact(entries: list) -> np.ndarray:
        asked.append(len(entries))
        return logits(*numbers[: len(entries)])

    return exact, asked


@pytest.mark.parametrize(
    ("a", "b", "tau"),
    [
        ((1, 2, 3, 4), (10, 20, 30, 40), 1.0),
        ((1, 2, 3, 4), (4, 3, 2, 1), -1.0),
        ((1, 2, 3, 4), (1, 2, 4, 3), 4 / 6),  # five pairs agree, one does not
        ((1, 1, 2), (1, 2, 3), 2 / 6**0.5),  # tau-b: a tie in one of them
        ((5,), (3,), 1.0),
        ((1, 1), (1, 2), 1.0),
    ],
)
def test_kendalls_tau_is_as_by_hand(a, b, tau):
    assert tau_b(logits(*a), logits(*b)) == pytest.approx(tau)


def test_kendalls_tau_of_all_orders_of_five_counts_pairs():
    order = logits(1, 2, 3, 4, 5)
    for other in itertools.permutations(range(5)):
        agree = sum(1 if x < y else -1 for x, y in itertools.combinations(other, 2))
        assert tau_b(order, logits(*other)) == pytest.approx(agree / 10)


def top_overlap(a: np.ndarray, b: np.ndarray) -> float | None:
    found = Agreement(10)
    found.add(first_n(b, 10), first_n(a, 10), passages=len(a))
    return found.mean_overlap


def test_overlap_is_of_the_ten_best_or_of_all_if_there_are_fewer():
    a = np.arange(20, dtype=np.float32)
    b = a.copy()
    b[[9, 10]] = b[[10, 9]]  # the tenth and the eleventh from above
    assert top_overlap(a, a) == 1
    assert top_overlap(a, b) == pytest.approx(0.9)
    assert top_overlap(logits(1, 2), logits(2, 1)) == 1


def test_whole_lists_are_compared_until_there_are_enough_pairs():
    found = Comparison(wanted=4)
    exact, asked = exactly(1, 2, 3, 5, 6, 7)
    found.add(encoded(3, 3, 3), logits(1, 2, 3.5, 5, 6, 6.5, 0, 0, 0), exact)
    assert asked == [6]
    assert found.complete
    found.add(encoded(3), logits(1, 2, 3), exact)
    assert asked == [6]
    assert found.to_json() == {
        "pairs": 6, "lists": 2, "max_logit_difference": 0.5, "kendall_tau": 1.0, "top10_overlap": 1.0,
        "interval": [pytest.approx(0.34238, abs=1e-5), 1.0],
    }  # fmt: skip


def test_rows_of_one_pair_are_one_list_a_window():
    found = Comparison(wanted=100)
    found.add(encoded(1, 1, 1), logits(1, 2, 3), exactly(3, 2, 1)[0])
    assert (found.pairs, found.heads.lists, found.complete) == (3, 1, False)
    assert found.to_json()["kendall_tau"] == -1


def test_a_pair_without_a_logit_is_not_compared():
    found = Comparison(wanted=100)
    exact, asked = exactly(1, 2)
    found.add(encoded(3), logits(1, np.nan, 2), exact)
    assert asked == [2]
    assert found.pairs == 2


def test_nothing_to_compare_is_no_agreement():
    found = Comparison(wanted=100)
    found.add(encoded(), logits(), exactly()[0])
    assert found.to_json()["top10_overlap"] is None


def test_its_state_goes_on_where_it_was():
    found = Comparison(wanted=5)
    found.add(encoded(3), logits(1, 2, 3.25), exactly(1, 2, 3)[0])
    again = Comparison.of_state(json.loads(json.dumps(asdict(found))))
    for one in (found, again):
        one.add(encoded(3), logits(3, 2, 1), exactly(1, 2, 3)[0])
    assert again.to_json() == found.to_json()
    assert again.to_json()["lists"] == 2


def test_of_a_list_of_a_hundred_thousand_the_first_thousand_are_compared() -> None:
    size = 5000
    found = logits(*range(size))
    exact, asked = exactly(*range(size))
    agreement = Comparison(10_000)
    agreement.add(encoded(size, 3), np.concatenate([found, found[:3]]), exact)
    assert asked == [1003]
    assert agreement.pairs == 1003
