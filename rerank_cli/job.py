"""A run from options to report: what `score` and `rerank-file` call, and what `--dry-run` calls.

    options -> checkpoint -> plan -> rows -> pipeline -> sink -> report

Everything that can be refused is refused before weights are loaded: the inputs, the output's name, the model's files,
the plan, an unfinished job that is another one. Then the reader starts, and only then the model loads. A run that has
been done already is recognised before torch is imported, which is why nothing here imports it at the top.

A run that is continued reads its input again and tokenises from the first window that is not committed. What is not in
the rows comes from the journal: the counts and times so far (`state`), the values for `--qrels` and the best rows of
`score --top-n` (a note a window).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from rerank_cli import report as reports
from rerank_cli.agreement import Agreement
from rerank_cli.checkpoint import Checkpoint
from rerank_cli.commit import Files, Fingerprint, Job, Terms
from rerank_cli.counts import Counts, Timing
from rerank_cli.destination import Destination, FileDestination, open_destination, place_page
from rerank_cli.embedding_output import EmbeddedTexts
from rerank_cli.engine import ScoresExactly, open_engine
from rerank_cli.evaluation import Evaluation, Evaluator, orders_of
from rerank_cli.families import family_of
from rerank_cli.formats.inputs import Input, can_be_reread, count_lines, resolve_inputs
from rerank_cli.formats.shapes import Selection
from rerank_cli.formats.sinks import BestSink
from rerank_cli.identity import fingerprint_of, finished_report
from rerank_cli.images.seen import SeenImages
from rerank_cli.job_options import JobOptions, refuse_unusable
from rerank_cli.observations import Observations
from rerank_cli.output_names import STDOUT
from rerank_cli.parts import EncodedWindow
from rerank_cli.per_query import per_query_bytes
from rerank_cli.pipeline import Run, Sink
from rerank_cli.preparation import Prepared, find_known, prepare_inputs, score_name
from rerank_cli.ranking import score_exactly
from rerank_cli.records import RankedList, RowError, Window
from rerank_cli.run_plan import Plan
from rerank_cli.runtime import peak_rss_bytes
from rerank_cli.stop import Stop
from rerank_cli.windows import Share

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from rerank_cli.engine import Engine
    from rerank_cli.parts import EncodedWindow

_SCORE_WINDOW_PAIRS = 64  # `score` streams: a window is what a reader at the other end of a pipe waits for
_FEW_PAIRS = 8  # to calibrate on: with 4 of one list logits were off by 0.1 in the mean, with 1 by 0.7
_HASH_SECONDS = 1.0  # how long a finished run waits to know all files by their content; later it can look at them again


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


class OpensEngine(Protocol):
    """How a run gets its engine; `engine.open_engine` is one."""

    def __call__(
        self,
        plan: Plan,
        checkpoint: Checkpoint,
        calibration: Mapping[str, Any] | None,
        *,
        on_note: Callable[[str], None] | None,
    ) -> Engine:
        """An engine for the plan, which the run closes."""


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
            work = _Work(options, prepared, destination, evaluator, watcher, stop)
            return work.run(fingerprint, members, open_engine)


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
        self._sink: Sink = self._best or destination.sink
        if options.names.output == STDOUT and not self._best:
            self._sink = _Streamed(destination.sink, stop)
        self._first_error: tuple[str, int, str] | None = None
        self._seconds_before = 0.0
        self._times_continued = 0
        self._counts, self._timing = Counts(), Timing()
        self._observed = Observations()
        self._peak_rss = 0  # of earlier processes
        self._plan = prepared.plan
        self._notes_of_best: dict[int, Any] = {}
        self._texts: EmbeddedTexts | None = None
        self._calibration: Mapping[str, Any] | None = None
        self._new_calibration: Mapping[str, Any] | None = None  # until it is in the journal
        self._agreement = Agreement(options.check_precision) if options.check_precision else None
        self._images = SeenImages()
        if destination.state is not None:
            self._restore(destination.state, destination.notes)

    def run(self, fingerprint: Fingerprint | None, members: Sequence[str], open_engine: OpensEngine) -> Outcome:
        """Load the model and do what is left."""
        options, prepared, destination, watcher = self._options, self._prepared, self._destination, self._watcher
        options.error_limit.check(self._counts, last=False)  # of an earlier process, which has stopped for it
        if watcher.on_start:
            watcher.on_start(prepared.checkpoint, self._plan)
        with ExitStack() as stack:
            if fingerprint:
                fingerprint.start()
                stack.callback(fingerprint.stop)
            engine = open_engine(self._plan, prepared.checkpoint, self._calibration, on_note=watcher.on_note)
            stack.callback(engine.close)
            self._stop.check()
            self._texts = self._open_texts(engine, members)
            shard, shards = options.shard or (1, 1)
            lines = count_lines(prepared.inputs, prepared.read) if options.shard else 1
            run = Run(
                encoder=prepared.encoder,
                engine=engine,
                sink=self._sink,
                on_error=self._on_error,
                selection=_per_list(options),
                pool=options.pool,
                error_limit=options.error_limit,
                on_scored=self._on_scored,
                on_logits=self._comparison(engine),
                on_calibrated=self._on_calibrated,
                on_ranked=self._on_ranked,
                on_batch=self._on_batch,
                on_window=self._on_window,
                on_done=self._on_done,
                share=Share(destination.next_window, shard, shards, lines),
                counts=self._counts,
                timing=self._timing,
                stop=self._stop,
            )
            self._timing.load += time.perf_counter() - self._began
            self._observed.begin_scoring(self._seconds)
            window_pairs = _SCORE_WINDOW_PAIRS if options.pairs else self._plan.window_pairs
            run.execute(prepared.shape.group(prepared.items), window_pairs=window_pairs)
            if self._best:
                self._counts.output_rows += self._best.finish()
                self._counts.dropped += self._best.dropped
            if self._texts:  # pairs share texts and images, and each was read once
                self._counts.put(self._texts.state["work"])
            evaluation = self._evaluator.finish() if self._evaluator else None
            if self._texts and options.names.embeddings:
                with destination.writing("embeddings") as file:
                    self._texts.write_file(destination.path("texts"), file)
            if self._evaluator and (name := options.names.per_query):
                with destination.writing("per_query") as file:
                    file.writelines(per_query_bytes(self._evaluator.per_query(), name))
            document = self._report(engine, evaluation, fingerprint)
            document = destination.commit(document, self._stop)
        return Outcome(self._counts, document, evaluation, destination.errors_file, self._first_error)

    def _restore(self, state: dict[str, Any], notes: Sequence[Any]) -> None:
        self._counts, self._timing = Counts(**state["counts"]), Timing(**state["timing"])
        self._seconds_before = state["seconds"]
        self._times_continued = state["continued"] + 1
        self._observed = Observations(state["observed"])
        self._observed.add_continued(self._seconds_before)
        self._peak_rss = state["peak_rss_bytes"]
        self._first_error = tuple(state["first_error"]) if state["first_error"] else None
        # Both can move the last digit of a logit, and depend on what else the machine does: a run ends as it began.
        self._plan = replace(self._plan, threads=state["threads"], token_budget=state["token_budget"])
        if self._best:
            self._best.dropped = state["dropped"]
        for window, note in notes:
            if "values" in note and self._evaluator:
                self._evaluator.restore(note["values"])
            if "best" in note:
                self._notes_of_best[window] = note["best"]
            self._calibration = note.get("calibration", self._calibration)
        if state["agreement"]:
            self._agreement = Agreement.restored(state["agreement"])
        if self._watcher.on_note:
            self._watcher.on_note(
                f"goes on after {self._counts.rows_in:,} rows (window {self._destination.next_window}), "
                "which an earlier process has finished"
            )

    def _open_texts(self, engine: Engine, members: Sequence[str]) -> EmbeddedTexts | None:
        """What an embedding model keeps; with what an earlier process has kept."""
        from rerank_cli.engine.embedding import EmbeddingEngine  # torch is there by now

        if not isinstance(engine, EmbeddingEngine):
            return None
        texts = EmbeddedTexts(engine, members)
        if self._destination.state is not None:
            where = {name: self._destination.path(name) for name in members}
            texts.restore(where["vectors"], where.get("texts"), self._destination.state["embedded"])
        return texts

    def _comparison(self, engine: Engine) -> Callable[[EncodedWindow, npt.NDArray[np.float32]], None] | None:
        """What `--check-precision` does with the logits of a window; None where there is nothing to compare."""
        agreement = self._agreement
        if agreement is None or agreement.complete:
            return None
        exact = engine if isinstance(engine, ScoresExactly) else None
        if exact is None or self._plan.precision == "fp32":
            self._agreement = None
            why = "the model gives no logits" if exact is None else "the run is in fp32"
            self._note(f"--check-precision: nothing to compare, {why}")
            return None

        def compare(encoded: EncodedWindow, logits: npt.NDArray[np.float32]) -> None:
            agreement.add(encoded, logits, lambda some: score_exactly(some, exact, pool=self._options.pool))
            if agreement.complete:
                exact.forget_exact()

        return compare

    def _on_calibrated(self, calibration: Mapping[str, Any]) -> None:
        self._new_calibration = calibration
        if calibration["pairs"] < _FEW_PAIRS:
            self._note(
                f"warning: int8 is calibrated on the first {calibration['pairs']} pairs alone; scores of others may be "
                "off by more than 1 (`--check-precision 100` measures it)"
            )

    def _note(self, text: str) -> None:
        if self._watcher.on_note:
            self._watcher.on_note(text)

    def _on_error(self, error: RowError) -> None:
        self._first_error = self._first_error or (error.file, error.row, error.message)
        self._observed.add_error(error)
        self._destination.errors.write(error)
        if self._watcher.on_error:
            self._watcher.on_error(error)

    def _on_batch(self, pairs: int, tokens: int) -> None:
        self._observed.add_batch(self._seconds, pairs, tokens)
        if self._watcher.on_batch:
            self._watcher.on_batch(pairs, tokens)

    def _on_scored(self, window: EncodedWindow) -> None:
        self._observed.add_lengths(window)
        if self._texts:
            self._texts.add(window)

    def _on_ranked(self, ranked: Sequence[RankedList]) -> None:
        self._observed.add_ranked(ranked)
        if self._evaluator:
            self._evaluator.add(orders_of(ranked, self._prepared.shape, self._evaluator.is_judged))

    def _on_done(self, window: Window) -> None:
        self._images.add(window)
        state = self._destination.state
        if state and window.number == self._destination.next_window - 1 and self._images.digest != state["images"]:
            raise Job.changed(self._options.names.output, "an image file of its finished rows was changed")
        if self._best and (note := self._notes_of_best.pop(window.number, None)):
            self._best.restore(window, note)

    def _on_window(self, window: Window, counts: Counts) -> None:
        self._images.add(window)
        state = {
            "images": self._images.digest,
            "counts": asdict(counts),
            "timing": asdict(self._timing),
            "seconds": round(self._seconds, 3),
            "continued": self._times_continued,
            "first_error": self._first_error,
            "threads": self._plan.threads,
            "token_budget": self._plan.token_budget,
            "embedded": self._texts.state if self._texts else None,
            "dropped": self._best.dropped if self._best else 0,
            "observed": self._observed.state,
            "peak_rss_bytes": self._highest_rss,
            "agreement": self._agreement.state if self._agreement else None,
        }
        note: dict[str, Any] = {}
        if self._evaluator and self._evaluator.note:
            note["values"] = self._evaluator.note
        if self._best and self._best.note:
            note["best"] = self._best.note
        if self._new_calibration:  # once: it is as large as a thousand rows
            note["calibration"], self._new_calibration = self._new_calibration, None
        more = self._texts.take() if self._texts else {}
        self._destination.end_window(window.number, state, note or None, more)
        if self._watcher.on_progress:
            self._watcher.on_progress(counts, self._prepared.meter.share)

    @property
    def _seconds(self) -> float:
        return self._seconds_before + time.perf_counter() - self._began

    @property
    def _highest_rss(self) -> int:
        return max(self._peak_rss, peak_rss_bytes())

    def _report(self, engine: Engine, evaluation: Evaluation | None, fingerprint: Fingerprint | None) -> dict[str, Any]:
        prepared, options = self._prepared, asdict(self._options)
        command = options.pop("command")
        document = reports.build_report(
            options=options,
            checkpoint=prepared.checkpoint,
            plan=self._plan,
            cpu=prepared.machine.cpu,
            counts=self._counts,
            timing=self._timing,
            seconds=self._seconds,
        )
        document["machine"] |= reports.gpu_facts(prepared.machine)
        document["model"]["template"] = prepared.encoder.template
        document["plan"]["kernels"] = engine.kernels
        document["peak_rss_bytes"] = self._highest_rss
        document["memory"] = reports.memory_of(self._plan, peak_rss=self._highest_rss, engines=engine.peak_bytes)
        document |= self._observed.document(score_name(prepared.checkpoint))
        if command:
            document["command"] = command
        document["continued"] = self._times_continued
        document["first_error"] = self._first_error
        if self._counts.rows_error and (errors := self._options.names.files.get("errors")):
            document["errors_file"] = str(errors)
        if not self._texts:  # of these, the lengths are those of pairs, and texts are what is read
            from rerank_cli.engine.scorer import LocalEngine

            document["speed"] |= reports.use_of_device(
                prepared.checkpoint, self._plan, self._counts, self._timing,
                squares=self._observed.squares, alone=isinstance(engine, LocalEngine),
            )  # fmt: skip
        else:
            read = self._texts.state
            document["embedded"] = {
                "texts": read["texts"], "tokens": read["work"]["tokens"], "dimensions": self._texts.dimensions
            }  # fmt: skip
        if self._agreement:
            document["precision_check"] = self._agreement.to_json()
        if evaluation:
            document["evaluation"] = reports.evaluation_report(evaluation)
        if fingerprint:
            fingerprint.wait(_HASH_SECONDS)
            document["job"] = fingerprint.document()
        return document


def _done_before(report: dict[str, Any], options: JobOptions, inputs: Sequence[Input], files: Files) -> Outcome:
    """What a run did that had finished before, with the page that is asked for now."""
    place_page(options.names, report, inputs, files)
    evaluation = None
    if found := report.get("evaluation"):
        evaluation = Evaluation.of_report(found)
    counts = Counts(**report["counts"])
    errors = str(options.names.files["errors"]) if counts.rows_error else None
    first = report["first_error"]
    return Outcome(counts, report, evaluation, errors, tuple(first) if first else None, was_done=True)


class _Streamed:
    """Rows to a pipe, whose reader may be busy or asleep: a request to stop does not wait for it."""

    def __init__(self, sink: Sink, stop: Stop) -> None:
        self._sink = sink
        self._stop = stop

    def write(self, ranked: Sequence[RankedList]) -> int:
        """See `Sink`."""
        with self._stop.released():
            return self._sink.write(ranked)


def _per_list(options: JobOptions) -> Selection:
    """The selection within a list; `score --top-n` selects from the whole run instead (`BestSink`)."""
    return replace(options.selection, top_n=None) if options.pairs else options.selection


def _best_of_run(options: JobOptions, destination: Destination) -> BestSink | None:
    if not options.pairs or options.selection.top_n is None:
        return None
    return BestSink(destination.sink, top_n=options.selection.top_n)


def _members(options: JobOptions, checkpoint: Checkpoint, *, may_continue: bool) -> tuple[str, ...]:
    """What the windows of this run add to besides rows and errors."""
    if not family_of(checkpoint.architecture).embeds:
        return ()
    return ("vectors",) * may_continue + ("texts",) * (options.names.embeddings is not None)
