"""Where pairs are scored, and in what batches."""

from __future__ import annotations

from rerank_cli.checkpoint import Checkpoint
from rerank_cli.engine.embedding import EmbeddingEngine
from rerank_cli.engine.scorer import Engine, LocalEngine
from rerank_cli.families import family_of
from rerank_cli.run_plan import Plan

__all__ = ["EmbeddingEngine", "Engine", "open_engine"]


def open_engine(plan: Plan, checkpoint: Checkpoint) -> Engine:
    """Load the plan's model on the plan's device."""
    if family_of(checkpoint.architecture).embeds:
        return EmbeddingEngine(plan, checkpoint)
    return LocalEngine(plan, checkpoint)
