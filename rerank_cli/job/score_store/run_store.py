"""The store of a run, from its options to its report."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rerank_cli.encoding.encoder import ReadsImages
from rerank_cli.engine.protocols import NeedsCalibration
from rerank_cli.job.options import JobOptions
from rerank_cli.job.prepare import PreparedModel
from rerank_cli.job.score_store import ScoreStore, Unusable, open_store
from rerank_cli.job.score_store.known_scores import KnownScores
from rerank_cli.job.score_store.known_vectors import StoredVectors
from rerank_cli.job.score_store.logit_facts import basis_of, depends_on_batch, logit_facts, vector_facts
from rerank_cli.job.score_store.memory_table import MemoryTable
from rerank_cli.planning.run_plan import Plan
from rerank_cli.records import Counts, Timing

if TYPE_CHECKING:
    from rerank_cli.engine import EmbeddingEngine, Engine


def read_calibration(value: bytes) -> Mapping[str, Any] | None:
    """The calibration that a store holds as `value`; None if the value is not one."""
    try:
        found = json.loads(value)
        return found if isinstance(found, dict) and isinstance(found["pairs"], int) else None
    except (ValueError, KeyError):
        return None


class RunStore:
    """The store of a run, or of a `Reranker`.

    Args:
        options: Of the run.
        prepared: Its model.
        plan: As the run goes.
        engine: Loaded, and not yet used.
        on_note: Told what a user should know.
    """

    def __init__(
        self,
        options: JobOptions,
        prepared: PreparedModel,
        plan: Plan,
        engine: Engine,
        *,
        on_note: Callable[[str], None],
    ) -> None:
        self._path, self._engine = options.store, engine
        self._encodes_all = options.check_precision is not None
        self._wants_vectors = options.names.embeddings is not None
        self._varies = depends_on_batch(prepared, plan)
        self._reads_texts = not isinstance(prepared.encoder, ReadsImages)
        self._told: list[str] = []
        self._on_note = on_note
        self._store: ScoreStore | None = None
        self._last: KnownScores | None = None
        self._vectors: tuple[EmbeddingEngine, StoredVectors] | None = None
        if options.store is not None:
            found = open_store(Path(options.store).expanduser(), limit_bytes=options.store_limit, on_fault=self._tell)
            if isinstance(found, Unusable):
                self._tell(f"warning: --store {found.reason}; this run continues without it")
            else:
                self._store = found
                if self._varies:
                    self._tell(
                        f"note: --store: {self._varies}, so a score from the store may differ in its last digits from "
                        "one that is computed"
                    )
        self._facts: Mapping[str, Any] = {}  # not needed without a store: all pairs of one run have the same
        if self._store is not None:
            self._facts = logit_facts(options, prepared, plan, engine.kernels)
            self._use_calibration(self._store)
            from rerank_cli.engine.embedding import EmbeddingEngine  # torch is loaded by now

            if isinstance(engine, EmbeddingEngine):  # it asks the store before it embeds a text
                basis = basis_of(vector_facts(prepared, plan, engine.kernels), "vectors")
                engine.known = vectors = StoredVectors(self._store, basis, engine.dimensions)
                self._vectors = engine, vectors

    def _use_calibration(self, store: ScoreStore) -> None:
        """Give an uncalibrated engine the calibration of the first run with this store, so that its scores are found.

        A calibration of an earlier process of the same run is kept, so that the whole run has one.
        """
        engine = self._engine
        if not isinstance(engine, NeedsCalibration) or not engine.needs_calibration:
            return
        key = basis_of(self._facts, "calibration")
        if (value := store.find([key]).get(key)) and (found := read_calibration(value)):
            engine.use_calibration(found)
            self._tell(
                f"note: --store: the model has the calibration of an earlier run ({found['pairs']} pairs), so that its "
                "scores are found; without the store it would be calibrated on the first window of this run"
            )

    def _basis_of(self, calibration: Mapping[str, Any] | None) -> bytes:
        """A digest of all that decides a logit, except the pair. A model's first calibration is kept in the store."""
        if self._store is not None and calibration is not None:
            key = basis_of(self._facts, "calibration")
            if not self._store.find([key]):
                self._store.add({key: json.dumps(calibration).encode()})
        return basis_of(self._facts, calibration)

    def _tell(self, text: str) -> None:
        self._told.append(text)
        self._on_note(text)

    def known(self, timing: Timing) -> KnownScores | None:
        """The known scores for a pass over an input; None if none may be used. timing: of the pass.

        Without a store, a pair that repeats in the pass is computed once, if its logit does not depend on its batch.
        If the vectors of all texts are wanted, texts are looked up, but pairs are not.
        """
        if self._wants_vectors:
            return None
        store = self._store or (None if self._varies or not self._reads_texts else MemoryTable())
        if store is None:
            return None
        self._last = KnownScores(store, self._basis_of, self._engine, timing=timing, encodes_all=self._encodes_all)
        return self._last

    def document(self, counts: Counts) -> dict[str, Any]:
        """For the report; empty without `--store`."""
        if self._path is None:
            return {}
        found: dict[str, Any] = {
            "path": self._path, "asked": counts.pairs_scored + counts.pairs_found, "found": counts.pairs_found,
            "computed": counts.pairs_scored, "seconds_saved": None, "added": 0, "damaged": 0, "bytes": 0,
            "notes": self._told,
        }  # fmt: skip
        if self._store is not None:
            saved = [self._last.seconds_saved(counts.tokens_found) if self._last else None]
            if self._vectors:
                engine, vectors = self._vectors
                found["texts"] = {
                    "asked": engine.texts + engine.found, "found": engine.found, "embedded": engine.texts,
                }  # fmt: skip
                saved.append(vectors.seconds_saved(engine.tokens_found))
            known = [one for one in saved if one is not None]
            found |= {
                "seconds_saved": round(sum(known), 3) if known else None, "added": self._store.added,
                "damaged": self._store.damaged, "bytes": self._store.size,
            }  # fmt: skip
        return {"store": found}

    def close(self) -> None:
        """Close the store."""
        if self._store is not None:
            self._store.close()
