"""Writes the checkpoint for OpenVINO, in float32 and quantised to int8 by NNCF, calibrated on some of the pairs."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.peers.serving import Lists, pairs_of, prepare

PLAIN, QUANTISED = "openvino_model.xml", "openvino_model_qint8_quantized.xml"
SAMPLES = 200  # 300 are NNCF's default


def export(settings: dict[str, Any], lists: Lists) -> None:
    """Write both, unless they are there."""
    import nncf
    import openvino
    from sentence_transformers import CrossEncoder

    checkpoint = Path(settings["checkpoint"])
    folder = checkpoint / "openvino"
    if (folder / QUANTISED).exists():
        return
    model = CrossEncoder(str(checkpoint), backend="openvino", model_kwargs={"export": True}, device="cpu")
    model.transformers_model.save_pretrained(checkpoint)  # goes to the folder openvino/
    plain = openvino.Core().read_model(folder / PLAIN)
    inputs = {port.get_any_name() for port in plain.inputs}

    def sample(pair: tuple[str, str]) -> dict[str, Any]:
        encoded = model.tokenizer(*pair, truncation=True, max_length=512, return_tensors="np")
        return {name: encoded[name] for name in inputs}

    pairs = list(islice(pairs_of(lists), SAMPLES))
    quantised = nncf.quantize(
        plain,
        nncf.Dataset(pairs, sample),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(pairs),
        preset=nncf.QuantizationPreset.MIXED,
    )
    openvino.save_model(quantised, folder / QUANTISED, compress_to_fp16=False)


if __name__ == "__main__":
    prepare(export)
