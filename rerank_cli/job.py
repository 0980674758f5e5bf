"""A run from options to report: what `score` and `rerank-file` call, and what `--dry-run` calls.

    options -> checkpoint -> plan -> rows -> pipeline -> sink -> report

Everything that can be refused is refused before weights are loaded: the inputs, the output's name, the model's files,
the plan. Then the reader starts, and only then the model loads.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from rerank_cli import report as reports
from rerank_cli.checkpoint import Checkpoint, locate_checkpoint, read_checkpoint
from rerank_cli.destination import Destination, Names, open_destination
from rerank_cli.embedding_output import EmbeddingsOutput
from rerank_cli.encoding import (
    ImageLimits,
    ReadsImages,
    SpecialTokens,
    TextEncoder,
    Truncation,
    open_encoder,
    taken_for,
)
from rerank_cli.engine import EmbeddingEngine, Engine, open_engine
from rerank_cli.errors import InputError, UsageError
from rerank_cli.evaluation import Evaluation, Evaluator
from rerank_cli.families import family_of
from rerank_cli.formats.inputs import (
    Input,
    ReadOptions,
    input_bytes,
    open_lists,
    ordered_by_group,
    read_items,
    resolve_inputs,
)
from rerank_cli.formats.shapes import FieldNames, Item, PairShape, Selection, Shape
from rerank_cli.formats.sinks import BestSink
from rerank_cli.hardware import Cpu, detect_machine
from rerank_cli.known_model import find_model, with_checkpoint
from rerank_cli.models import DTYPES
from rerank_cli.models.linear import fp8_reason
from rerank_cli.pipeline import Counts, ErrorLimit, Pool, Run
from rerank_cli.profiles import ProfileRequest
from rerank_cli.quantisation import read_quantisation
from rerank_cli.records import JsonRow, RowError
from rerank_cli.run_plan import Plan, plan_model, plan_run

_SCORE_WINDOW_PAIRS = 64  # `score` streams: a window is what a reader at the other end of a pipe waits for


@dataclass(frozen=True, slots=True)
class JobOptions:
    """What the user asked for; every field that changes the output's bytes is here."""

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
    request: ProfileRequest = field(default_factory=ProfileRequest)
    request_notes: tuple[str, ...] = ()  # variables that `request` did not hear
    profiles_file: str | None = None
    truncate: Truncation = "end"
    chunk_overlap: int = 64
    pool: Pool = "max"
    special_tokens: SpecialTokens = "neutral"
    images: ImageLimits = field(default_factory=ImageLimits)
    instruction: str | None = None
    template: str | None = None  # its text, or `none`
    selection: Selection = field(default_factory=Selection)
    error_limit: ErrorLimit = field(default_factory=ErrorLimit)
    overwrite: bool = False
    skip: int = 0
    limit: int | None = None
    max_line_bytes: int = 64 * 2**20
    qrels: str | None = None
    metrics: tuple[str, ...] = ("nDCG@10",)


@dataclass(slots=True)
class Watcher:
    """What a run tells while it goes on; each hook may be None.

    on_start: the plan, before weights are loaded. on_error: each bad row. on_batch: (pairs, tokens) handed to the
    device. on_progress: the counts and the share of the input that was read (None from a pipe), after each window.
    """

    on_start: Callable[[Checkpoint, Plan], None] | None = None
    on_error: Callable[[RowError], None] | None = None
    on_batch: Callable[[int, int], None] | None = None
    on_progress: Callable[[Counts, float | None], None] | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a finished run did. errors: path of the errors file, if there is one."""

    counts: Counts
    report: dict[str, Any]
    evaluation: Evaluation | None
    errors: str | None
    first_error: RowError | None


@dataclass(frozen=True, slots=True)
class Prepared:
    """What can be known before weights are loaded."""

    checkpoint: Checkpoint
    plan: Plan
    cpu: Cpu
    encoder: TextEncoder
    inputs: list[Input]
    shape: Shape
    items: Iterator[Item]
    meter: _Meter


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


def run_job(options: JobOptions, watcher: Watcher | None = None) -> Outcome:
    """Do the whole run and leave its output, errors file and report; raises `RerankError` for what stops it."""
    began = time.perf_counter()
    watcher = watcher or Watcher()
    prepared = prepare(options)
    selection = replace(options.selection, score=_score_name(prepared.checkpoint))
    evaluator = Evaluator(options.qrels, options.metrics, prepared.shape) if options.qrels else None
    destination = open_destination(
        options.names, prepared.shape, selection, inputs=prepared.inputs, overwrite=options.overwrite
    )
    with ExitStack() as stack:
        stack.enter_context(destination)
        if watcher.on_start:
            watcher.on_start(prepared.checkpoint, prepared.plan)
        engine = open_engine(prepared.plan, prepared.checkpoint)
        stack.callback(engine.close)
        vectors = _open_embeddings(options, destination, engine, stack)
        best = _best_of_run(options, destination)

        def on_error(error: RowError) -> None:
            destination.errors.write(error)
            if watcher.on_error:
                watcher.on_error(error)

        def on_window(counts: Counts) -> None:
            if watcher.on_progress:
                watcher.on_progress(counts, prepared.meter.share)

        run = Run(
            encoder=prepared.encoder,
            engine=engine,
            sink=best or destination.sink,
            on_error=on_error,
            selection=_per_list(options),
            pool=options.pool,
            error_limit=options.error_limit,
            on_scored=vectors.add if vectors else None,
            on_ranked=evaluator.add if evaluator else None,
            on_batch=watcher.on_batch,
            on_window=on_window,
        )
        window_pairs = _SCORE_WINDOW_PAIRS if options.pairs else prepared.plan.window_pairs
        run.execute(prepared.shape.group(prepared.items), window_pairs=window_pairs)
        if best:
            run.counts.output_rows += best.finish()
            run.counts.dropped += best.dropped
        if isinstance(engine, EmbeddingEngine):  # pairs share texts and images, and it read each once
            run.counts.put(engine.work)
        evaluation = evaluator.finish() if evaluator else None
        document = reports.build_report(
            options=asdict(options),
            checkpoint=prepared.checkpoint,
            plan=prepared.plan,
            cpu=prepared.cpu,
            counts=run.counts,
            timing=run.timing,
            seconds=time.perf_counter() - began,
        )
        document["model"]["template"] = prepared.encoder.template
        document["plan"]["kernels"] = engine.kernels
        document |= _embedding_report(engine)
        if vectors:
            vectors.close()
        if evaluation:
            document["evaluation"] = reports.evaluation_report(evaluation)
        errors = destination.commit(document)
        return Outcome(run.counts, document, evaluation, errors, destination.errors.first)


def prepare(options: JobOptions) -> Prepared:
    """Everything that can be known or refused before weights are loaded."""
    _refuse_unusable(options)
    inputs = resolve_inputs(options.inputs, options.in_format)
    checkpoint, plan, cpu = _plan(options)
    _refuse_unfit(options, checkpoint)
    encoder = open_encoder(
        checkpoint,
        max_tokens=plan.max_tokens,
        truncate=options.truncate,
        chunk_overlap=options.chunk_overlap,
        special_tokens=options.special_tokens,
        instruction=options.instruction,
        template=options.template,
        images=options.images,
    )
    said = (*_model_reasons(checkpoint, plan), f"template {encoder.template!r}", *_image_reasons(encoder))
    plan = replace(plan, reasons=(*plan.reasons, *said))
    read = ReadOptions(options.max_line_bytes, live=options.pairs, skip=options.skip, limit=options.limit)
    if options.pairs:
        shape: Shape = PairShape(options.fields, query=options.query)
        items = read_items(inputs, shape, read)
    else:
        shape, items = open_lists(inputs, options.fields, read, options.shape)
        items = ordered_by_group(inputs, shape, items, read)
    meter = _Meter(inputs)
    return Prepared(checkpoint, plan, cpu, encoder, inputs, shape, meter.count(items), meter)


def _plan(options: JobOptions) -> tuple[Checkpoint, Plan, Cpu]:
    """The checkpoint, and how it runs on this machine."""
    known = find_model(
        options.model, revision=options.revision, online=options.online, profiles_file=options.profiles_file
    )
    if known.checkpoint is None:
        folder = locate_checkpoint(options.model, revision=options.revision, online=options.online)
        known = with_checkpoint(known, read_checkpoint(folder, name=options.model))
    assert known.checkpoint is not None, "it has just been read"
    machine = detect_machine()
    answer = plan_model(options.request, known, machine, notes=options.request_notes)
    return known.checkpoint, plan_run(answer, cuda_devices=torch.cuda.device_count()), machine.cpu


def _image_reasons(encoder: TextEncoder) -> list[str]:
    if not isinstance(encoder, ReadsImages):
        return []
    return [f"images in at most {encoder.max_tiles} tiles: {encoder.reason}"]


def _per_list(options: JobOptions) -> Selection:
    """The selection within a list; `score --top-n` selects from the whole run instead (`BestSink`)."""
    return replace(options.selection, top_n=None) if options.pairs else options.selection


def _best_of_run(options: JobOptions, destination: Destination) -> BestSink | None:
    if not options.pairs or options.selection.top_n is None:
        return None
    return BestSink(destination.sink, top_n=options.selection.top_n)


def _open_embeddings(
    options: JobOptions, destination: Destination, engine: Engine, stack: ExitStack
) -> EmbeddingsOutput | None:
    """Where the vectors go, if they are asked for."""
    name = options.names.embeddings
    if name is None or not isinstance(engine, EmbeddingEngine):
        return None
    return stack.enter_context(EmbeddingsOutput(destination.path("embeddings"), name, engine))


def _embedding_report(engine: Engine) -> dict[str, Any]:
    """What an embedding model has to report: texts are fewer than the sides of pairs."""
    if not isinstance(engine, EmbeddingEngine):
        return {}
    return {"embedded": {"texts": engine.texts, "tokens": engine.work["tokens"], "dimensions": engine.dimensions}}


def _score_name(checkpoint: Checkpoint) -> str:
    """What the model's score is called in the output."""
    return "cosine" if family_of(checkpoint.architecture).embeds else "logit"


def _model_reasons(checkpoint: Checkpoint, plan: Plan) -> Iterator[str]:
    """What else is decided by the files of the model, in words."""
    family = family_of(checkpoint.architecture)
    if family.embeds:
        yield "score cosine: the model embeds query and passage, each distinct one once"
    if family.answers:
        yield taken_for(checkpoint.architecture)
    if quantisation := read_quantisation(checkpoint):
        yield f"{quantisation}: {fp8_reason(torch.device(plan.device), DTYPES[plan.precision])}"


def _refuse_unfit(options: JobOptions, checkpoint: Checkpoint) -> None:
    """Options that mean nothing for this kind of model."""
    embeds = family_of(checkpoint.architecture).embeds
    if options.selection.prob and embeds:
        raise UsageError(f"--prob: {checkpoint.name} gives a cosine, which is not the logit of a probability")
    if options.names.embeddings and not embeds:
        raise UsageError(f"--embeddings: {checkpoint.name} gives logits, and no vectors")
    if options.names.embeddings and options.truncate == "chunk":
        raise UsageError("--embeddings: a passage in chunks has several vectors", hint="leave out `--truncate chunk`")


def _refuse_unusable(options: JobOptions) -> None:
    """Values that parse and mean nothing, which would otherwise be found out when the run ends."""
    threshold = options.selection.threshold
    if threshold is not None and not math.isfinite(threshold):
        raise UsageError(f"--threshold {threshold}: not a number to compare with")
    root = options.fields.image_root
    if root is not None and not Path(root).is_dir():
        raise InputError(f"--image-root {root}: no such folder")
    try:
        (options.query or "").encode()
    except UnicodeEncodeError as error:
        raise UsageError("--query: not UTF-8") from error
