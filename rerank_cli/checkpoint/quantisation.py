"""Whether a checkpoint's weights are quantised, and how; all ways but one are refused.

The one is FP8 as NVIDIA's ModelOpt writes it: for a quantised layer `X`

    X.weight         float8_e4m3fn [out, in]
    X.weight_scale   float32, one number: the weight is `X.weight * X.weight_scale`
    X.input_scale    float32, one number: inputs are divided by it before they are rounded to e4m3, too
    k_scale, v_scale of a key/value cache, which an encoder does not have

and everything else as in the unquantised model. `quantization_config` in config.json names it, or, in older exports,
hf_quant_config.json alone. Source: the output of nvidia-modelopt 0.42.0.

The 8-bit integers of the built-in model are our own format, without a name in config.json (`models/weights.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rerank_cli.checkpoint.json_file import read_json_file
from rerank_cli.errors import ModelError

if TYPE_CHECKING:
    from rerank_cli.checkpoint import Checkpoint

_MODELOPT_FILE = "hf_quant_config.json"
_KEYS = ("quantization_config", "compression_config")
# Files beside config.json by which older exports tell that their weights are quantised.
_OTHER_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
_SECTIONS = ("llm_config", "text_config", "vision_config")


@dataclass(frozen=True, slots=True)
class Quantisation:
    """A way of quantising: the tool (`modelopt`) and the kind of numbers (`FP8`)."""

    method: str
    algorithm: str

    def __str__(self) -> str:
        return f"{self.algorithm} weights of {self.method}"


_KNOWN = Quantisation("modelopt", "FP8")


def read_quantisation(checkpoint: Checkpoint) -> Quantisation | None:
    """How the checkpoint is quantised; None if it is not. `ModelError` for any way but ModelOpt's FP8."""
    return check_quantisation(checkpoint.path, checkpoint.config)


def check_quantisation(path: Path, config: Mapping[str, Any]) -> Quantisation | None:
    """As `read_quantisation`, before there is a `Checkpoint`. path: its folder. config: its config.json."""
    declared = list(_declarations(path, config))
    for where, method, algorithm in declared:
        if (method, algorithm) != (_KNOWN.method, _KNOWN.algorithm):
            how = f"`{method}`" + (f" with `{algorithm}`" if algorithm is not None else "")
            raise ModelError(
                f"{where}: quantisation by {how} is not known: its weights are not read",
                hint="known are FP8 checkpoints of ModelOpt, and checkpoints that are not quantised: name the one that "
                "this was made of",
            )
    return _KNOWN if declared else None


def _declarations(path: Path, config: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Each place that declares quantisation, as (file, method, algorithm)."""
    other = read_json_file(path / _MODELOPT_FILE) if (path / _MODELOPT_FILE).exists() else {}
    inner = other.get("quantization")
    beside = inner.get("quant_algo") if isinstance(inner, Mapping) else None
    if other:
        producer = other.get("producer")
        name = producer.get("name") if isinstance(producer, Mapping) else None
        yield str(path / _MODELOPT_FILE), name, beside
    for file, method in _OTHER_FILES.items():
        if (path / file).is_file():
            yield str(path / file), read_json_file(path / file).get("quant_method", method), None
    if isinstance(config.get("quantization"), Mapping):
        yield str(path / "config.json"), "mlx", None
    sections = [config, *(config.get(name) for name in _SECTIONS)]
    for section in sections:
        for key in _KEYS:
            found = section.get(key) if isinstance(section, Mapping) else None
            if found is not None:
                given = found if isinstance(found, Mapping) else {}
                yield (
                    str(path / "config.json"),
                    given.get("quant_method", found if not given else None),
                    given.get("quant_algo", beside),
                )
