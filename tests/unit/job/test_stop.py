"""When a request to stop is heard: at once, later, or not any more."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from rerank_cli.errors import StoppedError
from rerank_cli.job.stop import Stop

ENOUGH = StoppedError("enough", exit_code=9)


@pytest.fixture(autouse=True)
def usual_signals() -> Iterator[None]:
    """The test process may have been started with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def test_without_a_request_nothing_is_raised() -> None:
    stop = Stop()
    stop.check()
    with stop.held(), stop.released():
        stop.check()


def test_a_request_is_raised_where_the_program_is() -> None:
    with pytest.raises(StoppedError, match="enough"):
        Stop().request(ENOUGH)


def test_inside_held_it_waits_for_the_end() -> None:
    stop, done = Stop(), []
    with pytest.raises(StoppedError), stop.held():
        stop.request(ENOUGH)
        done.append("rest")
    assert done == ["rest"]


def test_held_in_held_waits_for_the_outer_end() -> None:
    stop, done = Stop(), []
    with pytest.raises(StoppedError), stop.held():
        with stop.released(), stop.held():
            done.append("inner")
        stop.request(ENOUGH)
        done.append("outer")
    assert done == ["inner", "outer"]


def test_inside_released_it_is_raised_at_once_also_when_it_came_before() -> None:
    stop = Stop()
    with pytest.raises(StoppedError), stop.held(), stop.released():
        stop.request(ENOUGH)
        raise AssertionError("not reached")
    with pytest.raises(StoppedError), stop.held(), stop.released():
        raise AssertionError("not reached")


def test_a_failure_inside_held_is_not_hidden_by_a_request() -> None:
    stop = Stop()
    with pytest.raises(ValueError, match="mine"), stop.held():
        stop.request(ENOUGH)
        raise ValueError("mine")


def test_only_the_first_request_counts() -> None:
    stop = Stop()
    with pytest.raises(StoppedError, match="enough"), stop.held():
        stop.request(ENOUGH)
        stop.request(StoppedError("more", exit_code=143))


def test_when_it_is_late_a_request_changes_nothing() -> None:
    stop = Stop()
    stop.is_late()
    stop.request(ENOUGH)
    stop.check()
    with stop.held(), stop.released():
        stop.check()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_is_a_request(number: signal.Signals, code: int) -> None:
    before = signal.getsignal(number)
    with pytest.raises(StoppedError, match=f"stopped by {number.name}") as caught, Stop().listening():
        os.kill(os.getpid(), number)
    assert caught.value.exit_code == code
    assert signal.getsignal(number) is before


class Interrupted:
    """A sequence whose first item takes so long that a signal arrives meanwhile."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, place: int) -> float:
        os.kill(os.getpid(), signal.SIGTERM)
        return 0.0


def test_what_a_library_makes_of_a_request_is_not_what_ends_the_run() -> None:
    """torch looks at the first item in C and takes any exception for `has no shape`."""
    torch = pytest.importorskip("torch")
    with pytest.raises(StoppedError, match="stopped by SIGTERM") as caught, Stop().listening():
        torch.asarray(Interrupted())
    assert isinstance(caught.value.__cause__, ValueError)


def test_a_request_that_a_library_swallows_is_raised_at_the_end_of_released() -> None:
    stop = Stop()
    with pytest.raises(StoppedError), stop.held(), stop.released(), suppress(StoppedError):
        stop.request(ENOUGH)


def test_a_failure_before_any_request_is_told_as_it_is() -> None:
    with pytest.raises(ValueError, match="mine"), Stop().listening():
        raise ValueError("mine")


def test_the_deadline_is_a_request_and_its_clock_is_stopped() -> None:
    with pytest.raises(StoppedError, match="the deadline is reached") as caught, Stop().listening(0.01):
        threading.Event().wait(10)
    assert caught.value.exit_code == 9
    with Stop().listening(60):
        pass
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Stop().listening():
        os.kill(os.getpid(), signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_another_thread_than_the_main_one_hears_no_signals() -> None:
    seen = []

    def listen() -> None:
        with Stop().listening(1):
            seen.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert seen == [before]
