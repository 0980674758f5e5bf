"""How alike two orders of the same queries are, without judgements.

overlap@k     the share of the k best passages that both orders have
RBO           rank-biased overlap, extrapolated (Webber et al., TOIS 2010, equation 32): agreement at every depth,
              the top weighing most; p = .9 gives the ten best 86 % of the weight
Kendall's tau tau-b of the places of the candidates that both have; an order has no ties

Queries are compared in blocks, all queries of a block at once: there may be a hundred thousand.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

RBO_P = 0.9
TOP = 10

_QUERIES_AT_ONCE = 1_000
_CELLS_AT_ONCE = 1_000_000  # queries times passages of the longest list
_SPREAD = np.uint64(0x9E3779B97F4A7C15)  # odd, so that each query of a block moves the hashes elsewhere

Ids = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Likeness:
    """How alike two orders are, in the mean over queries. most_different: by RBO, the smallest first."""

    one: str
    other: str
    queries: int
    overlap: float
    rbo: float
    kendall_tau: float | None
    most_different: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Matched:
    """The two lists of each query, matched by passage."""

    places: npt.NDArray[np.intp]
    """Where each passage of one list stands in the other, from 1; 0 if it does not: [queries, longest]."""
    short: npt.NDArray[np.intp]
    """The length of the shorter list of each query: [queries]."""
    long: npt.NDArray[np.intp]
    """The length of the longer one: [queries]."""


def match(ones: Sequence[Ids], others: Sequence[Ids]) -> Matched:
    """Match two lists for each query. ids are hashes; no list may have one twice."""
    sizes = np.array([[len(one) for one in lists] for lists in (ones, others)], dtype=np.intp)
    rows, columns = zip(*(_cells(each) for each in sizes), strict=True)
    keys = [
        np.concatenate([*lists, np.empty(0, np.uint64)]) + row.astype(np.uint64) * _SPREAD
        for lists, row in zip((ones, others), rows, strict=True)
    ]
    _, in_one, in_other = np.intersect1d(keys[0], keys[1], assume_unique=True, return_indices=True)
    places = np.zeros((sizes.shape[1], int(sizes.max(initial=0))), dtype=np.intp)
    places[rows[0][in_one], columns[0][in_one]] = columns[1][in_other] + 1
    return Matched(places, sizes.min(axis=0), sizes.max(axis=0))


def _cells(sizes: npt.NDArray[np.intp]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Row and column of each element of lists of these sizes, one list after another."""
    rows = np.repeat(np.arange(len(sizes)), sizes)
    starts = np.cumsum(sizes) - sizes
    return rows, np.arange(len(rows)) - starts[rows]


def overlap_at(lists: Matched, k: int = TOP) -> Floats:
    """The share of the k best that both have: [queries]. Lists shorter than k count by the length of the longer."""
    top = lists.places[:, :k]
    return _divide(((top > 0) & (top <= k)).sum(axis=1), np.minimum(k, lists.long), where_empty=1.0)


def rbo(lists: Matched, p: float = RBO_P) -> Floats:
    """Extrapolated rank-biased overlap: [queries]. The two lists of a query may differ in length."""
    queries, width = lists.places.shape
    rows, columns = np.nonzero(lists.places)
    # The depth from which on a passage is in both.
    meets = np.maximum(columns + 1, lists.places[rows, columns])
    common = np.bincount(rows * (width + 1) + meets, minlength=queries * (width + 1)).reshape(queries, width + 1)
    common = common.cumsum(axis=1)
    depths = np.arange(1, width + 1)
    short, long = lists.short[:, None], lists.long[:, None]
    of_short = np.take_along_axis(common, short, axis=1)
    of_long = np.take_along_axis(common, long, axis=1)
    found = common[:, 1:] / depths
    found += np.where(depths > short, of_short * (depths - short) / (np.maximum(short, 1) * depths), 0.0)
    total = np.where(depths <= long, found * p**depths, 0.0).sum(axis=1)
    last = (of_long - of_short) / np.maximum(long, 1) + of_short / np.maximum(short, 1)
    value = (1 - p) / p * total + last[:, 0] * p**lists.long
    return np.asarray(np.where(lists.short > 0, value, lists.long == 0), dtype=np.float64)


def kendall_tau(lists: Matched) -> Floats:
    """Kendall's tau of the candidates that both lists have: [queries]. NaN for fewer than two."""
    there = lists.places > 0
    count = there.sum(axis=1)
    pairs = count * (count - 1) // 2
    concordant = np.zeros(len(count), dtype=np.int64)
    for place in range(1, lists.places.shape[1]):
        before, here = lists.places[:, :place], lists.places[:, place, None]
        concordant += ((before > 0) & (before < here)).sum(axis=1)
    return _divide(2 * concordant - pairs, pairs, where_empty=np.nan)


def compare(one: str, first: Mapping[str, Ids], other: str, second: Mapping[str, Ids], *, worst: int = 5) -> Likeness:
    """Compare two systems on the queries that both have. first, second: ids by query, best first."""
    shared = [query for query in first if query in second]
    overlaps, rbos, taus = np.empty(len(shared)), np.empty(len(shared)), np.empty(len(shared))
    for begin, end in _blocks([max(len(first[query]), len(second[query])) for query in shared]):
        queries = shared[begin:end]
        lists = match([first[query] for query in queries], [second[query] for query in queries])
        overlaps[begin:end], rbos[begin:end] = overlap_at(lists), rbo(lists)
        taus[begin:end] = kendall_tau(lists)
    taus = taus[~np.isnan(taus)]
    return Likeness(
        one, other, len(shared), _mean(overlaps), _mean(rbos), _mean(taus) if len(taus) else None,
        tuple(shared[place] for place in np.argsort(rbos, kind="stable")[:worst].tolist()),
    )  # fmt: skip


def _blocks(widths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Begin and end of each block of queries. widths: the passages of each query."""
    begin, widest = 0, 0
    for place, width in enumerate(widths):
        widest = max(widest, width)
        if place > begin and (place - begin >= _QUERIES_AT_ONCE or (place - begin + 1) * widest > _CELLS_AT_ONCE):
            yield begin, place
            begin, widest = place, width
    if widths:
        yield begin, len(widths)


def _divide(above: npt.NDArray[np.int64], below: npt.NDArray[np.int64], *, where_empty: float) -> Floats:
    return np.asarray(np.divide(above, below, out=np.full(len(above), where_empty), where=below > 0))


def _mean(values: Floats) -> float:
    return float(np.mean(values)) if len(values) else 0.0
