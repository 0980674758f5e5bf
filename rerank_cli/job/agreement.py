"""Measures the top-n overlap: how many of the first n passages of lists are those of a run with the exact scores.

Precisions (`precision_check.py`, `precision_choice.py`) and cascades (`cascade/choice.py`) are measured by the same
count, so their shares can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rerank_cli.evaluation.blend import order_by_score

_Z95 = 1.959964


def first_n(scores: npt.NDArray[np.floating[Any]], top: int) -> list[int]:
    """The places of the best scores, best first; equal ones in input order; places without a score are left out."""
    order: list[int] = order_by_score(np.where(np.isfinite(scores), scores, -math.inf)).tolist()
    return [place for place in order if np.isfinite(scores[place])][:top]


@dataclass(slots=True)
class Agreement:
    """What was compared so far, summed over lists."""

    top: int
    """How many passages at the head of a list are compared."""
    lists: int = 0
    passages: int = 0
    same: int = 0
    """Lists whose first n are the same passages in the same order."""
    overlap: float = 0.0
    ndcg: float = 0.0

    def add(self, exact: Sequence[int], found: Sequence[int], *, passages: int) -> None:
        """Count a list. exact, found: its first n places, best first; a list without any exact score is not counted."""
        if not exact:
            return
        self.lists += 1
        self.passages += passages
        self.same += list(exact) == list(found)
        self.overlap += len(set(exact) & set(found)) / len(exact)
        gains = {place: len(exact) - rank for rank, place in enumerate(exact)}
        self.ndcg += _dcg([gains.get(place, 0) for place in found]) / _dcg(list(gains.values()))

    @property
    def mean_overlap(self) -> float | None:
        """The mean over lists; None without any."""
        return self.overlap / self.lists if self.lists else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of `mean_overlap`; None without lists."""
        return interval(self.overlap / self.lists, self.lists) if self.lists else None


def interval(share: float, draws: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share; a list counts as one draw, which gives the widest interval."""
    middle = (share + _Z95**2 / (2 * draws)) / (1 + _Z95**2 / draws)
    half = _Z95 * math.sqrt(share * (1 - share) / draws + _Z95**2 / (4 * draws**2)) / (1 + _Z95**2 / draws)
    return max(0.0, middle - half), min(1.0, middle + half)


def _dcg(gains: Sequence[int]) -> float:
    return sum(gain / math.log2(place + 2) for place, gain in enumerate(gains))
