from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import count

import pytest

from rerank_cli.errors import StoppedError
from rerank_cli.job.scoring_loop import Ahead


class Source:
    """Counts from 0; knows how far it was asked, in which thread, and where it was closed."""

    def __init__(self, *, end: int | None = None, fault: BaseException | None = None) -> None:
        self.made = -1
        self.threads: set[str] = set()
        self.closed = threading.Event()
        self.made_two = threading.Event()
        self.closed_in = ""
        self._end = end
        self._fault = fault

    def items(self) -> Iterator[int]:
        try:
            for number in count():
                self.threads.add(threading.current_thread().name)
                if number == self._end:
                    if self._fault:
                        raise self._fault
                    return
                self.made = number
                if number == 2:
                    self.made_two.set()
                yield number
        finally:
            self.closed_in = threading.current_thread().name
            self.closed.set()


@pytest.mark.parametrize("depth", [1, 3])
def test_items_come_in_order_from_another_thread(depth: int) -> None:
    source = Source(end=50)
    assert list(Ahead(source.items(), depth=depth, name="reader")) == list(range(50))
    assert source.threads == {"reader"}


def test_a_source_need_not_be_a_generator() -> None:
    assert list(Ahead([1, 2, 3], name="reader")) == [1, 2, 3]


def test_an_empty_source_ends_at_once() -> None:
    assert list(Ahead([], name="reader")) == []


@pytest.mark.parametrize("fault", [ValueError("bad"), KeyboardInterrupt()])
def test_an_exception_comes_after_the_items_before_it(fault: BaseException) -> None:
    source = Source(end=3, fault=fault)
    seen = []
    with pytest.raises(type(fault)) as caught:
        seen.extend(Ahead(source.items(), depth=5, name="reader"))
    assert caught.value is fault
    collected: list[int] = []
    with pytest.raises(type(fault)):
        for item in Ahead(Source(end=3, fault=fault).items(), name="reader"):
            collected.append(item)
    assert collected == [0, 1, 2]


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_the_source_is_at_most_the_queue_and_one_item_ahead(depth: int) -> None:
    source = Source(end=30)
    lead = [source.made - item for item in Ahead(source.items(), depth=depth, name="reader")]
    # While an item is looked at, `depth` lie in the queue and one is held by the thread that waits for room.
    assert max(lead) <= depth + 1


def test_the_source_runs_ahead_while_the_consumer_is_busy() -> None:
    reached = threading.Event()

    def items() -> Iterator[int]:
        yield 0
        yield 1
        reached.set()
        yield 2

    ahead = Ahead(items(), name="reader")
    assert next(ahead) == 0
    assert reached.wait(timeout=30), "the thread did not go on by itself"
    assert list(ahead) == [1, 2]


def test_closing_stops_the_thread_and_closes_the_source_in_it() -> None:
    source = Source()
    items = source.items()  # held here, so that it is not closed by being forgotten
    ahead = Ahead(items, name="stopped-reader")
    assert next(ahead) == 0
    assert source.made_two.wait(timeout=30)  # of which there is no room: the thread waits
    ahead.close()
    assert source.closed.wait(timeout=30)
    assert source.closed_in == "stopped-reader"
    assert source.made == 2
    for thread in threading.enumerate():
        if thread.name == "stopped-reader":
            thread.join(timeout=30)
            assert not thread.is_alive()


def test_nothing_runs_before_the_first_item_is_asked_for() -> None:
    source = Source()
    Ahead(source.items(), name="reader").close()
    assert source.made == -1


def test_it_says_whether_the_next_item_must_be_waited_for() -> None:
    release = threading.Event()

    def items() -> Iterator[int]:
        yield 0
        release.wait()
        yield 1

    ahead = Ahead(items(), name="reader")
    assert not ahead.is_ready  # nothing runs yet
    assert next(ahead) == 0
    assert not ahead.is_ready
    release.set()
    assert next(ahead) == 1
    assert list(ahead) == []
    assert ahead.is_ready  # that there is nothing more is known
    assert list(ahead) == []


def test_stages_can_follow_each_other() -> None:
    first = Ahead(Source(end=20).items(), name="first")
    second = Ahead((item * 2 for item in first), name="second")
    assert list(second) == list(range(0, 40, 2))


def test_who_waits_for_a_slow_source_is_asked_whether_to_go_on() -> None:
    release = threading.Event()

    def slow() -> Iterator[int]:
        release.wait()
        yield 1

    def check() -> None:
        raise StoppedError("enough", exit_code=9)

    items = Ahead(slow(), name="slow", check=check)
    with pytest.raises(StoppedError):
        next(items)
    release.set()
