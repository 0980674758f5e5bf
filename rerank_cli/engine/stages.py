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
from typing import Generic, TypeVar

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

    def drain(self, check: Callable[[], None]) -> Generator[T, None, None]:
        """What was sent, until the end or an exception."""
        try:
            while not isinstance(item := self.get(check), _End):
                if isinstance(item, _Failure):
                    raise item.error
                yield item
        finally:
            self._stopped.set()


def run_ahead(
    source: Iterable[T], *, depth: int = 1, name: str, check: Callable[[], None] = lambda: None
) -> Generator[T, None, None]:
    """Yield what `source` yields, produced by a thread that keeps `depth` items ready and one more in its hand.

    An exception of the source is raised here, after the items before it. Closing this generator stops the thread at its
    next item; a source that is a generator is closed in its own thread. check: called while the source is waited for;
    what it raises ends the waiting.
    """
    channel: _Channel[T] = _Channel(depth)
    threading.Thread(target=channel.fill, args=(source,), name=name, daemon=True).start()
    yield from channel.drain(check)
