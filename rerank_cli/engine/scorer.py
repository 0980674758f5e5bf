"""One model on one device: encoded pairs to logits.

Inside the loop over batches nothing waits for the device: each batch is one copy to it, its logits stay there, and one
copy brings the whole window's logits back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt
import torch

from rerank_cli.checkpoint import Checkpoint
from rerank_cli.engine.batching import plan_batches
from rerank_cli.models import RerankModel, SeesImages, is_native, load_model
from rerank_cli.records import EncodedPair
from rerank_cli.run_plan import Plan

OnBatch = Callable[[int, int], None]
"""Called with (pairs, tokens) when a batch has been handed to the device."""


class Engine(Protocol):
    """A place where pairs are scored."""

    @property
    def kernels(self) -> str:
        """Which implementations the model runs with, in words."""

    def score(self, pairs: Sequence[EncodedPair], *, on_batch: OnBatch | None = None) -> npt.NDArray[np.float32]:
        """Logits of `pairs`, float32 [len(pairs)], in their order."""

    def close(self) -> None:
        """Give back what the engine holds."""


class LocalEngine:
    """The plan's model in this process; satisfies `Engine`. Loads the weights when it is made."""

    def __init__(self, plan: Plan, checkpoint: Checkpoint, *, model: RerankModel | None = None) -> None:
        if plan.device == "cpu":
            torch.set_num_threads(plan.threads)
        self._token_budget = plan.token_budget
        self._padded = not is_native(checkpoint.architecture)
        self._model = model or load_model(
            checkpoint, device=plan.device, precision=plan.precision, attention=plan.attention
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def kernels(self) -> str:
        """Which implementations the model runs on, in words, for the report: a slow fallback must be visible."""
        return self._model.kernels

    @torch.inference_mode()
    def score(self, pairs: Sequence[EncodedPair], *, on_batch: OnBatch | None = None) -> npt.NDArray[np.float32]:
        """See `Engine`."""
        if isinstance(self._model, SeesImages):
            self._model.see(pairs)
        lengths = [len(pair.input_ids) for pair in pairs]
        order: list[int] = []
        parts: list[torch.Tensor] = []
        for batch in plan_batches(lengths, token_budget=self._token_budget, padded=self._padded):
            parts.append(self._model.forward([pairs[place] for place in batch]))
            order += batch
            if on_batch:
                on_batch(len(batch), sum(lengths[place] for place in batch))
        logits = np.empty(len(pairs), dtype=np.float32)
        if parts:
            logits[order] = torch.cat(parts).cpu().numpy()
        return logits

    def close(self) -> None:
        """Drop the model."""
        del self._model
