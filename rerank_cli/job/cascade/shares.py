"""How far a run of two scorers is: each window's share of the input, divided between them.

The first scorer's part of a window is what its seconds are of those of both, by the seconds a pair that each has taken
in the run so far, and the share of the pairs that the second one reads. Of the second one's part a round takes half of
what is left where another round may follow, else all of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rerank_cli.job.cascade.choice import Kept
    from rerank_cli.job.cascade.scorer import Work
    from rerank_cli.job.progress import Progress

_FIRST_WINDOW = 0.3  # nothing is measured; int8 has some two and a half times the speed of fp32


class WindowShares:
    """Divides the windows of a run between two scorers, for its progress.

    Args:
        progress: Of the run.
        first, second: What each has done.
        kept: What the choices have come to.
    """

    def __init__(self, progress: Progress, first: Work, second: Work, kept: Kept) -> None:
        self._progress, self._first, self._second, self._kept = progress, first, second, kept
        self._begin = self._now = 0.0
        self._end: float | None = None

    def begin(self, share: float | None) -> None:
        """So much of the input was finished by an earlier process."""
        self._begin = self._now = share or 0.0

    def submit_first(self, tokens: int, share: float | None) -> None:
        """The first scorer gets a part of a window; share: of the input, when both are done with it."""
        self._progress.submit(tokens, share if share is None else self._after_first(share))

    def end_first(self, share: float | None) -> None:
        """The first scorer has read a window; share: of the input, when both are done with it."""
        self._end = share
        if share is not None:
            self._now = self._after_first(share)
            self._progress.reach(self._now)

    def round(self, part: float) -> float | None:
        """The share of the input after a round of the second scorer, which is so much of what is left of the window."""
        if self._end is not None:
            self._now += max(0.0, self._end - self._now) * part
        return None if self._end is None else self._now

    def submit_second(self, tokens: int, share: float | None) -> None:
        """The second scorer gets some of a window; share: see `round`."""
        self._progress.submit(tokens, share)

    def end_window(self) -> None:
        """Both have done a window."""
        if self._end is not None:
            self._begin = self._now = self._end

    def _after_first(self, share: float) -> float:
        return self._begin + max(0.0, share - self._begin) * self._part_of_first()

    def _part_of_first(self) -> float:
        first, second, kept = self._first, self._second, self._kept
        if not (first.pairs_scored and second.pairs_scored and kept.passages):
            return _FIRST_WINDOW
        of_first = first.seconds / first.pairs_scored
        of_second = second.seconds / second.pairs_scored * kept.read / kept.passages
        return of_first / (of_first + of_second) if of_first + of_second else _FIRST_WINDOW
