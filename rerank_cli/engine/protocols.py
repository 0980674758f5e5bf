"""What an engine may be able to do besides scoring; for those who ask it without loading torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from rerank_cli.records import EncodedPair


@runtime_checkable
class NeedsCalibration(Protocol):
    """An `Engine` that may have to see some pairs before it scores any.

    calibration: what it has seen, for a JSON file; None before that. Engines with the same one give the same logits.
    """

    calibration: Mapping[str, Any] | None

    @property
    def needs_calibration(self) -> bool:
        """It cannot score yet."""

    def calibrate(self, pairs: Sequence[EncodedPair]) -> Mapping[str, Any]:
        """Look at some of `pairs`, the same ones for the same pairs, and be ready. Returns `calibration`."""

    def use_calibration(self, calibration: Mapping[str, Any]) -> None:
        """Be ready with what another engine has returned."""


@runtime_checkable
class ScoresExactly(Protocol):
    """An `Engine` that can also score in fp32, whatever its precision."""

    def score_exactly(self, pairs: Sequence[EncodedPair]) -> npt.NDArray[np.float32]:
        """As `Engine.score`, in fp32; NaN where there is no logit."""

    def forget_exact(self) -> None:
        """Give back the memory that `score_exactly` took."""
