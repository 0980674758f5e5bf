"""Stages that run ahead of each other: each in a thread, joined by short queues.

    read  ->  tokenise  ->  compute (the caller's own thread)

The heavy parts of each stage release the interpreter lock (file and decompression, the Rust tokenizer, torch), so three
threads are enough to hide reading and tokenising behind compute. The queue is short on purpose: it bounds memory.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Generic, Self, TypeVar

T = TypeVar("T")

_POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class _Failure:
    """An exception on its way to the consumer's thread."""

    error: BaseException


class _End:
    """The source is exhausted."""


class _Channel(Generic[T]):
    """A short queue between two threads that either end can close."""

    def __init__(self, depth: int) -> None:
        self._items: queue.Queue[T | _Failure | _End] = queue.Queue(maxsize=depth)
        self._stopped = threading.Event()

    def put(self, item: T | _Failure | _End) -> bool:
        """Wait for room; False if the consumer has gone."""
        while not self._stopped.is_set():
            try:
                self._items.put(item, timeout=_POLL_SECONDS)
            except queue.Full:
                continue
            return True
        return False

    def fill(self, source: Iterable[T]) -> None:
        """Send all of `source`, and its exception if it raises one."""
        try:
            if all(self.put(item) for item in source):
                self.put(_End())
        except BaseException as error:  # noqa: BLE001 (it is raised again in the consumer's thread)
            self.put(_Failure(error))
        finally:
            if isinstance(source, Generator):
                source.close()

    def get(self, check: Callable[[], None]) -> T | _Failure | _End:
        """Wait for an item; `check` is called now and then."""
        while True:
            try:
                return self._items.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                check()

    @property
    def is_ready(self) -> bool:
        """An item, or the end, can be had without waiting."""
        return not self._items.empty()

    def close(self) -> None:
        """Take no more."""
        self._stopped.set()


class Ahead(Generic[T]):
    """What `source` yields, produced by a thread that keeps `depth` items ready and one more in its hand.

    An exception of the source is raised here, after the items before it. Nothing runs before the first item is asked
    for. Closing this stops the thread at its next item; a source that is a generator is closed in its own thread.
    check: called while the source is waited for; what it raises ends the waiting.
    """

    def __init__(
        self, source: Iterable[T], *, depth: int = 1, name: str, check: Callable[[], None] = lambda: None
    ) -> None:
        self._channel: _Channel[T] = _Channel(depth)
        self._thread = threading.Thread(target=self._channel.fill, args=(source,), name=name, daemon=True)
        self._check = check
        self._is_started = self._is_ended = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        if not self._is_started:
            self._is_started = True
            self._thread.start()
        if self._is_ended:
            raise StopIteration
        try:
            item = self._channel.get(self._check)
        except BaseException:
            self.close()
            raise
        if isinstance(item, _Failure):
            self.close()
            raise item.error
        if isinstance(item, _End):
            self.close()
            raise StopIteration
        return item

    @property
    def is_ready(self) -> bool:
        """The next item, or that there is none, can be had without waiting."""
        return self._is_ended or self._channel.is_ready

    def close(self) -> None:
        """Take no more."""
        self._is_ended = self._is_started = True
        self._channel.close()
