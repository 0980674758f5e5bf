"""Encoded pairs to batches within a token budget.

Longest first: pairs of equal length become neighbours, which attention wants, and the first batch is the hardest on
memory. Packed models pay for the tokens that are there, padded ones for the longest pair times the number of pairs;
either way a pair longer than the budget is a batch of its own, never pushed back for ever.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def plan_batches(lengths: Sequence[int], *, token_budget: int, padded: bool = False) -> Iterator[list[int]]:
    """Cut pairs of these lengths into batches of at most `token_budget` tokens; yields lists of places in `lengths`.

    Every place is in exactly one batch. padded: a batch counts as its longest pair times its number of pairs.
    """
    batch: list[int] = []
    tokens = 0
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        grown = lengths[batch[0]] * (len(batch) + 1) if padded and batch else tokens + lengths[place]
        if batch and grown > token_budget:
            yield batch
            batch, grown = [], lengths[place]
        batch.append(place)
        tokens = grown
    if batch:
        yield batch
