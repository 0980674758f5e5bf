"""A run from options to report: what `score` and `rerank-file` call.

    options -> checkpoint -> plan -> destination -> work -> report

Everything that can be refused is refused before weights are loaded: the inputs, the output's name, the model's files,
the plan, an unfinished job that is another one. Then the reader starts, and only then the model loads (`work.py`). A
run that has been done already is recognised before torch is imported, which is why nothing here imports it at the top.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rerank_cli.checkpoint import Checkpoint
from rerank_cli.checkpoint.families import family_of
from rerank_cli.engine import open_engine
from rerank_cli.evaluation.measures import Evaluation, Evaluator
from rerank_cli.formats.inputs import Input, can_be_reread, resolve_inputs
from rerank_cli.job.options import JobOptions, refuse_unusable
from rerank_cli.job.output import FileDestination, open_destination, place_page
from rerank_cli.job.output_names import STDOUT
from rerank_cli.job.prepare import find_known, prepare_inputs, score_name
from rerank_cli.job.same_job import fingerprint_of, finished_report
from rerank_cli.job.stop import Stop
from rerank_cli.job.work import OpensEngine, Watcher, Work
from rerank_cli.journal import Files, Job, Terms
from rerank_cli.records import Counts

__all__ = ["OpensEngine", "Outcome", "Watcher", "run_job"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a finished run did.

    errors: path of the errors file, if there is one. first_error: the first bad row, as file, row and message.
    was_done: an earlier run had finished, and this one did nothing.
    """

    counts: Counts
    report: dict[str, Any]
    evaluation: Evaluation | None
    errors: str | None
    first_error: tuple[str, int, str] | None
    was_done: bool = False


def run_job(
    options: JobOptions,
    watcher: Watcher | None = None,
    *,
    files: Files | None = None,
    stop: Stop | None = None,
    open_engine: OpensEngine = open_engine,
) -> Outcome:
    """Do the whole run and leave its output, errors file and report; raises `RerankError` for what stops it.

    files: how the output is written. stop: how the run is stopped from outside, besides signals and its deadline.
    """
    watcher, stop, files = watcher or Watcher(), stop or Stop(), files or Files()
    with stop.listening(options.deadline):
        refuse_unusable(options)
        inputs, known = resolve_inputs(options.inputs, options.in_format, options.shape), find_known(options)
        names = options.names
        may_continue = can_be_reread(inputs) and names.output != STDOUT
        asked = fingerprint_of(options, inputs, known) if may_continue and not options.restart else None
        if asked and not Job.folder_of(names.output).exists() and (done := finished_report(names, asked)):
            return _done_before(done, options, inputs, files)
        if not may_continue and names.output != STDOUT and watcher.on_note:
            watcher.on_note("a pipe cannot be read again: if this run is stopped, the next one starts over")
        prepared = prepare_inputs(options, inputs, known)
        stop.check()
        evaluator = Evaluator(options.qrels, options.metrics) if options.qrels else None
        fingerprint = fingerprint_of(options, inputs, known, prepared.plan, prepared.machine) if may_continue else None
        terms = Terms(fingerprint, options.restart, options.checkpoint_every, options.lock_wait, files)
        members = _members(options, prepared.checkpoint, may_continue=may_continue)
        destination = open_destination(
            names,
            prepared.shape,
            replace(options.selection, score=score_name(prepared.checkpoint)),
            inputs=inputs,
            overwrite=options.overwrite,
            terms=terms,
            members=members,
        )
        with destination:
            if isinstance(destination, FileDestination):
                if destination.completed is not None:
                    stop.is_late()
                    destination.place()
                    return _done_before(destination.completed["report"], options, inputs, files)
                # Again: another process may have finished while this one waited for the lock.
                if asked and (done := finished_report(names, asked)):
                    return _done_before(done, options, inputs, files)
                destination.refuse_existing()
            work = Work(options, prepared, destination, evaluator, watcher, stop)
            finished = work.run(fingerprint, members, open_engine)
            totals = finished.totals
            return Outcome(
                totals.counts, finished.report, finished.evaluation, destination.errors_file, totals.first_error
            )


def _done_before(report: dict[str, Any], options: JobOptions, inputs: Sequence[Input], files: Files) -> Outcome:
    """What a run did that had finished before, with the page that is asked for now."""
    place_page(options.names, report, inputs, files)
    evaluation = None
    if found := report.get("evaluation"):
        evaluation = Evaluation.of_report(found)
    counts = Counts(**report["counts"])
    errors = str(options.names.files["errors"]) if counts.in_errors_file else None
    first = report["first_error"]
    return Outcome(counts, report, evaluation, errors, tuple(first) if first else None, was_done=True)


def _members(options: JobOptions, checkpoint: Checkpoint, *, may_continue: bool) -> tuple[str, ...]:
    """What the windows of this run add to besides rows and errors."""
    if not family_of(checkpoint.architecture).embeds:
        return ()
    return ("vectors",) * may_continue + ("texts",) * (options.names.embeddings is not None)
