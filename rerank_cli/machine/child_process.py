"""A process of this program that works for another one: how it starts, what it hears, how it ended.

The two are joined by a socket, over which they exchange pickled objects, as both are this program. A child is a Python
of its own: nothing is forked, so threads and locks of the parent do not matter, and it imports what its module imports.

The parent handles signals. Those that a terminal or a service manager sends to the whole group are blocked in a child
from its first instruction, so that it prints nothing even while it starts. It ends when its parent does: at the end of
the socket, whatever it is doing.
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
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

_LEAVE_SECONDS = 5.0


class Child:
    """A process that runs `main` of `module`. environment: variables besides those of this process.

    patience: seconds for which a message may stand still once it has begun; after that sending or receiving it is an
    `OSError`. So a process that is stopped in the middle of a message does not stop the other one. Raises `OSError`
    where no process can be started.
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
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})  # a child inherits this
            try:
                self.process = subprocess.Popen(
                    [sys.executable, "-P", "-c", start, str(theirs.fileno()), *sys.path],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=2,  # a library that prints must not write into the output
                    env={**os.environ, **(environment or {})},
                )
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            self.connection: Connection[Any, Any] = Connection(ours.detach())

    def tell(self, message: object) -> None:
        """Send it something; if it has died nothing happens here, as the wait for its answer finds that out."""
        with suppress(OSError):
            self.connection.send(message)

    def end(self) -> str:
        """End the process, which is over or about to be; returns how it ended, in words."""
        self.connection.close()
        try:
            code = self.process.wait(_LEAVE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        if code < 0:
            name = signal.Signals(-code).name
            return f"killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
        return f"ended with exit code {code}"


def parent_of_this_process() -> Connection[Any, Any]:
    """In a child: the other end of the socket."""
    return Connection(int(sys.argv[1]))


def hear(connection: Connection[Any, Any]) -> queue.SimpleQueue[Any]:
    """In a child: what the parent sends, in order. At the end of the socket this process ends at once.

    A thread receives, so that the next message is there when one is done, and the parent never waits for a child to
    read.
    """
    heard: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def receive() -> None:
        try:
            while True:
                heard.put(connection.recv())
        except (EOFError, OSError):
            os._exit(0)  # the parent has gone, or wants this process to go: nothing here is worth finishing

    threading.Thread(target=receive, name="receive", daemon=True).start()
    return heard
