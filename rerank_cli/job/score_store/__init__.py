"""Scores and vectors that outlive a run: an embedded database that several processes share, and that no run depends on.

    database.py        entries found by their keys, and added: bytes alone
    folder.py          the store of a folder, or why a folder cannot have one here
    logit_facts.py     everything that decides a logit but the pair itself, or a vector but the text
    known_scores.py    the keys of pairs, and which pairs of a window need not be computed
    known_vectors.py   the keys of texts, and their vectors
    memory_table.py    a bounded table of a run alone, where there is no store
    run_store.py       the store of a run, from its options to its report

Nothing here ends a run. What cannot be read is not found, what cannot be written is not kept, and why is told once. An
entry is taken only if its checksum, over key and value, is right: a torn, edited or foreign one is as good as none.
"""

from __future__ import annotations

from rerank_cli.job.score_store.database import Rate, ScoreStore
from rerank_cli.job.score_store.folder import Unusable, open_store

__all__ = ["Rate", "ScoreStore", "Unusable", "open_store"]
