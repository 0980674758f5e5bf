"""What is kept of a system's lists and of their values: arrays of many queries, an object of a query when asked for.

Whole numbers have the narrowest type that holds those of their block. A list of thirty candidates with its values takes
0.8 kB; as arrays and numbers of its own it took 2.7 kB.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rerank_cli.evaluation.measures import Values

UNJUDGED = -(1 << 31)
"""The grade of a passage of which the judgements say nothing."""

_LISTS_IN_BLOCK = 1_000
_SEED = 0


@dataclass(frozen=True, slots=True)
class SystemList:
    """The list of one query in its new order."""

    ids: npt.NDArray[np.uint64]
    """Hashes of the passages' ids."""
    grades: npt.NDArray[np.int32]
    """`UNJUDGED` where the judgements say nothing."""
    places: npt.NDArray[np.int32] | None
    """In the given order, from 0; None where nobody knows it."""
    scores: npt.NDArray[np.float64] | None


class KeptLists(Mapping[str, SystemList]):
    """Lists by query, in the order in which they were added.

    Lists that have passages either all have places or none has, and so with scores; an empty list is as they are.
    numbers: of each query in that order, from 0.
    """

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}
        self._blocks: list[_Block] = []
        self._last: list[SystemList] = []

    def add(self, query: str, ranked: SystemList) -> None:
        """Keep the list of a query that has none yet."""
        self.numbers[query] = len(self.numbers)
        self._last.append(ranked)
        if len(self._last) == _LISTS_IN_BLOCK:
            self._blocks.append(_Block.of(self._last))
            self._last = []

    def have_relevant(self) -> bool:
        """Whether any list has a passage that is judged relevant."""
        grades = [*(block.grades for block in self._blocks), *(one.grades for one in self._last)]
        return any((each > 0).any() for each in grades)

    def __getitem__(self, query: str) -> SystemList:
        block, place = divmod(self.numbers[query], _LISTS_IN_BLOCK)
        return self._last[place] if block == len(self._blocks) else self._blocks[block].list_at(place)

    def __iter__(self) -> Iterator[str]:
        return iter(self.numbers)

    def __len__(self) -> int:
        return len(self.numbers)


def sample_of(queries: list[str], most: int | None) -> list[str]:
    """At most `most` queries (None: all), the same ones every time and in their order."""
    if most is None or len(queries) <= most:
        return queries
    drawn = np.random.Generator(np.random.PCG64(_SEED)).permutation(len(queries))[:most]
    return [queries[place] for place in sorted(drawn.tolist())]


@dataclass(frozen=True, slots=True)
class _Block:
    """Lists one behind another. starts: where each begins, and where the last one ends."""

    starts: npt.NDArray[np.intp]
    ids: npt.NDArray[np.uint64]
    grades: npt.NDArray[Any]
    """Of a type narrower than int32, its lowest value stands for `UNJUDGED`."""
    places: npt.NDArray[Any] | None
    scores: npt.NDArray[np.float64] | None

    @classmethod
    def of(cls, lists: Sequence[SystemList]) -> _Block:
        full = [one for one in lists if len(one.ids)] or lists
        grades = np.concatenate([one.grades for one in full])
        judged = grades[grades != UNJUDGED]
        narrow = _narrowest(judged)
        places = [one.places for one in full if one.places is not None]
        scores = [one.scores for one in full if one.scores is not None]
        joined = np.concatenate(places) if places else None
        return cls(
            np.cumsum([0, *(len(one.ids) for one in lists)]),
            np.concatenate([one.ids for one in full]),
            np.where(grades == UNJUDGED, np.iinfo(narrow).min, grades).astype(narrow),
            None if joined is None else joined.astype(_narrowest(joined)),
            np.concatenate(scores) if scores else None,
        )

    def list_at(self, place: int) -> SystemList:
        mine = slice(int(self.starts[place]), int(self.starts[place + 1]))
        kept = self.grades[mine]
        grades = kept.astype(np.int32)
        grades[kept == np.iinfo(kept.dtype).min] = UNJUDGED
        return SystemList(
            self.ids[mine],
            grades,
            None if self.places is None else self.places[mine].astype(np.int32),
            None if self.scores is None else self.scores[mine],
        )


def _narrowest(values: npt.NDArray[np.int32]) -> type[np.signedinteger[Any]]:
    """The narrowest type that holds the values, without its lowest value."""
    low, high = int(values.min(initial=0)), int(values.max(initial=0))
    kinds: tuple[type[np.signedinteger[Any]], ...] = (np.int8, np.int16)
    return next((kind for kind in kinds if np.iinfo(kind).min < low and high <= np.iinfo(kind).max), np.int32)


class KeptValues(Mapping[str, Values]):
    """Values by query, of lists that stand in `numbers`, which may grow; of some there may be none."""

    def __init__(self, numbers: Mapping[str, int]) -> None:
        self._numbers = numbers
        self._values = array("d")  # NaN where a measure has no value
        self._there = bytearray()

    def append(self, values: Values | None, width: int) -> None:
        """Those of the next list, `width` of them; None where there are none."""
        self._there.append(values is not None)
        self._values.extend(math.nan if one is None else one for one in values or [None] * width)

    def __getitem__(self, query: str) -> Values:
        number = self._numbers[query]
        if number >= len(self._there) or not self._there[number]:
            raise KeyError(query)
        width = len(self._values) // len(self._there)
        mine = self._values[number * width : (number + 1) * width]
        return [None if math.isnan(one) else one for one in mine]

    def __iter__(self) -> Iterator[str]:
        return (query for query, there in zip(self._numbers, self._there, strict=False) if there)

    def __len__(self) -> int:
        return sum(self._there)
