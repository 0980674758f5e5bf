"""Processes that outlive, or do not outlive, the one that started them."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import AnyStr


class Started(subprocess.Popen[AnyStr]):
    """A process that does not outlive a test that fails: `Popen` would wait for it, and perhaps for ever."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.kill()
        super().__exit__(kind, error, trace)


def alive(pids: list[int]) -> list[int]:
    """Those that are still there."""
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def wait_until(holds: Callable[[], bool], otherwise: str) -> None:
    """Wait for a minute at most."""
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.02)


def left_by(parent: str) -> list[int]:
    """The process ids that the program `parent` has printed: all were alive, and then it was killed."""
    with subprocess.Popen(
        [sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1]
    ) as process:
        assert process.stdout is not None
        found = [int(pid) for pid in process.stdout.readline().split()]
        assert alive(found) == found
        process.kill()
    return found
