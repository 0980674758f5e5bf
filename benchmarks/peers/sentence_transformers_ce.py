"""sentence-transformers' CrossEncoder on torch, ONNX Runtime or OpenVINO: sorts all pairs by length, pads each batch.

Settings: checkpoint, precision, threads, device; backend; for ONNX and OpenVINO `file`, the model that was exported.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import torch
from sentence_transformers import CrossEncoder

from benchmarks.peers.serving import Lists, Tokens, pairs_of, serve


class SentenceTransformers:
    """See `Adapter`."""

    def __init__(self, settings: dict[str, Any], tokens: Tokens) -> None:
        backend, threads = settings["backend"], settings["threads"]
        torch.set_num_threads(threads)
        packages, wishes = _WISHES[backend](settings)
        # No activation: logits are compared.
        self._model = CrossEncoder(
            settings["checkpoint"],
            max_length=512,
            activation_fn=torch.nn.Identity(),
            device=settings.get("device", "cpu"),
            backend=backend,
            model_kwargs=wishes,
        )
        tokens.watch(self._model.transformers_model)
        self.version = ", ".join(f"{name} {version(name)}" for name in ("sentence-transformers", *packages))

    def score(self, work: Lists, batch_size: int | None) -> list[float]:
        """See `Adapter`."""
        return self._model.predict(pairs_of(work), batch_size=batch_size or 32, show_progress_bar=False).tolist()


def _torch(settings: dict[str, Any]) -> tuple[tuple[str, ...], dict[str, Any]]:
    return ("torch", "transformers"), {"dtype": torch.bfloat16} if settings["precision"] == "bf16" else {}


def _onnx(settings: dict[str, Any]) -> tuple[tuple[str, ...], dict[str, Any]]:
    from onnxruntime import SessionOptions

    session = SessionOptions()
    session.intra_op_num_threads = settings["threads"]
    return ("onnxruntime", "transformers"), {"file_name": settings["file"], "session_options": session}


def _openvino(settings: dict[str, Any]) -> tuple[tuple[str, ...], dict[str, Any]]:
    config = {"INFERENCE_NUM_THREADS": str(settings["threads"]), **settings["ov_config"]}
    return ("openvino", "transformers"), {"file_name": settings["file"], "ov_config": config}


_WISHES = {"torch": _torch, "onnx": _onnx, "openvino": _openvino}


if __name__ == "__main__":
    serve(SentenceTransformers)
