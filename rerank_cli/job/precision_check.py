"""What a run in another precision than fp32 does besides scoring: it calibrates, and it may compare itself with fp32.

Both look at the first windows of the input, so a run that goes on has done them: the calibration is a note of the first
window that was committed, the comparison is part of the state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from rerank_cli.encoding.choices import Pool
from rerank_cli.engine import ScoresExactly
from rerank_cli.job.agreement import Agreement
from rerank_cli.job.ranking import score_exactly

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from rerank_cli.encoding.pairs import EncodedWindow
    from rerank_cli.engine import Engine

_FEW_PAIRS = 8  # to calibrate on: with 4 of one list logits were off by 0.1 in the mean, with 1 by 0.7


class PrecisionCheck:
    """The calibration of a run and its comparison with fp32.

    wanted: pairs to compare, None for no comparison. state, notes: of an earlier process. on_note: told what a user
    should know. calibration: what an engine is opened with.
    """

    def __init__(
        self,
        wanted: int | None,
        *,
        state: Mapping[str, Any] | None,
        notes: list[Mapping[str, Any]],
        on_note: Callable[[str], None],
    ) -> None:
        self._on_note = on_note
        self._agreement = Agreement(wanted) if wanted else None
        if state and state["agreement"]:
            self._agreement = Agreement.restored(state["agreement"])
        self.calibration: Mapping[str, Any] | None = next(
            (note["calibration"] for note in reversed(notes) if "calibration" in note), None
        )
        self._new: Mapping[str, Any] | None = None  # until it is in the journal

    @property
    def state(self) -> dict[str, Any]:
        """See `Totals.state`."""
        return {"agreement": self._agreement.state if self._agreement else None}

    def take_note(self) -> dict[str, Any]:
        """What this window adds to the journal: a new calibration, once, as it is as large as a thousand rows."""
        new, self._new = self._new, None
        return {"calibration": new} if new else {}

    def on_calibrated(self, calibration: Mapping[str, Any]) -> None:
        """The engine has looked at its first pairs."""
        self._new = calibration
        if calibration["pairs"] < _FEW_PAIRS:
            self._on_note(
                f"warning: int8 is calibrated on the first {calibration['pairs']} pairs alone; scores of others may be "
                "off by more than 1 (`--check-precision 100` measures it)"
            )

    def comparison(
        self, engine: Engine, precision: str, pool: Pool
    ) -> Callable[[EncodedWindow, npt.NDArray[np.float32]], None] | None:
        """What is done with the logits of a window; None where there is nothing to compare."""
        agreement = self._agreement
        if agreement is None or agreement.complete:
            return None
        exact = engine if isinstance(engine, ScoresExactly) else None
        if exact is None or precision == "fp32":
            self._agreement = None
            why = "the model gives no logits" if exact is None else "the run is in fp32"
            self._on_note(f"--check-precision: nothing to compare, {why}")
            return None

        def compare(encoded: EncodedWindow, logits: npt.NDArray[np.float32]) -> None:
            agreement.add(encoded, logits, lambda some: score_exactly(some, exact, pool=pool))
            if agreement.complete:
                exact.forget_exact()

        return compare

    def document(self) -> dict[str, Any]:
        """For the report."""
        return {"precision_check": self._agreement.to_json()} if self._agreement else {}
