"""Batches side by side on a CPU: a thread for each, with a part of the cores of its own.

A product of some thousand rows keeps two cores busy badly: they meet at a barrier after every layer and norm, and share
what either has in its L2. A batch a core needs no barriers. Measured on 2 cores of Sapphire Rapids (AMX, bf16, built-in
model, quiet machine): 1.66 times the pairs of one batch on both cores.

The lanes are threads of one process: weights are there once, and torch gives Python's lock back during each operator.
What is left under the lock, some 4 % of a batch of a small model, is why there are at most `MOST_LANES`
(`planning/run_plan.py`); with more cores a lane has several.

Which batches there are does not depend on the lanes, and they come back in their order. Fewer batches than lanes have
all cores in fp32, where threads change no bit. In bf16 and int8 even one goes through a lane: oneDNN adds long sums up
in another order with more threads, and a pair is to have one logit whatever else is scored.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from rerank_cli.machine.this_process import share_one_heap

T = TypeVar("T")


class Lanes:
    """Threads that compute. count: how many. threads: of torch, in each. least: batches that are worth it."""

    def __init__(self, count: int, *, threads: int, least: int | None = None) -> None:
        self.count = count
        self.least = count if least is None else least
        self._threads = threads
        share_one_heap()
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="lane", initializer=self._begin)

    def start(self, compute: Callable[[], T]) -> Future[T]:
        """Have `compute` called when a lane is free."""
        return self._pool.submit(self._in_inference, compute)

    def close(self) -> None:
        """Take nothing more, and let what is under way end by itself."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _begin(self) -> None:
        # The first question lets a thread take the number of the process, the second line gives it its own.
        torch.get_num_threads()
        torch.set_num_threads(self._threads)

    @staticmethod
    @torch.inference_mode()  # a mode of the thread
    def _in_inference(compute: Callable[[], T]) -> T:
        return compute()
