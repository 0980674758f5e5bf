"""Scores that outlive a run: an embedded database that several processes share, and that no run depends on.

    open_store    the store of a folder, or why there is none
    ScoreStore    entries found by their keys, and added: `scores.py`
    Unusable      why a folder cannot have one here: `folder.py`

A key is a digest of everything that decides a score; who makes it is `job/logit_facts.py`. A store knows bytes alone.

Nothing here ends a run. What cannot be read is not found, what cannot be written is not kept, and why is told once. An
entry is taken only if its checksum, over key and value, is right: a torn, edited or foreign one is as good as none.
"""

from __future__ import annotations

from rerank_cli.store.folder import Unusable, open_store
from rerank_cli.store.scores import Rate, ScoreStore

__all__ = ["Rate", "ScoreStore", "Unusable", "open_store"]
