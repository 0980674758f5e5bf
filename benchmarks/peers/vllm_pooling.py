"""vLLM's pooling runner on a GPU, in bf16: all pairs handed in at once. Settings: checkpoint.

Not run by whoever wrote it, for want of a GPU: by vLLM's documentation of `LLM.score` (0.10 to 0.32).
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from vllm import LLM

from benchmarks.peers.serving import Lists, Tokens, pairs_of, serve

_MEMORY_SHARE = 0.5  # of the device: what is left of vLLM's usual 0.9 where other processes hold some


class Vllm:
    """See `Adapter`. It schedules the pairs itself; what it gives is a probability where the model has one label."""

    version = ", ".join(f"{name} {version(name)}" for name in ("vllm", "torch", "transformers"))

    def __init__(self, settings: dict[str, Any], tokens: Tokens) -> None:
        del tokens  # it says nothing of its batches
        self._model = LLM(
            model=settings["checkpoint"],
            runner="pooling",
            dtype="bfloat16",
            max_model_len=512,
            gpu_memory_utilization=_MEMORY_SHARE,
        )

    def score(self, work: Lists, batch_size: int | None) -> list[float]:
        """See `Adapter`."""
        del batch_size
        queries, passages = (list(texts) for texts in zip(*pairs_of(work), strict=True))
        found = self._model.score(queries, passages, use_tqdm=False)
        return [one.outputs.score for one in found]


if __name__ == "__main__":
    serve(Vllm)
