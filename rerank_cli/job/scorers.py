"""The scorers of a run: its model alone, or a cheap one before it (`cascade`)."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from rerank_cli.checkpoint import Checkpoint
from rerank_cli.engine import NeedsCalibration
from rerank_cli.job.cascade.run_cascade import Cascade
from rerank_cli.job.cascade.scorer import Scorer
from rerank_cli.job.first_scorer import first_options, read_asked
from rerank_cli.job.options import JobOptions
from rerank_cli.job.prepare import Prepared
from rerank_cli.job.progress import Progress
from rerank_cli.job.score_store.run_store import RunStore
from rerank_cli.job.scoring_loop import ScoredWindow, score_windows
from rerank_cli.job.stop import Stop
from rerank_cli.job.windows import Windows
from rerank_cli.planning.run_plan import Plan
from rerank_cli.records import Counts, Timing

if TYPE_CHECKING:
    from rerank_cli.engine import Engine

OnBatch = Callable[[int, int], None]


class OpensEngine(Protocol):
    """How a run gets its engine; `engine.open_engine` is one."""

    def __call__(
        self,
        plan: Plan,
        checkpoint: Checkpoint,
        calibration: Mapping[str, Any] | None,
        *,
        on_note: Callable[[str], None] | None,
    ) -> Engine:
        """Open an engine for the plan; the run closes it."""


@dataclass(frozen=True, slots=True)
class OneModel:
    """The opened model of a run without a cascade. on_batch: gets the pairs and tokens of each batch."""

    options: JobOptions
    prepared: Prepared
    plan: Plan
    engine: Engine
    store: RunStore
    stop: Stop
    on_batch: OnBatch
    state: ClassVar[None] = None
    """What a resumed run must know about a cascade: nothing."""

    def score(self, windows: Windows, timing: Timing, **settings: Any) -> Generator[ScoredWindow]:
        """Score `windows` in their order; the caller closes the generator, which ends its threads.

        Args:
            windows: To score.
            timing: Each stage adds its time.
            settings: Further arguments of `score_windows`.
        """
        return score_windows(
            windows, self.prepared.encoder, self.engine, pool=self.options.pool, blend=self.options.blend,
            known=self.store.known(timing), stop=self.stop, timing=timing, on_batch=self.on_batch, **settings,
        )  # fmt: skip

    def document(self, counts: Counts) -> dict[str, Any]:
        """For the report."""
        return self.store.document(counts)


def open_scorers(
    model: OneModel,
    stack: ExitStack,
    state: Mapping[str, Any] | None,
    open_engine: OpensEngine,
    on_second: OnBatch,
    on_note: Callable[[str], None],
    progress: Progress,
) -> OneModel | Cascade:
    """The model of a run, or the cascade that begins with a cheap one.

    Args:
        model: Of the run.
        stack: Closes what is opened.
        state: Of the run after an earlier process.
        open_engine: Loads the cheap scorer.
        on_second: Gets the pairs and tokens of each batch that the model reads after the cheap scorer.
        on_note: Gets messages for the user.
        progress: Of the run.
    """
    options, prepared = model.options, model.prepared
    if prepared.first is None:
        return model
    asked = read_asked(options)
    before = state["cascade"] if state else None
    calibrations = before["calibration"] if before else {}
    plan = replace(prepared.first.plan, **before["plan"]) if before else prepared.first.plan
    engine = open_engine(plan, prepared.first.checkpoint, calibrations.get("first"), on_note=on_note)
    stack.callback(engine.close)
    if (found := calibrations.get("second")) and isinstance(model.engine, NeedsCalibration):
        model.engine.use_calibration(found)
    store = RunStore(first_options(options, asked), prepared.first, plan, engine, on_note=on_note)
    stack.callback(store.close)
    first = Scorer(prepared.first, plan, engine, store, options.pool, model.stop, model.on_batch)
    second = Scorer(prepared, model.plan, model.engine, model.store, options.pool, model.stop, on_second)
    return Cascade(asked, first, second, state=before, on_note=on_note, progress=progress)
