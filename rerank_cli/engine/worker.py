"""A process that scores pairs for another one: `LocalEngine` at the end of a socket.

    parent                              worker
    (plan, checkpoint, calibration) ->  loads the model
                                  <-    Ready, or Refused with the error for the user
    Unit                          ->    scores it, or scores it in fp32
                                  <-    Scored, or Broken and the end of the process
    Calibrate                     ->    looks at the pairs that an int8 model must see first
                                  <-    Calibrated with what it has seen
    UseCalibration, ForgetExact   ->    does so
    the end of the socket         ->    leaves at once, whatever it is doing

On a device that computes behind the host, a second unit is begun while the first is computed; they are answered in
their order. A unit that is `alone` is begun when nothing else is under way, and finished before anything else is begun:
if the process ends meanwhile, that unit has ended it.

How the two are joined, and what becomes of signals, is in `machine/child_process.py`.
"""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rerank_cli.engine.protocols import Pending, Trouble
from rerank_cli.errors import EngineError, RerankError
from rerank_cli.machine.child_process import hear, parent_of_this_process
from rerank_cli.machine.this_process import keep_freed_memory, prepare_process
from rerank_cli.records import EncodedPair, ImageBlock

if TYPE_CHECKING:
    from rerank_cli.engine.local import LocalEngine

_LOOK_SECONDS = 0.005  # to wait for the device before looking for another unit


@dataclass(frozen=True, slots=True)
class EngineReady:
    """The model is loaded. shape: see `LocalEngine`. overlaps: two units may be under way at a time."""

    kernels: str
    shape: tuple[int, ...]
    needs_calibration: bool
    overlaps: bool = False


@dataclass(frozen=True, slots=True)
class Refused:
    """The model cannot be loaded."""

    error: RerankError


@dataclass(frozen=True, slots=True)
class Unit:
    """Pairs to score. Their token ids lie in one array, which is quicker to send than many.

    ids: int32 [tokens of all pairs]. ends: where each pair ends in it. exact: in fp32. alone: see the module's head.
    """

    number: int
    ids: npt.NDArray[np.int32]
    ends: npt.NDArray[np.int64]
    second_starts: Sequence[int]
    blocks: Sequence[ImageBlock | None]
    unpooled: Sequence[int]
    exact: bool = False
    alone: bool = False

    @classmethod
    def of(cls, number: int, pairs: Sequence[EncodedPair], *, exact: bool = False, alone: bool = False) -> Unit:
        """`pairs` as a unit."""
        ids = np.concatenate([pair.input_ids for pair in pairs])
        ends = np.cumsum([len(pair.input_ids) for pair in pairs])
        starts, blocks = [pair.second_start for pair in pairs], [pair.block for pair in pairs]
        return cls(number, ids, ends, starts, blocks, [pair.unpooled for pair in pairs], exact, alone)

    def pairs(self) -> list[EncodedPair]:
        """The pairs again, as far as a model reads them."""
        parts = np.split(self.ids, self.ends[:-1])
        return [
            EncodedPair(ids, second, len(ids), block, unpooled=unpooled)
            for ids, second, block, unpooled in zip(parts, self.second_starts, self.blocks, self.unpooled, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class Scored:
    """The logits of a unit. peak_bytes: the most memory so far, of the process or, on a GPU, of torch's allocator."""

    number: int
    logits: npt.NDArray[np.float32]
    trouble: Trouble
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class Calibrate:
    """Pairs to look at."""

    unit: Unit


@dataclass(frozen=True, slots=True)
class Calibrated:
    """What the model has seen."""

    calibration: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class UseCalibration:
    """What another worker's model has seen."""

    calibration: Mapping[str, Any]


class ForgetExact:
    """The model in fp32 is not needed any more."""


Asked = Unit | Calibrate | UseCalibration | ForgetExact
"""What a worker is asked for."""


@dataclass(frozen=True, slots=True)
class EngineBroken:
    """A fault that may have left the device unusable; the process ends. reason: in one line."""

    reason: str
    trace: str


def serve(connection: Connection) -> None:
    """Score what comes until the socket ends."""
    plan, checkpoint, calibration = connection.recv()
    prepare_process(online=False)
    keep_freed_memory()
    asked = hear(connection)
    import torch  # after the settings it reads at import

    from rerank_cli.engine.local import LocalEngine

    try:
        if plan.device != "cpu":
            torch.cuda.set_device(plan.device)  # else a context on the first GPU comes with every worker
        engine = LocalEngine(plan, checkpoint, calibration)
    except RerankError as error:
        connection.send(Refused(error))
        return
    connection.send(EngineReady(engine.kernels, engine.shape, engine.needs_calibration, engine.depth > 1))
    hand = Hand(engine, connection.send)
    while True:
        try:
            if len(hand.under_way) >= engine.depth or (hand.under_way and asked.empty()):
                hand.go_on()
            else:
                hand.take(asked.get())
        except (RuntimeError, EngineError) as error:  # torch has no class of its own for all that a device does
            cause = error.__cause__ or error
            reason = f"{type(cause).__name__}: {str(cause).partition(chr(10))[0]}"
            connection.send(EngineBroken(reason, traceback.format_exc()))
            return


class Hand:
    """What a worker has in hand: units that its engine computes. answer: called with each answer to the parent."""

    def __init__(self, engine: LocalEngine, answer: Callable[[Scored | Calibrated], None]) -> None:
        self._engine = engine
        self._answer = answer
        self.under_way: deque[tuple[int, Pending]] = deque()

    def take(self, asked: Asked) -> None:
        """Begin with it; if it is not a plain unit, or is `alone`, it and all before it are done when this returns."""
        engine = self._engine
        by_itself = not isinstance(asked, Unit) or asked.exact or asked.alone
        if by_itself:
            self._finish()
        match asked:
            case Unit(exact=False):
                self.under_way.append((asked.number, engine.submit(asked.pairs())))
            case Unit():
                logits = engine.score_exactly(asked.pairs())
                self._answer(Scored(asked.number, logits, Trouble(), engine.taken_bytes))
            case Calibrate():
                self._answer(Calibrated(engine.calibrate(asked.unit.pairs())))
            case UseCalibration():
                if engine.needs_calibration:
                    engine.use_calibration(asked.calibration)
            case ForgetExact():
                engine.forget_exact()
        if by_itself:
            self._finish()

    def go_on(self) -> None:
        """Let the engine compute, and answer the first unit if its scores are there."""
        number, pending = self.under_way[0]
        if (scores := pending.scores()) is None:
            self._engine.wait(_LOOK_SECONDS)
            return
        self.under_way.popleft()
        self._answer(Scored(number, scores.logits, scores.trouble, self._engine.taken_bytes))

    def _finish(self) -> None:
        while self.under_way:
            self.go_on()


def main() -> None:
    """Serve the process that has started this one."""
    try:
        serve(parent_of_this_process())
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent has gone before this process was ready
