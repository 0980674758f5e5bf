"""FlashRank's way: its code with our checkpoint as int8 ONNX under the name of one of its models, a list in one batch.

Settings: checkpoint, threads. Its models come from a server, so its own folder is laid out beside the checkpoint; its
sigmoid is undone.
"""

from __future__ import annotations

import json
import math
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnxruntime
from flashrank import Ranker, RerankRequest
from flashrank.Config import model_file_map

from benchmarks.peers.onnx_export import QUANTISED
from benchmarks.peers.serving import Lists, Tokens, serve

NAME = "ms-marco-MiniLM-L-12-v2"


class FlashRank:
    """See `Adapter`. A batch is a list, whatever `batch_size` says."""

    version = ", ".join(f"{name} {version(name)}" for name in ("flashrank", "onnxruntime"))

    def __init__(self, settings: dict[str, Any], tokens: Tokens) -> None:
        cache = Path(settings["checkpoint"]) / "flashrank"
        _lay_out(Path(settings["checkpoint"]), cache / NAME)
        self._ranker = Ranker(NAME, cache_dir=str(cache), max_length=512, log_level="ERROR")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = settings["threads"]
        self._session = onnxruntime.InferenceSession(str(cache / NAME / model_file_map[NAME]), options)
        self._tokens = tokens
        self._ranker.session = self  # has a number of threads, and counts

    def run(self, outputs: Any, inputs: dict[str, Any]) -> Any:
        """Stands in for the session's."""
        self._tokens.count(inputs["attention_mask"])
        return self._session.run(outputs, inputs)

    def score(self, work: Lists, batch_size: int | None) -> list[float]:
        """See `Adapter`."""
        del batch_size
        return [logit for query, passages in work for logit in self._list(query, passages)]

    def _list(self, query: str, passages: list[str]) -> list[float]:
        entries = [{"id": place, "text": text} for place, text in enumerate(passages)]
        ranked = self._ranker.rerank(RerankRequest(query=query, passages=entries))
        return [_logit(float(entry["score"])) for entry in sorted(ranked, key=lambda entry: entry["id"])]


def _logit(probability: float) -> float:
    within = min(max(probability, 1e-30), 1 - 1e-7)
    return math.log(within / (1 - within))


def _lay_out(checkpoint: Path, folder: Path) -> None:
    if folder.exists():
        return
    folder.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(checkpoint / name, folder / name)
    config = {"pad_token_id": 0} | json.loads((checkpoint / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "special_tokens_map.json").write_text("{}")  # those of tokenizer.json hold
    (folder / model_file_map[NAME]).symlink_to(checkpoint / "onnx" / QUANTISED)


if __name__ == "__main__":
    serve(FlashRank)
