"""How alike two orders of the same queries are, without judgements.

overlap@k     share of the k best that both have
RBO           rank-biased overlap, extrapolated (Webber et al., TOIS 2010, equation 32): agreement at every depth,
              the top weighing most; p = .9 gives the ten best 86 % of the weight
Kendall's tau tau-b of the places of the candidates that both have; an order has no ties
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

RBO_P = 0.9
TOP = 10

Ids = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Likeness:
    """Two orders of the same queries, in the mean. most_different: queries with the smallest RBO, that first."""

    one: str
    other: str
    queries: int
    overlap: float
    rbo: float
    kendall_tau: float | None
    most_different: tuple[str, ...]


def overlap_at(one: Ids, other: Ids, k: int = TOP) -> float:
    """The share of the k best that both have; of the shorter list's length where a list is shorter than k."""
    size = min(k, max(len(one), len(other)))
    return len(np.intersect1d(one[:k], other[:k], assume_unique=True)) / size if size else 1.0


def rbo(one: Ids, other: Ids, p: float = RBO_P) -> float:
    """Extrapolated rank-biased overlap of two orders, which may be of different length."""
    short, long = sorted((one, other), key=len)
    s, size = len(short), len(long)
    if not s:
        return float(not size)
    place = {value: at for at, value in enumerate(short.tolist(), 1)}
    # The depth at which a passage of the longer list is in both.
    meets = np.array([max(at, place.get(value, size + 1)) for at, value in enumerate(long.tolist(), 1)])
    common = np.cumsum(np.bincount(meets[meets <= size], minlength=size + 1))[1:].astype(np.float64)
    depths = np.arange(1, size + 1)
    weights = p**depths
    found = float((common / depths * weights).sum())
    beyond = depths[s:]
    found += float((common[s - 1] * (beyond - s) / (s * beyond) * weights[s:]).sum())
    last = (common[-1] - common[s - 1]) / size + common[s - 1] / s
    return (1 - p) / p * found + float(last * p**size)


def kendall_tau(one: Ids, other: Ids) -> float | None:
    """Kendall's tau of the candidates that both lists have; None for fewer than two."""
    _, at_one, at_other = np.intersect1d(one, other, assume_unique=True, return_indices=True)
    if len(at_one) < 2:
        return None
    places = at_other[np.argsort(at_one)]
    later = np.triu(np.ones((len(places), len(places)), dtype=bool), 1)
    concordant = int((later & (places[:, None] < places[None, :])).sum())
    pairs = len(places) * (len(places) - 1) // 2
    return (2 * concordant - pairs) / pairs


def compare(one: str, first: Mapping[str, Ids], other: str, second: Mapping[str, Ids], *, worst: int = 5) -> Likeness:
    """Two systems over the queries that both have."""
    shared = [query for query in first if query in second]
    by_rbo = {query: rbo(first[query], second[query]) for query in shared}
    taus = [tau for query in shared if (tau := kendall_tau(first[query], second[query])) is not None]
    return Likeness(
        one, other, len(shared),
        _mean([overlap_at(first[query], second[query]) for query in shared]),
        _mean(list(by_rbo.values())),
        _mean(taus) if taus else None,
        tuple(sorted(by_rbo, key=lambda query: by_rbo[query])[:worst]),
    )  # fmt: skip


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else 0.0
