"""One of the two scorers of a cascade: its model, engine, store, and the work it did."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rerank_cli.encoding.choices import Pool
from rerank_cli.encoding.pairs import EncodedWindow
from rerank_cli.engine.protocols import NeedsCalibration
from rerank_cli.job.image_parts import encode_parts
from rerank_cli.job.prepare import PreparedModel
from rerank_cli.job.ranking import ScoredPart, finish_window, score_part
from rerank_cli.job.score_store.run_store import RunStore
from rerank_cli.job.stop import Stop
from rerank_cli.planning.run_plan import Plan
from rerank_cli.records import Counts, Timing, Window

if TYPE_CHECKING:
    from rerank_cli.engine import Engine
    from rerank_cli.job.score_store.known_scores import KnownScores

_WAIT_SECONDS = 0.05


@dataclass(slots=True)
class Work:
    """What a scorer did: distinct pairs that it scored or found in the store, their tokens, and seconds."""

    pairs_scored: int = 0
    pairs_found: int = 0
    tokens: int = 0
    tokens_found: int = 0
    seconds: float = 0.0

    def add(self, counts: Mapping[str, int], scored: int) -> None:
        """Count a window. scored: distinct pairs that were computed."""
        self.pairs_scored += scored
        self.pairs_found += counts.get("pairs_found", 0)
        self.tokens += counts.get("tokens", 0)
        self.tokens_found += counts.get("tokens_found", 0)

    def of_counts(self, counts: Counts) -> Counts:
        """`counts` of the run, with the pairs and tokens of this scorer only."""
        names = ("pairs_scored", "pairs_found", "tokens", "tokens_found")
        return replace(counts, **{name: getattr(self, name) for name in names})


@dataclass(slots=True)
class Scorer:
    """A model that scores windows for a cascade."""

    prepared: PreparedModel
    plan: Plan
    engine: Engine
    store: RunStore
    pool: Pool
    stop: Stop
    on_batch: Callable[[int, int], None] | None = None
    """Gets the pairs and tokens of each batch."""
    on_submit: Callable[[int, float | None], None] | None = None
    """Gets the tokens that `read` gives to the engine, and the window's share."""
    timing: Timing = field(default_factory=Timing)
    """Of this scorer only."""
    work: Work = field(default_factory=Work)
    _known: KnownScores | None = None
    _is_open: bool = False

    def calibrate(self, window: Window) -> None:
        """Calibrate the engine on the first window of the input, if it must be calibrated."""
        engine = self.engine
        if isinstance(engine, NeedsCalibration) and engine.needs_calibration:
            pairs = [pair for part in encode_parts(window, self.prepared.encoder) for pair in part.pairs]
            if pairs:
                engine.calibrate(pairs)

    def read(self, window: Window) -> tuple[EncodedWindow, npt.NDArray[np.float32], Counter[str]]:
        """Score the distinct pairs of a window; returns them, their logits, and what this adds to `Counts`."""
        self.calibrate(window)
        if not self._is_open:
            self._known, self._is_open = self.store.known(self.timing), True
        known = self._known
        if known:
            known.look_up(window)
        done: list[ScoredPart] = []
        began = time.perf_counter()
        for part in encode_parts(window, self.prepared.encoder, known):
            self.timing.tokenise += time.perf_counter() - began
            began = time.perf_counter()
            if self.on_submit:
                self.on_submit(sum(len(pair.input_ids) for pair in part.pairs), window.share)
            with self.stop.released():
                pending = self.engine.submit(part.pairs, on_batch=self._batch_done)
                while (scores := pending.scores()) is None:
                    self.engine.wait(_WAIT_SECONDS)
            scored = score_part(part, scores.logits, scores.trouble, self.pool)
            self.timing.compute += time.perf_counter() - began
            done.append(scored)
            began = time.perf_counter()
        encoded, logits, counts, _ = finish_window(part, done, known)
        pairs = len(encoded.encoded) - counts["pairs_found"]
        self.work.add(counts, pairs)
        counts["pairs_scored"] += pairs
        return encoded, logits, counts

    def _batch_done(self, pairs: int, tokens: int) -> None:
        if self.on_batch:
            self.on_batch(pairs, tokens)
        self.stop.check()

    def document(self) -> dict[str, Any]:
        """For the report."""
        checkpoint = self.prepared.checkpoint
        work = asdict(self.work) | {"seconds": round(self.work.seconds, 3)}
        return {
            "model": checkpoint.name, "sha256": checkpoint.sha256, "score": self.prepared.score,
            "precision": self.plan.precision, "device": self.plan.device, "max_tokens": self.plan.max_tokens,
            "kernels": self.engine.kernels, **work,
        }  # fmt: skip
