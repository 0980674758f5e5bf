"""Pools of worker processes, and what happens when a worker ends by itself.

A pool has workers, each with work in hand, and a queue of waiting work. A worker can end by itself: it is killed for
its memory, or a library or driver fails. The pool then removes that worker. Each kind of pool decides what to do with
the worker's work: halve it, try it alone, or give it up. The run stops when many workers end in a row and none has
finished anything in between, because then the work is not the cause.

All calls come from one thread. Messages of the workers stay in their sockets until the pool listens.
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

    doing: deque[Any]  # the work in hand; the first item is under way
    is_ready = False  # the worker has started


W = TypeVar("W", bound=Worker)


class SupervisedPool(ABC, Generic[W]):
    """Workers and their messages.

    Args:
        task: For the message of a run that stops, two parts of "every process that scores ends, whatever pairs it is
            given": `scores`, `pairs it is`.
        deaths: How many workers may end in a row, with nothing done in between.
        on_note: Takes what a user should know, such as the death of a process.
    """

    def __init__(self, task: tuple[str, str], *, deaths: int, on_note: Callable[[str], None] | None) -> None:
        self._task, self._deaths = task, deaths
        self._note = on_note or (lambda text: None)
        self._deaths_in_a_row = 0
        self._workers: list[W] = []
        self._waiting: deque[Any] = deque()
        self._trace: str | None = None  # of the last fault that a process reported

    @abstractmethod
    def _handle_message(self, worker: W, message: Any) -> None:
        """Handle a message of a worker; None where the worker has ended."""

    def _listen(self, seconds: float) -> list[W]:
        """Handle the messages that arrive within `seconds`; returns the workers that sent them."""
        by_connection = {worker.connection: worker for worker in self._workers}
        ready = [by_connection[one] for one in wait(list(by_connection), seconds)]  # type: ignore[index]  # typeshed names more kinds than these connections
        for worker in ready:
            try:
                message = worker.connection.recv()
            except (EOFError, OSError):
                message = None
            self._handle_message(worker, message)
        return ready

    def _take_out(self, worker: W, reason: str | None) -> str:
        """Remove a worker that has ended; returns `reason`, or how the process ended where `reason` is None."""
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

    def close(self) -> None:
        """End the processes."""
        for worker in self._workers:
            worker.connection.close()
            worker.process.kill()
        for worker in self._workers:
            worker.process.wait()
        self._workers.clear()
