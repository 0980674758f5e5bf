"""The answer of `mem-estimate`, as one document: the memory of each point beside what is published or measured.

    answer = answer_memory(asked, find_model("nvidia/llama-nemotron-rerank-1b-v2"), MeasuringTools())
    answer.to_json()

A point is a batch size and a length. With a cheap scorer before the model (`--first`) both are loaded, and every point
counts both. For the CPU of this machine the answer also has what a run would need as it is planned, the figure of
`--dry-run`.

The answer is arithmetic (`memory/`) wherever the model is one of ours. Three things need more than arithmetic: the peak
of a model that transformers runs, a measured forward, and the token lengths of a file. They load torch or a tokenizer,
so the command hands them in (`MemoryTools`; the real ones are in `engine/memory_tools.py`).

Over 400 lines: the document is made here from its first key to its last note.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

from rerank_cli.checkpoint import Checkpoint
from rerank_cli.errors import DoesNotFitError, ModelError, RerankError, UsageError
from rerank_cli.machine.cpu import detect_cpu, usable_cores
from rerank_cli.machine.detect import describe_machine, detect_machine
from rerank_cli.machine.gpu import Gpu
from rerank_cli.machine.gpu_names import speed_of
from rerank_cli.machine.libraries import missing_library
from rerank_cli.planning.card_time import PairLengths, pair_time, time_to_json, why_no_time
from rerank_cli.planning.choices import BATCH_SIZES, LENGTHS, PAIRS, MemoryRequest, ProfileRequest, least_overlap
from rerank_cli.planning.cpu_kernels import cpu_attention
from rerank_cli.planning.known_model import KnownModel
from rerank_cli.planning.memory import MemoryModel, Placement
from rerank_cli.planning.memory.published import table_to_json
from rerank_cli.planning.memory.question import MemoryQuestion, MemoryRow
from rerank_cli.planning.profiles import GIB, ModelProfiles, show_capability
from rerank_cli.planning.profiles.matching import auto_precision
from rerank_cli.planning.run_plan import Plan, needed_together, plan_model, plan_run

SCHEMA = "rerank-cli/mem-estimate/1"
_MEASURED_POINT = (1, 512)


@dataclass(frozen=True, slots=True)
class FirstModel:
    """The cheap scorer before the model. precision: the one asked for. same_model: it is the model itself."""

    known: KnownModel
    precision: str
    same_model: bool


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """What a run would need. needed_bytes: of both scorers, where there are two. first: the plan of the cheap one."""

    plan: Plan
    needed_bytes: int
    first: Plan | None = None


@dataclass(frozen=True, slots=True)
class MemoryAnswer:
    """The rows and what they are about.

    method: `closed form`, or `tracker` for a model that transformers runs, if torch is there. file: pairs and lengths
    of a file. times: how long the pairs of a file, or a million of each length, take on a card that is known by name.
    first: the cheap scorer. run: what one would need on the CPU of this machine.
    """

    known: KnownModel
    request: MemoryRequest
    question: MemoryQuestion
    rows: tuple[MemoryRow, ...]
    method: str = "closed form"
    file: dict[str, Any] | None = None
    published: tuple[dict[str, Any], ...] = ()
    notes: tuple[str, ...] = ()
    times: tuple[dict[str, Any], ...] = ()
    first: FirstModel | None = None
    run: PlannedRun | None = None

    @property
    def too_large(self) -> tuple[MemoryRow, ...]:
        """The points that do not fit."""
        return tuple(row for row in self.rows if row.fits is False)

    def to_json(self) -> dict[str, Any]:
        """The document; sizes in bytes."""
        place, constants, run = self.question.place, self.question.place.constants, self.run
        capability = place.capability and show_capability(place.capability)
        return {
            "schema": SCHEMA,
            "model": self.known.to_json(),
            "method": self.method,
            "precision": place.precision,
            "first": self.first
            and self.question.first
            and {"model": self.first.known.to_json(), "precision": self.question.first.place.precision},
            "device": {
                "kind": "cpu" if place.cpu else "gpu",
                "sku": place.sku,
                "compute_capability": capability,
                "available_bytes": self.question.capacity,
            },
            "constants": {
                "status": constants.status,
                "source": constants.source,
                "date": constants.date.isoformat(),
            },
            "file": self.file,
            "rows": [row.to_json() for row in self.rows],
            "run": run
            and {
                "max_tokens": run.plan.max_tokens,
                "token_budget": run.plan.token_budget,
                "lanes": run.plan.lanes,
                "engine_count": len(run.plan.engines),
                "first_bytes": run.first.needed_bytes if run.first else 0,
                "needed_bytes": run.needed_bytes,
            },
            "published": list(self.published),
            "times": list(self.times),
            "notes": list(self.notes),
        }


class MemoryTools(Protocol):
    """What an answer needs beyond arithmetic; each may load torch or a tokenizer."""

    def has_cuda(self) -> bool:
        """Whether torch finds a CUDA device here."""

    def follow(
        self, rows: tuple[MemoryRow, ...], question: MemoryQuestion, checkpoint: Checkpoint | None
    ) -> tuple[MemoryRow, ...]:
        """The rows of a model that transformers runs: the forward as a tracker followed it, in place of the bound."""

    def measure(self, row: MemoryRow, question: MemoryQuestion, known: KnownModel) -> MemoryRow:
        """The row with what a forward at its point really needed."""

    def file_lengths(self, path: str, known: KnownModel) -> tuple[tuple[int, ...], dict[str, Any]]:
        """Tokens of every pair of a file, longest first, and a summary."""


def answer_memory(
    request: MemoryRequest, known: KnownModel, tools: MemoryTools, first: FirstModel | None = None
) -> MemoryAnswer:
    """The answer; `DoesNotFitError` where `solve` finds nothing, `UsageError` where the request contradicts itself.

    Args:
        request: What is asked.
        known: The model.
        tools: What needs more than arithmetic.
        first: The cheap scorer before the model.
    """
    place, capacity = _find_placement(request, known, tools)
    model, notes = _memory_model(request, known)
    place = _with_kernels(place, model)
    question = MemoryQuestion(
        model=model,
        place=place,
        images=request.images,
        max_input_tiles=request.max_input_tiles,
        capacity=capacity,
    )
    file = None
    if request.from_file is not None:
        lengths, file = tools.file_lengths(request.from_file, known)
        question = replace(question, lengths=lengths)
    if first is not None:
        question = replace(question, first=_first_question(request, question, first, tools))
    published: tuple[dict[str, Any], ...] = ()
    if request.compare:
        question, published, said = _add_published_tables(question, known)
        notes = (*notes, *said)
    points = _points(request, question, known)
    rows = tuple(question.at(*point) for point in points)
    if question.first is not None and first is not None:
        rows = _follow_first(rows, question, question.first, first, tools)
    answer = MemoryAnswer(known, request, question, rows, file=file, published=published, first=first)
    if model is not None and model.shape.forward == "padded":
        try:
            answer = replace(answer, rows=tools.follow(rows, question, known.checkpoint), method="tracker")
        except ModuleNotFoundError as error:
            missing = missing_library(error)
            if missing is None:
                raise
            notes = (
                *notes,
                f"computed from the shape alone, as transformers' forward cannot be traced: {missing.message}",
            )
    if place.cpu:
        answer = _with_run(answer)
    answer = replace(answer, times=tuple(_times(answer)))
    if request.measure:
        answer = replace(answer, rows=(tools.measure(answer.rows[0], question, known),))
    return replace(answer, notes=(*notes, *_notes(request, question, known), *answer.notes))


# The cheap scorer, and the run.


def _first_question(
    request: MemoryRequest, question: MemoryQuestion, first: FirstModel, tools: MemoryTools
) -> MemoryQuestion:
    """The question of the cheap scorer, at the same points."""
    for flag, value in (("--measure", request.measure), ("--compare", request.compare)):
        if value:
            raise UsageError(
                f"--first: does not work with {flag}, which is about one model", hint="leave out one of them"
            )
    place, _ = _find_placement(replace(request, precision=first.precision), first.known, tools)
    model, _ = _memory_model(request, first.known)
    place = _with_kernels(place, model)
    lengths = question.lengths
    if request.from_file is not None and not first.same_model:
        lengths, _ = tools.file_lengths(request.from_file, first.known)
    return replace(question, model=model, place=place, lengths=lengths, limit=first.known.max_tokens, capacity=None)


def _follow_first(
    rows: tuple[MemoryRow, ...], question: MemoryQuestion, own: MemoryQuestion, first: FirstModel, tools: MemoryTools
) -> tuple[MemoryRow, ...]:
    """The rows; where transformers runs the cheap scorer, with its forward as a tracker followed it."""
    if own.model is None or own.model.shape.forward != "padded":
        return rows
    alone = tuple(
        replace(row, estimate=row.first, first=None, max_tokens=min(row.max_tokens, own.limit or row.max_tokens))
        for row in rows
    )
    followed = tools.follow(alone, own, first.known.checkpoint)
    return tuple(question.judge(replace(row, first=one.estimate)) for row, one in zip(rows, followed, strict=True))


def _with_run(answer: MemoryAnswer) -> MemoryAnswer:
    """The answer with what a run would need on this machine, or with a note where it cannot be planned."""
    request, first = answer.request, answer.first
    machine = describe_machine([])
    lengths = request.max_tokens or ()
    asked = ProfileRequest(
        precision=answer.question.place.precision, device="cpu", engine_count=request.engines,
        max_tokens=lengths[0] if len(lengths) == 1 else None,
    )  # fmt: skip
    try:
        plan = plan_run(plan_model(asked, answer.known, machine), cuda_devices=0)
        cheap = None
        if first is not None:
            own = replace(asked, precision=first.precision, max_tokens=asked.max_tokens if first.same_model else None)
            cheap = plan_run(plan_model(own, first.known, machine), cuda_devices=0)
        needed = needed_together(cheap, plan)
    except RerankError as error:
        return replace(answer, notes=(*answer.notes, f"a run here cannot be planned: {error.message}"))
    return answer if needed is None else replace(answer, run=PlannedRun(plan, needed, cheap))


# The device.


def _with_kernels(place: Placement, model: MemoryModel | None) -> Placement:
    """The place; on a CPU with the kind of attention that `model` has there."""
    if not place.cpu or model is None:
        return place
    return replace(place, attention=cpu_attention(detect_cpu(), place.precision, model.shape))


def _find_placement(request: MemoryRequest, known: KnownModel, tools: MemoryTools) -> tuple[Placement, int | None]:
    """Where the model runs, and how many bytes there are; None where nothing tells them."""
    kind = request.device
    if kind == "auto" and request.measure:
        kind = "cuda" if tools.has_cuda() else "cpu"
    if kind == "cpu":
        if request.gpu:
            raise UsageError("--device cpu and --gpu contradict each other")
        precision = "fp32" if request.precision == "auto" or least_overlap(request.precision) else request.precision
        capacity = request.capacity
        if capacity is None and request.room:
            capacity = detect_cpu().memory_available_bytes
        return Placement(True, precision, cores=usable_cores(), engines=request.engines), capacity
    if least_overlap(request.precision):
        raise UsageError(
            f"--precision {request.precision}: compares the precisions of a CPU",
            hint="`--device cpu` is one; on a GPU `auto` is fp16 or bf16",
        )
    gpu = describe_machine([request.gpu]).gpus[0] if request.gpu else None
    if gpu is None and request.room and request.capacity is None:
        gpu = _first_gpu()
    capacity = request.capacity or (gpu.free_bytes if gpu else None)
    capability = gpu.compute_capability if gpu else None
    auto = auto_precision(known.profiles, capability)
    place = Placement(
        precision=auto if request.precision == "auto" else request.precision,
        sku=gpu.sku if gpu else None,
        capability=capability,
        engines=request.engines,
    )
    return place, capacity


def _first_gpu() -> Gpu:
    machine = detect_machine()
    found = next(iter(machine.devices), None)
    if found is None or found.free_bytes is None:
        why = "no GPU is found here" if found is None else "the memory of the GPU here cannot be read"
        raise UsageError(
            f"{why}, so there is no memory to fit it in",
            hint="name a size (`--vram 24GiB`) or a GPU (`--gpu 8.9:24GB`)",
        )
    # A MIG instance counts as a GPU of its own.
    (gpu,) = (gpu for gpu in machine.gpus if gpu.index == found.index)
    return replace(gpu, free_bytes=found.free_bytes, total_bytes=found.total_bytes)


# The model.


def _memory_model(request: MemoryRequest, known: KnownModel) -> tuple[MemoryModel | None, tuple[str, ...]]:
    """What the estimate is computed from; None where only published values are known and nothing else is asked for."""
    try:
        model = known.memory_model()
    except ModelError as error:
        published_alone = request.compare and not (request.solve or request.room or request.measure)
        if known.checkpoint is not None or not published_alone:
            raise
        return None, (error.message,)
    if known.checkpoint is not None or not isinstance(known.profiles, ModelProfiles):
        return model, ()
    return model, (f"weights follow from the shape in {known.profiles.file}; a checkpoint's headers would be exact",)


def _points(request: MemoryRequest, question: MemoryQuestion, known: KnownModel) -> list[tuple[int, int]]:
    limit = known.max_tokens
    too_long = [length for length in request.max_tokens or () if length > limit]
    if too_long:
        raise UsageError(f"--max-tokens {too_long[0]}: {known.name} reads at most {limit} tokens")
    solved = {"batch-size": request.batch_sizes, "max-tokens": request.max_tokens}
    if request.solve and solved[request.solve]:
        raise UsageError(f"--{request.solve}: is what `--solve {request.solve}` finds", hint="leave out one of them")
    if request.measure:
        sizes, lengths = request.batch_sizes or _MEASURED_POINT[:1], request.max_tokens or (_MEASURED_POINT[1],)
        if len(sizes) * len(lengths) > 1:
            raise UsageError("--measure runs one point: give one --batch-size and one --max-tokens")
    else:
        sizes = request.batch_sizes or BATCH_SIZES
        lengths = request.max_tokens or ((limit,) if question.lengths is not None else LENGTHS)
    lengths = tuple(dict.fromkeys(min(length, limit) for length in lengths))
    if request.solve == "batch-size":
        return [(_require_fit(question.largest_batch(length), question, 1, length), length) for length in lengths]
    if request.solve == "max-tokens":
        return [(size, _require_fit(question.longest_pair(size, limit), question, size, 1)) for size in sizes]
    return [(size, length) for size in dict.fromkeys(sizes) for length in lengths]


def _require_fit(number: int, question: MemoryQuestion, batch_size: int, max_tokens: int) -> int:
    """`number`; `DoesNotFitError` where it is 0, with what the least point, `batch_size` x `max_tokens`, needs."""
    if number:
        return number
    least = question.at(batch_size, max_tokens).total
    needed = "unknown" if least is None else f"{least / GIB:.2f} GiB"
    have = f"{(question.capacity or 0) / GIB:.2f} GiB"
    pairs = f"{batch_size} pair{'s' * (batch_size > 1)} of {max_tokens} token{'s' * (max_tokens > 1)}"
    raise DoesNotFitError(f"{pairs} need {needed}, there are {have}", hint=None)


# The time.


def _times(answer: MemoryAnswer) -> Iterator[dict[str, Any]]:
    """How long the pairs of the file take, else a million pairs of each length; nothing where it is unknown."""
    model, place, limit = answer.question.model, answer.question.place, answer.known.max_tokens
    if model is None or place.cpu or answer.question.images or answer.first:
        return
    asked: list[tuple[int | None, PairLengths]]
    if answer.question.lengths is not None:
        asked = [(None, PairLengths.all_of(answer.question.lengths, max(row.max_tokens for row in answer.rows)))]
    else:
        lengths = dict.fromkeys(min(row.max_tokens, limit) for row in answer.rows)
        asked = [(length, PairLengths.of(PAIRS, length)) for length in lengths]
    for length, pairs in asked:
        time = pair_time(model.shape, pairs, speed_of(place.sku), precision=place.precision, engines=1)
        if time is not None:
            yield {"pairs": pairs.pairs, "tokens": length, **time_to_json(time)}


# What stands beside the estimate.


def _add_published_tables(
    question: MemoryQuestion, known: KnownModel
) -> tuple[MemoryQuestion, tuple[dict[str, Any], ...], tuple[str, ...]]:
    """The question with the published tables of its GPU, the tables as documents, and notes about them."""
    place = question.place
    if not isinstance(known.profiles, ModelProfiles) or not known.profiles.memory:
        return question, (), (f"nothing is published for {known.name}",)
    tables = known.profiles.published_tables(
        precision=place.precision, compute_capability=place.capability, sku=place.sku
    )
    if not tables:
        return question, (), (f"nothing is published for {known.name} in {place.precision} on such a device",)
    documents = tuple(table_to_json(table) for table in tables)
    if place.capability is None and len(tables) > 1:
        said = "published values differ by GPU: `--gpu` names one, whose values then stand beside the rows"
        return question, documents, (said,)
    inferred = sorted({table.headings for table in tables} - {"certain"})
    said = f"published values are as printed; that they are for this GPU and precision is {', '.join(inferred)}"
    return replace(question, tables=tables), documents, (said,) if inferred else ()


def _notes(request: MemoryRequest, question: MemoryQuestion, known: KnownModel) -> list[str]:
    notes = []
    place, model = question.place, question.model
    if least_overlap(request.precision):
        notes.append(f"precision {request.precision}: that of fp32, with which the run begins")
    if place.cpu and "int8" in (place.precision, question.first and question.first.place.precision):
        notes.append(
            "int8: the peak is the calibration, with the model in float32; afterwards its layers need a quarter"
        )
    elif model is not None and place.fp8(model.weights):
        how = "as the checkpoint stores them" if model.weights.stored.matrices else "rounded when they are loaded"
        notes.append(f"the layers' products are held in FP8, {how}; embeddings, norms and heads are not")
    elif place.precision in ("fp8", "int8"):
        notes.append(f"{place.precision}: the weights are held in 16 bits once they are loaded")
    if request.images and model is not None and model.shape.vision is None:
        notes.append(f"--images: {known.name} reads none")
    if place.sku and not place.cpu:
        shape, speed = model.shape if model else None, speed_of(place.sku)
        if question.first:
            notes.append(f"the time on {place.sku} is not known: it is estimated for one scorer, not for two")
        elif why := why_no_time(shape, speed, precision=place.precision, images=bool(request.images)):
            notes.append(f"the time on {place.sku} is not known: {why}")
    if place.constants.status == "default":
        notes.append(f"context and slack are cautious defaults: {place.constants.source}")
    return notes
