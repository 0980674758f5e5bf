"""The loop of one run: what its callbacks do with windows, and what goes from one process to the next.

A run that is continued reads its input again and tokenises from the first window that is not committed. What is not in
the rows comes from the journal: the numbers so far (`Totals`), the comparison with fp32 and the images of finished rows
(the state of the last commit), the values for `--qrels`, the best rows of `score --top-n` and the calibration of an
int8 model (a note a window).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from rerank_cli.checkpoint import Checkpoint
from rerank_cli.encoding.images.seen import SeenImages
from rerank_cli.evaluation.measures import Evaluation, Evaluator, orders_of
from rerank_cli.evaluation.per_query import per_query_bytes
from rerank_cli.formats.inputs import count_lines
from rerank_cli.formats.shapes import Selection
from rerank_cli.formats.sinks import BestSink
from rerank_cli.job.kept_vectors import EmbeddedTexts
from rerank_cli.job.options import JobOptions
from rerank_cli.job.output import Destination
from rerank_cli.job.output_names import STDOUT
from rerank_cli.job.precision_check import PrecisionCheck
from rerank_cli.job.prepare import Prepared, score_name
from rerank_cli.job.scoring_loop import Run, Sink
from rerank_cli.job.stop import Stop
from rerank_cli.job.totals import Totals
from rerank_cli.job.windows import Share
from rerank_cli.journal import Fingerprint, Job
from rerank_cli.planning.run_plan import Plan
from rerank_cli.records import Counts, RankedList, RowError, Window
from rerank_cli.report import document as reports

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rerank_cli.encoding.pairs import EncodedWindow
    from rerank_cli.engine import Engine

_SCORE_WINDOW_PAIRS = 64  # `score` streams: a window is what a reader at the other end of a pipe waits for
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


@dataclass(frozen=True, slots=True)
class Finished:
    """What `Work.run` has done."""

    totals: Totals
    report: dict[str, Any]
    evaluation: Evaluation | None


class Work:
    """A run whose parts are there."""

    def __init__(
        self,
        options: JobOptions,
        prepared: Prepared,
        destination: Destination,
        evaluator: Evaluator | None,
        watcher: Watcher,
        stop: Stop,
    ) -> None:
        self._options = options
        self._prepared = prepared
        self._destination = destination
        self._evaluator = evaluator
        self._watcher = watcher
        self._stop = stop
        state, notes = destination.state, destination.notes
        self._totals = Totals(state)
        self._best = _best_of_run(options, destination)
        self._sink: Sink = self._best or destination.sink
        if options.names.output == STDOUT and not self._best:
            self._sink = _Streamed(destination.sink, stop)
        self._plan = prepared.plan
        self._images = SeenImages()
        self._texts: EmbeddedTexts | None = None
        self._precision = PrecisionCheck(
            options.check_precision, state=state, notes=[note for _, note in notes], on_note=self._note
        )
        self._notes_of_best = {window: note["best"] for window, note in notes if "best" in note}
        if state is not None:
            self._restore(state, notes)

    def run(self, fingerprint: Fingerprint | None, members: Sequence[str], open_engine: OpensEngine) -> Finished:
        """Load the model and do what is left."""
        options, prepared, totals = self._options, self._prepared, self._totals
        options.error_limit.check(totals.counts, last=False)  # of an earlier process, which has stopped for it
        if self._watcher.on_start:
            self._watcher.on_start(prepared.checkpoint, self._plan)
        for told in prepared.told:
            self._note(f"note: {told}")
        with ExitStack() as stack:
            if fingerprint:
                fingerprint.start()
                stack.callback(fingerprint.stop)
            calibration = self._precision.calibration
            engine = open_engine(self._plan, prepared.checkpoint, calibration, on_note=self._watcher.on_note)
            stack.callback(engine.close)
            self._stop.check()
            self._texts = self._open_texts(engine, members)
            run = self._pass_over_input(engine)
            totals.begin_scoring()
            window_pairs = _SCORE_WINDOW_PAIRS if options.pairs else self._plan.window_pairs
            run.execute(prepared.shape.group(prepared.items), window_pairs=window_pairs)
            evaluation = self._finish()
            document = self._report(engine, evaluation, fingerprint)
            document = self._destination.commit(document, self._stop)
        return Finished(totals, document, evaluation)

    def _pass_over_input(self, engine: Engine) -> Run:
        options, prepared, totals = self._options, self._prepared, self._totals
        shard, shards = options.shard or (1, 1)
        lines = count_lines(prepared.inputs, prepared.read) if options.shard else 1
        return Run(
            encoder=prepared.encoder,
            engine=engine,
            sink=self._sink,
            on_error=self._on_error,
            selection=_per_list(options),
            pool=options.pool,
            error_limit=options.error_limit,
            on_scored=self._on_scored,
            on_logits=self._precision.comparison(engine, self._plan.precision, options.pool),
            on_calibrated=self._precision.on_calibrated,
            on_ranked=self._on_ranked,
            on_batch=self._on_batch,
            on_window=self._on_window,
            on_done=self._on_done,
            on_note=self._watcher.on_note,
            image_processes=self._plan.image_processes,
            share=Share(self._destination.next_window, shard, shards, lines),
            counts=totals.counts,
            timing=totals.timing,
            stop=self._stop,
        )

    def _finish(self) -> Evaluation | None:
        """Write what belongs to the run as a whole."""
        destination, names, counts = self._destination, self._options.names, self._totals.counts
        if self._best:
            counts.output_rows += self._best.finish()
            counts.dropped += self._best.dropped
        if self._texts:  # pairs share texts and images, and each was read once
            counts.put(self._texts.state["work"])
        evaluation = self._evaluator.finish() if self._evaluator else None
        if self._texts and names.embeddings:
            with destination.writing("embeddings") as file:
                self._texts.write_file(destination.path("texts"), file)
        if self._evaluator and names.per_query:
            with destination.writing("per_query") as file:
                file.writelines(per_query_bytes(self._evaluator.per_query(), names.per_query))
        return evaluation

    def _restore(self, state: Mapping[str, Any], notes: Sequence[Any]) -> None:
        # Both can move the last digit of a logit, and depend on what else the machine does: a run ends as it began.
        self._plan = replace(self._plan, threads=state["threads"], token_budget=state["token_budget"])
        if self._best:
            self._best.dropped = state["dropped"]
        for _, note in notes:
            if "values" in note and self._evaluator:
                self._evaluator.restore(note["values"])
        self._note(
            f"goes on after {self._totals.counts.rows_in:,} rows (window {self._destination.next_window}), "
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

    def _note(self, text: str) -> None:
        if self._watcher.on_note:
            self._watcher.on_note(text)

    def _on_error(self, error: RowError) -> None:
        self._totals.add_error(error)
        self._destination.errors.write(error)
        if self._watcher.on_error:
            self._watcher.on_error(error)

    def _on_batch(self, pairs: int, tokens: int) -> None:
        self._totals.observed.add_batch(self._totals.seconds, pairs, tokens)
        if self._watcher.on_batch:
            self._watcher.on_batch(pairs, tokens)

    def _on_scored(self, window: EncodedWindow) -> None:
        self._totals.observed.add_lengths(window)
        if self._texts:
            self._texts.add(window)

    def _on_ranked(self, ranked: Sequence[RankedList]) -> None:
        self._totals.observed.add_ranked(ranked)
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
            **self._totals.state,
            **self._precision.state,
            "images": self._images.digest,
            "threads": self._plan.threads,
            "token_budget": self._plan.token_budget,
            "embedded": self._texts.state if self._texts else None,
            "dropped": self._best.dropped if self._best else 0,
        }
        note = self._precision.take_note()
        if self._evaluator and self._evaluator.note:
            note["values"] = self._evaluator.note
        if self._best and self._best.note:
            note["best"] = self._best.note
        more = self._texts.take() if self._texts else {}
        self._destination.end_window(window.number, state, note or None, more)
        if self._watcher.on_progress:
            self._watcher.on_progress(counts, self._prepared.meter.share)

    def _report(self, engine: Engine, evaluation: Evaluation | None, fingerprint: Fingerprint | None) -> dict[str, Any]:
        prepared, plan, totals = self._prepared, self._plan, self._totals
        options = asdict(self._options)
        command = options.pop("command")
        document = reports.build_report(
            options=options,
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
        document |= totals.observed.document(score_name(prepared.checkpoint))
        if command:
            document["command"] = command
        document["continued"] = totals.continued
        document["first_error"] = totals.first_error
        if totals.counts.in_errors_file and (errors := self._options.names.files.get("errors")):
            document["errors_file"] = str(errors)
        if self._texts:  # the lengths are those of pairs, and texts are what is read
            document["embedded"] = self._texts.facts
        else:
            from rerank_cli.engine.scorer import LocalEngine  # torch is there by now

            document["speed"] |= reports.use_of_device(
                prepared.checkpoint, plan, totals.counts, totals.timing,
                squares=totals.observed.squares, alone=isinstance(engine, LocalEngine),
            )  # fmt: skip
        document |= self._precision.document()
        if evaluation:
            document["evaluation"] = reports.evaluation_report(evaluation)
        if fingerprint:
            fingerprint.wait(_HASH_SECONDS)
            document["job"] = fingerprint.document()
        return document


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
