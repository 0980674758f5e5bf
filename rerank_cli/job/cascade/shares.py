"""The progress of a run with two scorers: each window's share of the input is divided between them.

The first scorer's part of a window is its share of the seconds of both. It is estimated from the seconds that each has
taken for a pair in the run so far, and from the share of pairs that the second one reads. A round of the second scorer
takes half of what is left if another round may follow, else all of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rerank_cli.job.cascade.choice import Kept
    from rerank_cli.job.cascade.scorer import Work
    from rerank_cli.job.progress import Progress

_FIRST_WINDOW = 0.3  # before anything is measured; int8 is some two and a half times as fast as fp32


class WindowShares:
    """Divides the windows of a run between two scorers, for its progress.

    Args:
        progress: Of the run.
        first: The work of the first scorer.
        second: The work of the second one.
        kept: Totals of the choices.
    """

    def __init__(self, progress: Progress, first: Work, second: Work, kept: Kept) -> None:
        self._progress, self._first, self._second, self._kept = progress, first, second, kept
        self._begin = self._now = 0.0
        self._end: float | None = None

    def begin(self, share: float | None) -> None:
        """Note the share of the input that an earlier process finished."""
        self._begin = self._now = share or 0.0

    def submit_first(self, tokens: int, share: float | None) -> None:
        """Note tokens that the first scorer gets. share: of the input when both scorers are done with them."""
        self._progress.submit(tokens, share if share is None else self._after_first(share))

    def end_first(self, share: float | None) -> None:
        """Note a window that the first scorer has read. share: of the input when both are done with it."""
        self._end = share
        if share is not None:
            self._now = self._after_first(share)
            self._progress.reach(self._now)

    def round(self, part: float) -> float | None:
        """The share of the input after a round of the second scorer. part: of what is left of the window."""
        if self._end is not None:
            self._now += max(0.0, self._end - self._now) * part
        return None if self._end is None else self._now

    def end_window(self) -> None:
        """Note a window that both have done."""
        if self._end is not None:
            self._begin = self._now = self._end

    def _after_first(self, share: float) -> float:
        """The share of the input after the first scorer's part of a window. share: after both."""
        first, second, kept = self._first, self._second, self._kept
        part = _FIRST_WINDOW
        if first.pairs_scored and second.pairs_scored and kept.passages:
            of_first = first.seconds / first.pairs_scored
            of_second = second.seconds / second.pairs_scored * kept.read / kept.passages
            if of_first + of_second:
                part = of_first / (of_first + of_second)
        return self._begin + max(0.0, share - self._begin) * part
