from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_cli.engine.batching import plan_batches

LENGTHS = st.lists(st.integers(1, 60), max_size=60)
BUDGETS = st.integers(1, 150)


def size(lengths: list[int], batch: list[int], *, padded: bool) -> int:
    taken = [lengths[place] for place in batch]
    return max(taken) * len(taken) if padded else sum(taken)


@given(LENGTHS, BUDGETS, st.booleans())
def test_every_place_is_in_exactly_one_batch(lengths: list[int], budget: int, padded: bool) -> None:
    batches = list(plan_batches(lengths, token_budget=budget, padded=padded))
    assert sorted(place for batch in batches for place in batch) == list(range(len(lengths)))
    assert all(batches)


@given(LENGTHS, BUDGETS, st.booleans())
def test_a_batch_is_within_the_budget_or_a_single_pair(lengths: list[int], budget: int, padded: bool) -> None:
    for batch in plan_batches(lengths, token_budget=budget, padded=padded):
        assert size(lengths, batch, padded=padded) <= budget or len(batch) == 1


@given(LENGTHS, BUDGETS, st.booleans())
def test_no_batch_ends_while_a_later_pair_would_fit(lengths: list[int], budget: int, padded: bool) -> None:
    batches = list(plan_batches(lengths, token_budget=budget, padded=padded))
    for number, batch in enumerate(batches):
        later = [place for following in batches[number + 1 :] for place in following]
        assert all(size(lengths, [*batch, place], padded=padded) > budget for place in later)


@given(LENGTHS, BUDGETS, st.booleans())
def test_the_longest_come_first_and_equal_lengths_in_input_order(lengths: list[int], budget: int, padded: bool) -> None:
    batches = list(plan_batches(lengths, token_budget=budget, padded=padded))
    for batch in batches:
        assert batch == sorted(batch, key=lambda place: (-lengths[place], place))
    firsts = [lengths[batch[0]] for batch in batches]
    assert firsts == sorted(firsts, reverse=True), "the first batch is the hardest on memory"


def test_batches_of_many_pairs_are_full() -> None:
    lengths = [30 + 7 * (place % 61) for place in range(1000)]
    batches = list(plan_batches(lengths, token_budget=2048))
    filled = [size(lengths, batch, padded=False) for batch in batches[:-2]]
    assert min(filled) >= 2048 - 30
    assert sum(filled) / len(filled) >= 0.995 * 2048


@pytest.mark.parametrize(
    ("padded", "expected"),
    [(False, [[1], [0, 2, 3], [4]]), (True, [[1], [0, 2], [3, 4]])],
)
def test_padding_counts_and_packing_does_not(padded: bool, expected: list[list[int]]) -> None:
    assert list(plan_batches([5, 30, 5, 2, 2], token_budget=12, padded=padded)) == expected


def test_no_pairs_make_no_batch() -> None:
    assert list(plan_batches([], token_budget=8)) == []
