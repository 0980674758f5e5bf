"""Several calls of a store in the time of one: each takes its time on the way, not here."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")
_CALLS = 8  # under way; a store serves more, and one process does not take all of them


def at_once(calls: Iterable[Callable[[], Result]]) -> list[Result]:
    """What each call gives, in their order. All are made and waited for; then the first failure is raised."""
    calls = list(calls)
    if len(calls) < 2:
        return [call() for call in calls]
    with ThreadPoolExecutor(min(len(calls), _CALLS), thread_name_prefix="store") as pool:
        under_way = [pool.submit(call) for call in calls]
    return [one.result() for one in under_way]
