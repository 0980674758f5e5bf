"""Should it ship? Two tests of the differences by query must agree, corrected for several systems or measures (Holm).

Two tests must agree that a difference is more than chance: the paired t-test, which also gives the 95 % interval, and
the paired randomisation test, which assumes nothing about the distribution of differences (`significance`). The larger
of their p-values is the p-value of the verdict. Several systems or measures are one family: Holm's correction keeps the
chance of even one wrong verdict at 5 %.

    ship        better, more than chance, and the interval reaches the gain that is worth having (`ship_at`)
    don't ship  worse, more than chance; or the whole interval is below a gain worth having
    undecided   anything else, with the number of further judged queries that would probably settle it

That number is chosen so that a difference as large as the one seen, or as `ship_at` if that is larger, would be found
in four of five collections. The error rates are simulated in `benchmarks/verdict.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from rerank_cli.evaluation.significance import Significance, randomisation_test
from rerank_cli.evaluation.t_distribution import quantile, two_tails

ALPHA = 0.05
LEVEL = 0.95
SHIP_AT = 0.01

_POWER_Z = 0.8416  # four of five
_NORMAL = 1e6  # degrees of freedom at which t is the normal distribution

Word = Literal["ship", "don't ship", "undecided"]
Numbers = Sequence[float] | npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PairedTest:
    """The mean of paired differences, and the tests of whether it is more than chance."""

    queries: int
    difference: float
    deviation: float | None
    """Standard deviation of the differences; None for a single query."""
    low: float | None
    """The ends of the 95 % interval are `low` and `high`."""
    high: float | None
    t: float | None
    """None where all differences are equal."""
    p_t: float
    p_randomisation: float

    @property
    def p_value(self) -> float:
        """The larger of both: the tests must agree."""
        return max(self.p_t, self.p_randomisation)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do, and why."""

    word: Word
    test: PairedTest
    p_corrected: float
    """After Holm's correction for all verdicts of the family."""
    family: int
    """Verdicts that are corrected together."""
    more_queries: int | None = None
    """Judged queries that would probably settle it; None where it is settled, or no number can be told."""
    too_small: bool = False
    """Whether "don't ship" means that any gain is smaller than one worth having."""


def paired_test(
    differences: Numbers, randomise: Callable[[Any], Significance | None] = randomisation_test
) -> PairedTest:
    """Test at least one difference. randomise: the randomisation test; a simulation passes a shorter one."""
    found = np.asarray(differences, dtype=np.float64)
    test = randomise(found)
    p_randomisation = test.p_value if test else 1.0
    count, mean = len(found), float(found.mean())
    if count < 2:
        return PairedTest(count, mean, None, None, None, None, 1.0, p_randomisation)
    deviation = float(found.std(ddof=1))
    error = deviation / math.sqrt(count)
    if error <= 1e-15 * abs(mean) or error == 0:
        return PairedTest(count, mean, deviation, mean, mean, None, 0.0 if mean else 1.0, p_randomisation)
    reach = quantile(LEVEL, count - 1) * error
    t = mean / error
    return PairedTest(count, mean, deviation, mean - reach, mean + reach, t, two_tails(t, count - 1), p_randomisation)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's corrected p-values, in the order given."""
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda one: p_values[one])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = largest
    return corrected


def decide(tests: Sequence[PairedTest], ship_at: float = SHIP_AT) -> list[Verdict]:
    """The verdicts on a family of tests, in their order."""
    found = []
    for test, p_value in zip(tests, holm([test.p_value for test in tests]), strict=True):
        verdict = Verdict("undecided", test, p_value, len(tests))
        more_than_chance = p_value < ALPHA
        if test.low is None or test.high is None:
            pass  # a single query settles nothing
        elif more_than_chance and test.difference < 0:
            verdict = replace(verdict, word="don't ship")
        elif more_than_chance and test.high >= ship_at:
            verdict = replace(verdict, word="ship")
        elif more_than_chance or (-ship_at < test.low and test.high < ship_at) or test.low == test.high == 0:
            verdict = replace(verdict, word="don't ship", too_small=True)
        else:
            verdict = replace(verdict, more_queries=_count_more_queries(verdict, ship_at))
        found.append(verdict)
    return found


def _count_more_queries(verdict: Verdict, ship_at: float) -> int | None:
    test = verdict.test
    if not test.deviation:
        return None
    z = quantile(1 - ALPHA / verdict.family, _NORMAL) + _POWER_Z
    for effect in (max(abs(test.difference), ship_at), abs(test.difference)):
        needed = (z * test.deviation / effect) ** 2 - test.queries if effect else 0
        if needed > 0:
            # To two digits: 1,234 queries would promise more than anybody knows.
            step = 10 ** max(0, math.floor(math.log10(max(needed, 1))) - 1)
            return int(math.ceil(needed / step) * step)
    return None
