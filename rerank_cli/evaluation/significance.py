"""Is a mean difference more than chance? The paired randomisation test, two-sided (Fisher; Smucker et al., CIKM 2007).

If reranking made no difference, each query's difference might as well have the other sign. The p-value is the share of
all choices of signs whose mean difference is at least as far from 0 as the one that was seen. A query without a
difference changes no sum, so only the others count. For up to `EXACT_QUERIES` of them all choices are enumerated. For
more, a fixed number of choices is drawn with a fixed seed; the choice that was seen is one more, so that no p-value is
0: (1 + at least as far) / (1 + drawn).

Sums that differ by less than `_SLACK` of all differences together count as equal: their last digits depend on the order
of additions, which differs between processors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

EXACT_QUERIES = 20  # a million choices: 8 MB and 20 ms
DRAWN = 100_000  # the standard error of a p-value of 0.05 is then 0.0007
SEED = 0

_LEAST_DRAWN = 1_000
_SIGNS = 10**8  # drawn at most, in about 2 s: with more than 1,000 queries fewer choices are drawn
_SIGNS_AT_ONCE = 2**20
_SLACK = 1e-12


@dataclass(frozen=True, slots=True)
class Significance:
    """A two-sided p-value."""

    p_value: float
    permutations: int
    """Choices of signs that it rests on."""
    method: Literal["exact", "sampled"]
    """`exact`: all choices there are."""
    seed: int | None = None
    """Of the generator that drew the choices; None for `exact`."""


def randomisation_test(differences: Sequence[float]) -> Significance | None:
    """The test of one measure's differences, a query each; None without queries."""
    if not len(differences):
        return None
    all_of_them = np.asarray(differences, dtype=np.float64)
    changed = all_of_them[all_of_them != 0]
    furthest = abs(changed.sum()) - _SLACK * np.abs(changed).sum()
    if len(changed) <= EXACT_QUERIES:
        sums = np.zeros(1)  # of all choices of signs, in the end
        for difference in changed:
            sums = np.concatenate([sums + difference, sums - difference])
        return Significance(float(np.mean(np.abs(sums) >= furthest)), len(sums), "exact")
    drawn = min(DRAWN, max(_LEAST_DRAWN, _SIGNS // len(changed)))
    return Significance((1 + _as_far(changed, drawn, furthest)) / (1 + drawn), drawn, "sampled", SEED)


def _as_far(changed: npt.NDArray[np.float64], drawn: int, furthest: float) -> int:
    """How many of `drawn` choices of signs have a sum at least `furthest` away from 0."""
    generator = np.random.Generator(np.random.PCG64(SEED))
    row_bytes = -(-len(changed) // 8)
    # A drawn byte holds the signs of eight queries. The table has the sum that each of the 256 bytes turns around.
    of_byte = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).astype(np.float64)
    turned_by = of_byte @ np.pad(changed, (0, 8 * row_bytes - len(changed))).reshape(row_bytes, 8).T
    columns = np.arange(row_bytes)
    total, found, left = changed.sum(), 0, drawn
    while left:
        rows = min(left, max(1, _SIGNS_AT_ONCE // len(changed)))
        # Raw bytes are the same in every version of numpy.
        drawn_bytes = np.frombuffer(generator.bytes(rows * row_bytes), dtype=np.uint8).reshape(rows, row_bytes)
        turned = turned_by[drawn_bytes, columns].sum(axis=1)
        found += int(np.count_nonzero(np.abs(total - 2 * turned) >= furthest))
        left -= rows
    return found
