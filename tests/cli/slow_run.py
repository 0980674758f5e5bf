"""`rerank-cli` with an engine that takes a known time a token, for tests that look at what is shown meanwhile.

python -m tests.cli.slow_run SECONDS_PER_TOKEN BATCH_PAIRS ARGUMENTS...

LINE_EVERY, in seconds, takes the place of the half minute between lines of a log.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from rerank_cli import cli
from rerank_cli.cli import console
from rerank_cli.engine.protocols import InProcess, OnBatch, Trouble
from rerank_cli.job import run
from rerank_cli.records import EncodedPair


class SlowEngine(InProcess):
    """Sleeps; the logit of a pair is its number of tokens."""

    kernels = "sleep"

    def __init__(self, seconds_per_token: float, batch_pairs: int) -> None:
        self._seconds, self._pairs = seconds_per_token, batch_pairs
        self.trouble = Trouble()

    def score(self, pairs: Sequence[EncodedPair], *, on_batch: OnBatch | None = None) -> npt.NDArray[np.float32]:
        for begin in range(0, len(pairs), self._pairs):
            tokens = sum(len(pair.input_ids) for pair in pairs[begin : begin + self._pairs])
            time.sleep(tokens * self._seconds)
            if on_batch:
                on_batch(len(pairs[begin : begin + self._pairs]), tokens)
        return np.array([len(pair.input_ids) for pair in pairs], dtype=np.float32)

    def close(self) -> None:
        """There is nothing to give back."""


def main(seconds_per_token: str, batch_pairs: str, *arguments: str) -> int:
    """Run the command with the engine."""

    def open_slow(*args: Any, **more: Any) -> SlowEngine:
        return SlowEngine(float(seconds_per_token), int(batch_pairs))

    console._LINE_EVERY_SECONDS = float(os.environ.get("LINE_EVERY", console._LINE_EVERY_SECONDS))
    run.run_job = partial(run.run_job, open_engine=open_slow)
    return cli.main(list(arguments))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
