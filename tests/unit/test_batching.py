from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_cli.engine.batching import plan_batches

LENGTHS = st.lists(st.integers(0, 60), max_size=60)
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
def test_no_batch_ends_while_the_next_pair_would_fit(lengths: list[int], budget: int, padded: bool) -> None:
    batches = list(plan_batches(lengths, token_budget=budget, padded=padded))
    for batch, following in pairwise(batches):
        assert size(lengths, [*batch, following[0]], padded=padded) > budget


@given(LENGTHS, BUDGETS, st.booleans())
def test_the_longest_come_first_and_equal_lengths_in_input_order(lengths: list[int], budget: int, padded: bool) -> None:
    places = [place for batch in plan_batches(lengths, token_budget=budget, padded=padded) for place in batch]
    assert places == sorted(range(len(lengths)), key=lambda place: (-lengths[place], place))


@pytest.mark.parametrize(
    ("padded", "expected"),
    [(False, [[1], [0, 2, 3], [4]]), (True, [[1], [0, 2], [3, 4]])],
)
def test_padding_counts_and_packing_does_not(padded: bool, expected: list[list[int]]) -> None:
    assert list(plan_batches([5, 30, 5, 2, 2], token_budget=12, padded=padded)) == expected


def test_no_pairs_make_no_batch() -> None:
    assert list(plan_batches([], token_budget=8)) == []
