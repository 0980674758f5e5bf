"""One engine of a cluster: an actor that does parts of a run the way that `rerank-file` does a whole one.

The actor itself loads no model. Its engine is a process of its own (`engine.pool`), so that a pair which ends the
process is found and becomes a bad row, as everywhere. The engine stays from part to part; the plan is made here, on the
machine and the device that the cluster has given, never where the run was started.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rerank_cli
from rerank_cli.checkpoint import Checkpoint
from rerank_cli.checkpoint.families import family_of
from rerank_cli.cluster.tasks import Task
from rerank_cli.engine import open_engine
from rerank_cli.errors import RerankError
from rerank_cli.job.options import JobOptions
from rerank_cli.job.run import Watcher, run_job
from rerank_cli.planning.run_plan import Plan
from rerank_cli.records import EncodedPair

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from rerank_cli.engine import Engine, Pending
    from rerank_cli.engine.pool import PoolEngine


@dataclass(frozen=True, slots=True)
class ActorHost:
    """Where an actor is. cores: of the machine, that its processes may use. missing: paths it does not find."""

    host: str
    node: str
    version: str
    cores: tuple[int, ...]
    missing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PartOutcome:
    """What became of a part: its report, or the error that stopped it. notes: what a user should know."""

    report: dict[str, Any] | None
    error: RerankError | None
    notes: tuple[str, ...] = ()


class Scorer:
    """The actor's class. It takes plain values and gives plain values."""

    def __init__(self) -> None:
        from rerank_cli.machine.this_process import prepare_process

        prepare_process(online=False)
        self._engine: PoolEngine | None = None
        self._key: tuple[Plan, Path] | None = None

    def place(self, paths: Sequence[str]) -> ActorHost:
        """Where this actor is, and which of `paths` it cannot see."""
        import ray

        node = ray.get_runtime_context().get_node_id()
        missing = tuple(path for path in paths if not Path(path).exists())
        cores = tuple(sorted(os.sched_getaffinity(0)))
        return ActorHost(socket.gethostname(), node, rerank_cli.__version__, cores, missing)

    def do(self, options: JobOptions, task: Task, cores: Sequence[int]) -> PartOutcome:
        """Do a part; `options` are those of a run of that part alone. cores: the only ones to use; all if empty."""
        if cores:
            os.sched_setaffinity(0, cores)
        notes: list[str] = []
        watcher = Watcher(
            on_start=lambda _checkpoint, plan: notes.extend(f"warning: {warning}" for warning in plan.warnings),
            on_note=notes.append,
        )
        try:
            outcome = run_job(options, watcher, open_engine=self._open)
        except RerankError as error:
            return PartOutcome(None, error, tuple(notes))
        return PartOutcome(outcome.report, None, tuple(notes))

    def _open(
        self,
        plan: Plan,
        checkpoint: Checkpoint,
        calibration: Mapping[str, Any] | None,
        *,
        on_note: Callable[[str], None] | None,
    ) -> Engine:
        """The engine of the part before, if it is the one that this part would load."""
        if family_of(checkpoint.architecture).embeds:
            return open_engine(plan, checkpoint, on_note=on_note)  # it keeps the vectors of one part
        if plan.precision == "int8":
            return open_engine(plan, checkpoint, calibration, on_note=on_note, apart=True)  # calibrated on one file
        key = replace(plan, reasons=(), warnings=(), needed_bytes=None), checkpoint.path
        if self._engine is None or self._key != key:
            if self._engine is not None:
                self._engine.close()
                self._engine = None
            from rerank_cli.engine.pool import PoolEngine  # torch is there by now

            self._engine = PoolEngine(plan, checkpoint, on_note=on_note)
            self._key = key
        return _Lent(self._engine)


class _Lent:
    """An engine that stays when its user closes it; satisfies `Engine` and `ScoresExactly`."""

    def __init__(self, engine: PoolEngine) -> None:
        self._engine = engine
        self.depth = engine.depth

    @property
    def peak_bytes(self) -> int | None:
        return self._engine.peak_bytes

    @property
    def kernels(self) -> str:
        return self._engine.kernels

    def submit(self, pairs: Sequence[EncodedPair], *, on_batch: Callable[[int, int], None] | None = None) -> Pending:
        return self._engine.submit(pairs, on_batch=on_batch)

    def wait(self, seconds: float) -> None:
        self._engine.wait(seconds)

    def score_exactly(self, pairs: Sequence[EncodedPair]) -> npt.NDArray[np.float32]:
        return self._engine.score_exactly(pairs)

    def forget_exact(self) -> None:
        self._engine.forget_exact()

    def close(self) -> None:
        """Nothing: it is lent."""
