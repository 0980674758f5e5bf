"""How much of a run is finished, and how long the rest takes at the rate of this process.

Only what was computed counts, not what was read: reading is up to two windows ahead. Progress is counted in tokens: for
each piece that the engine gets we note how far in the input it ends (`Window.share`), so the tokens of the finished
batches tell the share. So the share grows with every batch, even if a window takes minutes, and never runs ahead of the
work.

The rest is estimated from what this process has done since its engine got its first pairs. What an earlier process
finished counts for the share but not for the rate: it may have run on another machine.

The computing thread calls the methods that report something; any thread may read the properties.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

_ALMOST = 0.999


class Progress:
    """The progress of a run, which may be a resumed one."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.began = clock()
        self.pairs = 0
        """Of the finished batches of this process."""
        self.share: float | None = None
        """The finished share of the whole run, from 0 to 1; None if not known."""
        self.kept_rows = 0
        """Rows, bad ones included, that a later process need not repeat; with a pipe, the finished rows."""
        self.kept_share: float | None = None
        self._scoring_since: float | None = None
        self._first_share = 0.0
        self._seconds_of_share: float | None = None  # of this process's share, when it last grew
        self._tokens = 0
        self._step_tokens = 0  # up to the end of the last step
        self._steps: deque[tuple[int, float | None]] = deque()  # (tokens, share) at their ends
        self._base: tuple[int, float | None] = (0, 0.0)  # where the current step begins

    # Called by the run

    def begin(self) -> None:
        """Begin the run and its wall time."""
        self.began = self._clock()

    def begin_at(self, share: float | None, rows: int) -> None:
        """Note what an earlier process finished."""
        self.share = self.kept_share = share
        self.kept_rows = rows
        self._first_share = share or 0.0
        self._base = (0, share)

    def submit(self, tokens: int, share: float | None) -> None:
        """Note tokens that the engine gets. share: of the input that is finished with them."""
        if self._scoring_since is None:
            self._scoring_since = self._clock()
        self._step_tokens += tokens
        self._steps.append((self._step_tokens, share))

    def add_batch(self, pairs: int, tokens: int) -> None:
        """Note a finished batch."""
        self.pairs += pairs
        self._tokens = min(self._tokens + tokens, self._step_tokens)
        while self._steps and self._steps[0][0] <= self._tokens:
            self._base = self._steps.popleft()
        begin, share = self._base
        if self._steps and share is not None:  # the batch ends within a step
            end, until = self._steps[0]
            share = None if until is None else share + (until - share) * (self._tokens - begin) / max(1, end - begin)
        self._grow(share)

    def end_window(self, share: float | None, rows: int) -> None:
        """Note a window that was written. rows: of the run so far."""
        self.kept_rows, self.kept_share = rows, share
        self.reach(share)

    def reach(self, share: float | None) -> None:
        """Note that all up to a share is finished, whatever its batches reported."""
        while share is not None and self._steps and (self._steps[0][1] or 0.0) <= share:
            self._base = self._steps.popleft()
            self._tokens = max(self._tokens, self._base[0])
        self._grow(share)

    def end_part(self, pairs: int, share: float, rows: int) -> None:
        """Note a part that another machine finished; all numbers are totals of the run so far."""
        self.pairs = pairs
        self.kept_rows, self.kept_share = rows, share
        self._grow(share)

    # Read by displays

    @property
    def share_under_way(self) -> float | None:
        """`share`, but below 1: while it is shown, the files still have to get their names."""
        return None if self.share is None else min(self.share, _ALMOST)

    @property
    def seconds(self) -> float:
        """Wall time of this process in the run."""
        return self._clock() - self.began

    @property
    def pairs_per_second(self) -> float:
        """Pairs over `seconds`."""
        return self.pairs / max(self.seconds, 1e-9)

    @property
    def clock_left(self) -> float | None:
        """Seconds until the end; counts down while a batch is computed. None if not known."""
        left = self.seconds_after(self.share)
        if left is None or self._seconds_of_share is None or self._scoring_since is None:
            return left
        return max(0.0, left - (self._clock() - self._scoring_since - self._seconds_of_share))

    def seconds_after(self, share: float | None) -> float | None:
        """Seconds from a share of the run until its end, at the rate of this process; None if not known."""
        if share is None or self.share is None or self._seconds_of_share is None:
            return None
        done = self.share - self._first_share
        return (1.0 - share) * self._seconds_of_share / done if done > 0 else None

    def state(self) -> Mapping[str, Any]:
        """What a later process reads about this one."""
        left = self.seconds_after(self.kept_share)
        return {
            "share": self.kept_share,
            "seconds_left": None if left is None else round(left, 1),
            "pairs_per_second": round(self.pairs_per_second, 1),
        }

    # Internal

    def _grow(self, share: float | None) -> None:
        if share is None:
            return
        if self.share is None or share > self.share:
            self.share = share
            if self._scoring_since is not None:
                self._seconds_of_share = self._clock() - self._scoring_since


def whole_percent(share: float) -> str:
    """`20 %`; 0 % and 100 % are exactly nothing and all."""
    return f"{min(99, max(1, round(100 * share))) if 0 < share < 1 else round(100 * share)} %"


def about(seconds: float) -> str:
    """A time in words: `about 1 min`."""
    if seconds < 1:
        return "less than 1 s"
    if seconds < 60:
        return f"about {seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"about {minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"about {hours} h {minutes} min" if hours < 48 else f"about {round(hours / 24)} days"


def rows_of(done: int, total: int | None, share: float | None) -> str:
    """`44 of 225 rows (20 %)`; without a total, it is estimated from the share."""
    if total is not None:
        return f"{done:,} of {total:,} rows ({whole_percent(done / max(1, total))})"
    if share:
        estimate = int(float(f"{done / share:.2g}"))  # two digits
        return f"{done:,} of about {estimate:,} rows ({whole_percent(share)})"
    return f"{done:,} rows"
