"""The protocol's inner side: read the work, load the peer, answer requests until stdin ends.

SETTINGS on the command line is a JSON object: `work`, a file of the pairs; `threads`; and whatever the adapter takes.
The file holds candidate lists, `[[query, [passage, ...]], ...]`, or token ids, `[[id, ...], ...]`.

The first line out says that the peer is loaded: `{"version": ..., "seconds": ..., "cpu_seconds": ...}`, both since the
process began. A request is a line `{"batch_size": n or null, "first": n or null}`, of the first lists alone; the answer

    {"logits": [...], "seconds": ..., "cpu_seconds": ..., "real": ..., "computed": ..., "peak_rss_bytes": ...}

Seconds are those of scoring, tokenising included: by the clock, and those that the threads of this process worked. real
and computed: tokens, without and with padding. A peer that raises ends with its traceback on stderr, whose last line
is the reason that is shown.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

Lists = list[tuple[str, list[str]]]


class Adapter(Protocol):
    """A loaded peer. version: of the packages that matter, in words."""

    version: str

    def score(self, work: Any, batch_size: int | None) -> Sequence[float]:
        """Logits of all pairs in their order; batch_size: None where the peer's own default is meant."""


class Tokens:
    """Counts the tokens of a model's calls, by standing in for its `forward` (or for a session's `run`)."""

    def __init__(self) -> None:
        self.real = self.computed = 0

    def count(self, mask: Any) -> None:
        """Of one batch: 1 for a real token and 0 for padding."""
        self.real += int(mask.sum())
        self.computed += mask.shape[0] * mask.shape[1]

    def watch(self, model: Any) -> None:
        """Count the calls of a transformers model, or of what optimum gives in its place."""
        forward = model.forward

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.count(kwargs["attention_mask"])
            return forward(*args, **kwargs)

        model.forward = counted


def pairs_of(lists: Lists) -> list[tuple[str, str]]:
    """(query, passage), list after list."""
    return [(query, passage) for query, passages in lists for passage in passages]


def serve(load: Callable[[dict[str, Any], Tokens], Adapter]) -> None:
    """Load the peer with the settings of the command line, and answer."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a peer prints is no answer
    settings = json.loads(sys.argv[1])
    work = json.loads(Path(settings["work"]).read_text(encoding="utf-8"))
    tokens = Tokens()
    adapter = load(settings, tokens)
    since_start = time.time() - _started()
    _say(answers, {"version": adapter.version, "seconds": since_start, "cpu_seconds": time.process_time()})
    for line in sys.stdin:
        request = json.loads(line)
        some = work[: request["first"]]
        tokens.real = tokens.computed = 0
        wall, worked = time.perf_counter(), time.process_time()
        logits = adapter.score(some, request["batch_size"])
        worked, wall = time.process_time() - worked, time.perf_counter() - wall
        answer = {"logits": [float(logit) for logit in logits], "seconds": wall, "cpu_seconds": worked}
        _say(answers, answer | {"real": tokens.real, "computed": tokens.computed, "peak_rss_bytes": _peak_rss_bytes()})


def prepare(write: Callable[[dict[str, Any], Lists], None]) -> None:
    """Have something written beside the checkpoint, and say when it is done."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    settings = json.loads(sys.argv[1])
    write(settings, json.loads(Path(settings["work"]).read_text(encoding="utf-8")))
    _say(answers, {"version": "", "seconds": time.time() - _started(), "cpu_seconds": time.process_time()})


def _say(answers: Any, what: dict[str, Any]) -> None:
    print(json.dumps(what), file=answers, flush=True)


def _started() -> float:
    """When this process began, seconds since 1970."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    up = float(Path("/proc/uptime").read_text().split()[0])
    return time.time() - up + ticks / os.sysconf("SC_CLK_TCK")


def _peak_rss_bytes() -> int:
    """Of this program alone: getrusage would count what the process had resident before it became this program."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])
