"""Distributions of any number of values in bounded memory: lengths, scores, speed over time.

Each class merges its bins in such a way that the result depends on the values only, not on their order or on when a run
was stopped: the edges of wider bins are edges of narrower ones too. Each `state` goes through JSON and back.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import accumulate, zip_longest
from typing import Any

import numpy as np
import numpy.typing as npt

_OCTAVE = 32  # bins between two powers of two; below twice this number, each length has its own bin
_SPREAD_BINS = 64
_NARROWEST = 2.0**-7
_HIGHEST_PLACE = 2**20  # of a bin: beyond it, a float has too few digits left to tell values within a bin apart
_TIME_BINS = 64
_SHORTEST = 0.125  # seconds


class LengthHistogram:
    """Counts of lengths (integers from 0): exact below 64, within 3 % above, up to any length."""

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        self._bins: Counter[int] = Counter()
        self.longest = 0
        if state:
            self.longest = state["longest"]
            self._bins.update({state["first"] + place: count for place, count in enumerate(state["counts"]) if count})

    @property
    def state(self) -> dict[str, Any]:
        """The argument that makes the same histogram again."""
        return {"longest": self.longest, **_dense(self._bins)}

    def add(self, lengths: npt.NDArray[np.int64]) -> None:
        """Count lengths: int64 [n]."""
        if not len(lengths):
            return
        self.longest = max(self.longest, int(lengths.max()))
        # frexp: `length` is in [2 ** (exponent - 1), 2 ** exponent); exact below 2 ** 53.
        octave = np.maximum(np.frexp(lengths)[1] - 1 - _OCTAVE.bit_length(), -1) + 1
        found, counts = np.unique(octave * _OCTAVE + (lengths >> octave), return_counts=True)
        self._bins.update(dict(zip(found.tolist(), counts.tolist(), strict=True)))

    def bins(self) -> dict[tuple[int, int], int]:
        """Counts by (first length, last length), of the bins that are not empty."""
        found = {}
        for place in sorted(self._bins):
            octave = max(0, place // _OCTAVE - 1)
            first = (place - _OCTAVE * octave) << octave
            found[first, first + (1 << octave) - 1] = self._bins[place]
        return found


def bound_of(bins: Mapping[tuple[int, int], int], share: float) -> int:
    """The lowest upper edge of a bin that at least `share` of the lengths do not exceed."""
    totals = list(accumulate(bins.values()))
    place = bisect_left(totals, math.ceil(share * totals[-1]))
    return list(bins)[place][1]


class SpreadHistograms:
    """Counts of finite numbers in several groups, all in bins of one width, which grows with the range of the values.

    Bin `k` holds [k * width, (k + 1) * width). The width is a power of two, so that two narrower bins make a wider one.
    """

    def __init__(self, groups: int, state: Mapping[str, Any] | None = None) -> None:
        self.width = _NARROWEST
        self._bins: list[Counter[int]] = [Counter() for _ in range(groups)]
        self._ends: list[list[float]] = [[] for _ in range(groups)]
        if state:
            self.width, self._ends = state["width"], [list(ends) for ends in state["ends"]]
            for bins, found in zip(self._bins, state["groups"], strict=True):
                bins.update({found["first"] + place: count for place, count in enumerate(found["counts"]) if count})

    @property
    def state(self) -> dict[str, Any]:
        """The argument that makes the same histograms again, beside the number of groups."""
        return {"width": self.width, "ends": self._ends, "groups": [_dense(bins) for bins in self._bins]}

    def add(self, groups: npt.NDArray[np.int64], values: npt.NDArray[np.float64]) -> None:
        """Count values, each in its group: both [n]."""
        for group in np.unique(groups).tolist():
            mine = values[groups == group]
            known = [*self._ends[group], float(mine.min()), float(mine.max())]
            self._ends[group] = [min(known), max(known)]
            low = min(ends[0] for ends in self._ends if ends)
            high = max(ends[1] for ends in self._ends if ends)
            # Bins are merged in pairs until there are few enough, and a float can tell the values in one of them apart.
            while (
                math.floor(high / self.width) - math.floor(low / self.width) >= _SPREAD_BINS
                or max(-low, high) >= self.width * _HIGHEST_PLACE
            ):
                self.width *= 2
                for number, bins in enumerate(self._bins):
                    merged: Counter[int] = Counter()
                    for place, count in bins.items():
                        merged[place >> 1] += count
                    self._bins[number] = merged
            found, counts = np.unique(np.floor(mine / self.width), return_counts=True)
            self._bins[group].update({int(place): count for place, count in zip(found, counts.tolist(), strict=True)})

    def summary(self, group: int, shares: Sequence[float]) -> dict[str, Any] | None:
        """Number, lowest and highest value, and quantiles (`p50`, ...; exact to a bin's width); None if empty."""
        if not self._ends[group]:
            return None
        low, high = self._ends[group]
        bins = sorted(self._bins[group].items())
        quantiles = {f"p{100 * share:g}": round(self._quantile(bins, share, low, high), 4) for share in shares}
        return {"count": sum(count for _, count in bins), "min": round(low, 4), **quantiles, "max": round(high, 4)}

    def _quantile(self, bins: Sequence[tuple[int, int]], share: float, low: float, high: float) -> float:
        """Interpolated linearly within the bin that the quantile falls in."""
        wanted, before = share * sum(count for _, count in bins), 0
        for place, count in bins:
            if before + count >= wanted:
                found = (place + (wanted - before) / count) * self.width
                return min(max(found, low), high)
            before += count
        return high

    def by_group(self) -> dict[str, Any]:
        """`width`, `begin` of the first bin of any group, and `counts` of each from there on."""
        places = [place for bins in self._bins for place in bins] or [0]
        first, last = min(places), max(places)
        counts = [[bins.get(place, 0) for place in range(first, last + 1)] for bins in self._bins]
        return {"width": self.width, "begin": first * self.width, "counts": counts}


class Timeline:
    """Amounts over the time of a run, in equal steps whose length doubles when they become too many.

    at: the second of the run at which the next amounts begin.
    """

    def __init__(self, amounts: int, state: Mapping[str, Any] | None = None) -> None:
        self.at = 0.0
        self.step = _SHORTEST
        self._series: list[list[float]] = [[] for _ in range(amounts)]
        if state:
            self.step, self._series = state["step"], [list(found) for found in state["series"]]

    @property
    def state(self) -> dict[str, Any]:
        """The argument that makes the same timeline again, beside the number of amounts; rounded to hundredths."""
        return {"step": self.step, "series": [[round(amount, 2) for amount in found] for found in self._series]}

    def add(self, until: float, amounts: Sequence[float]) -> None:
        """Spread amounts evenly over the time from the end of those before."""
        begin = self.at
        self.at = end = max(until, begin)
        while end >= self.step * _TIME_BINS:
            self.step *= 2
            self._series = [
                [a + b for a, b in zip_longest(found[::2], found[1::2], fillvalue=0.0)] for found in self._series
            ]
        first, last = int(begin / self.step), int(end / self.step)
        for found in self._series:
            found += [0.0] * (last + 1 - len(found))
        for place in range(first, last + 1):
            inside = min(end, (place + 1) * self.step) - max(begin, place * self.step)
            share = inside / (end - begin) if end > begin else 1.0
            for found, amount in zip(self._series, amounts, strict=True):
                found[place] += share * amount


def _dense(bins: Mapping[int, int]) -> dict[str, Any]:
    """The counts from the first bin to the last as a list, which is short in JSON."""
    if not bins:
        return {"first": 0, "counts": []}
    first = min(bins)
    return {"first": first, "counts": [bins.get(place, 0) for place in range(first, max(bins) + 1)]}
