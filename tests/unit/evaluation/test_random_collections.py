"""The verdict on collections of every kind agrees with a paired t-test and a randomisation test at 5 %.

A few on every run, 50 with RERANK_TORTURE=long: odd sizes, one query, ties, constant and negative scores, queries
without a relevant passage, lists that lack queries, several systems, which Holm's correction makes one family.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import ir_measures
import numpy as np
import pytest
import scipy.stats

from rerank_cli.evaluation.evaluate_systems import EvaluationRequest, evaluate_systems

COLLECTIONS = 50 if os.environ.get("RERANK_TORTURE") == "long" else 6
SHIP_AT = 0.01
Run = dict[str, dict[str, float]]


def draw(number: int, folder: Path) -> tuple[Path, Path, list[Path]]:
    """Judgements, the baseline and the systems of a collection."""
    generator = np.random.default_rng(1000 + number)
    queries = int(generator.choice([1, 2, 3, 7, 20, 21, 49, 130]))
    systems = int(generator.choice([1, 1, 1, 2, 5]))
    skills = generator.choice([-1.0, -0.2, 0.0, 0.1, 0.3, 1.0], systems)
    offset = float(generator.choice([0.0, -1000.0]))
    digits = int(generator.choice([0, 1, 6]))  # 0: mostly ties
    kinds = generator.choice(["scores", "scores", "scores", "constant", "incomplete"], systems)
    judged: list[str] = []
    runs: list[Run] = [{} for _ in range(systems + 1)]
    for query in range(queries):
        count = int(generator.integers(1, 60))
        grades = (generator.random(count) < generator.choice([0.05, 0.3])) * generator.integers(1, 4, count)
        if query == 0:
            grades[0] = 1  # one relevant passage is in the collection
        shown = generator.permutation(count)[: 1 + count // 2] if query else range(count)
        judged += [f"q{query} 0 d{at} {grades[at]}\n" for at in shown]
        for place, run in enumerate(runs):
            skill = 0.0 if place == 0 else skills[place - 1]
            scores = np.round(generator.normal(size=count) + skill * grades, digits) + offset
            if place and kinds[place - 1] == "constant":
                scores = np.full(count, offset)
            if place and kinds[place - 1] == "incomplete" and query % 5 == 4:
                continue
            run[f"q{query}"] = {f"d{at}": float(score) for at, score in enumerate(scores)}
    (folder / "qrels.txt").write_text("".join(judged))
    paths = []
    for place, run in enumerate(runs):
        path = folder / f"{place}.trec"
        path.write_text("".join(f"{q} Q0 {d} 1 {run[q][d]!r} x\n" for q in run for d in run[q]))
        paths.append(path)
    return folder / "qrels.txt", paths[0], paths[1:]


def values_of(qrels: Path, path: Path) -> dict[str, float]:
    """nDCG@10 of each judged query by ir-measures; equal scores in the order of the file."""
    lists: dict[str, list[tuple[str, float]]] = {}
    for line in path.read_text().splitlines():
        query, _, name, _, score, _ = line.split()
        lists.setdefault(query, []).append((name, float(score)))
    judged = list(ir_measures.read_trec_qrels(str(qrels)))
    run = []
    for query, found in lists.items():
        ordered = sorted(found, key=lambda one: -one[1])
        run += [ir_measures.ScoredDoc(query, name, -float(place)) for place, (name, _) in enumerate(ordered)]
    return {one.query_id: one.value for one in ir_measures.iter_calc([ir_measures.nDCG @ 10], judged, run)}


def both_p_values(differences: Any) -> tuple[float, float]:
    """The p-values of both tests, by scipy."""
    if len(differences) < 2:
        return 1.0, 1.0
    with np.errstate(all="ignore"):
        t = float(scipy.stats.ttest_1samp(differences, 0.0).pvalue)
    if not np.any(differences):
        return 1.0, 1.0
    found = scipy.stats.permutation_test(
        (differences, np.zeros_like(differences)), lambda a, b, axis: np.mean(a - b, axis=axis), vectorized=True,
        permutation_type="samples", n_resamples=20_000, batch=2_000, rng=np.random.default_rng(0),
    )  # fmt: skip
    return t, float(found.pvalue)


def test_the_verdict_agrees_with_both_tests(tmp_path: Path) -> None:
    words: Counter[str] = Counter()
    for number in range(COLLECTIONS):
        folder = tmp_path / str(number)
        folder.mkdir()
        qrels, baseline, systems = draw(number, folder)
        request = EvaluationRequest(tuple(map(str, systems)), str(qrels), str(baseline), ship_at=SHIP_AT)
        document = evaluate_systems(request, lambda error: pytest.fail(error.message)).document
        before = values_of(qrels, baseline)
        changes = []
        for path in systems:
            after = values_of(qrels, path)
            changes.append(np.array([after[query] - before[query] for query in before]))
        p_values = [max(both_p_values(one)) for one in changes]
        # Holm: the smallest p-value times the number of tests, the next times one less, none below the one before.
        order = np.argsort(p_values)
        corrected = np.empty(len(order))
        corrected[order] = np.maximum.accumulate(np.sort(p_values) * np.arange(len(order), 0, -1)).clip(max=1)
        for change, p_value, system in zip(changes, corrected, document["systems"], strict=True):
            (found,) = system["measures"]
            assert found["difference"] == pytest.approx(change.mean(), abs=1e-9)
            assert found["p_corrected"] == pytest.approx(p_value, abs=0.02)
            if 0.04 < p_value < 0.06:
                continue  # the choices of signs that are drawn decide
            words[found["verdict"]] += 1
            if p_value >= 0.05:
                assert found["verdict"] == ("don't ship" if found["too_small"] else "undecided")
            elif change.mean() < 0:
                assert found["verdict"] == "don't ship"
            else:
                assert (found["verdict"] == "ship") != found["too_small"]
                assert not found["too_small"] or found["high"] < SHIP_AT
    assert len(words) >= 2
    if COLLECTIONS >= 50:
        assert min(words[word] for word in ("ship", "don't ship", "undecided")) >= 5
