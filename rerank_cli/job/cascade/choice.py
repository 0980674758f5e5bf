"""Chooses the passages of a list that the second scorer reads, and measures how well that agrees with a full run.

With a number or a share, the best of the first scorer are read. With a bound, those that can still be among the first n
are read:

    1. the n best of the first scorer are read; t is the n-th best of their new scores
    2. all others whose first score plus the bound reaches t are read too

The rest scores lower than t, as long as no second score is further above the first than the bound. So the first n are
those of a full run, ties included. The bound is measured on some pairs: the median of how far the second score is above
the first, plus one and a half times the distance from the median to the largest, because the next pair may be worse.
Pairs of the run beyond the bound are counted.

`auto` keeps one and a half times as many as the sampled lists needed for their first n, and at least 2 n.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rerank_cli.evaluation.blend import order_by_score
from rerank_cli.job.agreement import Agreement, first_n
from rerank_cli.job.first_scorer import Asked

Floats = npt.NDArray[np.float64]

LEAST_AGREEMENT = 0.99
"""A run whose sampled lists agree less well warns."""

_MARGIN = 1.5


@dataclass(frozen=True, slots=True)
class Bound:
    """How far second scores are above first scores, measured on some pairs."""

    pairs: int
    median: float
    p99: float
    largest: float
    bound: float

    @classmethod
    def of(cls, excess: Floats) -> Bound | None:
        """The bound from the differences of some pairs; None without pairs."""
        if not len(excess):
            return None
        median, largest = float(np.median(excess)), float(excess.max())
        return cls(
            len(excess), median, float(np.percentile(excess, 99)), largest, median + _MARGIN * (largest - median)
        )


@dataclass(frozen=True, slots=True)
class Rule:
    """Which passages of each list are read; all of them if `keep`, `share` and `over` are None."""

    top: int
    keep: int | None = None
    """How many passages are read."""
    share: float | None = None
    over: float | None = None
    """The bound, as a number."""
    bound: Bound | None = None
    deepest: int | None = None
    """How far down the first scorer placed one of the first n of a sampled list."""

    def at_once(self, passages: int) -> int:
        """How many passages of a list are read in the first round."""
        if self.over is not None:
            return min(passages, self.top)
        if self.share is not None:
            return min(passages, max(self.top, math.ceil(self.share * passages)))
        return passages if self.keep is None else min(passages, self.keep)

    @classmethod
    def of_state(cls, state: dict[str, Any]) -> Rule:
        """The rule from what `asdict` made of one."""
        bound = state["bound"]
        return cls(**{**state, "bound": Bound(**bound) if bound else None})


def make_rule(asked: Asked, lists: Sequence[tuple[Floats, Floats]]) -> Rule:
    """The rule of a run. lists: the scores of both scorers for sampled lists; NaN where there is none."""
    if asked.keep == "count":
        return Rule(asked.top, keep=int(asked.number))
    if asked.keep == "share":
        return Rule(asked.top, share=asked.number)
    if asked.keep == "exact":
        excess = np.concatenate([second - first for first, second in lists] or [np.zeros(0)])
        bound = Bound.of(excess[np.isfinite(excess)])
        return Rule(asked.top, over=bound.bound, bound=bound) if bound else Rule(asked.top)
    deepest = max((_deepest(first, second, asked.top) for first, second in lists), default=None)
    keep = None if deepest is None else max(2 * asked.top, math.ceil(_MARGIN * deepest))
    return Rule(asked.top, keep=keep, deepest=deepest)


def _deepest(first: Floats, second: Floats, top: int) -> int:
    """How many of the first scorer's best must be read to have the `top` best of the second."""
    places = {place: rank for rank, place in enumerate(cheap_order(first), 1)}
    return max((places[place] for place in first_n(second, top)), default=0)


def cheap_order(scores: Floats) -> list[int]:
    """Places in the order in which they are read, best first; those without a score come before all others."""
    order: list[int] = order_by_score(np.where(np.isfinite(scores), scores, math.inf)).tolist()
    return order


class ListChoice:
    """The passages of one list that the second scorer reads.

    Args:
        first: Scores of the first scorer; NaN where there is none.
        rule: Of the run.
    """

    def __init__(self, first: Floats, rule: Rule) -> None:
        self.first, self._rule = first, rule
        self.second: Floats = np.full(len(first), np.nan)
        self.read: set[int] = set()
        self._order = cheap_order(first)

    def wanted(self) -> list[int]:
        """The places to read next, in the order of the input; empty when the choice is complete."""
        unscored = int(np.count_nonzero(~np.isfinite(self.first)))
        at_once = unscored + self._rule.at_once(len(self.first) - unscored)
        if not self.read:
            return sorted(self._order[:at_once])
        over, top = self._rule.over, self._rule.top
        if over is None:
            return []
        left = [place for place in self._order if place not in self.read]
        best = first_n(self.second, top)
        if len(best) < top:
            return sorted(left[: top - len(best)])
        least = self.second[best[-1]]
        return sorted(place for place in left if self.first[place] + over >= least)

    def put(self, places: Sequence[int], scores: Sequence[float]) -> None:
        """Take the second scores of places that were wanted; NaN where there is none."""
        self.read.update(places)
        self.second[list(places)] = scores

    def excess(self) -> Floats:
        """How far second scores are above first scores, for passages with both."""
        excess = self.second - self.first
        return excess[np.isfinite(excess)]


def choose(first: Floats, second: Floats, rule: Rule) -> ListChoice:
    """The complete choice for a list whose second scores are all known."""
    choice = ListChoice(first, rule)
    while places := choice.wanted():
        choice.put(places, second[places].tolist())
    return choice


def add_list(agreement: Agreement, first: Floats, second: Floats, rule: Rule) -> None:
    """Count a list whose second scores are all known."""
    found = first_n(choose(first, second, rule).second, agreement.top)
    agreement.add(first_n(second, agreement.top), found, passages=len(first))


def agreement_document(agreement: Agreement) -> dict[str, Any]:
    """For the report; without means if there are no lists."""
    overlap, ends = agreement.mean_overlap, agreement.interval
    if overlap is None or ends is None:
        return {"lists": 0, "top_n": agreement.top}
    return {
        "lists": agreement.lists, "passages": agreement.passages, "top_n": agreement.top,
        "same_order": agreement.same, "overlap": round(overlap, 6), "interval": [round(end, 6) for end in ends],
        "ndcg": round(agreement.ndcg / agreement.lists, 6),
    }  # fmt: skip


@dataclass(slots=True)
class Kept:
    """Totals of the choices of a run."""

    passages: int = 0
    read: int = 0
    exceeded: int = 0
    """Pairs whose second score is further above the first than the bound."""
    furthest: float | None = None

    def add(self, choice: ListChoice, rule: Rule) -> None:
        """Count a list."""
        self.passages += len(choice.first)
        self.read += len(choice.read)
        if rule.over is not None and len(excess := choice.excess()):
            self.exceeded += int(np.count_nonzero(excess > rule.over))
            self.furthest = max(float(excess.max()), self.furthest if self.furthest is not None else -math.inf)
