"""The data of a page's charts: changes by query, scores of relevant and other passages, how far passages moved.

They are of bounded size, however many queries there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rerank_cli.evaluation.kept_lists import SystemList

BARS = 200
MOVES = (0, 1, 2, 5, 10, 20, 50)
"""The longest move of each group; one more group holds all longer moves."""
NO_MOVES = [[0] * (len(MOVES) + 1)] * 2
"""The counts that `count_moves` adds to, at the start."""

_BINS = 40
_MOST_SCORES = 2_000_000

Floats = npt.NDArray[np.float64]


def sorted_changes(changes: Floats) -> dict[str, Any] | None:
    """The changes of queries, best first; means of equal groups above `BARS` queries. None without queries."""
    if not len(changes):
        return None
    ordered = np.sort(changes)[::-1]
    groups = np.array_split(ordered, min(BARS, len(ordered)))
    return {"queries": len(ordered), "bars": [round(float(one.mean()), 6) for one in groups]}


def scores_by_relevance(scores: Floats, relevant: npt.NDArray[np.bool_]) -> dict[str, Any] | None:
    """Histograms of relevant and other passages, in the same bins; the end bins also hold the outermost half percents.

    None where there is nothing to tell apart.
    """
    if not len(scores) or relevant.all() or not relevant.any():
        return None
    step = max(1, len(scores) // _MOST_SCORES)
    low, high = np.quantile(scores[::step], [0.005, 0.995])
    if high <= low:
        return None
    place = np.clip(((scores - low) / (high - low) * _BINS).astype(np.intp), 0, _BINS - 1)
    return {
        "begin": float(low),
        "width": float((high - low) / _BINS),
        "relevant": np.bincount(place[relevant], minlength=_BINS).tolist(),
        "others": np.bincount(place[~relevant], minlength=_BINS).tolist(),
    }


def moves_of(lists: Iterable[SystemList]) -> list[dict[str, Any]] | None:
    """How many passages moved up and down, and how far; None where the given order is not known."""
    total = np.array(NO_MOVES, dtype=np.int64)
    for one in lists:
        if one.places is not None:
            count_moves(total, np.asarray(one.places) - np.arange(len(one.places)))
    return moves_document(total.tolist()) if total.sum() else None


def count_moves(total: npt.NDArray[np.int64], moves: npt.NDArray[Any]) -> None:
    """Add moves to the counts. total: [2, groups], up and down. moves: in places, up is positive, 0 counts as up."""
    group = np.searchsorted(MOVES, np.abs(moves))
    for row, mine in enumerate((moves >= 0, moves < 0)):
        total[row] += np.bincount(group[mine], minlength=len(MOVES) + 1)


def moves_document(total: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
    """The counts by group, as in a report; `to` of the last group is None."""
    firsts = [0, *(last + 1 for last in MOVES)]
    lasts = [*MOVES, None]
    return [
        {"from": first, "to": last, "up": up, "down": down}
        for first, last, up, down in zip(firsts, lasts, *total, strict=True)
    ]
