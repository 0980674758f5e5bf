"""Batches side by side on a CPU: a thread for each, with a part of the cores of its own.

Two cores that share a product of some thousand rows are often idle: they meet at a barrier after every layer and norm,
and each needs what lies in the other's L2. One batch for each core needs no barriers. Measured on 2 cores of Sapphire
Rapids (AMX, bf16, built-in model, quiet machine): 1.66 times the pairs of one batch on both cores.

The lanes are threads of one process: weights are there once, and torch gives Python's lock back during each operator.
About 4 % of a small model's batch runs under the lock, so more than `MOST_LANES` (`planning/run_plan.py`) would not
help; with more cores a lane has several.

The lanes do not change which batches there are, nor their order. In fp32, where threads change no bit, fewer batches
than lanes are computed on all cores, one after another. In bf16 and int8 even a single batch goes through a lane: with
more threads oneDNN adds long sums up in another order, and a pair must have one logit whatever else is scored.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from rerank_cli.machine.this_process import share_one_heap

T = TypeVar("T")


class Lanes:
    """Threads that compute. count: how many. threads: of torch, in each. least: fewer batches go without lanes."""

    def __init__(self, count: int, *, threads: int, least: int | None = None) -> None:
        self.count = count
        self.least = count if least is None else least
        self._threads = threads
        share_one_heap()
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="lane", initializer=self._begin)

    def start(self, compute: Callable[[], T]) -> Future[T]:
        """Call `compute` as soon as a lane is free."""
        return self._pool.submit(torch.inference_mode()(compute))  # a mode of the thread

    def close(self) -> None:
        """Take nothing more, and let what is under way end by itself."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _begin(self) -> None:
        # The first call makes this thread take the number of the process, which the second one replaces.
        torch.get_num_threads()
        torch.set_num_threads(self._threads)
