"""Which peers there are, and under which interpreter each runs."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.peers import onnx_export, openvino_export
from benchmarks.peers.process import ROOT

OURS = Path(sys.executable)
ENVIRONMENTS = ROOT / ".venv-peers"
"""One virtual environment a file of `requirements/`, of its name; where versions agree, peers share one."""

DEFAULT_BATCH = 32
_TRIED = (4, 8, 16, 32)


@dataclass(frozen=True, slots=True)
class Side:
    """One contender. name: as the tables show it, unique. module: in this package.

    precision: whose matrix product is its ceiling. batch_sizes: tried, and the fastest taken; none where the peer has
    its own way. environment: None for this project's own. prepare: a module and the environment in which it must have
    run first, with the same settings; it writes what the adapter reads.
    """

    name: str
    module: str
    precision: str
    environment: str | None = None
    batch_sizes: tuple[int, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    prepare: tuple[str, str] | None = None


def interpreter(environment: str | None, environments: Path) -> Path:
    """The Python of an environment."""
    return environments / environment / "bin" / "python" if environment else OURS


def _ours(precision: str, **settings: Any) -> Side:
    return Side(f"rerank-cli {precision}", "rerank_cli_engine", precision, settings=settings)


def _torch(name: str, precision: str, batch_sizes: tuple[int, ...]) -> Side:
    settings = {"backend": "torch"}
    return Side(name, _CROSS_ENCODER, precision, "sentence-transformers", batch_sizes, settings)


def _onnx(name: str, precision: str, file: str) -> Side:
    settings = {"backend": "onnx", "file": file}
    return Side(name, _CROSS_ENCODER, precision, "onnx", _TRIED, settings, _ONNX_EXPORT)


def _openvino(name: str, precision: str, file: str, ov_config: Mapping[str, str]) -> Side:
    settings = {"backend": "openvino", "file": file, "ov_config": ov_config}
    return Side(name, _CROSS_ENCODER, precision, "openvino", _TRIED, settings, ("openvino_export", "openvino"))


_CROSS_ENCODER = "sentence_transformers_ce"
_ONNX_EXPORT = ("onnx_export", "onnx")

SIDES = (
    _ours("fp32"),
    _ours("bf16"),
    _ours("int8"),
    _torch("sentence-transformers fp32, batch 32", "fp32", (DEFAULT_BATCH,)),
    _torch("sentence-transformers fp32, best batch", "fp32", _TRIED),
    _torch("sentence-transformers bf16, best batch", "bf16", _TRIED),
    _onnx("ONNX Runtime fp32, best batch", "fp32", onnx_export.PLAIN),
    _onnx("ONNX Runtime int8, best batch", "int8", onnx_export.QUANTISED),
    _openvino("OpenVINO fp32, best batch", "fp32", openvino_export.PLAIN, {"INFERENCE_PRECISION_HINT": "f32"}),
    _openvino("OpenVINO bf16, best batch", "bf16", openvino_export.PLAIN, {"INFERENCE_PRECISION_HINT": "bf16"}),
    # Without a hint OpenVINO chooses the precision of what is not quantised; on this CPU bf16.
    _openvino("OpenVINO int8, best batch", "int8", openvino_export.QUANTISED, {}),
    Side("rerankers fp32", "rerankers_lists", "fp32", "rerankers"),
    Side("FlashRank int8", "flashrank_lists", "int8", "flashrank", prepare=_ONNX_EXPORT),
    Side("infinity fp32", "infinity_engine", "fp32", "infinity"),
)


def _in_this_environment(name: str, precision: str, batch_sizes: tuple[int, ...]) -> Side:
    return Side(name, _CROSS_ENCODER, precision, None, batch_sizes, {"backend": "torch"})


DECLARED_SIDES = (
    _ours("fp32"),
    _ours("bf16"),
    _in_this_environment("sentence-transformers fp32, batch 32", "fp32", (DEFAULT_BATCH,)),
    _in_this_environment("sentence-transformers fp32, best batch", "fp32", _TRIED),
    _in_this_environment("sentence-transformers bf16, best batch", "bf16", _TRIED),
)
LLAMA_SIDES = (
    _ours("fp32", ids=True),
    _ours("bf16", ids=True),
    Side("padded transformers fp32, batch 32", "padded_llama", "fp32", None, (DEFAULT_BATCH,)),
    Side("padded transformers fp32, best batch", "padded_llama", "fp32", None, _TRIED),
    Side("padded transformers bf16, best batch", "padded_llama", "bf16", None, _TRIED),
)
