"""Whether a checkpoint's weights are quantised, and how; every way that is not known here is refused.

Known is FP8 as NVIDIA's ModelOpt writes it: for a quantised layer `X`

    X.weight         float8_e4m3fn [out, in]
    X.weight_scale   float32, one number: the weight is `X.weight * X.weight_scale`
    X.input_scale    float32, one number: what inputs are divided by before they are rounded to e4m3 themselves
    k_scale, v_scale of a key/value cache, which an encoder does not have

and everything else as in the model before. It is named by `quantization_config` in config.json, or by
hf_quant_config.json alone in older exports. Read from nvidia-modelopt 0.42.0's own output.

The 8-bit integers of the built-in model are a format of our own, without a name in config.json (`models/weights.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rerank_cli.checkpoint import Checkpoint
from rerank_cli.errors import ModelError

_MODELOPT_FILE = "hf_quant_config.json"
_KEYS = ("quantization_config", "compression_config")
_SECTIONS = ("llm_config", "text_config", "vision_config")


@dataclass(frozen=True, slots=True)
class Quantisation:
    """A way of quantising: who made it (`modelopt`) and which numbers the weights are (`FP8`)."""

    method: str
    algorithm: str

    def __str__(self) -> str:
        return f"{self.algorithm} weights of {self.method}"


_KNOWN = Quantisation("modelopt", "FP8")


def read_quantisation(checkpoint: Checkpoint) -> Quantisation | None:
    """How the checkpoint says that it is quantised; None where it is not. `ModelError` for any way but FP8."""
    declared = list(_declared(checkpoint))
    for where, method, algorithm in declared:
        if (method, algorithm) != (_KNOWN.method, _KNOWN.algorithm):
            raise ModelError(
                f"{where}: quantisation by `{method}` with `{algorithm}` is not known",
                hint="known are FP8 checkpoints of ModelOpt, and checkpoints that are not quantised",
            )
    return _KNOWN if declared else None


def _declared(checkpoint: Checkpoint) -> Iterator[tuple[str, Any, Any]]:
    """Each place that speaks of quantisation, as (file, method, algorithm)."""
    other = checkpoint.read_json(_MODELOPT_FILE)
    inner = other.get("quantization")
    beside = inner.get("quant_algo") if isinstance(inner, Mapping) else None
    if other:
        producer = other.get("producer")
        yield (
            str(checkpoint.path / _MODELOPT_FILE),
            producer.get("name") if isinstance(producer, Mapping) else None,
            beside,
        )
    sections = [checkpoint.config, *(checkpoint.config.get(name) for name in _SECTIONS)]
    for section in sections:
        for key in _KEYS:
            found = section.get(key) if isinstance(section, Mapping) else None
            if found is not None:
                config = found if isinstance(found, Mapping) else {}
                yield (
                    str(checkpoint.path / "config.json"),
                    config.get("quant_method", found if not config else None),
                    config.get("quant_algo", beside),
                )
