"""The queries that changed most, taken as lists come: those of a sort over all of them, whatever stops the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rerank_cli.evaluation.evaluator import Evaluator
from rerank_cli.evaluation.failure_analysis import EXTREMES
from rerank_cli.evaluation.orders import Orders

DEPTH = 8


def lists(count: int, seed: int = 0) -> list[Orders]:
    generator = np.random.default_rng(seed)
    found = []
    for query in range(count):
        new = [f"d{at}" for at in generator.permutation(DEPTH)]
        texts = {f"d{at}": f"text {at} of {query}" for at in range(DEPTH)}
        scores = sorted(generator.normal(size=DEPTH).tolist(), reverse=True)
        given = [f"d{at}" for at in range(DEPTH)]
        found.append(Orders(f"q{query}", given, new, 0, scores, f"query {query}", lambda texts=texts: texts))
    return found


@pytest.fixture
def qrels(tmp_path: Path) -> str:
    path = tmp_path / "qrels.txt"
    path.write_text("".join(f"q{query} 0 d{query % DEPTH} {1 + query % 2}\n" for query in range(200)))
    return str(path)


@pytest.mark.parametrize("stop", [0, 3, 117])
def test_they_are_those_of_a_sort_over_all_queries(stop: int, qrels: str) -> None:
    evaluator, added = Evaluator(qrels, ["RR@10"]), lists(200)
    notes: list[Any] = []
    for begin in range(0, 200, 10):
        if begin == stop // 10 * 10:
            evaluator = Evaluator(qrels, ["RR@10"])  # a process that goes on where another has ended
            evaluator.restore(json.loads(json.dumps(notes)))
        evaluator.add(added[begin : begin + 10])
        notes += evaluator.note
    found = evaluator.changes()
    assert found is not None
    values = [(one.query_id, one.difference or 0.0) for one in evaluator.per_query()]
    best = sorted((one for one in values if one[1] > 0), key=lambda one: -one[1])[:EXTREMES]
    worst = sorted((one for one in values if one[1] < 0), key=lambda one: one[1])[:EXTREMES]
    assert [(one["query"], one["change"]) for one in found["gained"]] == best
    assert [(one["query"], one["change"]) for one in found["lost"]] == worst
    assert found["bars"] == pytest.approx(sorted((one[1] for one in values), reverse=True), abs=1e-6)
    by_query = {one.query: one for one in added}
    for one in (*found["gained"], *found["lost"]):
        item, number = by_query[one["query"]], one["query"][1:]
        assert one["text"] == f"query {number}"
        assert [each["id"] for each in one["new"]] == item.reranked[:5]
        assert [each["id"] for each in one["given"]] == list(item.given or ())[:5]
        for at, each in enumerate(one["given"]):
            assert each["place"] == item.reranked.index(each["id"]) + 1
            assert each["text"] == f"text {at} of {number}"
            assert each["grade"] == (1 + int(number) % 2 if at == int(number) % DEPTH else None)


def test_few_lists_are_kept_of_many_queries(qrels: str) -> None:
    evaluator = Evaluator(qrels, ["RR@10"])
    evaluator.add(lists(200))
    shown = [entry for entry in evaluator.note if len(entry) > 6]
    assert 2 * EXTREMES <= len(shown) < 120


def test_scores_are_parted_by_relevance(qrels: str) -> None:
    evaluator = Evaluator(qrels, ["RR@10"])
    (one,) = lists(1)
    evaluator.add([one])
    place = list(one.reranked).index("d0")
    assert evaluator.scores[0] == [one.scores[place]]
    assert evaluator.scores[1] == [score for at, score in enumerate(one.scores) if at != place]
