from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_cli.report.histograms import LengthHistogram, SpreadHistograms, Timeline, bound_of

LENGTHS = st.lists(st.integers(0, 2**40))
VALUES = st.lists(st.tuples(st.integers(0, 2), st.floats(width=32, allow_nan=False, allow_infinity=False)), min_size=1)


def lengths_of(found: list[int], state: Any = None) -> LengthHistogram:
    histogram = LengthHistogram(state)
    histogram.add(np.fromiter(found, np.int64))
    return histogram


def as_read(state: Any) -> Any:
    return json.loads(json.dumps(state, allow_nan=False))


@given(LENGTHS)
def test_every_length_is_in_the_bin_that_says_so(found: list[int]) -> None:
    bins = lengths_of(found).bins()
    assert sum(bins.values()) == len(found)
    for first, last in bins:
        assert first == last or (first >= 64 and last - first < 0.032 * first)
        assert bins[first, last] == sum(first <= length <= last for length in found)


@given(LENGTHS, LENGTHS)
def test_lengths_go_on_where_an_earlier_process_has_stopped(before: list[int], after: list[int]) -> None:
    whole, resumed = lengths_of(before + after), lengths_of(after, as_read(lengths_of(before).state))
    assert (resumed.state, resumed.bins(), resumed.longest) == (whole.state, whole.bins(), whole.longest)


@given(st.lists(st.integers(0, 5000), min_size=1), st.sampled_from([0.5, 0.9, 0.99, 1.0]))
def test_a_bound_has_the_share_below_it_and_no_lower_edge_has(found: list[int], share: float) -> None:
    bins = lengths_of(found).bins()
    bound = bound_of(bins, share)
    assert sum(length <= bound for length in found) >= share * len(found)
    lower = [last for _, last in bins if last < bound]
    assert not lower or sum(length <= lower[-1] for length in found) < share * len(found)


def spreads_of(found: list[tuple[int, float]], state: Any = None) -> SpreadHistograms:
    histograms = SpreadHistograms(3, state)
    if found:
        groups, values = zip(*found, strict=True)
        histograms.add(np.array(groups, dtype=np.int64), np.array(values, dtype=np.float64))
    return histograms


@given(VALUES)
def test_bins_of_a_spread_are_few_and_hold_every_value(found: list[tuple[int, float]]) -> None:
    spread = spreads_of(found).by_group()
    values = [value for _, value in found]
    assert {len(counts) for counts in spread["counts"]} <= set(range(1, 66))
    assert [sum(counts) for counts in spread["counts"]] == [sum(group == one for one, _ in found) for group in range(3)]
    assert spread["begin"] <= min(values)
    assert max(values) < spread["begin"] + spread["width"] * len(spread["counts"][0])


@given(VALUES, VALUES)
def test_spreads_do_not_depend_on_order_or_on_a_stop(
    before: list[tuple[int, float]], after: list[tuple[int, float]]
) -> None:
    whole = spreads_of(before + after).state
    assert spreads_of(after, as_read(spreads_of(before).state)).state == whole
    assert spreads_of(after + before).state == whole


def test_quantiles_of_a_spread_are_those_of_the_values_within_a_bin() -> None:
    values = np.random.default_rng(0).normal(-3.0, 4.0, 5000)
    histograms = SpreadHistograms(1)
    histograms.add(np.zeros(5000, dtype=np.int64), values)
    found = histograms.summary(0, (0.05, 0.25, 0.5, 0.75, 0.95))
    assert found is not None
    assert found["count"] == 5000
    assert (found["min"], found["max"]) == (round(values.min(), 4), round(values.max(), 4))
    for share in (5, 25, 50, 75, 95):
        assert found[f"p{share}"] == pytest.approx(np.percentile(values, share), abs=histograms.width)


def test_a_group_without_values_has_no_summary() -> None:
    assert spreads_of([(1, 2.0)]).summary(0, (0.5,)) is None


def test_one_value_many_times_is_that_value() -> None:
    assert spreads_of([(0, -1.25)] * 9).summary(0, (0.05, 0.95)) == {
        "count": 9, "min": -1.25, "p5": -1.25, "p95": -1.25, "max": -1.25,
    }  # fmt: skip


@given(st.lists(st.tuples(st.floats(0, 1e5), st.floats(0, 1e4)), min_size=1))
def test_a_timeline_keeps_its_sums_and_stays_short(steps: list[tuple[float, float]]) -> None:
    timeline, now = Timeline(1), 0.0
    for seconds, amount in steps:
        now += seconds
        timeline.add(now, (amount,))
    (series,) = timeline.state["series"]
    assert len(series) <= 64
    assert (len(series) - 1) * timeline.step <= now
    assert math.isclose(sum(series), sum(amount for _, amount in steps), rel_tol=1e-6, abs_tol=0.01 * len(series))


def test_work_is_spread_over_the_time_it_took() -> None:
    timeline = Timeline(2)
    timeline.add(1.0, (8, 80))
    timeline.add(1.25, (1, 40))
    pairs, tokens = timeline.state["series"]
    assert (pairs[:8], tokens[:8]) == ([1.0] * 8, [10.0] * 8)
    assert (pairs[8:], tokens[8:]) == ([0.5, 0.5, 0.0], [20.0, 20.0, 0.0])


def test_steps_are_merged_in_pairs_when_there_are_too_many() -> None:
    timeline = Timeline(1)
    for second in range(16):
        timeline.add(second + 1, (second,))
    assert timeline.step == 0.5
    assert sum(timeline.state["series"][0]) == pytest.approx(sum(range(16)))
    assert timeline.state["series"][0][4:6] == [1.0, 1.0]


def test_work_that_takes_no_time_is_counted() -> None:
    timeline = Timeline(1)
    timeline.at = 0.3
    timeline.add(0.3, (5,))
    assert timeline.state["series"] == [[0.0, 0.0, 5.0]]
