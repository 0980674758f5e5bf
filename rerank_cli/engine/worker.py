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

How the two are joined, and what becomes of signals, is in `child.py`.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rerank_cli.child import hear, parent_of_this_process
from rerank_cli.errors import RerankError
from rerank_cli.records import EncodedPair, ImageBlock
from rerank_cli.runtime import keep_freed_memory, prepare_process

if TYPE_CHECKING:
    from rerank_cli.engine.fitting import Trouble
    from rerank_cli.engine.scorer import LocalEngine


@dataclass(frozen=True, slots=True)
class Ready:
    """The model is loaded."""

    kernels: str
    needs_calibration: bool


@dataclass(frozen=True, slots=True)
class Refused:
    """The model cannot be loaded."""

    error: RerankError


@dataclass(frozen=True, slots=True)
class Unit:
    """Pairs to score. Their token ids lie in one array, which is quicker to send than many.

    ids: int32 [tokens of all pairs]. ends: where each pair ends in it. exact: in fp32.
    """

    number: int
    ids: npt.NDArray[np.int32]
    ends: npt.NDArray[np.int64]
    second_starts: Sequence[int]
    blocks: Sequence[ImageBlock | None]
    exact: bool = False

    @classmethod
    def of(cls, number: int, pairs: Sequence[EncodedPair], *, exact: bool = False) -> Unit:
        """`pairs` as a unit."""
        ids = np.concatenate([pair.input_ids for pair in pairs])
        ends = np.cumsum([len(pair.input_ids) for pair in pairs])
        return cls(number, ids, ends, [pair.second_start for pair in pairs], [pair.block for pair in pairs], exact)

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
    """The fp32 of the model is not needed any more."""


Asked = Unit | Calibrate | UseCalibration | ForgetExact
"""What a worker is asked for."""


@dataclass(frozen=True, slots=True)
class Broken:
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

    from rerank_cli.engine.scorer import LocalEngine

    try:
        if plan.device != "cpu":
            torch.cuda.set_device(plan.device)  # else a context on the first GPU comes with every worker
        engine = LocalEngine(plan, checkpoint)
        if calibration is not None and engine.needs_calibration:
            engine.use_calibration(calibration)
    except RerankError as error:
        connection.send(Refused(error))
        return
    connection.send(Ready(engine.kernels, engine.needs_calibration))
    while True:
        try:
            answer = _answer(engine, asked.get())
        except RuntimeError as error:  # torch has no class of its own for what a device does
            reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            connection.send(Broken(reason, traceback.format_exc()))
            return
        if answer is not None:
            connection.send(answer)


def _answer(engine: LocalEngine, asked: Asked) -> Scored | Calibrated | None:
    match asked:
        case Unit():
            logits = engine.score_exactly(asked.pairs()) if asked.exact else engine.score(asked.pairs())
            return Scored(asked.number, logits, engine.trouble, engine.taken_bytes)
        case Calibrate():
            return Calibrated(engine.calibrate(asked.unit.pairs()))
        case UseCalibration():
            if engine.needs_calibration:
                engine.use_calibration(asked.calibration)
        case ForgetExact():
            engine.forget_exact()
    return None


def main() -> None:
    """Serve the process that has started this one."""
    try:
        serve(parent_of_this_process())
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent has gone before this process was ready
