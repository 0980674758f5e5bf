"""Where pairs are scored, and in what batches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rerank_cli.selection import Plan

if TYPE_CHECKING:
    from rerank_cli.checkpoint import Checkpoint
    from rerank_cli.engine.scorer import Engine

__all__ = ["Engine", "open_engine"]


def open_engine(plan: Plan, checkpoint: Checkpoint) -> Engine:
    """Load the plan's model on the plan's device."""
    # Imported here: torch takes a second, which a run that has nothing left to do need not wait for.
    from rerank_cli.engine.scorer import LocalEngine

    return LocalEngine(plan, checkpoint)
