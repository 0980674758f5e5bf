from __future__ import annotations

import ir_measures
import numpy as np
import pytest

from rerank_cli.evaluation.crossfit import TopMeasure, best_gains, choose, settings_for


@pytest.mark.parametrize("name", ["nDCG@3", "nDCG@10", "nDCG", "RR@2", "RR", "P@5", "Success@2"])
def test_measures_of_many_queries_are_those_of_ir_measures(name: str) -> None:
    generator = np.random.default_rng(1)
    grades = generator.choice([0, 0, 0, 1, 2, 3], (20, 7)).astype(np.float64)
    grades[0] = 0
    more = 2  # relevant passages that are in no list
    qrels = [ir_measures.Qrel(f"q{q}", f"p{p}", int(grades[q, p])) for q in range(20) for p in range(7)]
    qrels += [ir_measures.Qrel(f"q{q}", f"other{p}", 2) for q in range(20) for p in range(more)]
    run = [ir_measures.ScoredDoc(f"q{q}", f"p{p}", -float(p)) for q in range(20) for p in range(7)]
    measure = ir_measures.parse_measure(name)
    wanted = {one.query_id: one.value for one in ir_measures.iter_calc([measure], qrels, run)}
    cutoff = measure.params.get("cutoff")
    best = np.array([best_gains([*map(int, row), *[2] * more], cutoff) for row in grades])
    found = TopMeasure(measure.NAME, cutoff, best).of(grades)
    assert found.tolist() == pytest.approx([wanted[f"q{q}"] for q in range(20)], abs=1e-9)


def test_the_first_setting_is_the_plain_order() -> None:
    settings = settings_for(50)
    assert settings[0].options == ""
    assert len(set(settings)) == len(settings)
    assert max(one.depth or 0 for one in settings) == 40


def test_a_setting_that_is_better_on_most_queries_is_recommended() -> None:
    generator = np.random.default_rng(2)
    plain = generator.random(100) / 2
    values = np.stack([plain, plain + generator.normal(0, 0.1, 100), plain + generator.normal(0.05, 0.1, 100)])
    choice = choose(values)
    assert (choice.place, choice.is_better) == (2, True)
    assert choice.gain == pytest.approx((values[2] - plain).mean(), abs=0.005)


def test_luck_is_not_taken_for_a_gain() -> None:
    """Thirty settings that make no difference: the best of them looks better, and choosing it brings nothing."""
    generator = np.random.default_rng(4)
    recommended, gains, looks = 0, [], []
    for _ in range(200):
        values = np.vstack([np.zeros(25), generator.normal(0, 0.2, (30, 25))])
        choice = choose(values)
        recommended += choice.is_better
        gains.append(choice.gain)
        looks.append(values.mean(1).max())
    assert np.mean(looks) > 0.05
    assert abs(np.mean(gains)) < 0.01
    assert recommended < 0.15 * 200  # these settings have nothing in common; real ones are alike, and fewer are chosen


def test_few_queries_choose_nothing() -> None:
    values = np.vstack([np.zeros(5), np.ones(5)])
    assert not choose(values).is_better
