"""How much of a run is finished, and how long the rest takes at the rate of this process.

Finished is what was computed, never what was read: reading is up to two windows ahead. Each part of the input that the
engine gets is a step on a line from tokens to the share of the input (`Window.share`); the tokens of the batches that
are done say where on that line the run is. So the share grows with every batch, also where a window takes minutes, and
never runs ahead of the work.

The rest is estimated from what this process has done since its engine had its first pairs. What an earlier process has
finished counts for the share and not for the rate: it may have been another machine.

The thread that computes calls the methods that tell something; the properties may be read by any other.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

_ALMOST = 0.999


class Progress:
    """The progress of a run, also of one that goes on where an earlier process has ended."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.began = clock()
        self.pairs = 0
        """Of the batches that are done, in this process."""
        self.share: float | None = None
        """Of the whole run, from 0 to 1; None where it cannot be told."""
        self.kept_rows = 0
        """Rows, bad ones included, that a later process need not do again; with a pipe those that are done."""
        self.kept_share: float | None = None
        self._scoring_since: float | None = None
        self._first_share = 0.0
        self._seconds_of_share: float | None = None  # of this process's share, when it last grew
        self._tokens = 0
        self._step_tokens = 0  # up to the end of the last step
        self._steps: deque[tuple[int, float | None]] = deque()  # (tokens, share) at their ends
        self._base: tuple[int, float | None] = (0, 0.0)  # where the current step begins

    # Told by the run

    def begin(self) -> None:
        """The run begins, and with it the wall time that its last line and its report tell."""
        self.began = self._clock()

    def begin_at(self, share: float | None, rows: int) -> None:
        """An earlier process has finished so much."""
        self.share = self.kept_share = share
        self.kept_rows = rows
        self._first_share = share or 0.0
        self._base = (0, share)

    def submit(self, tokens: int, share: float | None) -> None:
        """The engine gets so many tokens; share: of the input, when they are done."""
        if self._scoring_since is None:
            self._scoring_since = self._clock()
        self._step_tokens += tokens
        self._steps.append((self._step_tokens, share))

    def add_batch(self, pairs: int, tokens: int) -> None:
        """A batch is done."""
        self.pairs += pairs
        self._tokens = min(self._tokens + tokens, self._step_tokens)
        while self._steps and self._steps[0][0] <= self._tokens:
            self._base = self._steps.popleft()
        self._grow(self._share_within_window())

    def end_window(self, share: float | None, rows: int) -> None:
        """A window is written; rows: of the run so far."""
        self.kept_rows, self.kept_share = rows, share
        self.reach(share)

    def reach(self, share: float | None) -> None:
        """All that was to be done up to a share is done, whatever its batches have told."""
        while share is not None and self._steps and (self._steps[0][1] or 0.0) <= share:
            self._base = self._steps.popleft()
            self._tokens = max(self._tokens, self._base[0])
        self._grow(share)

    def end_part(self, pairs: int, share: float, rows: int) -> None:
        """Another machine has finished a part; all numbers are those of the run so far."""
        self.pairs = pairs
        self.kept_rows, self.kept_share = rows, share
        self._grow(share)

    # Asked by who shows it

    @property
    def share_under_way(self) -> float | None:
        """`share`, which is less than all as long as anybody asks: names have still to be given."""
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
    def seconds_left(self) -> float | None:
        """Until the end, from what is done now; None where it cannot be told."""
        return self.seconds_after(self.share)

    @property
    def clock_left(self) -> float | None:
        """`seconds_left`, less the time since the share last grew: it counts down while a batch is computed."""
        left = self.seconds_left
        if left is None or self._seconds_of_share is None or self._scoring_since is None:
            return left
        return max(0.0, left - (self._clock() - self._scoring_since - self._seconds_of_share))

    def seconds_after(self, share: float | None) -> float | None:
        """From a share of the run until its end, at the rate of this process."""
        if share is None or self.share is None or self._seconds_of_share is None:
            return None
        done = self.share - self._first_share
        return (1.0 - share) * self._seconds_of_share / done if done > 0 else None

    def state(self) -> Mapping[str, Any]:
        """What a later process says of this one."""
        left = self.seconds_after(self.kept_share)
        return {
            "share": self.kept_share,
            "seconds_left": None if left is None else round(left, 1),
            "pairs_per_second": round(self.pairs_per_second, 1),
        }

    # Inside

    def _share_within_window(self) -> float | None:
        """The share at the tokens that are done."""
        tokens, share = self._base
        if not self._steps or share is None:
            return share
        end, until = self._steps[0]
        if until is None:
            return None
        return share + (until - share) * (self._tokens - tokens) / max(1, end - tokens)

    def _grow(self, share: float | None) -> None:
        if share is None:
            return
        if self.share is None or share > self.share:
            self.share = share
            if self._scoring_since is not None:
                self._seconds_of_share = self._clock() - self._scoring_since


def whole_percent(share: float) -> str:
    """`20 %`; 0 and 100 are nothing and all."""
    return f"{min(99, max(1, round(100 * share))) if 0 < share < 1 else round(100 * share)} %"


def about(seconds: float) -> str:
    """A time to come in words: `about 1 min`."""
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
    """`44 of 225 rows (20 %)`; the total is an estimate where rows were not counted."""
    if total is not None:
        return f"{done:,} of {total:,} rows ({whole_percent(done / max(1, total))})"
    if share:
        return f"{done:,} of about {_rounded(done / share):,} rows ({whole_percent(share)})"
    return f"{done:,} rows"


def _rounded(number: float) -> int:
    """To two digits."""
    return int(float(f"{number:.2g}"))
