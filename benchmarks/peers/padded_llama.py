"""Transformers' own Llama, padded, over token ids, by our interpreter. Settings: checkpoint, precision."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.padded import llama_of, load_weights, score_padded
from benchmarks.peers.serving import Tokens, serve


class PaddedLlama:
    """See `Adapter`."""

    version = f"transformers {transformers.__version__}, torch {torch.__version__}"

    def __init__(self, settings: dict[str, Any], tokens: Tokens) -> None:
        torch.set_num_threads(settings["threads"])
        checkpoint = Path(settings["checkpoint"])
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[settings["precision"]]
        self._model = llama_of(json.loads((checkpoint / "config.json").read_text()), device="cpu", dtype=dtype)
        self._head = load_weights(self._model, checkpoint)
        self._tokens = tokens

    def score(self, work: list[list[int]], batch_size: int | None) -> list[float]:
        """See `Adapter`."""
        return score_padded(self._model, self._head, work, batch_size=batch_size or 32, on_batch=self._tokens.count)


if __name__ == "__main__":
    serve(PaddedLlama)
