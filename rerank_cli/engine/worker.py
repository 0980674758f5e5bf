"""A process that scores pairs for another one: `LocalEngine` at the end of a socket.

    parent                              worker
    (plan, checkpoint)            ->    loads the model
                                  <-    Ready, or Refused with the error for the user
    Unit                          ->    scores it
                                  <-    Scored, or Broken and the end of the process
    the end of the socket         ->    leaves at once, whatever it is doing

A thread takes what the parent sends, so that the next unit is there when one is done, and the parent never waits for a
worker to read. Both ends are this program, so they exchange pickled objects. Signals are the parent's business: a
worker ignores those that a terminal or a service manager sends to the whole group, and ends when its parent does.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rerank_cli.errors import RerankError
from rerank_cli.records import EncodedPair, ImageBlock
from rerank_cli.runtime import keep_freed_memory, peak_rss_bytes, prepare_process

if TYPE_CHECKING:
    from rerank_cli.engine.fitting import Trouble


@dataclass(frozen=True, slots=True)
class Ready:
    """The model is loaded."""

    kernels: str


@dataclass(frozen=True, slots=True)
class Refused:
    """The model cannot be loaded."""

    error: RerankError


@dataclass(frozen=True, slots=True)
class Unit:
    """Pairs to score. Their token ids lie in one array, which is quicker to send than many.

    ids: int32 [tokens of all pairs]. ends: where each pair ends in it.
    """

    number: int
    ids: npt.NDArray[np.int32]
    ends: npt.NDArray[np.int64]
    second_starts: Sequence[int]
    blocks: Sequence[ImageBlock | None]

    @classmethod
    def of(cls, number: int, pairs: Sequence[EncodedPair]) -> Unit:
        """`pairs` as a unit."""
        ids = np.concatenate([pair.input_ids for pair in pairs])
        ends = np.cumsum([len(pair.input_ids) for pair in pairs])
        return cls(number, ids, ends, [pair.second_start for pair in pairs], [pair.block for pair in pairs])

    def pairs(self) -> list[EncodedPair]:
        """The pairs again, as far as a model reads them."""
        parts = np.split(self.ids, self.ends[:-1])
        return [
            EncodedPair(ids, second, len(ids), block)
            for ids, second, block in zip(parts, self.second_starts, self.blocks, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class Scored:
    """The logits of a unit. peak_bytes: the most memory so far, of the process or, on a GPU, of torch's allocator."""

    number: int
    logits: npt.NDArray[np.float32]
    trouble: Trouble
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class Broken:
    """A fault that may have left the device unusable; the process ends. reason: in one line."""

    reason: str
    trace: str


def serve(connection: Connection) -> None:
    """Score what comes until the socket ends."""
    plan, checkpoint = connection.recv()
    prepare_process(online=False)
    keep_freed_memory()
    units: queue.SimpleQueue[Unit] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(connection, units), name="receive", daemon=True).start()
    import torch  # after the settings it reads at import

    from rerank_cli.engine.scorer import LocalEngine

    try:
        if plan.device != "cpu":
            torch.cuda.set_device(plan.device)  # else a context on the first GPU comes with every worker
        engine = LocalEngine(plan, checkpoint)
    except RerankError as error:
        connection.send(Refused(error))
        return
    connection.send(Ready(engine.kernels))
    while True:
        unit = units.get()
        try:
            logits = engine.score(unit.pairs())
        except RuntimeError as error:  # torch has no class of its own for what a device does
            reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            connection.send(Broken(reason, traceback.format_exc()))
            return
        peak = peak_rss_bytes() if plan.device == "cpu" else torch.cuda.max_memory_reserved(plan.device)
        connection.send(Scored(unit.number, logits, engine.trouble, peak))


def _receive(connection: Connection, units: queue.SimpleQueue[Unit]) -> None:
    try:
        while True:
            units.put(connection.recv())
    except (EOFError, OSError):
        os._exit(0)  # the parent has gone, or wants this process to go: nothing here is worth finishing


def main() -> None:
    """Serve the socket whose file descriptor is the first argument."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    connection: Connection[Any, Any] = Connection(int(sys.argv[1]))
    try:
        serve(connection)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent has gone before this process was ready
