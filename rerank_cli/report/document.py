"""The report of a run as one JSON document: options, model, plan, machine, counts and times."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import rerank_cli
from rerank_cli.checkpoint import Checkpoint
from rerank_cli.evaluation.evaluator import Evaluation
from rerank_cli.machine.cpu import Cpu
from rerank_cli.machine.detect import Machine
from rerank_cli.machine.libraries import version_of
from rerank_cli.planning.run_plan import Plan
from rerank_cli.records import WORK, Counts, Timing
from rerank_cli.report.utilisation import forward_flops, matrix_speed

SCHEMA = "rerank-cli/report/1"

_UTILISATION_FROM = 20.0  # seconds of computing; of less, measuring the device would take more than 1 %


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
    """The document. seconds: wall time of the whole run, loading included; the speeds are relative to it."""
    spent = seconds or float("inf")
    work: dict[str, float] = {name: number for name in WORK if (number := getattr(counts, name))}
    if counts.computed_tokens:
        read = counts.tokens - counts.tokens_repeated
        work["padding_share"] = round(max(0.0, 1 - read / counts.computed_tokens), 4)
    return {
        "schema": SCHEMA,
        "version": rerank_cli.__version__,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
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
            **{name: version_of(name) for name in ("torch", "tokenizers", "safetensors", "numpy")},
        },
        "counts": counts.done,
        "seconds": {"wall": round(seconds, 3), **{name: round(value, 3) for name, value in asdict(timing).items()}},
        "speed": {
            "pairs_per_second": round(counts.pairs / spent, 3),
            "tokens_per_second": round(counts.tokens / spent, 1),
            **work,
        },
    }


def evaluation_report(evaluation: Evaluation, changes: Mapping[str, Any] | None) -> dict[str, Any]:
    """The evaluation as the report has it. changes: how the queries changed, where that is known."""
    return {"evaluation": asdict(evaluation), **({"changes": dict(changes)} if changes else {})}


def gpu_facts(machine: Machine) -> dict[str, Any]:
    """The GPUs that a run could use, and their driver; empty without GPUs."""
    if not machine.devices:
        return {}
    gpus = [
        {"cuda_index": device.cuda_index, "name": device.name, "total_bytes": device.total_bytes}
        for device in machine.devices
    ]
    return {"driver": machine.driver, "cuda": machine.cuda, "gpus": gpus}


def use_of_device(
    checkpoint: Checkpoint, plan: Plan, counts: Counts, timing: Timing, *, squares: int, alone: bool
) -> dict[str, float]:
    """How many operations a second the forward passes did, and as a share of a plain matrix product.

    The share is left out where several processes computed, because the product is measured in one, and where a GPU has
    no room for the product.

    Args:
        checkpoint: The model.
        plan: What ran.
        counts: Of the run.
        timing: Of the run.
        squares: Sum of the squared lengths of the computed pairs.
        alone: One process computed everything.
    """
    tokens = counts.tokens - counts.tokens_repeated
    if not tokens or not timing.compute:
        return {}
    flops = forward_flops(checkpoint, tokens=tokens, squares=squares, tiles=counts.tiles)
    found = {"gflops": round(flops / timing.compute / 1e9, 1)}
    if alone and timing.compute >= _UTILISATION_FROM:
        from torch import OutOfMemoryError  # loaded by now

        with suppress(OutOfMemoryError):
            reached = matrix_speed(plan)
            share = round(flops / timing.compute / reached, 3)
            found |= {"matrix_gflops": round(reached / 1e9, 1), "utilisation": share}
    return found


def memory_of(plan: Plan, *, peak_rss: int, engines: int | None = None) -> dict[str, Any]:
    """The estimated and the measured memory of the device, as far as they are known.

    peak_rss: of this process and of those that did earlier parts of the run. engines: bytes that the processes of
    several engines took on the device.
    """
    if engines is not None:
        measured, by = engines, f"the most that the processes of {len(plan.engines)} engines took, together on a device"
    elif plan.device == "cpu":
        measured, by = peak_rss, "the most memory that the process had resident"
    else:
        import torch  # loaded by now

        measured, by = torch.cuda.max_memory_reserved(plan.device), "the most that torch's allocator held, no context"
    known = {"estimated_bytes": plan.needed_bytes, "measured_bytes": measured}
    found: dict[str, Any] = {name: value for name, value in known.items() if value}
    return {"device": plan.device, **found, **({"measured": by} if measured else {})}
