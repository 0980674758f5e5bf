"""Which passages of a list the second scorer reads, and how well the first ones agree with those of a full run.

By number or share, the best of the first scorer are read. With a bound, those are that can still be among the first n:

    1. the n best of the first scorer are read; t is the n-th best of their new scores
    2. all others whose first score plus the bound reaches t are read too

What is left has a lower score than t as long as no second score lies further above the first than the bound, so the
first n are those of a full run, ties included. The bound is measured: on so many pairs the second score lay at most so
far above the first. It is that excess over the median, half as much again, because the next pair may be the worst one.
Pairs that lay beyond it in the run are counted.

`auto` keeps as many as the sampled lists needed for their first n, half as many again, and at least twice n.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rerank_cli.evaluation.blend import order_by_score
from rerank_cli.job.agreement import Agreement, first_n
from rerank_cli.job.first_scorer import Asked

Floats = npt.NDArray[np.float64]

LEAST_AGREEMENT = 0.99
"""A run whose sampled lists agree less than this warns."""

_MARGIN = 1.5


@dataclass(frozen=True, slots=True)
class Bound:
    """How far a second score lies above the first, measured on some pairs."""

    pairs: int
    median: float
    p99: float
    largest: float
    bound: float

    @classmethod
    def of(cls, excess: Floats) -> Bound | None:
        """Of the differences of some pairs; None where there are none."""
        if not len(excess):
            return None
        median, largest = float(np.median(excess)), float(excess.max())
        return cls(
            len(excess), median, float(np.percentile(excess, 99)), largest, median + _MARGIN * (largest - median)
        )


@dataclass(frozen=True, slots=True)
class Rule:
    """What is read of each list. keep: passages at least; over: the bound, if there is one; None reads all."""

    top: int
    keep: int | None = None
    share: float | None = None
    over: float | None = None
    bound: Bound | None = None
    deepest: int | None = None
    """Of the sampled lists, how far down the first scorer had placed one of their first n."""

    def at_once(self, passages: int) -> int:
        """How many of a list are read whatever their second scores are."""
        if self.over is not None:
            return min(passages, self.top)
        if self.share is not None:
            return min(passages, max(self.top, math.ceil(self.share * passages)))
        return passages if self.keep is None else min(passages, self.keep)

    @property
    def state(self) -> dict[str, Any]:
        """For a JSON file."""
        return asdict(self)

    @classmethod
    def of_state(cls, state: dict[str, Any]) -> Rule:
        """What `state` has told."""
        bound = state["bound"]
        return cls(**{**state, "bound": Bound(**bound) if bound else None})


def make_rule(asked: Asked, lists: Sequence[tuple[Floats, Floats]]) -> Rule:
    """The rule of a run. lists: scores of both scorers, of sampled lists; NaN where there is none."""
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
    """How many of the first scorer's best hold the `top` best of the second."""
    places = {place: rank for rank, place in enumerate(cheap_order(first), 1)}
    return max((places[place] for place in first_n(second, top)), default=0)


def cheap_order(scores: Floats) -> list[int]:
    """Places in the order in which they are read: those without a score first, as nothing is known of them."""
    order: list[int] = order_by_score(np.where(np.isfinite(scores), scores, math.inf)).tolist()
    return order


class ListChoice:
    """The passages of one list that the second scorer reads.

    Args:
        first: Scores of the first scorer, NaN where it has none.
        rule: Of the run.
    """

    def __init__(self, first: Floats, rule: Rule) -> None:
        self.first, self._rule = first, rule
        self.second: Floats = np.full(len(first), np.nan)
        self.read: set[int] = set()
        self._order = cheap_order(first)

    def wanted(self) -> list[int]:
        """What is to be read next, in the order of the input; empty when the choice is made."""
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
        """The second scores of what was wanted; NaN where there is none."""
        self.read.update(places)
        self.second[list(places)] = scores

    def excess(self) -> Floats:
        """How far second scores lie above the first, of passages with both."""
        excess = self.second - self.first
        return excess[np.isfinite(excess)]


def choose(first: Floats, second: Floats, rule: Rule) -> ListChoice:
    """The choice for a list of which all second scores are known."""
    choice = ListChoice(first, rule)
    while places := choice.wanted():
        choice.put(places, second[places].tolist())
    return choice


def add_list(agreement: Agreement, first: Floats, second: Floats, rule: Rule) -> None:
    """Count a list of which all second scores are known."""
    found = first_n(choose(first, second, rule).second, agreement.top)
    agreement.add(first_n(second, agreement.top), found, passages=len(first))


def agreement_document(agreement: Agreement) -> dict[str, Any]:
    """For the report; no means without lists."""
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
    """What the choices of a run have come to."""

    passages: int = 0
    read: int = 0
    exceeded: int = 0
    """Pairs whose second score lay further above the first than the bound."""
    furthest: float | None = None

    def add(self, choice: ListChoice, rule: Rule) -> None:
        """Count a list."""
        self.passages += len(choice.first)
        self.read += len(choice.read)
        if rule.over is not None and len(excess := choice.excess()):
            self.exceeded += int(np.count_nonzero(excess > rule.over))
            self.furthest = max(float(excess.max()), self.furthest if self.furthest is not None else -math.inf)
