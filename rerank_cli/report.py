"""The report of a run as one JSON document: what was asked, what was done, by what, and how long it took."""

from __future__ import annotations

import platform
import resource
import sys
from collections.abc import Mapping
from dataclasses import asdict
from importlib import metadata
from typing import Any

import rerank_cli
from rerank_cli.checkpoint import Checkpoint
from rerank_cli.counts import Counts, Timing
from rerank_cli.evaluation import Evaluation
from rerank_cli.hardware import Cpu
from rerank_cli.run_plan import Plan

SCHEMA = "rerank-cli/report/1"


def build_report(
    *,
    options: Mapping[str, Any],
    checkpoint: Checkpoint,
    plan: Plan,
    cpu: Cpu,
    counts: Counts,
    timing: Timing,
    seconds: float,
) -> dict[str, Any]:
    """The report's document. seconds: wall time of the whole run, loading included."""
    spent = timing.compute or float("inf")
    return {
        "schema": SCHEMA,
        "version": rerank_cli.__version__,
        "options": dict(options),
        "model": {
            "name": checkpoint.name,
            "path": str(checkpoint.path),
            "architecture": checkpoint.architecture,
            "parameters": checkpoint.parameters,
            "sha256": checkpoint.sha256,
        },
        "plan": asdict(plan),
        "machine": {
            "platform": platform.platform(),
            "cpu": cpu.name,
            "cores": cpu.cores,
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("torch", "tokenizers", "safetensors", "numpy")},
        },
        "counts": asdict(counts),
        "seconds": {"wall": round(seconds, 3), **{name: round(value, 3) for name, value in asdict(timing).items()}},
        "speed": {
            "pairs_per_second": round(counts.pairs / spent, 3),
            "tokens_per_second": round(counts.tokens / spent, 1),
        },
        "peak_rss_bytes": peak_rss_bytes(),
    }


def evaluation_report(evaluation: Evaluation) -> dict[str, Any]:
    """The evaluation as it stands in the report."""
    return asdict(evaluation)


def peak_rss_bytes() -> int:
    """The most memory that this process has had resident."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB
