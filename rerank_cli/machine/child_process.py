"""A process of this program that works for another one: how it starts, what it hears, how it ended.

The two are joined by a socket, over which they exchange pickled objects, as both are this program. A child is a Python
of its own: nothing is forked, so threads and locks of the parent do not matter, and it imports what its module imports.

Signals are the parent's business. Those that a terminal or a service manager sends to the whole group are blocked in a
child from its first instruction, so that it says nothing even while it starts, and it ends when its parent does: at the
end of the socket, whatever it is doing.
"""

from __future__ import annotations

import os
import queue
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any

_LEAVE_SECONDS = 5.0


class Child:
    """A process that runs `main` of `module`. environment: variables besides those of this process.

    patience: seconds for which a message that has begun may rest, else sending or receiving it is an `OSError`; so a
    process that somebody stops in the middle of one stops no other. Raises `OSError` where no process can be had.
    """

    def __init__(
        self, module: str, *, environment: Mapping[str, str] | None = None, patience: float | None = None
    ) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            if patience is not None:
                for way in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                    ours.setsockopt(socket.SOL_SOCKET, way, struct.pack("ll", int(patience) + 1, 0))
            # -P: nothing is imported from the current folder. Packages are found where this process has found them.
            start = f"import sys; sys.path[:] = sys.argv[2:]; from {module} import main; main()"
            with _blocked_signals():
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-c", start, str(theirs.fileno()), *sys.path],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=2,  # a library that prints must not write into the output
                    env={**os.environ, **(environment or {})},
                )
            self.connection: Connection[Any, Any] = Connection(ours.detach())

    def tell(self, message: object) -> None:
        """Send it something; if it has died, whoever waits for its answer hears of that."""
        with suppress(OSError):
            self.connection.send(message)

    def end(self) -> str:
        """The process is over, or will be at once; returns how it ended."""
        self.connection.close()
        try:
            code = self._process.wait(_LEAVE_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            code = self._process.wait()
        if code < 0:
            name = signal.Signals(-code).name
            return f"killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
        return f"ended with exit code {code}"

    def kill(self) -> None:
        """End it, whatever it does."""
        self._process.kill()

    def wait(self) -> None:
        """Wait for its end."""
        self._process.wait()


@contextmanager
def _blocked_signals() -> Iterator[None]:
    """Inside, a process that this thread starts has the signals of the whole group blocked."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def parent_of_this_process() -> Connection[Any, Any]:
    """In a child: the other end of the socket."""
    return Connection(int(sys.argv[1]))


def hear(connection: Connection[Any, Any]) -> queue.SimpleQueue[Any]:
    """In a child: what the parent sends, in order. At the end of the socket this process ends at once.

    A thread takes it, so that the next thing is there when one is done, and the parent never waits for a child to read.
    """
    heard: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(connection, heard), name="receive", daemon=True).start()
    return heard


def _receive(connection: Connection[Any, Any], heard: queue.SimpleQueue[Any]) -> None:
    try:
        while True:
            heard.put(connection.recv())
    except (EOFError, OSError):
        os._exit(0)  # the parent has gone, or wants this process to go: nothing here is worth finishing
