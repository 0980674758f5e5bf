"""Processes that work for this one, and what becomes of a process that ends by itself.

A pool has workers, each with the work it has in hand, and work that waits. A worker that ends by itself (killed for its
memory, a fault of a library or driver) is taken out of the pool. The kind of pool decides what becomes of its work:
whether it is cut in halves or tried alone, and when it is given up. Where many end one after another and nothing is
done in between, it is not the work, and the run stops.

All calls come from one thread. Nothing happens while nobody listens: what the workers say stays in their sockets.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from multiprocessing.connection import wait
from typing import Any, Generic, TypeVar

from rerank_cli.errors import EngineError
from rerank_cli.machine.child_process import Child


class Worker(Child):
    """A process of a pool."""

    doing: deque[Any]  # the work in its hand, the first of it under way
    is_ready = False  # it has started


W = TypeVar("W", bound=Worker)


class SupervisedPool(ABC, Generic[W]):
    """Workers and what they say.

    Args:
        task: What a worker does and with what, for the message of a run that stops: `scores`, `pairs it is`.
        deaths: How many workers may end in a row, with nothing done in between.
        on_note: Told what a user should know, such as a process that has died.
    """

    def __init__(self, task: tuple[str, str], *, deaths: int, on_note: Callable[[str], None] | None) -> None:
        self._task, self._deaths, self._on_note = task, deaths, on_note
        self._deaths_in_a_row = 0
        self._workers: list[W] = []
        self._waiting: deque[Any] = deque()
        self._trace: str | None = None  # of the last fault that a process could tell

    @abstractmethod
    def _hear(self, worker: W, message: Any) -> None:
        """Take what a worker says; None where it has ended."""

    def _listen(self, seconds: float) -> list[W]:
        """Hear the workers that say something within `seconds`, and return them."""
        by_connection = {worker.connection: worker for worker in self._workers}
        ready = [by_connection[one] for one in wait(list(by_connection), seconds)]  # type: ignore[index]
        for worker in ready:
            try:
                message = worker.connection.recv()
            except (EOFError, OSError):
                message = None
            self._hear(worker, message)
        return ready

    def _take_out(self, worker: W, reason: str | None) -> str:
        """Part with a worker that has ended; returns how it ended, in place of a `reason` that nobody knows."""
        ended = worker.end()
        self._workers.remove(worker)
        reason = reason or ended
        if worker.is_ready:
            self._deaths_in_a_row += 1
            if self._deaths_in_a_row > self._deaths:
                does, given = self._task
                error = EngineError(
                    f"every process that {does} ends ({reason}), whatever {given} given",
                    hint="what is finished is kept; run again when the cause is gone",
                )
                if self._trace:
                    error.add_note(self._trace)
                raise error
        return reason

    def _note(self, text: str) -> None:
        if self._on_note:
            self._on_note(text)

    def close(self) -> None:
        """End the processes."""
        for worker in self._workers:
            worker.connection.close()
            worker.kill()
        for worker in self._workers:
            worker.wait()
        self._workers.clear()
