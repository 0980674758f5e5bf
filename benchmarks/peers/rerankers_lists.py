"""rerankers: a list at a time, in the order of the list, batches of 16. Settings: checkpoint, threads."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import torch
from rerankers import Reranker

from benchmarks.peers.serving import Lists, Tokens, serve


class Rerankers:
    """See `Adapter`."""

    version = ", ".join(f"{name} {version(name)}" for name in ("rerankers", "torch", "transformers"))

    def __init__(self, settings: dict[str, Any], tokens: Tokens) -> None:
        torch.set_num_threads(settings["threads"])
        self._ranker = Reranker(settings["checkpoint"], model_type="cross-encoder", device="cpu", verbose=0)
        tokens.watch(self._ranker.model)

    def score(self, work: Lists, batch_size: int | None) -> list[float]:
        """See `Adapter`."""
        return [logit for query, passages in work for logit in self._list(query, passages, batch_size)]

    def _list(self, query: str, passages: list[str], batch_size: int | None) -> list[float]:
        ranked = self._ranker.rank(query, passages, doc_ids=list(range(len(passages))), batch_size=batch_size)
        return [result.score for result in sorted(ranked.results, key=lambda result: result.document.doc_id)]


if __name__ == "__main__":
    serve(Rerankers)
