"""How to use the scores of a system: how deep to rerank, and how much to blend in the first stage (see `crossfit`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rerank_cli.evaluation.blend import order_by_score
from rerank_cli.evaluation.crossfit import KNOWN, TopMeasure, best_gains, choose, settings_for, values_of
from rerank_cli.evaluation.kept_lists import sample_of
from rerank_cli.evaluation.systems import Grades, System

_MOST_QUERIES = 5_000  # settings are tried on so many; more would change no choice
_LONGEST = 1_000
_QUERIES_AT_ONCE = 1_000  # whose joined lists are in memory
_SHOWN = 5
_CURVE = (1, 2, 3, 5, 10, 20, 30, 40, 50, 75, 100, 150, 200, 300, 500, 1_000)

Floats = npt.NDArray[np.float64]


def use_of(system: System, measure: Any, grades: Grades) -> dict[str, Any]:
    """What each setting brings, which is recommended, and how the gain grows with the depth; or a `reason` for nothing.

    `differences` has, for each query, the value by a setting that was chosen without it minus that of the given order.
    """
    top = _top_measure(measure, system, grades)
    if isinstance(top, str):
        return {"reason": top}
    queries, scores, gains, known = top
    settings = settings_for(scores.shape[1])
    values = values_of(scores, gains, settings, known)
    plain = np.array([system.values[query][0] or 0.0 for query in queries])
    if np.abs(values[0] - plain).max() > 1e-9:
        why = "it was cut or blended before, or some are equal for having been rounded"
        return {"reason": f"the file is not in the order of its scores: {why}"}
    given = known.of(gains)
    choice = choose(values)
    chosen = settings[choice.place] if choice.is_better else None
    best = np.argsort(-values.mean(1), kind="stable")[:_SHOWN]
    return {
        "measure": str(measure),
        "queries": len(queries),
        "given": float(given.mean()),
        "plain": float(values[0].mean()),
        "recommended": chosen.options if chosen else "",
        "setting": {"depth": chosen.depth, "blend": str(chosen.blend) if chosen.blend else None} if chosen else None,
        "gain_of_choosing": choice.gain,
        "standard_error": choice.error,
        "on_these_queries": [
            {"options": settings[place].options, "value": float(values[place].mean())} for place in best
        ],
        "depths": _curve(scores, gains, known, given, values[0]),
        "differences": (choice.values - given).tolist(),
    }


def together(systems: Sequence[System], measure: Any, grades: Grades) -> dict[str, Any] | None:
    """All systems joined by the mean of their reciprocal ranks; None if the measure is not known here."""
    found = _name_and_cutoff(measure)
    if found is None or len(systems) < 2:
        return None
    queries = [query for query in systems[0].lists if all(query in one.lists for one in systems)]
    if not queries:
        return None
    values = np.concatenate(
        [
            _values_together(systems, queries[begin : begin + _QUERIES_AT_ONCE], *found, grades)
            for begin in range(0, len(queries), _QUERIES_AT_ONCE)
        ]
    )
    singles = [float(np.mean([one.values[query][0] or 0.0 for query in queries])) for one in systems]
    return {
        "measure": str(measure), "how": "mean of 1 / (60 + rank)", "queries": len(queries),
        "value": float(values.mean()), "best_alone": max(singles),
    }  # fmt: skip


def _values_together(
    systems: Sequence[System], queries: Sequence[str], base: str, cutoff: int | None, grades: Grades
) -> Floats:
    rows = []
    for query in queries:
        joined: dict[int, float] = {}
        gain: dict[int, float] = {}
        for system in systems:
            ranked = system.lists[query]
            for rank, (name, grade) in enumerate(zip(ranked.ids.tolist(), ranked.grades.tolist(), strict=True), 1):
                joined[name] = joined.get(name, 0.0) + 1 / (60 + rank)
                gain[name] = max(grade, 0)
        order = sorted(joined, key=lambda name: -joined[name])
        rows.append([gain[name] for name in order])
    width = max(map(len, rows))
    gains = np.array([row + [0] * (width - len(row)) for row in rows], dtype=np.float64)
    best = np.array([best_gains(list(grades[query].values()), cutoff) for query in queries])
    return TopMeasure(base, cutoff, best).of(gains)


def _name_and_cutoff(measure: Any) -> tuple[str, int | None] | None:
    """Name and cutoff of a measure that `TopMeasure` computes; None for any other."""
    name, cutoff = measure.NAME, measure.params.get("cutoff")
    has_other_settings = set(measure.params) - {"cutoff"}
    if has_other_settings or name not in KNOWN or (name == "P" and cutoff is None):
        return None
    return name, cutoff


def _top_measure(measure: Any, system: System, grades: Grades) -> tuple[list[str], Floats, Floats, TopMeasure] | str:
    found = _name_and_cutoff(measure)
    if found is None:
        return f"depth and blend are chosen by one of {', '.join(KNOWN)}, and {measure} is none"
    if system.cut:
        return f"{system.cut:,} lists have fewer passages than were reranked: rerank without `--top-n`"
    if not system.score:
        return "the file has no scores of its new order"
    queries = [query for query, ranked in system.lists.items() if ranked.places is not None and len(ranked.ids)]
    if not queries:
        return "the file does not say the given order"
    queries = sample_of(queries, _MOST_QUERIES)
    longest = min(_LONGEST, max(len(system.lists[query].ids) for query in queries))
    scores = np.full((len(queries), longest), -np.inf)
    gains = np.zeros((len(queries), longest))
    for row, query in enumerate(queries):
        ranked = system.lists[query]
        assert ranked.places is not None and ranked.scores is not None, "chosen above"
        order = np.argsort(ranked.places)[:longest]
        scores[row, : len(order)] = ranked.scores[order]
        gains[row, : len(order)] = np.maximum(ranked.grades[order], 0)
    best = np.array([best_gains(list(grades[query].values()), found[1]) for query in queries])
    return queries, scores, gains, TopMeasure(*found, best)


def _curve(scores: Floats, gains: Floats, measure: TopMeasure, given: Floats, plain: Floats) -> list[dict[str, Any]]:
    """For each depth: the value, the share of candidates that are scored, and the share of the whole gain."""
    longest = scores.shape[1]
    candidates = np.isfinite(scores).sum(1)
    whole = float(plain.mean() - given.mean())
    found = []
    for depth in [*(one for one in _CURVE if one < longest), longest]:
        order = order_by_score(scores, depth=depth)
        value = float(measure.of(np.take_along_axis(gains, order, axis=1)).mean())
        share = float(np.minimum(candidates, depth).sum() / candidates.sum())
        gained = value - float(given.mean())
        found.append({"depth": depth, "read": share, "value": value, "of_gain": gained / whole if whole > 0 else None})
    return found
