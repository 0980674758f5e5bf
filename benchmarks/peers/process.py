"""The protocol's outer side: a peer's process, asked to score."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).parents[2]


class PeerFailedError(Exception):
    """A peer that is not installed or has crashed, with its last words."""


@dataclass(frozen=True, slots=True)
class Ready:
    """A loaded peer. seconds, cpu_seconds: from the start of its process until it could score."""

    version: str
    seconds: float
    cpu_seconds: float


@dataclass(frozen=True, slots=True)
class Answer:
    """Scored pairs; see `serving.py`."""

    logits: list[float]
    seconds: float
    cpu_seconds: float
    real: int
    computed: int
    peak_rss_bytes: int


class PeerProcess:
    """A context manager; raises `PeerFailedError` wherever the peer does not answer."""

    ready: Ready

    def __init__(
        self, interpreter: Path, module: str, settings: Mapping[str, Any], *, tokenizer_on_all_cores: bool = False
    ) -> None:
        if not interpreter.exists():
            raise PeerFailedError(f"not installed: {interpreter} is not here (`make bench-peers`)")
        self._stderr = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 (closed with the process)
        threads = str(settings["threads"])
        self._process = subprocess.Popen(
            [str(interpreter), "-m", module, json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            cwd=ROOT,
            env=os.environ
            | _OFFLINE
            | {"OMP_NUM_THREADS": threads, "RAYON_NUM_THREADS": threads}
            | {"TOKENIZERS_PARALLELISM": "true" if tokenizer_on_all_cores else "false"},
        )

    def __enter__(self) -> Self:
        try:
            self.ready = Ready(**self._answer())
        except PeerFailedError:
            self._stderr.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()
        self._stderr.close()

    def score(self, *, batch_size: int | None, first: int | None = None) -> Answer:
        """Score all of the work, or the first of it."""
        assert self._process.stdin, "it is a pipe"
        print(json.dumps({"batch_size": batch_size, "first": first}), file=self._process.stdin, flush=True)
        return Answer(**self._answer())

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout, "it is a pipe"
        line = self._process.stdout.readline()
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        self._process.communicate()
        self._stderr.seek(0)
        said = [line.strip() for line in self._stderr if line.strip()]
        raise PeerFailedError(said[-1] if said else f"ended with {self._process.returncode} and said nothing")


_OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",  # infinity's
    "INFINITY_ANONYMOUS_USAGE_STATS": "0",
}
