"""Several engines as one: a process for each, with a work queue between them.

    pairs -> units -> the worker that has least to do -> logits back in their places

A unit is a batch as `LocalEngine` would form it, so the logits do not depend on how many engines there are or which of
them computes what. Pairs with images stay together, so that one tower sees each image, once; but the texts of an
embedding model, whose images differ, are shared out. A worker has one unit in hand and one waiting.

A process that ends by itself (killed for its memory, a fault of the driver) is started again. The unit it had in hand
is given out again in halves, until the pair that ends processes is found: a single pair that has ended `_TRIES` of them
gets no score. On a GPU the second unit may have been begun too, so at first both are tried again, each alone. A device
whose process cannot be started again is left out while there are others. `machine/supervised_pool.py` has what this
pool shares with that of the image readers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from rerank_cli.checkpoint import Checkpoint
from rerank_cli.checkpoint.families import family_of
from rerank_cli.encoding.encoder import EncodingProblem
from rerank_cli.engine.batching import plan_batches
from rerank_cli.engine.protocols import OnBatch, Scores, Trouble
from rerank_cli.engine.worker import (
    Calibrate,
    Calibrated,
    EngineBroken,
    EngineReady,
    ForgetExact,
    Refused,
    Scored,
    Unit,
    UseCalibration,
)
from rerank_cli.errors import EngineError
from rerank_cli.machine.supervised_pool import SupervisedPool, Worker
from rerank_cli.planning.run_plan import Plan
from rerank_cli.records import EncodedPair

_TRIES = 3
_PATIENCE = 40  # ended processes in a row: enough to find ten such pairs, or those of three large batches
_AHEAD = 2  # units that a worker has: one in hand and one waiting


@dataclass(slots=True)
class _Submission:
    """Pairs that were handed in together; satisfies `Pending`. missing: how many have no logit yet."""

    pairs: Sequence[EncodedPair]
    on_batch: OnBatch | None
    logits: npt.NDArray[np.float32]
    missing: int
    trouble: Trouble = field(default_factory=Trouble)

    def scores(self) -> Scores | None:
        """See `Pending`."""
        return None if self.missing else Scores(self.logits, self.trouble)


@dataclass(frozen=True, slots=True, eq=False)
class _Work:
    """Some pairs of a submission, by place, that go to one worker.

    tries: how many workers they have ended. exact: to be scored in fp32. alone: with nothing else under way.
    """

    submission: _Submission
    places: list[int]
    tries: int = 0
    exact: bool = False
    alone: bool = False

    @property
    def pairs(self) -> list[EncodedPair]:
        return [self.submission.pairs[place] for place in self.places]


class _Worker(Worker):
    """One process. place: among the engines. overlaps: see `EngineReady`."""

    def __init__(self, plan: Plan, checkpoint: Checkpoint, calibration: Mapping[str, Any] | None, place: int) -> None:
        self.plan = plan
        self.place = place
        self.overlaps = False
        self.doing: deque[tuple[int, _Work]] = deque()
        super().__init__("rerank_cli.engine.worker")
        self.connection.send((plan, checkpoint, calibration))


class PoolEngine(SupervisedPool[_Worker]):
    """The plan's engines, each in a process of its own. Loads the models when it is made.

    Satisfies `Engine`, `NeedsCalibration` and `ScoresExactly`. shape: see `LocalEngine`. on_note: see `SupervisedPool`;
    patience: its `deaths`.
    """

    def __init__(
        self,
        plan: Plan,
        checkpoint: Checkpoint,
        calibration: Mapping[str, Any] | None = None,
        *,
        on_note: Callable[[str], None] | None = None,
        patience: int = _PATIENCE,
    ) -> None:
        super().__init__(("scores", "pairs it is"), deaths=patience, on_note=on_note)
        self._checkpoint = checkpoint
        self.calibration = calibration
        self.needs_calibration = False
        self._calibrating: _Worker | None = None
        self._budget = plan.token_budget
        self._padded = family_of(checkpoint.architecture).forward == "padded"
        self._numbers = 0
        self._peaks: dict[tuple[str, int], int] = {}  # by device and place of a worker
        self.kernels = ""
        self.shape: tuple[int, ...] = ()
        self._engines = len(plan.engines)
        self.depth = len(plan.engines) + 1
        try:
            for place, device in enumerate(plan.engines):
                own = replace(plan, device=device, engines=(device,))
                self._workers.append(_Worker(own, checkpoint, calibration, place))
            while not all(worker.is_ready for worker in self._workers):
                self.wait(1.0)
        except BaseException:
            self.close()
            raise

    @property
    def peak_bytes(self) -> int | None:
        """See `Engine`."""
        by_device: dict[str, int] = {}
        for (device, _), size in self._peaks.items():
            by_device[device] = by_device.get(device, 0) + size
        return max(by_device.values(), default=None)

    def submit(self, pairs: Sequence[EncodedPair], *, on_batch: OnBatch | None = None) -> _Submission:
        """See `Engine`."""
        logits = np.full((len(pairs), *self.shape), np.nan, dtype=np.float32)
        submission = _Submission(pairs, on_batch, logits, len(pairs))
        if any(pair.block for pair in pairs):
            # Texts of an embedding model have an image each, pairs of a list one together.
            parts = min(self._engines, len(pairs)) if self.shape else 1
            self._waiting.extend(_Work(submission, part.tolist()) for part in np.array_split(range(len(pairs)), parts))
        else:
            lengths = [len(pair.input_ids) for pair in pairs]
            batches = plan_batches(lengths, token_budget=self._budget, padded=self._padded)
            self._waiting.extend(_Work(submission, batch) for batch in batches)
        self._give_out()
        return submission

    def calibrate(self, pairs: Sequence[EncodedPair]) -> Mapping[str, Any]:
        """See `NeedsCalibration`: one engine looks at the pairs, and the others get its calibration."""
        while self.calibration is None:
            if self._calibrating is None:
                self._calibrating = next((worker for worker in self._workers if worker.is_ready), None)
                if self._calibrating is not None:
                    self._calibrating.tell(Calibrate(Unit.of(0, pairs)))
            self.wait(1.0)
        self.use_calibration(self.calibration)
        return self.calibration

    def use_calibration(self, calibration: Mapping[str, Any]) -> None:
        """See `NeedsCalibration`."""
        self.calibration, self.needs_calibration = calibration, False
        for worker in self._workers:
            worker.tell(UseCalibration(calibration))

    def score_exactly(self, pairs: Sequence[EncodedPair]) -> npt.NDArray[np.float32]:
        """See `ScoresExactly`; one engine does it, as it loads the model once more for that."""
        logits = np.full((len(pairs), *self.shape), np.nan, dtype=np.float32)
        submission = _Submission(pairs, None, logits, len(pairs))
        if pairs:
            self._waiting.appendleft(_Work(submission, list(range(len(pairs))), exact=True))
        self._give_out()
        while submission.missing:
            self.wait(1.0)
        return logits

    def forget_exact(self) -> None:
        """See `ScoresExactly`."""
        for worker in self._workers:
            worker.tell(ForgetExact())

    def wait(self, seconds: float) -> None:
        """See `Engine`."""
        self._listen(seconds)
        self._give_out()

    def _handle_message(self, worker: _Worker, message: Any) -> None:
        if isinstance(message, Scored):
            self._finish(worker, message)
        elif isinstance(message, EngineReady):
            self.kernels = f"{message.kernels}; {self._engines} processes"
            self.shape, worker.overlaps, worker.is_ready = message.shape, message.overlaps, True
            self.needs_calibration = message.needs_calibration and self.calibration is None
        elif isinstance(message, Calibrated):
            self.calibration = message.calibration
        elif isinstance(message, Refused):
            raise message.error
        else:
            self._replace(worker, message)

    def _finish(self, worker: _Worker, scored: Scored) -> None:
        number, work = worker.doing.popleft()
        assert number == scored.number, "a worker does its units in their order"
        submission = work.submission
        key = (worker.plan.device, worker.place)
        self._peaks[key] = max(self._peaks.get(key, 0), scored.peak_bytes)
        submission.logits[work.places] = scored.logits
        submission.missing -= len(work.places)
        submission.trouble.add(scored.trouble, work.places)
        self._deaths_in_a_row = 0
        if submission.on_batch:
            submission.on_batch(len(work.places), sum(len(pair.input_ids) for pair in work.pairs))

    def _replace(self, worker: _Worker, broken: EngineBroken | None) -> None:
        """Start a process in place of one that has ended, and give out again what it had."""
        if worker is self._calibrating:
            self._calibrating = None  # another one is asked
        self._trace = broken.trace if broken else None
        place = self._workers.index(worker)
        reason = self._take_out(worker, broken.reason if broken else None)
        where = f"an engine on {worker.plan.device}"
        if not worker.is_ready:
            if not self._workers:
                raise EngineError(
                    f"the process of {where} ended while it loaded the model: {reason}",
                    hint="`rerank-cli mem-estimate` says what it needs",
                )
            left = f"{len(self._workers)} of {self._engines} engines go on"
            self._note(f"the process of {where} ended while it loaded the model ({reason}): {left}")
            return
        self._note(f"the process of {where} was lost ({reason}); it is started again")
        if worker.doing:
            suspect, *rest = (work for _, work in worker.doing)
            suspect.submission.trouble.deaths += 1
            if rest and worker.overlaps and not suspect.alone:
                again = [replace(work, alone=True) for work in (suspect, *rest)]
            else:
                again = [*self._less(suspect, reason), *rest]
            self._waiting.extendleft(reversed(again))
        self._workers.insert(place, _Worker(worker.plan, self._checkpoint, self.calibration, worker.place))

    def _less(self, suspect: _Work, reason: str) -> list[_Work]:
        """The work that has ended a process, in halves; a single pair as it is, until it has ended too many."""
        places = suspect.places
        if len(places) > 1:
            middle = len(places) // 2
            return [replace(suspect, places=places[:middle]), replace(suspect, places=places[middle:])]
        if suspect.tries + 1 < _TRIES:
            return [replace(suspect, tries=suspect.tries + 1)]
        problem = EncodingProblem("engine-died", f"the pair has ended {_TRIES} processes that scored it ({reason})")
        suspect.submission.trouble.failed[places[0]] = problem
        suspect.submission.missing -= 1
        return []

    def _give_out(self) -> None:
        """Give waiting work to the workers that have least to do, up to `_AHEAD` units each."""
        while self._waiting:
            free = [worker for worker in self._workers if worker.is_ready and len(worker.doing) < _AHEAD]
            if not free:
                return
            worker = min(free, key=lambda worker: len(worker.doing))
            work = self._waiting.popleft()
            self._numbers += 1
            worker.doing.append((self._numbers, work))
            worker.tell(Unit.of(self._numbers, work.pairs, exact=work.exact, alone=work.alone))
