"""How a run is stopped from outside: by its deadline, by SIGTERM, by SIGINT.

While a run is prepared, and while a batch is computed, the request is an exception raised where the program happens to
be: all that matters by then is on disk or can be computed again, and a batch of a large model on a CPU can take longer
than a user waits. Everywhere else in the loop over windows it waits (`held`), because an exception out of nowhere
leaves a queue's lock or a half-written window behind. A library may swallow such an exception, so the run also asks
(`check`) after each batch, between two stages, and while it waits for a window. Or it may swallow it and fail for what
it missed (torch looks at the items of a sequence in C and takes any exception for "has no shape"): what comes after a
request was raised is its consequence, and the run ends as requested.

The second SIGINT ends the process on the spot, which is as safe as kill -9 is.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from rerank_cli.errors import StoppedError

_SIGNALS = {signal.SIGINT: "SIGINT", signal.SIGTERM: "SIGTERM"}


class Stop:
    """A request to stop that may come at any time, until it is too late."""

    def __init__(self) -> None:
        self._request: StoppedError | None = None
        self._was_raised = False
        self._held = False
        self._is_late = False

    def request(self, error: StoppedError) -> None:
        """Stop with `error`: now, or when what is being written is written. Only the first request counts."""
        if self._request is None:
            self._request = error
            if not self._held:
                self.check()

    def check(self) -> None:
        """Raise what was requested."""
        if self._request is not None and not self._is_late:
            self._was_raised = True
            raise self._request

    def is_late(self) -> None:
        """From here on a request changes nothing: all is computed, and files only get their names."""
        self._is_late = True

    @contextmanager
    def held(self) -> Iterator[None]:
        """Inside, a request waits for the end of the block."""
        before, self._held = self._held, True
        try:
            yield
        finally:
            self._held = before
        self.check()

    @contextmanager
    def released(self) -> Iterator[None]:
        """Inside, a request is raised at once, also within `held`."""
        before, self._held = self._held, False
        try:
            self.check()
            yield
            self.check()
        finally:
            self._held = before

    @contextmanager
    def listening(self, deadline: float | None = None) -> Iterator[None]:
        """Inside, SIGTERM, SIGINT and the end of `deadline` seconds are requests.

        Signals can be caught in a program's main thread alone; elsewhere this does nothing.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        # A program started in the background of a shell has SIGINT ignored, and keeps it so.
        wanted = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        before = {number: signal.signal(number, self._on_signal) for number in wanted}
        if deadline is not None:
            before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._on_alarm)
            signal.setitimer(signal.ITIMER_REAL, max(deadline, 1e-6))
        try:
            yield
        except Exception as error:
            if self._was_raised and self._request is not None and error is not self._request:
                raise self._request from error
            raise
        finally:
            if deadline is not None:
                signal.setitimer(signal.ITIMER_REAL, 0)
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._request is not None:
            os._exit(128 + number)
        self.request(StoppedError(f"stopped by {_SIGNALS[signal.Signals(number)]}", exit_code=128 + number))

    def _on_alarm(self, number: int, frame: FrameType | None) -> None:
        self.request(StoppedError("the deadline is reached", exit_code=9))
