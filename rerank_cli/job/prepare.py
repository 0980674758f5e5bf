"""Prepares a run before weights are loaded: finds its model, plan, encoder, inputs and rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rerank_cli.checkpoint import Checkpoint, locate_checkpoint, read_checkpoint
from rerank_cli.checkpoint.families import Family, family_of
from rerank_cli.checkpoint.labels import read_score
from rerank_cli.checkpoint.quantisation import read_quantisation
from rerank_cli.checkpoint.similarity import similarity_of
from rerank_cli.encoding.encoder import ReadsImages, TextEncoder, open_encoder
from rerank_cli.encoding.scoring import check_scoring
from rerank_cli.errors import UsageError
from rerank_cli.evaluation.calibration_file import BOUND, Calibration, read_calibration
from rerank_cli.evaluation.qrels import read_qrels
from rerank_cli.evaluation.teacher import teacher_kind
from rerank_cli.formats.inputs import Input, ReadOptions, open_lists, open_pairs, resolve_inputs
from rerank_cli.formats.position import Position
from rerank_cli.formats.scattered_groups import ordered_by_group
from rerank_cli.formats.shapes import (
    Conversion,
    FlatShape,
    Item,
    Kind,
    ListShape,
    PairShape,
    Shape,
    TrecShape,
    not_carried,
    written_as,
)
from rerank_cli.job.first_scorer import (
    first_options,
    read_asked,
    refuse_both_too_large,
    refuse_embedder,
    refuse_unfit_cascade,
    refuse_unusable_cascade,
)
from rerank_cli.job.options import JobOptions, refuse_unusable
from rerank_cli.job.output_format import output_format, output_kind, output_shape
from rerank_cli.machine.detect import Machine, detect_machine
from rerank_cli.machine.nvml_driver import ANSWER_SECONDS, WAKING_SECONDS
from rerank_cli.planning.known_model import KnownModel, find_model, with_checkpoint, with_choices
from rerank_cli.planning.run_plan import Plan, plan_model, plan_run


@dataclass(frozen=True, slots=True)
class PreparedModel:
    """A model on this machine before its weights are loaded, whatever rows it will read."""

    checkpoint: Checkpoint
    family: Family
    plan: Plan
    machine: Machine
    encoder: TextEncoder

    @property
    def score(self) -> str:
        """What the model's score is called in the output."""
        return similarity_of(self.checkpoint) if self.family.embeds else "logit"


@dataclass(frozen=True, slots=True)
class Prepared(PreparedModel):
    """A run before weights are loaded."""

    inputs: list[Input]
    shape: Shape
    items: Iterator[Item]
    position: Position  # how far reading is
    read: ReadOptions  # how rows are read
    told: tuple[str, ...] = ()  # notes on the shape of the rows
    calibration: Calibration | None = None
    first: PreparedModel | None = None  # the cheap scorer of a cascade
    found: Mapping[str, Any] = field(default_factory=dict)  # facts from before the run, for its report


def prepare(options: JobOptions) -> Prepared:
    """Find all that can be known before weights are loaded, and refuse all that can be refused."""
    refuse_unusable(options)
    known = find_known(options)
    inputs = resolve_inputs(options.inputs, options.in_format, options.shape)
    return prepare_inputs(options, inputs, known, find_first(options, known))


def find_known(options: JobOptions) -> KnownModel:
    """Find the model and read its checkpoint."""
    where: dict[str, Any] = {"revision": options.revision, "online": options.online}
    known = find_model(options.model, **where, profiles_file=options.profiles_file)
    checkpoint = known.checkpoint
    if checkpoint is None:
        checkpoint = read_checkpoint(locate_checkpoint(options.model, **where), name=options.model)
        known = with_checkpoint(known, checkpoint)
    return with_choices(known, label=options.label, taken_as=options.taken_as)


def find_first(options: JobOptions, known: KnownModel) -> KnownModel | None:
    """The model of the cheap scorer; None without a cascade. known: the model of the run."""
    refuse_unusable_cascade(options)
    if options.first.scorer is None:
        return None
    asked = read_asked(options)
    return known if asked.same_model else find_known(first_options(options, asked))


def prepare_first(options: JobOptions, first: KnownModel | None, model: PreparedModel) -> PreparedModel | None:
    """The cheap scorer; None without a cascade. model: that of the run; both must fit in memory together."""
    if first is None:
        return None
    refuse_embedder(model.checkpoint)
    prepared = prepare_model(first_options(options, read_asked(options)), first)
    refuse_both_too_large(prepared.plan, model.plan, model.machine)
    return prepared


def prepare_model(options: JobOptions, known: KnownModel) -> PreparedModel:
    """The plan and the encoder of a model. known: by `find_known`. Imports torch."""
    import torch  # not at the top: a run that is finished already must not wait for it

    checkpoint = known.checkpoint
    assert checkpoint is not None, "read by find_known"
    family = family_of(checkpoint.architecture)
    # Before the plan: a model that cannot be scored is refused for that, not for its size.
    scoring = check_scoring(checkpoint, own_template=options.template is not None)
    # A GPU that nobody wants is not waited for.
    patience = ANSWER_SECONDS if options.request.device == "cpu" else WAKING_SECONDS
    machine = detect_machine(timeout_seconds=patience)
    answer = plan_model(options.request, known, machine, notes=options.request_notes)
    plan = plan_run(answer, cuda_devices=torch.cuda.device_count())
    refuse_unfit(options, checkpoint, family)
    encoder = open_encoder(
        checkpoint,
        max_tokens=plan.max_tokens,
        truncate=options.truncate,
        chunk_overlap=options.chunk_overlap,
        special_tokens=options.special_tokens,
        instruction=options.instruction,
        max_unknown=options.max_unknown,
        template=options.template,
        images=options.images,
    )
    told = (scoring.told,) if scoring.told else ()
    own = (*_model_reasons(checkpoint, family, plan), *told)
    reasons = [*plan.reasons, *own, f"template {encoder.template!r}"]
    if isinstance(encoder, ReadsImages):
        count = plan.image_processes
        reasons.append(f"images in at most {encoder.max_tiles} tiles: {encoder.reason}")
        reasons.append(f"many images are read ahead by {count} process{'es' * (count > 1)}")
    plan = replace(plan, reasons=tuple(reasons), taken=scoring.told if scoring.taken else "")
    return PreparedModel(checkpoint, family, plan, machine, encoder)


def prepare_inputs(
    options: JobOptions, inputs: list[Input], known: KnownModel, first_known: KnownModel | None = None
) -> Prepared:
    """As `prepare`, with inputs and models that were found before. Imports torch."""
    model = prepare_model(options, known)
    first = prepare_first(options, first_known, model)
    plan = model.plan
    if first:
        one = first.plan
        why = f"first scorer: {first.checkpoint.name} in {one.precision} on {one.device}, {one.max_tokens} tokens"
        more = (f"first scorer: {warning}" for warning in one.warnings if warning not in plan.warnings)
        plan = replace(plan, reasons=(*plan.reasons, why), warnings=(*plan.warnings, *more))
    position = Position([item.path for item in inputs], options.limit)
    read = ReadOptions(
        options.max_line_bytes, live=options.pairs, skip=options.skip, limit=options.limit, position=position
    )
    calibration = open_calibration(options, model)
    if options.pairs:
        if run := next((item.path for item in inputs if item.format == "trec"), None):
            raise UsageError(f"{run}: is a TREC run, and `score` reads pairs", hint="`rerank-file` reads TREC runs")
        shape: Shape = PairShape(options.fields, query=options.query)
        items = open_pairs(inputs, shape, read)
        own = shape
    else:
        own, items = open_lists(inputs, options.fields, read, options.shape, options.texts)
        items = ordered_by_group(inputs, own, items, read)
        shape = written_as(own, output_kind(options.names, own.kind, lambda name: open_teacher(name, options)))
        refuse_sigmoids(shape, model)
        refuse_unfit_shape(shape, options, calibration)
        if first:
            refuse_unfit_cascade(options, read_asked(options), shape.kind.name, first.checkpoint.name, first.plan, plan)
        reason = f"rows of the shape {own.kind.name}, written as {shape.kind.name}"
        read_as = [f"read: {own.reading}"] if isinstance(own, (ListShape, FlatShape)) and own.reading else []
        losses = _losses(shape, inputs, options)
        plan = replace(plan, reasons=(*plan.reasons, reason, *read_as), warnings=(*plan.warnings, *losses))
    told = own.told if isinstance(own, (ListShape, FlatShape, TrecShape)) else ()
    return Prepared(
        model.checkpoint, model.family, plan, model.machine, model.encoder, inputs, shape, position.count(items),
        position, read, told, calibration, first,
    )  # fmt: skip


def refuse_sigmoids(shape: Shape, model: PreparedModel) -> None:
    """`UsageError` for a shape with sigmoids of logits and a model without logits."""
    if shape.kind.sigmoids and model.family.embeds:
        raise UsageError(
            f"--out-format {shape.kind.name}: {model.checkpoint.name} gives a {model.score}, which is not the logit of "
            "a probability",
            hint=f"`--out-format list` writes the {model.score}",
        )


def refuse_unfit_shape(shape: Shape, options: JobOptions, calibration: Calibration | None) -> None:
    """`UsageError` for a shape without the rank or the probability that the options ask for."""
    for flag, value in (("--depth", options.depth), ("--blend", options.blend)):
        if value is not None and shape.kind.name not in ("list", "flat"):
            raise UsageError(
                f"{flag}: changes the order, and rows of the shape {shape.kind.name} are ordered by score",
                hint="`--out-format list` has a rank beside the score",
            )
    if calibration and "probability" not in shape.kind.carries:
        raise UsageError(
            f"--calibration {calibration.path}: rows of the shape {shape.kind.name} have no place for a probability",
            hint="`--out-format list` has one",
        )


def open_calibration(options: JobOptions, model: PreparedModel) -> Calibration | None:
    """The file of `--calibration`; refused if it was fitted on another model or with other options."""
    if options.calibration is None:
        return None
    found = read_calibration(options.calibration)
    checkpoint = model.checkpoint
    found.refuse_other(
        {"name": checkpoint.name, "sha256": checkpoint.sha256}, model.score,
        {name: getattr(options, name) for name in BOUND},
    )  # fmt: skip
    return found


def open_teacher(name: str, options: JobOptions) -> Kind:
    """The shape of rows to train on; refuses options that cut lists."""
    for flag, value in (("--top-n", options.selection.top_n), ("--threshold", options.selection.threshold)):
        if value is not None:
            raise UsageError(
                f"{flag}: rows of {name} are chosen from the whole list", hint="`--negatives N` says how many it takes"
            )
    by_field = options.teacher.positive_field is not None
    return teacher_kind(name, options.teacher, read_qrels(options.qrels) if options.qrels and not by_field else None)


def _losses(shape: Shape, inputs: Sequence[Input], options: JobOptions) -> Iterator[str]:
    """Warnings about what the output has no place for."""
    if missing := not_carried(shape, options.selection):
        yield f"the shape {shape.kind.name} has no place for: {', '.join(missing)}"
    tables = output_format(options.names) == "parquet" and any(item.format == "parquet" for item in inputs)
    if tables and isinstance(shape, Conversion):
        yield "columns are converted as for JSON: a time or a decimal number becomes text"


def _model_reasons(checkpoint: Checkpoint, family: Family, plan: Plan) -> Iterator[str]:
    """Reasons for what the files of the model decide."""
    import torch

    from rerank_cli.models import DTYPES
    from rerank_cli.models.linear import fp8_reason

    if family.embeds:
        yield f"score {similarity_of(checkpoint)}: the model embeds query and passage, each distinct one once"
    if not (family.embeds or family.answers or family.headless) and (score := read_score(checkpoint)).labels > 1:
        yield f"score {score}, of {score.labels} labels"
    if quantisation := read_quantisation(checkpoint):
        yield f"{quantisation}: {fp8_reason(torch.device(plan.device), DTYPES.get(plan.precision, torch.float32))}"


def refuse_unfit(options: JobOptions, checkpoint: Checkpoint, family: Family) -> None:
    """Refuse options that make no sense for this command or this kind of model."""
    if options.pairs and (shape := output_shape(options.names)):
        raise UsageError(
            f"--out-format {shape}: `score` gives every row its score", hint="`rerank-file` writes other shapes"
        )
    if options.selection.prob and family.embeds:
        raise UsageError(
            f"--prob: {checkpoint.name} gives a {similarity_of(checkpoint)}, not the logit of a probability"
        )
    if options.names.embeddings and not family.embeds:
        raise UsageError(f"--embeddings: {checkpoint.name} gives logits, not vectors")
    if options.names.embeddings and options.truncate == "chunk":
        raise UsageError("--embeddings: a passage in chunks has several vectors", hint="leave out `--truncate chunk`")
