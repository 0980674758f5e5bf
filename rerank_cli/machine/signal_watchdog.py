"""A signal ends this process within some seconds, whatever library code is doing.

Python handles a signal between two of its own instructions, and a library may stay in C or Rust for minutes (a regular
expression, a normaliser, the opening of a pipe). So a thread reads the descriptor that the interpreter writes each
signal to, from within the C handler. If the process has not ended some seconds later, the thread ends it as `kill -9`
would: only what was not committed is lost.
"""

from __future__ import annotations

import os
import signal
import threading
import time

SECONDS = 8.0
"""From a signal to the end. Service managers wait for 10 seconds at least (systemd 90, Kubernetes 30, docker 10)."""

_ENDS: dict[int, int] = {signal.SIGTERM: 128 + signal.SIGTERM, signal.SIGINT: 128 + signal.SIGINT, signal.SIGALRM: 9}


def start_signal_watchdog() -> None:
    """From here on a signal that this process handles ends it in time. To be called by the main thread."""
    heard, told = os.pipe()
    os.set_blocking(told, False)
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(heard,), name="signal watchdog", daemon=True).start()


def _watch(heard: int) -> None:
    while data := os.read(heard, 1):
        if (code := _ENDS.get(data[0])) is not None:
            time.sleep(SECONDS)
            name = "the deadline" if code == _ENDS[signal.SIGALRM] else signal.Signals(data[0]).name
            message = f"stopped by {name}: ended on the spot, as nothing answered for {SECONDS:g} s\n"
            os.write(2, message.encode())
            os._exit(code)
