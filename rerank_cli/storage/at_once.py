"""Several calls to a store at the same time, because a call spends its time on the network."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")
_CALLS = 8  # at a time; a store serves more, but not for one process alone


def at_once(calls: Iterable[Callable[[], Result]]) -> list[Result]:
    """The results of all calls, in their order. Waits for all of them before it raises the first failure."""
    calls = list(calls)
    if len(calls) < 2:
        return [call() for call in calls]
    with ThreadPoolExecutor(min(len(calls), _CALLS), thread_name_prefix="store") as pool:
        under_way = [pool.submit(call) for call in calls]
    return [one.result() for one in under_way]
