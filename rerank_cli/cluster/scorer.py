"""The actor of a cluster: does each part like a run of `rerank-file`.

The actor itself loads no model: its engine is a process of its own (`engine.pool`). So a pair that kills the process is
found and becomes a bad row, as on one machine. The engine is kept from part to part. The plan is made here, for the
machine and the device that the cluster assigned, not where the run was started.
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
    """The machine of an actor."""

    host: str
    node: str
    """Ray's id of the machine."""
    version: str
    """The version of this program there."""
    cores: tuple[int, ...]
    """The cores that the actor may use."""
    missing: tuple[str, ...]
    """The files that are not found there."""


@dataclass(frozen=True, slots=True)
class PartOutcome:
    """The result of a part: its report, or the error that stopped it. notes: messages for the user."""

    report: dict[str, Any] | None
    error: RerankError | None
    notes: tuple[str, ...] = ()


class Scorer:
    """The actor's class. Arguments and results are plain values, because Ray sends them between machines."""

    def __init__(self) -> None:
        from rerank_cli.machine.this_process import prepare_process

        prepare_process(online=False)
        self._engine: PoolEngine | None = None
        self._key: tuple[Plan, Path] | None = None

    def place(self, paths: Sequence[str]) -> ActorHost:
        """The machine of this actor, and which of `paths` are missing there."""
        import ray

        node = ray.get_runtime_context().get_node_id()
        missing = tuple(path for path in paths if not Path(path).exists())
        cores = tuple(sorted(os.sched_getaffinity(0)))
        return ActorHost(socket.gethostname(), node, rerank_cli.__version__, cores, missing)

    def do(self, options: JobOptions, cores: Sequence[int]) -> PartOutcome:
        """Do a part.

        Args:
            options: those of a run of that part alone.
            cores: the cores to use; all if empty.
        """
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
        """The engine of the part before, if this part would load the same; else a new one."""
        if family_of(checkpoint.architecture).embeds:
            return open_engine(plan, checkpoint, on_note=on_note)  # not kept: it holds the vectors of its part
        if plan.precision == "int8":
            return open_engine(plan, checkpoint, calibration, on_note=on_note, apart=True)  # calibrated for this file
        key = replace(plan, reasons=(), warnings=(), needed_bytes=None), checkpoint.path
        if self._engine is None or self._key != key:
            if self._engine is not None:
                self._engine.close()
                self._engine = None
            from rerank_cli.engine.pool import PoolEngine  # late, because it imports torch

            self._engine = PoolEngine(plan, checkpoint, on_note=on_note)
            self._key = key
        return _Lent(self._engine)


class _Lent:
    """An engine that stays open when its user closes it; implements `Engine` and `ScoresExactly`."""

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
        """Does nothing: the actor keeps the engine."""
