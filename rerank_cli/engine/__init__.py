"""Where pairs are scored, and in what batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from rerank_cli.checkpoint.families import family_of
from rerank_cli.engine.protocols import Engine, NeedsCalibration, Pending, Scores, ScoresExactly
from rerank_cli.planning.run_plan import Plan

if TYPE_CHECKING:
    from rerank_cli.checkpoint import Checkpoint
    from rerank_cli.engine.embedding import EmbeddingEngine
    from rerank_cli.engine.local import LocalEngine
    from rerank_cli.engine.pool import PoolEngine

__all__ = ["EmbeddingEngine", "Engine", "NeedsCalibration", "Pending", "Scores", "ScoresExactly", "open_engine"]


def open_engine(
    plan: Plan,
    checkpoint: Checkpoint,
    calibration: Mapping[str, Any] | None = None,
    *,
    on_note: Callable[[str], None] | None = None,
    apart: bool = False,
) -> Engine:
    """Load the plan's model on the plan's devices.

    calibration: what another engine was calibrated with. on_note: takes what happens to the processes that score.
    apart: a single engine gets a process of its own too.
    """
    # Imported here: torch takes a second, which a run that has nothing left to do need not wait for.
    model: LocalEngine | PoolEngine
    if apart or len(plan.engines) > 1:
        from rerank_cli.engine.pool import PoolEngine

        model = PoolEngine(plan, checkpoint, calibration, on_note=on_note)
    else:
        from rerank_cli.engine.local import LocalEngine

        model = LocalEngine(plan, checkpoint, calibration)
    if family_of(checkpoint.architecture).embeds:
        from rerank_cli.engine.embedding import EmbeddingEngine

        return EmbeddingEngine(checkpoint, model)
    return model
