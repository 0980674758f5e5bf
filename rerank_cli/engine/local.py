"""The plain engine: a model on one device in this process.

On a CPU pairs are scored when they are submitted, a batch on each core (`lanes.py`). A CUDA device computes behind the
host:

    submit   hands batches over, `AHEAD` of them at most (`planning/memory/pieces.py`), and returns
    wait     hands over more as room comes, and looks whether logits have arrived
    scores   None until those of all pairs submitted together are there; those that are not finite are computed again in
             fp32

so while the host ranks, writes and commits some pairs, the device computes the next. Nothing here waits for a kernel.
Batches, their order and so every bit of the logits are the same as if each were waited for.

Memory runs out when a batch is handed over, because torch's allocator gives memory out then and not when a kernel runs:
`FittingBatches` cuts the batch in halves at once. Any other fault of a device shows later, in the next call that asks
it anything. The device is then unusable for this process, so the run ends (`name_faults`) and no number is read.

**No CUDA graphs**, for these reasons. A kernel costs the host 4 to 5 us to launch. A small batch of MiniLM-L6 is 68
launches and one of the 1B Llama 189 (`tests/unit/models/test_launches.py` counts them): 0.3 ms and 0.9 ms. The device
needs longer than that from some 1,600 tokens of MiniLM-L6 (21 MFLOP each, at 100 TFLOP/s) and 200 of the 1B (2 GFLOP,
at 400). A full batch of 65,536 tokens of the 1B is 650 launches, as its MLP goes by chunks: 3 ms beside 330 ms.
Batches are cut across queries by a budget of tens of thousands of tokens, so a window has at most one that is smaller,
its last, and that is handed over while the device computes those before it. What is left is a single query through the
Python API: of 10 passages of 128 tokens a graph would save 0.3 ms, beside tokenising and the call. For that it would
want inputs at fixed addresses, a graph for every bucket of tokens and pairs, and memory of its own for each. `python -m
benchmarks.gpu` measures both sides of this on a card (`launches`).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch

from rerank_cli.checkpoint import Checkpoint
from rerank_cli.checkpoint.families import family_of
from rerank_cli.engine.batching import FittingBatches, Launched, launch_batches, load_where_it_fits, plan_batches
from rerank_cli.engine.lanes import Lanes
from rerank_cli.engine.protocols import OnBatch, Pending, Scores, Trouble
from rerank_cli.errors import EngineError
from rerank_cli.machine.this_process import peak_rss_bytes
from rerank_cli.models import Calibrates, Embeds, RerankModel, load_model
from rerank_cli.models.transfer import PAUSE_SECONDS, Arriving, Transfer, current, transfer_for
from rerank_cli.planning.run_plan import Plan
from rerank_cli.records import EncodedPair

# cuBLAS, cuDNN and Triton have no class of their own in torch: they raise RuntimeErrors with these words.
_FAULTS = ("CUDA error", "CUDA driver error", "cuDNN error", "Triton Error [CUDA]")


@dataclass(slots=True)
class _Submission:
    """Pairs that were submitted together; satisfies `Pending`.

    steps: each hands a batch over. shape: of the result of a pair. done: see `scores`.
    """

    pairs: Sequence[EncodedPair]
    trouble: Trouble
    steps: Iterator[Launched]
    shape: tuple[int, ...]
    on_batch: OnBatch | None = None
    is_launched: bool = False
    done: Scores | None = None
    _arriving: list[tuple[list[int], Arriving]] = field(default_factory=list)

    def launch(self, transfer: Transfer | None = None) -> None:
        """Hand batches over, and have their logits sent back, until all are or `transfer` has no room for another one.

        Without `transfer` all are, by that of the device that computes them.
        """
        while not self.is_launched and (transfer is None or transfer.has_room()):
            step = next(self.steps, None)
            if step is None:
                self.is_launched = True
                return
            places, logits = step
            self._arriving.append((places, (transfer or transfer_for(logits.device)).to_host(logits)))
            if self.on_batch:
                self.on_batch(len(places), sum(len(self.pairs[place].input_ids) for place in places))

    def has_arrived(self) -> bool:
        """All logits are on the host; those of a device arrive in their order."""
        return self.is_launched and (not self._arriving or self._arriving[-1][1].is_there())

    def gather(self) -> npt.NDArray[np.float32]:
        """The logits, float32 [pairs, *shape], in the order of the pairs; NaN where there is none."""
        logits = np.full((len(self.pairs), *self.shape), np.nan, dtype=np.float32)
        for places, arriving in self._arriving:
            logits[places] = arriving.wait().numpy()
        return logits

    def scores(self) -> Scores | None:
        """See `Pending`."""
        return self.done


_WAIT_SECONDS = 1.0
_CALIBRATION_TOKENS = 4096  # 15 to 60 pairs: 2.5 s of one core for the built-in model


class LocalEngine:
    """The plan's model in this process. Loads the weights when it is made.

    Satisfies `Engine`, `NeedsCalibration` and `ScoresExactly`. shape: of the result of a pair, which is a logit, or of
    an embedding model the vector of a text. trouble: of the last call of `score`. calibration: what another engine was
    calibrated with.
    """

    peak_bytes: int | None = None

    def __init__(
        self,
        plan: Plan,
        checkpoint: Checkpoint,
        calibration: Mapping[str, Any] | None = None,
        *,
        model: RerankModel | None = None,
        exact: RerankModel | None = None,
        transfer: Transfer | None = None,
    ) -> None:
        if plan.device == "cpu":
            torch.set_num_threads(plan.threads)
        self._plan, self._checkpoint = plan, checkpoint
        self._batches = FittingBatches(plan.token_budget, padded=family_of(checkpoint.architecture).forward == "padded")
        self._model = model or load_model(
            checkpoint, device=plan.device, precision=plan.precision, attention=plan.attention
        )
        self.shape = (self._model.dimensions,) if isinstance(self._model, Embeds) else ()
        self._transfer = transfer or transfer_for(torch.device(plan.device))
        self._submitted: deque[_Submission] = deque()  # what is not done
        self.depth = 2 if self._transfer.overlaps else 1
        self._lanes: Lanes | None = None
        if plan.lanes > 1:
            least = 1 if plan.precision in ("bf16", "int8") else None
            self._lanes = Lanes(plan.lanes, threads=plan.threads // plan.lanes, least=least)
        self._exact = exact  # the same model in fp32, loaded when it is needed
        self._reruns = ""  # where it is, if it is not on the plan's device
        self.trouble = Trouble()
        self.calibration: Mapping[str, Any] | None = None
        self.needs_calibration = isinstance(self._model, Calibrates) and not self._model.calibrated
        if calibration is not None and self.needs_calibration:
            self.use_calibration(calibration)

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

    @torch.inference_mode()
    def calibrate(self, pairs: Sequence[EncodedPair]) -> Mapping[str, Any]:
        """See `NeedsCalibration`."""
        assert isinstance(self._model, Calibrates), "else nobody asks for it"
        mean = sum(len(pair.input_ids) for pair in pairs) / len(pairs)
        count = max(1, min(len(pairs), int(_CALIBRATION_TOKENS / mean)))
        chosen = [pairs[number * len(pairs) // count] for number in range(count)]  # evenly spread
        lengths = [len(pair.input_ids) for pair in chosen]
        batches = plan_batches(lengths, token_budget=self._plan.token_budget)
        self.calibration = self._model.calibrate([[chosen[place] for place in batch] for batch in batches])
        self.needs_calibration = False
        return self.calibration

    def use_calibration(self, calibration: Mapping[str, Any]) -> None:
        """See `NeedsCalibration`."""
        assert isinstance(self._model, Calibrates), "else nobody has one"
        self._model.use(calibration)
        self.calibration, self.needs_calibration = calibration, False

    @torch.inference_mode()
    def score_exactly(self, pairs: Sequence[EncodedPair]) -> npt.NDArray[np.float32]:
        """See `ScoresExactly`; NaN for a pair that does not fit in fp32 either.

        The model in fp32 is loaded on the plan's device if that has room, else on the CPU, slower and just as exact.
        """
        with name_faults(self._plan.device):
            if self._exact is None:
                found, self._reruns = load_where_it_fits(
                    lambda device: load_model(self._checkpoint, device=device, precision="fp32", attention="runs"),
                    self._plan.device,
                )
                self._exact = found
            trouble = Trouble()
            steps = launch_batches(self._exact, pairs, self._batches, trouble)
            submission = _Submission(pairs, trouble, steps, self.shape)
            submission.launch()
            return submission.gather()

    def forget_exact(self) -> None:
        """See `ScoresExactly`."""
        self._exact = None

    def score(self, pairs: Sequence[EncodedPair], *, on_batch: OnBatch | None = None) -> npt.NDArray[np.float32]:
        """Logits of `pairs`, float32 [len(pairs)], in their order; NaN where there is none."""
        pending = self.submit(pairs, on_batch=on_batch)
        while (scores := pending.scores()) is None:
            self.wait(_WAIT_SECONDS)
        self.trouble = scores.trouble
        return scores.logits

    def submit(self, pairs: Sequence[EncodedPair], *, on_batch: OnBatch | None = None) -> Pending:
        """See `Engine`; where the device does not overlap with the host, the scores are there when it returns."""
        trouble = Trouble()
        steps = launch_batches(self._model, pairs, self._batches, trouble, self._lanes)
        submission = _Submission(pairs, trouble, steps, self.shape, on_batch)
        self._submitted.append(submission)
        self._go_on()
        return submission

    def wait(self, seconds: float) -> None:
        """See `Engine`. It sleeps between two looks at the device, so signals are heard."""
        until = time.monotonic() + seconds
        before = len(self._submitted)
        while self._submitted:
            self._go_on()
            if len(self._submitted) < before or time.monotonic() >= until:
                return
            time.sleep(PAUSE_SECONDS)

    @torch.inference_mode()
    def _go_on(self) -> None:
        """Hand over batches while the device has room, then finish what has arrived, in its order."""
        try:
            with name_faults(self._plan.device):
                for submission in self._submitted:
                    submission.launch(self._transfer)
                    if not submission.is_launched:
                        break
                while self._submitted and self._submitted[0].has_arrived():
                    self._finish(self._submitted.popleft())
        except BaseException:
            self._submitted.clear()  # their steps have ended here, so unfinished ones would look complete
            raise

    def _finish(self, submission: _Submission) -> None:
        logits, trouble = submission.gather(), submission.trouble
        finite = np.isfinite(logits).all(axis=tuple(range(1, logits.ndim)))
        nonfinite: list[int] = np.flatnonzero(~finite).tolist()
        again = [place for place in nonfinite if place not in trouble.failed]
        if again and self._plan.precision != "fp32":
            trouble.reruns = len(again)
            logits[again] = self.score_exactly([submission.pairs[place] for place in again])
        submission.done = Scores(logits, trouble)

    def close(self) -> None:
        """Drop the model and what was not finished."""
        self._submitted.clear()
        if self._lanes:
            self._lanes.close()
        del self._model


@contextmanager
def name_faults(device: str) -> Iterator[None]:
    """Inside, `device` is the current one, and a fault of it is an `EngineError` that names it."""
    try:
        with current(torch.device(device)):
            yield
    except RuntimeError as error:
        if not isinstance(error, torch.AcceleratorError) and not any(word in str(error) for word in _FAULTS):
            raise
        raise EngineError(
            f"{device}: {str(error).partition(chr(10))[0]}",
            hint="what is finished is kept; run again, and look at the driver's log if it comes back",
        ) from error
