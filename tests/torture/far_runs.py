"""Runs whose output is an object, each on a machine of its own: what a child of `runs.py` is before it runs.

A machine is a folder for its cache. kill_at: the call of the store, counted from 1, at which the process is killed;
killed: `before` it or `after` it was done, which is an acknowledgement that nobody hears.
"""

from __future__ import annotations

import itertools
import os
import signal
import time
from pathlib import Path
from typing import Any


def become_a_machine(
    environment: dict[str, str], *, kill_at: int = 0, killed: str = "before", lease: float = 1.0, skew: float = 0.0,
    silent: float = 0.0, count_file: str | None = None,
) -> None:  # fmt: skip
    """Make this process one of a machine with these variables.

    lease: seconds. skew: how far the machine's clock is ahead. silent: seconds that it computes before its first
    commit. count_file: gets the number of calls so far.
    """
    os.environ.update(environment)
    from rerank_cli.journal import store_log
    from rerank_cli.storage.object_store import ObjectStore

    store_log.LEASE_SECONDS = lease
    store_log._POLL_SECONDS = min(store_log._POLL_SECONDS, lease / 10)
    if skew:
        real, real_ns = time.time, time.time_ns
        time.time = lambda: real() + skew
        time.time_ns = lambda: real_ns() + int(skew * 1e9)
    if silent:
        commit, waits = store_log.StoreLog.commit, iter([silent])

        def commit_late(log: store_log.StoreLog, *what: Any) -> None:
            time.sleep(next(waits, 0.0))
            commit(log, *what)

        store_log.StoreLog.commit = commit_late
    patiently = ObjectStore._try_again
    numbers = itertools.count(1)

    def counted(store: ObjectStore, key: str, call: Any) -> Any:
        number = next(numbers)
        if count_file:
            Path(count_file).write_text(str(number))
        if number == kill_at and killed == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        found = patiently(store, key, call)
        if number == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    ObjectStore._try_again = counted
