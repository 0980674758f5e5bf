"""A peer that scores pairs in a process of its own, so that neither side runs with the other's settings or allocator.

    python -m benchmarks.peer CHECKPOINT PRECISION THREADS      serves requests on stdin, for `Peer`

A request is a JSON line `{"pairs": [[query, passage], ...], "batch_size": n, "cpu_time": false}`; the answer
`{"seconds": ..., "logits": [...]}`. The time is taken inside, around `CrossEncoder.predict` alone.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

Pair = tuple[str, str]


class Peer:
    """sentence-transformers' CrossEncoder in its own process; a context manager."""

    def __init__(self, checkpoint: Path, *, precision: str, threads: int) -> None:
        command = [sys.executable, "-m", "benchmarks.peer", str(checkpoint), precision, str(threads)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()

    def score(self, pairs: Sequence[Pair], *, batch_size: int, cpu_time: bool = False) -> tuple[float, list[float]]:
        """Seconds and logits."""
        assert self._process.stdin and self._process.stdout, "both are pipes"
        print(
            json.dumps({"pairs": pairs, "batch_size": batch_size, "cpu_time": cpu_time}),
            file=self._process.stdin,
            flush=True,
        )
        answer = json.loads(self._process.stdout.readline())
        return answer["seconds"], answer["logits"]


def serve(checkpoint: str, precision: str, threads: int) -> None:
    """Answer requests until stdin ends."""
    # Imported here: the other side imports this module too, and has settings of its own for torch.
    import torch
    from sentence_transformers import CrossEncoder

    torch.set_num_threads(threads)
    settings = {"dtype": torch.bfloat16} if precision == "bf16" else {}
    model = CrossEncoder(
        checkpoint, max_length=512, activation_fn=torch.nn.Identity(), device="cpu", model_kwargs=settings
    )
    for line in sys.stdin:
        request = json.loads(line)
        pairs = [tuple(pair) for pair in request["pairs"]]
        clock = time.process_time if request["cpu_time"] else time.perf_counter
        began = clock()
        logits = model.predict(pairs, batch_size=request["batch_size"], show_progress_bar=False)
        seconds = clock() - began
        print(json.dumps({"seconds": seconds, "logits": [float(logit) for logit in logits]}), flush=True)


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], int(sys.argv[3]))
