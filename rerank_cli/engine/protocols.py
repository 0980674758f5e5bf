"""What an engine is, and what it may be able to do besides scoring. Nothing here loads torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from rerank_cli.encoding.pairs import EncodingProblem
    from rerank_cli.records import EncodedPair

OnBatch = Callable[[int, int], None]
"""Called with (pairs, tokens) when a batch has been handed to the device."""


@dataclass(slots=True)
class Trouble:
    """What went wrong while pairs were scored."""

    failed: dict[int, EncodingProblem] = field(default_factory=dict)
    """The pairs that have no score, by place, and why."""
    splits: int = 0
    """Batches that did not fit and were cut."""
    reruns: int = 0
    """Pairs that were computed again in fp32."""
    deaths: int = 0
    """Processes that ended by themselves while they computed."""
    computed: int = 0
    """Tokens of the batches that fitted, filler and padding included."""

    def add(self, other: Trouble, places: Sequence[int]) -> None:
        """Add the trouble of some of the pairs. places: where each pair of `other` stands among all."""
        self.failed |= {places[place]: problem for place, problem in other.failed.items()}
        self.splits += other.splits
        self.reruns += other.reruns
        self.deaths += other.deaths
        self.computed += other.computed


@dataclass(frozen=True, slots=True)
class Scores:
    """What an engine returns for some pairs."""

    logits: npt.NDArray[np.float32]
    """float32 [pairs], in their order; NaN where there is none."""
    trouble: Trouble
    """What went wrong."""


class Pending(Protocol):
    """Scores that may still be computed."""

    def scores(self) -> Scores | None:
        """The scores; None while they are computed."""


class Engine(Protocol):
    """A place where pairs are scored."""

    depth: int
    """How many submissions should be under way at a time."""

    @property
    def peak_bytes(self) -> int | None:
        """The most memory that the engine's own processes have taken of a device; None where it has none."""

    @property
    def kernels(self) -> str:
        """Which implementations the model runs with, in words."""

    def submit(self, pairs: Sequence[EncodedPair], *, on_batch: OnBatch | None = None) -> Pending:
        """Start to score `pairs`. on_batch: see `OnBatch`."""

    def wait(self, seconds: float) -> None:
        """Work on what was submitted until some of it is done, for `seconds` at most."""

    def close(self) -> None:
        """Give back what the engine holds."""


@runtime_checkable
class NeedsCalibration(Protocol):
    """An `Engine` that may have to see some pairs before it scores any.

    calibration: the result, for a JSON file; None before there is one. Engines with the same one give the same logits.
    needs_calibration: whether it cannot score yet.
    """

    calibration: Mapping[str, Any] | None
    needs_calibration: bool

    def calibrate(self, pairs: Sequence[EncodedPair]) -> Mapping[str, Any]:
        """Calibrate with some of `pairs`, always the same ones for the same pairs. Returns `calibration`."""

    def use_calibration(self, calibration: Mapping[str, Any]) -> None:
        """Take the calibration that another engine has returned."""


@runtime_checkable
class ScoresExactly(Protocol):
    """An `Engine` that can also score in fp32, whatever its precision."""

    def score_exactly(self, pairs: Sequence[EncodedPair]) -> npt.NDArray[np.float32]:
        """Logits of `pairs` in fp32, float32 [len(pairs)], in their order; NaN where there is none."""

    def forget_exact(self) -> None:
        """Give back the memory that `score_exactly` took."""


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
    trouble: Trouble

    @property
    def peak_bytes(self) -> int | None:
        """See `Engine`."""
        return None

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
