"""infinity's engine in the process, torch in float32: all lists handed in at once. Settings: checkpoint, threads."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import torch
from infinity_emb import EngineArgs, SyncEngineArray
from infinity_emb.transformer.crossencoder.torch import CrossEncoderPatched

from benchmarks.peers.serving import Lists, Tokens, serve

_NAME = "measured"


class Infinity:
    """See `Adapter`. It sorts what waits by length and makes batches of 32, its default."""

    version = ", ".join(f"{name} {version(name)}" for name in ("infinity-emb", "torch", "transformers"))

    def __init__(self, settings: dict[str, Any], tokens: Tokens) -> None:
        torch.set_num_threads(settings["threads"])
        core = CrossEncoderPatched.encode_core

        def counted(model: Any, features: dict[str, Any]) -> Any:
            tokens.count(features["attention_mask"])
            return core(model, features)

        CrossEncoderPatched.encode_core = counted
        wishes = {"engine": "torch", "device": "cpu", "dtype": "float32", "model_warmup": False}
        arguments = EngineArgs(model_name_or_path=settings["checkpoint"], served_model_name=_NAME, **wishes)
        self._engines = SyncEngineArray.from_args([arguments])

    def score(self, work: Lists, batch_size: int | None) -> list[float]:
        """See `Adapter`."""
        del batch_size
        waiting = [
            self._engines.rerank(model=_NAME, query=query, docs=passages, raw_scores=True) for query, passages in work
        ]
        logits: list[float] = []
        for ranked in waiting:
            results, _ = ranked.result()
            logits += [result.relevance_score for result in sorted(results, key=lambda result: result.index)]
        return logits


if __name__ == "__main__":
    serve(Infinity)
