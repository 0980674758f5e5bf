"""Stops a run from outside: at its deadline, or by SIGTERM or SIGINT.

While a run is prepared, and while a batch is computed, the request raises an exception wherever the program happens to
be: what matters is on disk by then or can be computed again, and a batch of a large model on a CPU can take longer than
a user waits. Everywhere else in the loop over windows the request waits (`held`), because an exception at any place
could leave a queue locked or a window half written.

A library may swallow the exception, so the run also asks (`check`) after each batch, between two stages, and while it
waits for a window. Or a library may swallow it and then fail (torch looks at the items of a sequence in C and takes any
exception for "has no shape"). So any error after a raised request counts as its consequence, and the run ends as
requested.

A second SIGINT ends the process at once, which is as safe as kill -9.
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
    """A request to stop, which may come at any time."""

    def __init__(self) -> None:
        self._request: StoppedError | None = None
        self._was_raised = False
        self._held = False
        self._is_late = False

    def request(self, error: StoppedError) -> None:
        """Stop with `error`: now, or at the end of a `held` block. Only the first request counts."""
        if self._request is None:
            self._request = error
            if not self._held:
                self.check()

    def check(self) -> None:
        """Raise the request, if there is one."""
        if self._request is not None and not self._is_late:
            self._was_raised = True
            raise self._request

    def is_late(self) -> None:
        """Ignore requests from here on: all is computed, and the files only get their names."""
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

        Signals can be caught only in a program's main thread; elsewhere this does nothing.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        # A shell starts a program in the background with SIGINT ignored; it stays ignored.
        wanted = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        before = {number: signal.signal(number, self._on_signal) for number in wanted}
        if deadline is not None:
            before[signal.SIGALRM] = signal.signal(
                signal.SIGALRM, lambda *_: self.request(StoppedError("the deadline is reached", exit_code=9))
            )
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
