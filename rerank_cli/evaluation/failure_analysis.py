"""What limits a system: the candidates it was given, the judgements, and the queries on which it fails."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rerank_cli.evaluation.kept_lists import UNJUDGED
from rerank_cli.evaluation.measures import Values, change_of
from rerank_cli.evaluation.systems import Grades, System

EXTREMES = 10
_EXAMPLES = 5
_TOP = 10


def find_limits(
    system: System, queries: Sequence[str], baseline: Mapping[str, Values], grades: Grades
) -> dict[str, Any]:
    """What limits a system, by the first measure, on those of `queries` that it has."""
    queries = [query for query in queries if query in system.lists]
    without: list[str] = []
    judged: list[float | None] = []
    for query in queries:
        own = system.lists[query].grades
        if not (own > 0).any():
            without.append(query)
        judged.append(float(np.mean(own[:_TOP] != UNJUDGED)) if len(own) else None)
    changes = {query: change_of(baseline.get(query), system.values[query]) for query in queries}
    ordered = sorted((query for query in queries if changes[query] is not None), key=lambda one: changes[one] or 0.0)
    judged_bad = any(grade <= 0 for query in queries for grade in grades[query].values())
    found: dict[str, Any] = {
        "perfect_order": _mean([system.perfect[query][0] for query in queries]),
        "without_relevant_candidate": len(without),
        "examples_without": without[:_EXAMPLES],
        "judged_in_top_10": _mean(judged),
        "worst": [{"query": one, "change": changes[one]} for one in ordered[:EXTREMES] if (changes[one] or 0) < 0],
        "best": [
            {"query": one, "change": changes[one]} for one in ordered[: -EXTREMES - 1 : -1] if (changes[one] or 0) > 0
        ],
    }
    if judged_bad:
        kept = [system.condensed[query] for query in queries]
        found["condensed"] = {
            "given": _mean([one[0] for one in kept if one[0] is not None]),
            "value": _mean([one[1] for one in kept]),
        }
    else:
        found["condensed"] = None  # all judged passages are relevant: every condensed list would be perfect
    return found


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return float(np.mean(there)) if there else None
