"""What an engine is, and the plain one: a model on one device in this process.

Inside the loop over batches nothing waits for the device: each batch is one copy to it, its logits stay there, and one
copy brings the whole window's logits back.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt
import torch

from rerank_cli.checkpoint import Checkpoint
from rerank_cli.engine.batching import plan_batches
from rerank_cli.engine.fitting import FittingBatches, Trouble, does_not_fit, loaded_where_it_fits, unless_full
from rerank_cli.models import Calibrates, RerankModel, SeesImages, is_native, load_model
from rerank_cli.records import EncodedPair
from rerank_cli.run_plan import Plan
from rerank_cli.runtime import peak_rss_bytes

OnBatch = Callable[[int, int], None]
"""Called with (pairs, tokens) when a batch has been handed to the device."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Logits of some pairs, float32 [pairs], in their order; NaN where there is none. trouble: what went wrong."""

    logits: npt.NDArray[np.float32]
    trouble: Trouble


class Pending(Protocol):
    """Scores that may still be computed."""

    def scores(self) -> Scores | None:
        """The scores; None while they are computed."""


class Engine(Protocol):
    """A place where pairs are scored. depth: submissions that are worth having under way at a time.

    peak_bytes: the most that processes of the engine's own have taken of a device; None where it has none.
    """

    depth: int

    @property
    def peak_bytes(self) -> int | None:
        """See the class."""

    @property
    def kernels(self) -> str:
        """Which implementations the model runs with, in words."""

    def submit(self, pairs: Sequence[EncodedPair], *, on_batch: OnBatch | None = None) -> Pending:
        """Have `pairs` scored."""

    def wait(self, seconds: float) -> None:
        """Let what was submitted go on until something of it is done, for so long at most."""

    def close(self) -> None:
        """Give back what the engine holds."""


@dataclass(frozen=True, slots=True)
class Done:
    """Scores that are there; satisfies `Pending`."""

    _scores: Scores

    def scores(self) -> Scores:
        """See `Pending`."""
        return self._scores


class InProcess(ABC):
    """An `Engine` that computes in the process and thread that submits. trouble: of the last call of `score`."""

    depth = 1
    peak_bytes: int | None = None
    trouble: Trouble

    @abstractmethod
    def score(self, pairs: Sequence[EncodedPair], *, on_batch: OnBatch | None = None) -> npt.NDArray[np.float32]:
        """Logits of `pairs`, float32 [len(pairs)], in their order; NaN where there is none."""

    def submit(self, pairs: Sequence[EncodedPair], *, on_batch: OnBatch | None = None) -> Done:
        """See `Engine`; the scores are there when it returns."""
        logits = self.score(pairs, on_batch=on_batch)
        return Done(Scores(logits, self.trouble))

    def wait(self, seconds: float) -> None:
        """See `Engine`; there is nothing to wait for."""
        del seconds


_CALIBRATION_TOKENS = 4096  # 15 to 60 pairs: 2.5 s of one core for the built-in model


class LocalEngine(InProcess):
    """The plan's model in this process. Loads the weights when it is made.

    Satisfies `NeedsCalibration` and `ScoresExactly`.
    """

    def __init__(
        self,
        plan: Plan,
        checkpoint: Checkpoint,
        *,
        model: RerankModel | None = None,
        exact: RerankModel | None = None,
    ) -> None:
        if plan.device == "cpu":
            torch.set_num_threads(plan.threads)
        self._plan, self._checkpoint = plan, checkpoint
        self._batches = FittingBatches(plan.token_budget, padded=not is_native(checkpoint.architecture))
        self._model = model or load_model(
            checkpoint, device=plan.device, precision=plan.precision, attention=plan.attention
        )
        self._exact = exact  # the same model in fp32, loaded when it is needed
        self._reruns = ""  # where it is, if it is not on the plan's device
        self.trouble = Trouble()
        self.calibration: Mapping[str, Any] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def kernels(self) -> str:
        """Which implementations the model runs on, in words, for the report: a slow fallback must be visible."""
        return self._model.kernels + self._reruns

    @property
    def taken_bytes(self) -> int:
        """The most memory so far: of the process or, on a GPU, of torch's allocator."""
        if self._plan.device == "cpu":
            return peak_rss_bytes()
        return int(torch.cuda.max_memory_reserved(self._plan.device))

    @property
    def needs_calibration(self) -> bool:
        """See `NeedsCalibration`."""
        return isinstance(self._model, Calibrates) and not self._model.calibrated

    @torch.inference_mode()
    def calibrate(self, pairs: Sequence[EncodedPair]) -> Mapping[str, Any]:
        """See `NeedsCalibration`."""
        assert isinstance(self._model, Calibrates), "else nobody asks for it"
        chosen = _spread(pairs, _CALIBRATION_TOKENS)
        lengths = [len(pair.input_ids) for pair in chosen]
        batches = plan_batches(lengths, token_budget=self._plan.token_budget)
        self.calibration = self._model.calibrate([[chosen[place] for place in batch] for batch in batches])
        return self.calibration

    def use_calibration(self, calibration: Mapping[str, Any]) -> None:
        """See `NeedsCalibration`."""
        assert isinstance(self._model, Calibrates), "else nobody has one"
        self._model.use(calibration)
        self.calibration = calibration

    @torch.inference_mode()
    def score_exactly(self, pairs: Sequence[EncodedPair]) -> npt.NDArray[np.float32]:
        """See `ScoresExactly`."""
        return self._score(self._exact_model(), pairs, Trouble(), None)

    def forget_exact(self) -> None:
        """See `ScoresExactly`."""
        self._exact = None

    @torch.inference_mode()
    def score(self, pairs: Sequence[EncodedPair], *, on_batch: OnBatch | None = None) -> npt.NDArray[np.float32]:
        """See `InProcess`."""
        self.trouble = Trouble()
        logits = self._score(self._model, pairs, self.trouble, on_batch)
        nonfinite: list[int] = np.flatnonzero(~np.isfinite(logits)).tolist()
        again = [place for place in nonfinite if place not in self.trouble.failed]
        if again and self._plan.precision != "fp32":
            self.trouble.reruns = len(again)
            # Trouble of its own: where fp32 does not fit, the number that is no number stays.
            logits[again] = self._score(self._exact_model(), [pairs[place] for place in again], Trouble(), None)
        return logits

    def _score(
        self, model: RerankModel, pairs: Sequence[EncodedPair], trouble: Trouble, on_batch: OnBatch | None
    ) -> npt.NDArray[np.float32]:
        logits = np.full(len(pairs), np.nan, dtype=np.float32)
        if isinstance(model, SeesImages) and not unless_full(partial(model.see, pairs)):
            return self._score_halves(model, pairs, trouble, on_batch)
        lengths = [len(pair.input_ids) for pair in pairs]
        order: list[int] = []
        parts: list[torch.Tensor] = []
        for batch, part in self._batches.run(lengths, lambda batch: model.forward([pairs[i] for i in batch]), trouble):
            parts.append(part)
            order += batch
            if on_batch:
                on_batch(len(batch), sum(lengths[place] for place in batch))
        if parts:
            logits[order] = torch.cat(parts).cpu().numpy()
        return logits

    def _score_halves(
        self, model: RerankModel, pairs: Sequence[EncodedPair], trouble: Trouble, on_batch: OnBatch | None
    ) -> npt.NDArray[np.float32]:
        """`_score` of pairs whose images do not fit all at once: half of the images first, then the others."""
        trouble.splits += 1
        images = [pair.block and pair.block.image for pair in pairs]
        distinct = list(dict.fromkeys(image for image in images if image is not None))
        assert distinct, "texts need no memory before their batches"
        first = set(distinct[: len(distinct) // 2])
        if not first:
            for place in (place for place, image in enumerate(images) if image is not None):
                trouble.failed[place] = does_not_fit("the image alone")
        halves = [
            [place for place, image in enumerate(images) if image in first],
            [place for place, image in enumerate(images) if image not in first and place not in trouble.failed],
        ]
        logits = np.full(len(pairs), np.nan, dtype=np.float32)
        for half in halves:
            own = Trouble()
            logits[half] = self._score(model, [pairs[place] for place in half], own, on_batch)
            trouble.add(own, half)
        return logits

    def _exact_model(self) -> RerankModel:
        """The model in fp32: on the plan's device if it has room, else on the CPU, where it is slow and as exact."""
        if self._exact is None:

            def load(device: str) -> RerankModel:
                return load_model(self._checkpoint, device=device, precision="fp32", attention="runs")

            found, self._reruns = loaded_where_it_fits(load, self._plan.device)
            self._exact = found
        return self._exact

    def close(self) -> None:
        """Drop the model."""
        del self._model


def _spread(pairs: Sequence[EncodedPair], tokens: int) -> list[EncodedPair]:
    """Pairs evenly over all of `pairs`, of about `tokens` tokens together; at least one."""
    mean = sum(len(pair.input_ids) for pair in pairs) / len(pairs)
    count = max(1, min(len(pairs), int(tokens / mean)))
    return [pairs[number * len(pairs) // count] for number in range(count)]
