"""How far a run in a reduced precision is from fp32, measured on its own first pairs (`--check-precision`).

    max |logit difference|    over all pairs that were compared
    Kendall's tau             tau-b of the two orders of a list, mean over lists
    top-10 overlap            share of a list's ten best that are the ten best in fp32 too, mean over lists

Whole lists are compared (of those of over 1,000 passages the first 1,000), until there are as many pairs as were asked
for. Pairs in lists of one (rows of `score`) are taken as one list a window. What was found so far is a few sums,
`state`, and goes with the run's journal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rerank_cli.encoding.encoder import Encoded
from rerank_cli.encoding.pairs import EncodedWindow

LEAST_OVERLAP = 0.95
"""Below it a run warns: one of twenty of the best passages is another."""
_TOP = 10
_LONGEST = 1000  # passages of a list: tau compares each with each

Logits = npt.NDArray[np.float32]


@dataclass(slots=True)
class Agreement:
    """What was compared so far. wanted: pairs. The last three are sums over `lists`, but the largest difference."""

    wanted: int
    pairs: int = 0
    lists: int = 0
    largest: float = 0.0
    taus: float = 0.0
    overlaps: float = 0.0

    @property
    def complete(self) -> bool:
        """There are as many pairs as were wanted."""
        return self.pairs >= self.wanted

    @property
    def state(self) -> dict[str, Any]:
        """For `restored`."""
        return asdict(self)

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> Agreement:
        """As it was when `state` was taken."""
        return cls(**state)

    def add(self, encoded: EncodedWindow, logits: Logits, exact: Callable[[list[Encoded]], Logits]) -> None:
        """Compare lists of a window. logits: of its distinct pairs; exact: the same in fp32 for some of them."""
        chosen: list[list[int]] = []
        room = self.wanted - self.pairs
        for places in _lists(encoded):
            if room <= 0:
                break
            usable = [place for place in dict.fromkeys(places) if np.isfinite(logits[place])][:_LONGEST]
            chosen += [usable] * bool(usable)
            room -= len(usable)
        members = list(dict.fromkeys(place for places in chosen for place in places))
        if not members:
            return
        found = dict(zip(members, exact([encoded.encoded[place] for place in members]), strict=True))
        for places in chosen:
            self._compare(logits[places], np.array([found[place] for place in places], dtype=np.float32))

    def _compare(self, reduced: Logits, exact: Logits) -> None:
        both = np.isfinite(exact)
        reduced, exact = reduced[both], exact[both]
        self.pairs += len(both)
        if not len(exact):
            return
        self.lists += 1
        self.largest = max(self.largest, float(np.abs(reduced - exact).max()))
        self.taus += kendall_tau(reduced, exact)
        self.overlaps += top_overlap(reduced, exact)

    def to_json(self) -> dict[str, Any]:
        """For the report; None for what no list was there for."""
        lists = self.lists or None
        return {
            "pairs": self.pairs,
            "lists": self.lists,
            "max_logit_difference": self.largest if lists else None,
            "kendall_tau": self.taus / lists if lists else None,
            "top10_overlap": self.overlaps / lists if lists else None,
        }


def _lists(encoded: EncodedWindow) -> Iterator[list[int]]:
    """The places of each list's pairs among the distinct ones; those of lists of one together."""
    begin, single = 0, []
    for item in encoded.window.lists:
        places = encoded.places[begin : begin + len(item.passages)]
        begin += len(item.passages)
        if len(places) > 1:
            yield places
        else:
            single += places
    if single:
        yield single


def kendall_tau(a: Logits, b: Logits) -> float:
    """Kendall's tau-b of two sets of scores of the same things; 1 where either does not order them at all."""
    signs = [np.sign(x[:, None] - x[None, :]) for x in (a, b)]
    untied = float(np.sqrt((signs[0] != 0).sum(dtype=np.float64) * (signs[1] != 0).sum(dtype=np.float64)))
    return float((signs[0] * signs[1]).sum(dtype=np.float64)) / untied if untied else 1.0


def top_overlap(a: Logits, b: Logits) -> float:
    """Share of the best ten by `a` that are among the best ten by `b`; of equal ones the first count."""
    best = [set(np.argsort(-x, kind="stable")[:_TOP].tolist()) for x in (a, b)]
    return len(best[0] & best[1]) / len(best[1])
