"""What a page draws of lists: changes by query, scores of relevant and other passages, how far passages moved.

Each is of bounded size, however many queries there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rerank_cli.evaluation.systems import SystemList

BARS = 200
MOVES = (0, 1, 2, 5, 10, 20, 50)
"""The last place of each group of moves; the group behind holds all that are longer."""
NO_MOVES = [[0] * (len(MOVES) + 1)] * 2
"""What `count_moves` begins with."""

_BINS = 40
_MOST_SCORES = 2_000_000

Floats = npt.NDArray[np.float64]


def sorted_changes(changes: Floats) -> dict[str, Any] | None:
    """Changes of queries, best first; of more than `BARS` queries the means of equal groups. None without queries."""
    if not len(changes):
        return None
    ordered = np.sort(changes)[::-1]
    groups = np.array_split(ordered, min(BARS, len(ordered)))
    return {"queries": len(ordered), "bars": [round(float(one.mean()), 6) for one in groups]}


def scores_by_relevance(scores: Floats, relevant: npt.NDArray[np.bool_]) -> dict[str, Any] | None:
    """A histogram of each kind in the same bins; what lies beyond the outermost half percent is in the last bins."""
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
    """How many passages moved up and down, and how far; None where nobody knows the given order."""
    total = np.array(NO_MOVES, dtype=np.int64)
    for one in lists:
        if one.places is not None:
            count_moves(total, np.asarray(one.places) - np.arange(len(one.places)))
    return moves_document(total.tolist()) if total.sum() else None


def count_moves(total: npt.NDArray[np.int64], moves: npt.NDArray[Any]) -> None:
    """Add moves, in places up (negative: down), to [up, down] of each group; what stays is `up`."""
    group = np.searchsorted(MOVES, np.abs(moves))
    for row, mine in enumerate((moves >= 0, moves < 0)):
        total[row] += np.bincount(group[mine], minlength=len(MOVES) + 1)


def moves_document(total: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
    """Counts by group, as a report has them; `to` of the last group is None."""
    firsts = [0, *(last + 1 for last in MOVES)]
    lasts = [*MOVES, None]
    return [
        {"from": first, "to": last, "up": up, "down": down}
        for first, last, up, down in zip(firsts, lasts, *total, strict=True)
    ]
