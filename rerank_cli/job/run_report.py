"""The report of a run, made from what its parts know when the last window is written."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rerank_cli.job.kept_vectors import EmbeddedTexts
from rerank_cli.job.options import JobOptions
from rerank_cli.job.prepare import Prepared
from rerank_cli.job.totals import Totals
from rerank_cli.planning.faster_hint import faster_on
from rerank_cli.planning.run_plan import Plan
from rerank_cli.report import document as reports

if TYPE_CHECKING:
    from rerank_cli.engine import Engine


def describe_run(
    options: JobOptions, prepared: Prepared, plan: Plan, totals: Totals, engine: Engine, texts: EmbeddedTexts | None
) -> dict[str, Any]:
    """The report on what every run does; `run.py` adds what only some runs do.

    Args:
        options: Of the run.
        prepared: Its model and inputs.
        plan: As the run went.
        totals: Of all processes of the run.
        engine: That has scored.
        texts: That an embedding model has read.
    """
    asked = asdict(options)
    command = asked.pop("command")
    document = reports.build_report(
        options=asked,
        checkpoint=prepared.checkpoint,
        plan=plan,
        cpu=prepared.machine.cpu,
        counts=totals.counts,
        timing=totals.timing,
        seconds=totals.seconds,
    )
    document["machine"] |= reports.gpu_facts(prepared.machine)
    document["model"]["template"] = prepared.encoder.template
    document["plan"]["kernels"] = engine.kernels
    document["peak_rss_bytes"] = totals.peak_rss
    document["memory"] = reports.memory_of(plan, peak_rss=totals.peak_rss, engines=engine.peak_bytes)
    document |= totals.observed.document(prepared.score)
    if faster := faster_on(
        prepared.machine.cpu, device=plan.device, precision=plan.precision, checkpoint=prepared.checkpoint
    ):
        document["faster"] = faster
    if command:
        document["command"] = command
    document["continued"] = totals.continued
    document["first_error"] = totals.first_error
    if totals.counts.in_errors_file and (errors := options.names.files.get("errors")):
        document["errors_file"] = str(errors)
    if texts:  # the use of the device follows from lengths of pairs, and an embedder reads texts
        document["embedded"] = texts.facts
    elif prepared.first is None:
        from rerank_cli.engine.local import LocalEngine  # imports torch, which is loaded by now

        document["speed"] |= reports.use_of_device(
            prepared.checkpoint, plan, totals.counts, totals.timing,
            squares=totals.observed.squares, alone=isinstance(engine, LocalEngine),
        )  # fmt: skip
    return document
