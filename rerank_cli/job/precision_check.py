"""Calibrates a run in another precision than fp32, and compares it with fp32 if asked.

`--check-precision` compares the first pairs of the run:

    max |logit difference|    over all pairs that were compared
    Kendall's tau             tau-b of the two orders of a list, mean over lists
    top-10 overlap            share of a list's ten best that are among the ten best in fp32, mean over lists

Whole lists are compared (of longer lists the first 1,000 passages), until there are as many pairs as were asked for.
Lists of one pair (rows of `score`) count as one list for each window.

Both use the first windows of the input, so a resumed run has them already: the calibration is a note of the first
window that was committed, the comparison is a few sums in the state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rerank_cli.encoding.choices import Pool
from rerank_cli.encoding.encoder import Encoded
from rerank_cli.encoding.pairs import EncodedWindow
from rerank_cli.engine import NeedsCalibration, ScoresExactly
from rerank_cli.job.agreement import Agreement, first_n
from rerank_cli.job.image_parts import pairs_of
from rerank_cli.job.ranking import pooled

if TYPE_CHECKING:
    from rerank_cli.engine import Engine

LEAST_OVERLAP = 0.95
"""A run with a smaller overlap warns: more than one in twenty of the best passages is another."""
_TOP = 10
LONGEST = 1000  # passages of a list: tau compares all pairs of them
_FEW_PAIRS = 8  # too few to calibrate on: with 4 of one list logits were off by 0.1 in the mean, with 1 by 0.7

Logits = npt.NDArray[np.float32]


class PrecisionCheck:
    """The calibration of a run and its comparison with fp32.

    Args:
        wanted: How many pairs to compare; None for no comparison.
        pool: How the logits of a pair's chunks are joined.
        state: The run's state after an earlier process.
        notes: The notes of an earlier process, with the numbers of their windows.
        on_note: Gets messages for the user.
    """

    def __init__(
        self,
        wanted: int | None,
        pool: Pool,
        state: Mapping[str, Any] | None,
        notes: Sequence[tuple[int, Mapping[str, Any]]],
        on_note: Callable[[str], None],
    ) -> None:
        self._pool = pool
        self._on_note = on_note
        self._comparison = Comparison(wanted) if wanted else None
        if state and state["agreement"]:
            self._comparison = Comparison.of_state(state["agreement"])
        self.wants_more = self._comparison is not None and not self._comparison.complete
        """Whether more windows are to be compared."""
        self.calibration: Mapping[str, Any] | None = next(
            (note["calibration"] for _, note in reversed(notes) if "calibration" in note), None
        )
        """What the engine is opened with, so that a resumed run goes on with the same calibration."""

    @property
    def state(self) -> dict[str, Any]:
        """See `Totals.state`."""
        return {"agreement": asdict(self._comparison) if self._comparison else None}

    def begin(self, engine: Engine, precision: str) -> None:
        """Give up the comparison if there is nothing to compare; called when the engine is loaded."""
        if not self.wants_more:
            return
        exact = isinstance(engine, ScoresExactly)
        if not exact or precision == "fp32":
            self._comparison, self.wants_more = None, False
            why = "the run is in fp32" if exact else "the model gives no logits"
            self._on_note(f"--check-precision: nothing to compare, {why}")

    def add(self, encoded: EncodedWindow, logits: Logits, engine: Engine) -> None:
        """Compare a window; called while `wants_more`. logits: of its distinct pairs."""
        assert self._comparison is not None and isinstance(engine, ScoresExactly), "checked by `begin`"
        self._comparison.add(
            encoded, logits, lambda some: pooled(some, engine.score_exactly(pairs_of(some)), self._pool)
        )
        if self._comparison.complete:
            self.wants_more = False
            engine.forget_exact()

    def take_note(self, engine: Engine) -> dict[str, Any]:
        """What a window adds to the journal: a new calibration. Only once, as it is as large as a thousand rows."""
        if self.calibration or not isinstance(engine, NeedsCalibration) or engine.calibration is None:
            return {}
        self.calibration = engine.calibration
        if self.calibration["pairs"] < _FEW_PAIRS:
            self._on_note(
                f"warning: int8 is calibrated on only {self.calibration['pairs']} pairs; the scores of others "
                "may be off by more than 1 (`--check-precision 100` measures it)"
            )
        return {"calibration": self.calibration}

    def document(self) -> dict[str, Any]:
        """For the report."""
        return {"precision_check": self._comparison.to_json()} if self._comparison else {}


@dataclass(slots=True)
class Comparison:
    """The comparison of a precision with fp32, as sums over lists."""

    wanted: int  # pairs
    pairs: int = 0
    largest: float = 0.0  # difference of two logits
    taus: float = 0.0  # sum over the lists
    heads: Agreement = field(default_factory=lambda: Agreement(_TOP))

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> Comparison:
        """A `Comparison` from what `asdict` made of one."""
        return cls(**{**state, "heads": Agreement(**state["heads"])})

    @property
    def complete(self) -> bool:
        """Whether enough pairs were compared."""
        return self.pairs >= self.wanted

    def add(self, encoded: EncodedWindow, logits: Logits, exact: Callable[[list[Encoded]], Logits]) -> None:
        """Compare lists of a window. logits: of its distinct pairs. exact: gives the logits of some of them in fp32."""
        chosen: list[list[int]] = []
        room = self.wanted - self.pairs
        for places in places_of_lists(encoded):
            if room <= 0:
                break
            usable = [place for place in dict.fromkeys(places) if np.isfinite(logits[place])][:LONGEST]
            chosen += [usable] * bool(usable)
            room -= len(usable)
        members = list(dict.fromkeys(place for places in chosen for place in places))
        if not members:
            return
        found = dict(zip(members, exact([encoded.encoded[place] for place in members]), strict=True))
        for places in chosen:
            in_fp32 = np.array([found[place] for place in places], dtype=np.float32)
            both = np.isfinite(in_fp32)
            ours, theirs = logits[places][both], in_fp32[both]
            self.pairs += len(both)
            if len(theirs):
                self.largest = max(self.largest, float(np.abs(ours - theirs).max()))
                self.taus += tau_b(ours, theirs)
                self.heads.add(first_n(theirs, _TOP), first_n(ours, _TOP), passages=len(theirs))

    def to_json(self) -> dict[str, Any]:
        """For the report; values are None without lists."""
        heads = self.heads
        lists = heads.lists or None
        return {
            "pairs": self.pairs,
            "lists": heads.lists,
            "max_logit_difference": self.largest if lists else None,
            "kendall_tau": self.taus / lists if lists else None,
            "top10_overlap": heads.mean_overlap,
            "interval": None if heads.interval is None else [round(end, 6) for end in heads.interval],
        }


def places_of_lists(encoded: EncodedWindow) -> Iterator[list[int]]:
    """For each list, the places of its pairs among the distinct ones; lists of one pair are joined."""
    begin, single = 0, []
    for item in encoded.window.lists:
        places = encoded.places[begin : begin + len(item.passages)]
        begin += len(item.passages)
        if len(places) > 1:
            yield places
        else:
            single += places
    if single:
        yield single


def tau_b(a: Logits, b: Logits) -> float:
    """Kendall's tau-b of two scores of the same passages; 1 if all scores of either are equal."""
    signs = [np.sign(x[:, None] - x[None, :]) for x in (a, b)]
    untied = float(np.sqrt((signs[0] != 0).sum(dtype=np.float64) * (signs[1] != 0).sum(dtype=np.float64)))
    return float((signs[0] * signs[1]).sum(dtype=np.float64)) / untied if untied else 1.0
