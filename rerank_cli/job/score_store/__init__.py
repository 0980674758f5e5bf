"""Scores and vectors that outlive a run: an embedded database that several processes share, and that no run depends on.

    database.py        finds and adds entries by their keys; it knows bytes alone
    folder.py          the store in a folder, or why a folder cannot have one
    logit_facts.py     everything that decides a logit except the pair itself, or a vector except the text
    known_scores.py    the keys of pairs, and which pairs of a window need not be computed
    known_vectors.py   the keys of texts, and their vectors
    memory_table.py    a bounded table in memory, for a run without a store
    run_store.py       the store of a run, from its options to its report

A failure of the store never ends a run: what cannot be read counts as not found, what cannot be written is not kept,
and the reason is told once. An entry counts only if its checksum, over key and value, is right: so a torn, edited or
foreign entry is ignored.
"""

from __future__ import annotations

from rerank_cli.job.score_store.database import Rate, ScoreStore
from rerank_cli.job.score_store.folder import Unusable, open_store

__all__ = ["Rate", "ScoreStore", "Unusable", "open_store"]
