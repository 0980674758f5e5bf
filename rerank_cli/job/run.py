"""A run from options to report: what `score` and `rerank-file` call.

    options -> checkpoint -> plan -> destination -> engine -> windows -> report

What can be refused is refused before weights are loaded: inputs, the output's name, the model's files, the plan, an
unfinished job that differs. A run that has finished before is recognised before torch is imported, so nothing here
imports torch at the top.

`_score_all` is the loop over windows; `resume.py` says what one process of a run leaves for the next.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from rerank_cli.checkpoint import Checkpoint
from rerank_cli.engine import open_engine
from rerank_cli.evaluation.evaluator import Evaluation, Evaluator
from rerank_cli.evaluation.orders import orders_of
from rerank_cli.evaluation.per_query import per_query_bytes
from rerank_cli.formats.choices import TEACHER_FORMATS
from rerank_cli.formats.inputs import can_be_reread, resolve_inputs
from rerank_cli.formats.row_counts import count_lines, count_rows
from rerank_cli.formats.shapes import tell_of_late_titles
from rerank_cli.job.empty_output import refuse_empty
from rerank_cli.job.kept_vectors import EmbeddedTexts, open_kept_texts
from rerank_cli.job.options import STDOUT, JobOptions, refuse_unusable
from rerank_cli.job.output import Destination, FileDestination, open_destination, place_page
from rerank_cli.job.precision_check import PrecisionCheck
from rerank_cli.job.precision_choice import choose_precision, refuse_unfit_choice
from rerank_cli.job.prepare import Prepared, find_first, find_known, prepare_inputs
from rerank_cli.job.progress import Progress
from rerank_cli.job.resume import Resume, noting_kept
from rerank_cli.job.run_paths import RunPaths, files_of_folder, folders_of, model_files, paths_read
from rerank_cli.job.run_report import describe_run
from rerank_cli.job.same_job import fingerprint_of, finished_report
from rerank_cli.job.score_store.run_store import RunStore
from rerank_cli.job.scorers import OneModel, OpensEngine, open_scorers
from rerank_cli.job.stop import Stop
from rerank_cli.job.totals import Totals
from rerank_cli.job.watched_images import WatchedImages
from rerank_cli.job.windows import SCORE_WINDOW_PAIRS, Share, Windows, wanted_of
from rerank_cli.job.write_window import WindowWriter
from rerank_cli.journal import Files, Fingerprint, Job, Terms, Watch
from rerank_cli.machine.bus_error import explaining_bus_errors
from rerank_cli.planning.run_plan import Plan
from rerank_cli.records import Counts, RowError
from rerank_cli.report import document as reports

_HASH_SECONDS = 1.0  # how long the end of a run waits for the SHA-256 of its files; a later run can read them again


@dataclass(slots=True)
class Watcher:
    """The hooks that a run calls as it proceeds; each may be None."""

    on_start: Callable[[Checkpoint, Plan], None] | None = None  # the plan, before weights are loaded
    on_note: Callable[[str], None] | None = None  # something the user should know
    on_error: Callable[[RowError], None] | None = None  # each bad row of this process
    on_batch: Callable[[int, int], None] | None = None  # pairs and tokens of each finished batch
    on_progress: Callable[[Counts, float | None], None] | None = None
    """After each window: the counts, and the share of the run that is finished (None from a pipe)."""
    progress: Progress = field(default_factory=Progress)  # any thread may read it


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a finished run did."""

    counts: Counts
    report: dict[str, Any]
    evaluation: Evaluation | None
    errors: str | None  # path of the errors file, if there is one
    first_error: tuple[str, int, str] | None  # the first bad row: file, row and message
    was_done: bool = False  # an earlier run had finished, and this one did nothing


def run_job(
    options: JobOptions,
    watcher: Watcher | None = None,
    *,
    files: Files | None = None,
    stop: Stop | None = None,
    open_engine: OpensEngine = open_engine,
) -> Outcome:
    """Do the whole run, with output, errors file and report; raises `RerankError` for what stops it.

    Args:
        options: Of the run.
        watcher: Its hooks are called as the run proceeds.
        files: The calls that write the output.
        stop: Stops the run from outside, besides signals and its deadline.
        open_engine: Loads the model.
    """
    watcher, stop, files = watcher or Watcher(), stop or Stop(), files or Files()
    began = time.time_ns()
    watch = Watch()
    with stop.listening(options.deadline), watch.explaining(), explaining_bus_errors(watch.check):
        refuse_unusable(options)
        inputs = resolve_inputs(options.inputs, options.in_format, options.shape)
        refuse_unfit_choice(options, inputs)
        names = options.names
        watch.look(paths_read(options, inputs))
        watch.look(files_of_folder(options.model))
        known = find_known(options)
        assert known.checkpoint is not None, "`find_known` reads it"
        first = find_first(options, known)
        read = paths_read(options, inputs) | model_files(known.checkpoint)
        if first and first.checkpoint:
            read |= {f"first {name}": path for name, path in model_files(first.checkpoint).items()}
        watch.only(read)
        paths = RunPaths(
            names, read, folders=folders_of(inputs), store=options.store, overwrite=options.overwrite,
            models=[one.checkpoint.path for one in (known, first) if one and one.checkpoint],
        )  # fmt: skip
        may_continue = can_be_reread(inputs) and names.output != STDOUT
        asked = None
        if may_continue and not options.restart:
            asked = fingerprint_of(options, inputs, known, first=first)
        if (
            asked
            and paths.was_there(names.files["report"])
            and not Job.is_begun(names.output)  # a store is asked for the job only if there is a report
            and (done := finished_report(names, asked))
        ):
            return _done_before(done, options, paths, files)
        if not may_continue and names.output != STDOUT and watcher.on_note:
            watcher.on_note("a pipe cannot be read again: if this run is stopped, the next one starts over")
        # With `--precision auto:SHARE` the fingerprint has `auto:SHARE`, and the plan the precision that was found.
        chosen, choice = choose_precision(options, inputs, known, open_engine=open_engine, stop=stop)
        prepared = prepare_inputs(chosen, inputs, known, first)
        if choice:
            prepared = replace(prepared, told=(*prepared.told, choice.told), found={"precision_choice": asdict(choice)})
        stop.check()
        evaluator = Evaluator(options.qrels, options.metrics) if options.qrels else None
        fingerprint = None
        if may_continue:
            fingerprint = fingerprint_of(
                options, inputs, known, prepared.plan, prepared.machine, first=first,
                first_plan=prepared.first.plan if prepared.first else None,
            )  # fmt: skip
            watch.known = fingerprint.sha256
        terms = Terms(fingerprint, options.restart, options.checkpoint_every, options.lock_wait, files, watch=watch)
        members = _members(options, prepared, may_continue=may_continue)
        destination = open_destination(
            names,
            prepared.shape,
            replace(
                options.selection,
                score=prepared.score,
                probability=prepared.calibration.curve if prepared.calibration else None,
                scored_by=prepared.first is not None,
            ),
            inputs=inputs,
            overwrite=options.overwrite,
            terms=terms,
            members=members,
            paths=paths,
        )
        with noting_kept(watcher.progress, inputs, prepared.read, options.shard, kept=may_continue), destination:
            if isinstance(destination, FileDestination):
                if (completed := destination.completed) is not None:
                    with reading_journal(names.output):
                        done_before = _outcome_of(completed["report"], options)
                        given = destination.names_to_give()
                    destination.place(given, stop)
                    place_page(options.names, completed["report"], paths, files)
                    return done_before
                # Asked again, because another process may have finished the run while this one waited for the lock.
                if asked and (done := finished_report(names, asked)):
                    destination.was_done()
                    return _done_before(done, options, paths, files)
                destination.refuse_existing(anew=True)
            return _score_all(
                options, prepared, destination, fingerprint=fingerprint, members=members, evaluator=evaluator,
                watcher=watcher, stop=stop, open_engine=open_engine,
                images=WatchedImages(paths, began_ns=began if may_continue else None), watch=watch,
            )  # fmt: skip


def _score_all(  # noqa: PLR0913, PLR0915 (takes what `run_job` has prepared; the stages of a run, one after another)
    options: JobOptions,
    prepared: Prepared,
    destination: Destination,
    *,
    fingerprint: Fingerprint | None,
    members: Sequence[str],
    evaluator: Evaluator | None,
    watcher: Watcher,
    stop: Stop,
    open_engine: OpensEngine,
    images: WatchedImages,
    watch: Watch,
) -> Outcome:
    """Load the model, score what earlier processes have not, and write rows, bad rows and the report."""
    note = watcher.on_note or (lambda text: None)
    tell_progress = watcher.on_progress or (lambda counts, share: None)
    with reading_journal(options.names.output):
        watcher.progress.begin()
        totals = Totals(destination.state)
        precision = PrecisionCheck(options.check_precision, options.pool, destination.state, destination.notes, note)
    output = WindowWriter(
        destination, options.selection, totals.counts, whole=options.pairs, on_error=watcher.on_error,
        count_empty=options.names.out_format in TEACHER_FORMATS,
        released=stop if options.names.output == STDOUT else None,
    )  # fmt: skip
    resume = Resume(
        destination,
        options.names.output,
        prepared.plan,
        images,
        totals,
        precision,
        evaluator,
        output.best,
        watcher.progress,
    )
    with reading_journal(options.names.output):
        plan = resume.begin(note, lambda: count_rows(prepared.inputs, prepared.read) if options.shard is None else None)
    options.error_limit.check(totals.counts, last=False)  # an earlier process may have reached the limit
    _tell_start(watcher, prepared, plan)
    with ExitStack() as stack:
        if fingerprint:
            fingerprint.start()
            stack.callback(fingerprint.stop)
        watch.check()  # a library opens the weights, and would wait if one was replaced by a pipe
        engine = open_engine(plan, prepared.checkpoint, precision.calibration, on_note=watcher.on_note)
        stack.callback(engine.close)
        stop.check()
        store = RunStore(options, prepared, plan, engine, on_note=note)
        stack.callback(store.close)
        model = OneModel(options, prepared, plan, engine, store, stop, _counted_batches(totals, watcher))
        scorers = open_scorers(
            model,
            stack,
            destination.state,
            open_engine,
            _counted_batches(totals, watcher, of_all=False),
            note,
            watcher.progress,
        )
        with destination.reading() if members and destination.state else nullcontext():
            texts = open_kept_texts(scorers.engine, members, destination.path, destination.state)
        precision.begin(engine, plan.precision)
        windows = _windows(options, prepared, plan, images, watcher.on_note)
        totals.begin_scoring(plan.precision, note)
        resume.pass_over(windows)
        scoring = scorers.score(
            windows, totals.timing, image_processes=plan.image_processes, on_submit=watcher.progress.submit,
            on_note=watcher.on_note,
        )  # fmt: skip
        with closing(scoring), stop.held():
            for window in scoring:
                totals.add(window)
                if precision.wants_more:
                    precision.add(window.encoded, window.logits, engine)
                if texts:
                    texts.add(window.encoded)
                if evaluator:
                    evaluator.add(orders_of(window.ranked, prepared.shape, evaluator.is_judged))
                    totals.observed.add_relevance(*evaluator.scores)
                began = time.perf_counter()
                output.write(window)
                written = time.perf_counter()
                totals.timing.write += written - began  # before the commit, which records it for the next process
                resume.commit(window.encoded.window, engine, texts, scorers.state)
                totals.timing.write += time.perf_counter() - written
                tell_progress(totals.counts, watcher.progress.share)
                options.error_limit.check(totals.counts, last=False)
        options.error_limit.check(totals.counts, last=True)
        refuse_empty(totals, destination, options)
        output.finish(note)
        evaluation = _write_whole(options, destination, totals, evaluator, texts)
        watch.check()  # the report reads files again, and would wait if one was replaced by a pipe
        document = (
            describe_run(options, prepared, plan, totals, engine, texts) | dict(prepared.found) | precision.document()
        )
        document |= scorers.document(totals.counts)
        if prepared.calibration:
            document["probability"] = prepared.calibration.of_run(document)
            for warning in document["probability"]["warnings"]:
                note(f"warning: {warning}")
        if evaluation and evaluator:
            document |= reports.evaluation_report(evaluation, evaluator.changes())
        if fingerprint:
            fingerprint.wait(_HASH_SECONDS)
            document["job"] = fingerprint.document()
        document = destination.commit(document, stop)
    return Outcome(totals.counts, document, evaluation, destination.errors_file, totals.first_error)


def _tell_start(watcher: Watcher, prepared: Prepared, plan: Plan) -> None:
    if watcher.on_start:
        watcher.on_start(prepared.checkpoint, plan)
    if watcher.on_note:
        for told in prepared.told:
            watcher.on_note(f"note: {told}")


def _counted_batches(totals: Totals, watcher: Watcher, *, of_all: bool = True) -> Callable[[int, int], None]:
    """A hook that counts batches. of_all: count their pairs too; off for a scorer that reads pairs a second time."""

    def on_batch(pairs: int, tokens: int) -> None:
        totals.observed.timeline.add(totals.seconds, (pairs, tokens))
        watcher.progress.add_batch(pairs if of_all else 0, tokens)
        if watcher.on_batch:
            watcher.on_batch(pairs, tokens)

    return on_batch


def _write_whole(
    options: JobOptions,
    destination: Destination,
    totals: Totals,
    evaluator: Evaluator | None,
    texts: EmbeddedTexts | None,
) -> Evaluation | None:
    """Write `--embeddings` and `--per-query`, and evaluate the run."""
    if texts:  # pairs share texts and images, and each was read once, so the counts are those of texts
        for name, number in texts.state["work"].items():
            setattr(totals.counts, name, number)
        if options.names.embeddings:
            with destination.writing("embeddings") as file:
                texts.write_file(destination.path("texts"), file)
    if evaluator is None:
        return None
    evaluation = evaluator.finish()
    if options.names.per_query:
        with destination.writing("per_query") as file:
            file.writelines(per_query_bytes(evaluator.per_query(), options.names.per_query))
    return evaluation


def _windows(
    options: JobOptions, prepared: Prepared, plan: Plan, images: WatchedImages, tell: Callable[[str], None] | None
) -> Windows:
    """The windows of the run's share of the input."""
    shard, shards = options.shard or (1, 1)
    lines = count_lines(prepared.inputs, prepared.read) if options.shard else 1
    max_pairs = SCORE_WINDOW_PAIRS if options.pairs else plan.window_pairs
    lists = prepared.shape.group(prepared.items)
    if tell:
        lists = tell_of_late_titles(lists, prepared.shape, lambda note: tell(f"note: {note}"))
    wanted = wanted_of(lists, options.depth, drop_duplicates=options.drop_duplicates)
    return Windows(
        wanted, max_pairs=max_pairs, look=images.look,
        share=Share(shard, shards, lines), position=lambda: prepared.position.share,
    )  # fmt: skip


def _done_before(report: dict[str, Any], options: JobOptions, paths: RunPaths, files: Files) -> Outcome:
    """The outcome of a run that had finished before; writes its page if one is wanted now."""
    place_page(options.names, report, paths, files)
    return _outcome_of(report, options)


def _outcome_of(report: dict[str, Any], options: JobOptions) -> Outcome:
    """The outcome of a finished run, by its report."""
    evaluation = None
    if found := report.get("evaluation"):
        evaluation = Evaluation.of_report(found)
    counts = Counts(**report["counts"])
    errors = str(options.names.files["errors"]) if counts.in_errors_file else None
    first = report["first_error"]
    return Outcome(counts, report, evaluation, errors, tuple(first) if first else None, was_done=True)


@contextmanager
def reading_journal(out: str) -> Iterator[None]:
    """Inside, a journal with values that this program does not write is refused, although its checksums are right."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise Job.changed(out, "its journal was not written by this version of the program") from error


def _members(options: JobOptions, prepared: Prepared, *, may_continue: bool) -> tuple[str, ...]:
    """The members of the job besides rows and errors."""
    family = prepared.first.family if prepared.first else prepared.family
    if not family.embeds:
        return ()
    return ("vectors",) * may_continue + ("texts",) * (options.names.embeddings is not None)
