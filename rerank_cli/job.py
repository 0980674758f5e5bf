"""A run from options to report: what `score` and `rerank-file` call, and what `--dry-run` calls.

    options -> checkpoint -> plan -> rows -> pipeline -> sink -> report

Everything that can be refused is refused before weights are loaded: the inputs, the output's name, the model's files,
the plan, an unfinished job that is another one. Then the reader starts, and only then the model loads. A run that has
been done already is recognised before torch is imported, which is why nothing here imports it at the top.

A run that is continued reads its input again and tokenises from the first window that is not committed. What is not in
the rows comes from the journal: the counts and times so far (`state`), the orders for `--qrels` and the best rows of
`score --top-n` (a note a window).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from rerank_cli import report as reports
from rerank_cli.checkpoint import Checkpoint, locate_checkpoint, read_checkpoint
from rerank_cli.commit import Files, Fingerprint, Job, Terms
from rerank_cli.destination import STDOUT, Destination, FileDestination, Names, open_destination
from rerank_cli.encoding import SpecialTokens, TextEncoder, Truncation, model_max_tokens, open_encoder
from rerank_cli.engine import open_engine
from rerank_cli.errors import UsageError
from rerank_cli.evaluation import Comparison, Evaluation, Evaluator
from rerank_cli.formats.inputs import (
    Input,
    ReadOptions,
    can_be_reread,
    count_lines,
    input_bytes,
    open_lists,
    ordered_by_group,
    read_items,
    resolve_inputs,
)
from rerank_cli.formats.shapes import FieldNames, Item, PairShape, Selection, Shape
from rerank_cli.formats.sinks import BestSink
from rerank_cli.hardware import detect_cpu
from rerank_cli.identity import fingerprint_of, finished_report
from rerank_cli.pipeline import Counts, ErrorLimit, Part, Pool, Run, Timing
from rerank_cli.records import JsonRow, RowError, Window
from rerank_cli.selection import Plan, Request, make_plan
from rerank_cli.stop import Stop

_SCORE_WINDOW_PAIRS = 64  # `score` streams: a window is what a reader at the other end of a pipe waits for
_HASH_SECONDS = 1.0  # how long a finished run waits to know all files by their content; later it can look at them again


@dataclass(frozen=True, slots=True)
class JobOptions:
    """What the user asked for; every field that changes the output's bytes is here.

    shard: (i, n), the i-th of n parts. checkpoint_every, lock_wait, deadline: seconds.
    """

    inputs: tuple[str, ...]
    names: Names
    pairs: bool = False  # score: one pair a row, input order
    query: str | None = None
    in_format: str = "auto"
    shape: str = "auto"
    fields: FieldNames = field(default_factory=FieldNames)
    model: str | None = None
    revision: str | None = None
    online: bool = False
    request: Request = field(default_factory=Request)
    truncate: Truncation = "end"
    chunk_overlap: int = 64
    pool: Pool = "max"
    special_tokens: SpecialTokens = "neutral"
    instruction: str | None = None
    template: str | None = None  # its text, or `none`
    selection: Selection = field(default_factory=Selection)
    error_limit: ErrorLimit = field(default_factory=ErrorLimit)
    overwrite: bool = False
    restart: bool = False
    checkpoint_every: float = 5.0
    lock_wait: float = 0.0
    deadline: float | None = None
    shard: tuple[int, int] | None = None
    skip: int = 0
    limit: int | None = None
    max_line_bytes: int = 64 * 2**20
    qrels: str | None = None
    metrics: tuple[str, ...] = ("nDCG@10",)


@dataclass(slots=True)
class Watcher:
    """What a run tells while it goes on; each hook may be None.

    on_start: the plan, before weights are loaded. on_note: something the user should know. on_error: each bad row of
    this process. on_batch: (pairs, tokens) handed to the device. on_progress: the counts and the share of the input
    that was read (None from a pipe), after each window.
    """

    on_start: Callable[[Checkpoint, Plan], None] | None = None
    on_note: Callable[[str], None] | None = None
    on_error: Callable[[RowError], None] | None = None
    on_batch: Callable[[int, int], None] | None = None
    on_progress: Callable[[Counts, float | None], None] | None = None


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


@dataclass(frozen=True, slots=True)
class Prepared:
    """What can be known before weights are loaded."""

    checkpoint: Checkpoint
    plan: Plan
    encoder: TextEncoder
    inputs: list[Input]
    shape: Shape
    items: Iterator[Item]
    meter: _Meter
    read: ReadOptions


class _Meter:
    """Counts what has been read of the inputs, for progress."""

    def __init__(self, inputs: Sequence[Input]) -> None:
        compressed = any(item.path.endswith((".gz", ".zst")) for item in inputs)
        tables = any(item.format == "parquet" for item in inputs)
        self._total = None if compressed or tables else input_bytes(inputs)
        self._bytes = 0

    def count(self, items: Iterable[Item]) -> Iterator[Item]:
        """`items`, counted as they pass."""
        for item in items:
            if isinstance(item, (JsonRow, RowError)):
                self._bytes += len(item.raw) + 1
            yield item

    @property
    def share(self) -> float | None:
        """How much of the input has been read, 0 to 1."""
        return min(1.0, self._bytes / self._total) if self._total else None


def run_job(
    options: JobOptions, watcher: Watcher | None = None, *, files: Files | None = None, stop: Stop | None = None
) -> Outcome:
    """Do the whole run and leave its output, errors file and report; raises `RerankError` for what stops it.

    files: how the output is written. stop: how the run is stopped from outside, besides signals and its deadline.
    """
    watcher, stop, files = watcher or Watcher(), stop or Stop(), files or Files()
    with stop.listening(options.deadline):
        _refuse_unusable(options)
        inputs = resolve_inputs(options.inputs, options.in_format)
        checkpoint = read_checkpoint(
            locate_checkpoint(options.model, revision=options.revision, online=options.online), name=options.model
        )
        names, fields = options.names, asdict(options)
        may_continue = can_be_reread(inputs) and names.output != STDOUT
        asked = fingerprint_of(fields, names, inputs, checkpoint) if may_continue and not options.restart else None
        if asked and not Job.folder_of(names.output).exists() and (done := finished_report(names, asked)):
            return _outcome_of(done, options)
        if not may_continue and names.output != STDOUT and watcher.on_note:
            watcher.on_note("a pipe cannot be read again: if this run is stopped, the next one starts over")
        prepared = _prepare(options, inputs, checkpoint)
        evaluator = Evaluator(options.qrels, options.metrics, prepared.shape) if options.qrels else None
        plan = asdict(prepared.plan)
        fingerprint = fingerprint_of(fields, names, inputs, checkpoint, plan) if may_continue else None
        terms = Terms(fingerprint, options.restart, options.checkpoint_every, options.lock_wait, files)
        destination = open_destination(
            names, prepared.shape, options.selection, inputs=inputs, overwrite=options.overwrite, terms=terms
        )
        with destination:
            if isinstance(destination, FileDestination):
                if destination.completed is not None:
                    with stop.held():
                        destination.place()
                    return _outcome_of(destination.completed["report"], options)
                # Again: another process may have finished while this one waited for the lock.
                if asked and (done := finished_report(names, asked)):
                    return _outcome_of(done, options)
                destination.refuse_existing()
            return _Work(options, prepared, destination, evaluator, watcher, stop).run(fingerprint)


class _Work:
    """A run whose parts are there: what goes from one process to the next, and the loop."""

    def __init__(
        self,
        options: JobOptions,
        prepared: Prepared,
        destination: Destination,
        evaluator: Evaluator | None,
        watcher: Watcher,
        stop: Stop,
    ) -> None:
        self._began = time.perf_counter()
        self._options = options
        self._prepared = prepared
        self._destination = destination
        self._evaluator = evaluator
        self._watcher = watcher
        self._stop = stop
        self._best = _best_of_run(options, destination)
        self._first_error: tuple[str, int, str] | None = None
        self._seconds_before = 0.0
        self._times_continued = 0
        self._counts, self._timing = Counts(), Timing()
        self._plan = prepared.plan
        self._notes_of_best: dict[int, Any] = {}
        if destination.state is not None:
            self._restore(destination.state, destination.notes)

    def run(self, fingerprint: Fingerprint | None) -> Outcome:
        """Load the model and do what is left."""
        options, prepared, destination, watcher = self._options, self._prepared, self._destination, self._watcher
        if watcher.on_start:
            watcher.on_start(prepared.checkpoint, self._plan)
        with ExitStack() as stack:
            if fingerprint:
                fingerprint.start()
                stack.callback(fingerprint.stop)
            engine = open_engine(self._plan, prepared.checkpoint)
            stack.callback(engine.close)
            shard, shards = options.shard or (1, 1)
            lines = count_lines(prepared.inputs, prepared.read) if options.shard else 1
            run = Run(
                encoder=prepared.encoder,
                engine=engine,
                sink=self._best or destination.sink,
                on_error=self._on_error,
                selection=_per_list(options),
                pool=options.pool,
                error_limit=options.error_limit,
                on_ranked=self._evaluator.add if self._evaluator else None,
                on_batch=watcher.on_batch,
                on_window=self._on_window,
                on_done=self._on_done,
                part=Part(destination.next_window, shard, shards, lines),
                counts=self._counts,
                timing=self._timing,
                stop=self._stop,
            )
            window_pairs = _SCORE_WINDOW_PAIRS if options.pairs else self._plan.window_pairs
            run.execute(prepared.shape.group(prepared.items), window_pairs=window_pairs)
            if self._best:
                self._counts.output_rows += self._best.finish()
                self._counts.dropped += self._best.dropped
            evaluation = self._evaluator.finish() if self._evaluator else None
            document = self._report(engine.kernels, evaluation, fingerprint)
            document = destination.commit(document, self._stop)
        return Outcome(self._counts, document, evaluation, destination.errors_file, self._first_error)

    def _restore(self, state: dict[str, Any], notes: Sequence[Any]) -> None:
        self._counts, self._timing = Counts(**state["counts"]), Timing(**state["timing"])
        self._seconds_before = state["seconds"]
        self._times_continued = state["continued"] + 1
        self._first_error = tuple(state["first_error"]) if state["first_error"] else None
        # The number of threads can move the last digit of a logit, so a run ends with as many as it began with.
        self._plan = replace(self._plan, threads=state["threads"])
        if self._best:
            self._best.dropped = state["dropped"]
        for window, note in notes:
            if self._evaluator:
                self._evaluator.restore(note["orders"])
            if self._best:
                self._notes_of_best[window] = note["best"]
        if self._watcher.on_note:
            self._watcher.on_note(
                f"goes on after {self._counts.rows_in:,} rows (window {self._destination.next_window}), "
                "which an earlier process has finished"
            )

    def _on_error(self, error: RowError) -> None:
        self._first_error = self._first_error or (error.file, error.row, error.message)
        self._destination.errors.write(error)
        if self._watcher.on_error:
            self._watcher.on_error(error)

    def _on_done(self, window: Window) -> None:
        if self._best and (note := self._notes_of_best.pop(window.number, None)):
            self._best.restore(window, note)

    def _on_window(self, window: Window, counts: Counts) -> None:
        state = {
            "counts": asdict(counts),
            "timing": asdict(self._timing),
            "seconds": round(self._seconds, 3),
            "continued": self._times_continued,
            "first_error": self._first_error,
            "threads": self._plan.threads,
            "dropped": self._best.dropped if self._best else 0,
        }
        note: dict[str, Any] = {}
        if self._evaluator and self._evaluator.note:
            note["orders"] = self._evaluator.note
        if self._best and self._best.note:
            note["best"] = self._best.note
        self._destination.end_window(window.number, state, note or None)
        if self._watcher.on_progress:
            self._watcher.on_progress(counts, self._prepared.meter.share)

    @property
    def _seconds(self) -> float:
        return self._seconds_before + time.perf_counter() - self._began

    def _report(self, kernels: str, evaluation: Evaluation | None, fingerprint: Fingerprint | None) -> dict[str, Any]:
        prepared = self._prepared
        document = reports.build_report(
            options=asdict(self._options),
            checkpoint=prepared.checkpoint,
            plan=self._plan,
            cpu=detect_cpu(),
            counts=self._counts,
            timing=self._timing,
            seconds=self._seconds,
        )
        document["model"]["template"] = prepared.encoder.template
        document["plan"]["kernels"] = kernels
        document["continued"] = self._times_continued
        document["first_error"] = self._first_error
        if evaluation:
            document["evaluation"] = reports.evaluation_report(evaluation)
        if fingerprint:
            fingerprint.wait(_HASH_SECONDS)
            document["job"] = fingerprint.document()
        return document


def _outcome_of(report: dict[str, Any], options: JobOptions) -> Outcome:
    """What a run did that had finished before."""
    evaluation = None
    if found := report.get("evaluation"):
        evaluation = Evaluation(**{**found, "metrics": tuple(Comparison(**metric) for metric in found["metrics"])})
    counts = Counts(**report["counts"])
    errors = str(options.names.files["errors"]) if counts.rows_error else None
    first = report["first_error"]
    return Outcome(counts, report, evaluation, errors, tuple(first) if first else None, was_done=True)


def prepare(options: JobOptions) -> Prepared:
    """Everything that can be known or refused before weights are loaded."""
    _refuse_unusable(options)
    inputs = resolve_inputs(options.inputs, options.in_format)
    checkpoint = read_checkpoint(
        locate_checkpoint(options.model, revision=options.revision, online=options.online), name=options.model
    )
    return _prepare(options, inputs, checkpoint)


def _prepare(options: JobOptions, inputs: list[Input], checkpoint: Checkpoint) -> Prepared:
    import torch  # not at the top: see the module's text

    plan = make_plan(
        options.request,
        model_max_tokens=model_max_tokens(checkpoint),
        cpu=detect_cpu(),
        cuda_devices=torch.cuda.device_count(),
    )
    encoder = open_encoder(
        checkpoint,
        max_tokens=plan.max_tokens,
        truncate=options.truncate,
        chunk_overlap=options.chunk_overlap,
        special_tokens=options.special_tokens,
        instruction=options.instruction,
        template=options.template,
    )
    plan = replace(plan, reasons=(*plan.reasons, f"template {encoder.template!r}"))
    read = ReadOptions(options.max_line_bytes, live=options.pairs, skip=options.skip, limit=options.limit)
    if options.pairs:
        shape: Shape = PairShape(options.fields, query=options.query)
        items = read_items(inputs, shape, read)
    else:
        shape, items = open_lists(inputs, options.fields, read, options.shape)
        items = ordered_by_group(inputs, shape, items, read)
    meter = _Meter(inputs)
    return Prepared(checkpoint, plan, encoder, inputs, shape, meter.count(items), meter, read)


def _per_list(options: JobOptions) -> Selection:
    """The selection within a list; `score --top-n` selects from the whole run instead (`BestSink`)."""
    return replace(options.selection, top_n=None) if options.pairs else options.selection


def _best_of_run(options: JobOptions, destination: Destination) -> BestSink | None:
    if not options.pairs or options.selection.top_n is None:
        return None
    return BestSink(destination.sink, top_n=options.selection.top_n)


def _refuse_unusable(options: JobOptions) -> None:
    """Values that parse and mean nothing, which would otherwise be found out when the run ends."""
    threshold = options.selection.threshold
    if threshold is not None and not math.isfinite(threshold):
        raise UsageError(f"--threshold {threshold}: not a number to compare with")
    if options.shard and options.pairs and options.selection.top_n is not None:
        raise UsageError("--shard: the best rows of a part are not the best of the whole", hint="leave out --top-n")
    if options.shard and not can_be_reread(resolve_inputs(options.inputs, options.in_format)):
        raise UsageError("--shard: a pipe cannot be cut in parts", hint="give the name of a file")
    try:
        (options.query or "").encode()
    except UnicodeEncodeError as error:
        raise UsageError("--query: not UTF-8") from error
