"""How many engines and how large a token budget a device's memory holds: arithmetic over a memory model.

What is given up, in this order: first the token budget, down to a floor below which nothing is gained (one longest pair
runs whatever the budget is), then engines, one after another. Once an engine has been given up the budget stays at the
floor, even where there is room for more: otherwise a device with more memory could get a smaller budget. That costs
little, as a batch of one longest pair already fills a card. For the same reason engines beyond the wanted ones
(performance mode) are added only beside the whole budget. So a device with more free memory always holds the plan of
one with less.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

Need: TypeAlias = Callable[[int, int], int]
"""Bytes that a token budget and a number of engines need; never falls when either grows."""

_STEP = 256


@dataclass(frozen=True, slots=True)
class Wish:
    """What is wanted of one device: the token budget and the engines to start from.

    floor: the least budget worth having. more_engines: the most engines, where more of them cost no budget.
    """

    budget: int
    floor: int
    engines: int = 1
    more_engines: int = 1


@dataclass(frozen=True, slots=True)
class Fit:
    """What one device holds. needed_bytes: None without a memory model."""

    budget: int
    engines: int
    needed_bytes: int | None


def fit_device(wish: Wish, available: int | None, need: Need | None) -> Fit | None:
    """The most of a wish that a device holds; None where it holds nothing.

    available: bytes; None (unknown) holds anything.
    """

    def holds(budget: int, engines: int) -> bool:
        return need is None or available is None or need(budget, engines) <= available

    if holds(wish.budget, wish.engines):
        more = range(wish.more_engines, wish.engines, -1)
        budget = wish.budget
        engines = next((count for count in more if holds(budget, count)), wish.engines)
    else:
        engines = next((count for count in range(wish.engines, 0, -1) if holds(wish.floor, count)), 0)
        if not engines:
            return None
        budget = wish.floor
        if engines == wish.engines:  # in steps up from the floor; the whole budget is more than it holds
            steps = -(-(wish.budget - wish.floor) // _STEP) - 1
            budget += _STEP * largest(lambda step: holds(wish.floor + step * _STEP, engines), steps)
    return Fit(budget, engines, None if need is None else need(budget, engines))


def fit_group(wish: Wish, available: Sequence[int | None], need: Need | None) -> tuple[Fit, tuple[int, ...]] | None:
    """One plan for equal devices with the most engines in all, and the places of the devices that hold it.

    A device with less free memory (others use it) is left out where the rest do better without it.
    """
    fits = [(fit, place) for place, free in enumerate(available) if (fit := fit_device(wish, free, need)) is not None]
    if not fits:
        return None
    # The roomiest first: what the last of the first k holds, all k hold.
    fits.sort(key=lambda pair: (-pair[0].engines, -pair[0].budget, pair[1]))
    count, fit = max(
        ((count, fit) for count, (fit, _) in enumerate(fits, 1)),
        key=lambda pair: (pair[0] * pair[1].engines, pair[1].budget),
    )
    return fit, tuple(sorted(place for _, place in fits[:count]))


def largest(fits: Callable[[int], bool], limit: int) -> int:
    """The largest whole number up to `limit` that fits, where all smaller ones do; 0 where not even 1 does."""
    good, bad = 0, 1
    while bad <= limit and fits(bad):
        good, bad = bad, 2 * bad
    bad = min(bad, limit + 1)
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good
