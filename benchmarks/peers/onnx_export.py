"""Writes the checkpoint as ONNX, in float32 and dynamically quantised to int8, as sentence-transformers does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.peers.serving import Lists, prepare

PLAIN, QUANTISED = "model.onnx", "model_qint8_avx512_vnni.onnx"


def export(settings: dict[str, Any], lists: Lists) -> None:
    """Write both, unless they are there."""
    from sentence_transformers import CrossEncoder
    from sentence_transformers.backend import export_dynamic_quantized_onnx_model

    del lists  # dynamic: no samples
    folder = Path(settings["checkpoint"])
    if not (folder / "onnx" / QUANTISED).exists():
        model = CrossEncoder(str(folder), backend="onnx", model_kwargs={"export": True}, device="cpu")
        model.transformers_model.save_pretrained(folder)  # goes to the folder onnx/
        export_dynamic_quantized_onnx_model(model, "avx512_vnni", str(folder))


if __name__ == "__main__":
    prepare(export)
