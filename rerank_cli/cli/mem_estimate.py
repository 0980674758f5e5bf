"""`rerank-cli mem-estimate`: its options, and its answer as tables or JSON."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import typer

from rerank_cli.cli.console import forget_stdout, print_json, print_table, say, write
from rerank_cli.cli.declare import BESIDE, MODEL, POINT, ROOM, ROWS, option, takes, values_into
from rerank_cli.cli.json_command import JsonCommand, error_to_json, wants_json
from rerank_cli.cli.options import OF_RUNS, ONE_MODEL
from rerank_cli.cli.parsers import devices
from rerank_cli.errors import EXIT_CODES, DoesNotFitError, RerankError
from rerank_cli.machine.libraries import explaining_missing_libraries
from rerank_cli.machine.memory_size import parse_memory
from rerank_cli.machine.this_process import prepare_process
from rerank_cli.planning.choices import BATCH_SIZES, LENGTHS, MemoryRequest

if TYPE_CHECKING:
    from rerank_cli.cli.plan_request import Asked
    from rerank_cli.planning.known_model import KnownModel
    from rerank_cli.planning.memory.question import MemoryRow
    from rerank_cli.planning.memory_answer import FirstModel, MemoryAnswer

Solve = Literal["batch-size", "max-tokens"]
Published = Literal["nim"]


def parse_numbers(text: str) -> tuple[int, ...]:
    """The numbers in `1,8,16`."""
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"[1-9][0-9]{0,6}", part, re.ASCII) for part in parts):
        raise ValueError("not whole numbers above 0 with commas between them", "for example 1,8,16")
    return tuple(map(int, parts))


def parse_bytes(text: str) -> int:
    """The bytes of `24GiB`."""
    size = parse_memory(text)
    if not size:
        raise ValueError("not a size", "for example 24GiB, 80GB (10^9 bytes each) or 81559MiB")
    return size


def device_kind(text: str) -> str:
    """`cuda` of `cuda:0`."""
    kind = text.partition(":")[0]
    if kind not in ("auto", "cuda", "cpu"):
        raise ValueError("not known", "known are auto, cuda, cpu")
    return kind


OPTIONS = [
    *ONE_MODEL,
    option(
        "--first", str, group=MODEL, into="memory.first", metavar="MODEL|PRECISION",
        help="The cheap scorer before the model, as `rerank-file` takes it: the memory of both.",
    ),
    option(
        "--device", str, group=MODEL, into="memory.device", metavar="DEVICE", parse=device_kind, complete=devices,
        help="cuda, what a GPU needs, or cpu; auto is cuda, with --measure what this torch can use.",
    ),
    option(
        "--batch-size", str, group=POINT, into="memory.batch_sizes", metavar="N,...", parse=parse_numbers, basic=True,
        help=f"Pairs of a batch. Default: {','.join(map(str, BATCH_SIZES))}.",
    ),
    option(
        "--max-tokens", str, group=POINT, into="memory.max_tokens", metavar="N,...", parse=parse_numbers, basic=True,
        help=f"Tokens of a pair. Default: {','.join(map(str, LENGTHS))}, up to what the model can read.",
    ),
    option(
        "--images", int, group=POINT, into="memory.images", metavar="N", min=0, help="Pairs of a batch with an image."
    ),
    option(
        "--max-input-tiles", int, group=POINT, into="memory.max_input_tiles", metavar="N", min=1,
        help="Tiles of an image, without its thumbnail.",
    ),
    option(
        "--from-file", str, group=ROWS, into="memory.from_file", metavar="IN", basic=True,
        help="The lengths of the pairs in this file: a batch is the longest of them, cut at --max-tokens.",
    ),
    option(
        "--gpu", str, group=ROOM, into="memory.gpu", metavar="NAME", basic=True,
        help="The GPU: L4, H100, RTX-4090, or 8.9:24GB[:NAME]. Also how long pairs take on it, where it is known.",
    ),
    option(
        "--vram", int, group=ROOM, into="memory.capacity", metavar="SIZE", parse=parse_bytes, basic=True,
        help="Memory of the device, for example 24GiB.",
    ),
    option(
        "--fits", bool, group=ROOM, basic=True,
        help="Exit with 6 where a point does not fit --vram, --gpu, or what is free on the first device here.",
    ),
    option(
        "--solve", Solve, group=ROOM, into="memory.solve", metavar="WHAT", basic=True,
        help="batch-size or max-tokens: the largest that fits, for each of the other.",
    ),
    option(
        "--compare", Published, group=BESIDE, metavar="NAME", help="nim: the published value, never blended in."
    ),
    option(
        "--measure", bool, group=BESIDE, into="memory.measure",
        help="Run one point, with zeros for weights that are not here, and print what it took.",
    ),
    option(
        "--plot", str, group=BESIDE, metavar="FILE",
        help="Draw memory against batch size, a line a length: .png or .html.",
    ),
]  # fmt: skip

EXAMPLES = r"""
What does the built-in model need?
  rerank-cli mem-estimate
What is the largest batch that fits 24 GiB?
  rerank-cli mem-estimate --model nvidia/llama-nemotron-rerank-1b-v2 \
      --vram 24GiB --solve batch-size
What do the pairs of my own file need?
  rerank-cli mem-estimate --from-file samples/python-docs.jsonl --batch-size 64
"""


@takes(OPTIONS, examples=EXAMPLES, exit_codes=set(EXIT_CODES) - OF_RUNS)
def mem_estimate(
    context: typer.Context, *, model: str | None, fits: bool, plot: str | None, output_mode: str, **given: Any
) -> int:
    """Say how much memory a model needs, before anything is loaded."""
    as_json = wants_json(output_mode)
    prepare_process(online=given["online"])
    # Imported here because --help must not wait for them.
    from rerank_cli.cli.plan_request import OF_MODEL, find_asked_model, read_asked
    from rerank_cli.engine.memory_tools import MeasuringTools
    from rerank_cli.planning.memory_answer import SCHEMA, answer_memory

    try:
        asked = read_asked(context)
        request = MemoryRequest(
            **values_into(context, "memory"),
            precision=asked.values["precision"],
            **({"engines": engines} if (engines := asked.values["engine_count"]) else {}),
            room=fits or given["solve"] is not None,
            compare=given["compare"] is not None,
        )
        found = find_asked_model(model, **{name: given[name] for name in OF_MODEL})
        known = found.known
        first = _find_first(request.first, known, online=given["online"])
        with explaining_missing_libraries():  # needed where lengths are counted or a forward pass is run
            answer = answer_memory(request, known, MeasuringTools(), first)
        own = answer.question.first
        if answer.first is not None and own is not None and answer.first.same_model:
            from rerank_cli.job.first_scorer import refuse_no_lower

            refuse_no_lower(own.place.precision, answer.question.place.precision)
        answer = replace(answer, notes=(*answer.notes, *found.notes, *_decisions(asked), *asked.notes))
    except RerankError as error:
        if as_json:
            print_json({"schema": SCHEMA, "error": error_to_json(error)})
        raise
    if plot is not None:
        from rerank_cli.cli.mem_plot import draw

        draw(answer, plot, [name for name in (model, given["first"]) if name])
    try:
        if as_json:
            print_json(answer.to_json())
        else:
            _print_text(answer)
        sys.stdout.flush()
    except BrokenPipeError:
        forget_stdout()  # here, because click gives it another exit code before main() sees it
        return 141
    if fits and answer.too_large:
        raise _nothing_fits_error(answer)
    return 0


def _find_first(text: str | None, known: KnownModel, *, online: bool) -> FirstModel | None:
    """The cheap scorer that `--first` names. known: the model of the run."""
    if text is None:
        return None
    from rerank_cli.cli.plan_request import find_asked_model
    from rerank_cli.job.first_scorer import read_scorer, refuse_embedder
    from rerank_cli.planning.memory_answer import FirstModel

    if known.checkpoint is not None:
        refuse_embedder(known.checkpoint)
    model, precision = read_scorer(text)
    found = known if model is None else find_asked_model(model, online=online).known
    return FirstModel(found, precision or "auto", same_model=model is None)


class MemEstimateCommand(JsonCommand):
    """The command; the document of an error has no rows."""

    def error_document(self, error: RerankError) -> dict[str, Any]:
        """The document of an error."""
        from rerank_cli.planning.memory_answer import SCHEMA

        return {"schema": SCHEMA, "error": error_to_json(error)}


# What decided.


def _decisions(asked: Asked) -> list[str]:
    """Notes on the variables that decided something, because they do not show on the command line."""
    names = {"precision": "precision", "engine_count": "engines"}
    return [
        f"{names[field]} {asked.values[field]}: {origin}"
        for field, origin in asked.origins.items()
        if field in names and not origin.startswith("--")
    ]


# Output.


def _nothing_fits_error(answer: MemoryAnswer) -> DoesNotFitError:
    capacity = answer.question.capacity or 0
    smallest = min(row.total for row in answer.too_large if row.total is not None)
    some = f"{len(answer.too_large)} of {len(answer.rows)} points do not fit"
    return DoesNotFitError(
        f"{some} {_gib(capacity)} GiB: the smallest of them needs {_gib(smallest)} GiB",
        hint="`--solve batch-size` or `--solve max-tokens` finds what fits",
    )


def _print_text(answer: MemoryAnswer) -> None:
    place = answer.question.place
    device = place.sku or ("CPU" if place.cpu else "GPU")
    room = "" if answer.question.capacity is None else f", {_gib(answer.question.capacity)} GiB there"
    engines = f", {place.engines} engines" if place.engines > 1 else ""
    own = answer.question.first
    before = f", {answer.first.known.name} in {own.place.precision} first" if answer.first and own else ""
    title = f"{answer.known.name}, {place.precision} on {device}{engines}{room}{before}; GiB, by {answer.method}"
    cells = [_cells(row, answer) for row in answer.rows]
    shown = [name for name in cells[0] if any(row[name] not in ("-", "0.00") for row in cells)]
    if answer.question.model is not None or answer.question.tables:
        write(title)
        print_table(shown, [[row[name] for name in shown] for row in cells])
    if not answer.question.tables and answer.published:
        _print_published(answer)
    for row in answer.rows:
        if row.measured:
            say(_row_text(row))
    if answer.file:
        tokens = ", ".join(f"{name} {number}" for name, number in answer.file["tokens"].items())
        say(f"{answer.file['path']}: {answer.file['pairs']:,} pairs; tokens: {tokens}")
    if run := answer.run:
        lanes = f"{run.plan.lanes} lanes, each of " if run.plan.lanes > 1 else ""
        both = " with both scorers" if run.first else ""
        tokens = f"{lanes}at most {run.plan.token_budget:,} tokens"
        say(f"a run here{both}: {_gib(run.needed_bytes)} GiB, in {tokens} at a time")
    _print_times(answer, device)
    if any(row.nim and row.nim.kind != "published" for row in answer.rows):
        say("NIM: `~` is interpolated between published values, `=` is published without a batch size or length")
    for note in answer.notes:
        say(f"note: {note}")


def _print_times(answer: MemoryAnswer, device: str) -> None:
    from rerank_cli.planning.card_time import BASIS, show_time

    for time in answer.times:
        of_length = f" of {time['tokens']:,} tokens" if time["tokens"] else ""
        took = show_time(time["low"], time["high"])
        say(f"{time['pairs']:,} pairs{of_length}: {took} on {device}, most of it {time['limit']}")
    if answer.times:
        say(f"times are {BASIS}")


def _cells(row: MemoryRow, answer: MemoryAnswer) -> dict[str, str]:
    """The cells of a row by column; a column without a single value is left out of the table."""
    found, mark = row.estimate, {"interpolated": "~", "published-any": "="}
    names = ("weights", "activations", "attn", "vision", "runtime", "first", "total")
    parts: dict[str, int | None] = dict.fromkeys(names)
    if found is not None:
        parts = {
            "weights": found.weights,
            "activations": found.activations,
            "attn": found.attention_workspace,
            "vision": found.vision,
            "runtime": found.pooled
            + found.cublas_workspace
            + found.context
            + found.slack
            + found.waiting
            + found.loading
            + found.known_pairs,
            "first": row.first.total if row.first else 0,
            "total": row.total,
        }
    return {
        "pairs": str(row.batch_size),
        "tokens": str(row.max_tokens),
        **{name: "-" if size is None else _gib(size) for name, size in parts.items()},
        "fit": {True: "yes", False: "no", None: "-"}[row.fits],
        "NIM": f"{mark.get(row.nim.kind, '')}{row.nim.gib:.2f}" if row.nim else "-",
    }


def _print_published(answer: MemoryAnswer) -> None:
    """Print all published tables; no GPU was named whose values could stand beside the rows."""
    rows = []
    for table in answer.published:
        for row in table["rows"]:
            point = [str(row[key] or "-") for key in ("max_batch_size", "max_sequence_length")]
            name = table["sku"] or table["compute_capability"]
            rows.append([name, table["precision"], *point, f"{row['gib']:.2f}"])
    print_table(["published for", "precision", "pairs", "tokens", "GiB"], rows)


def _row_text(row: MemoryRow) -> str:
    measured = row.measured
    took, estimated = (measured[key] / 2**20 for key in ("forward_bytes", "estimated_forward_bytes"))
    text = (
        f"measured on {measured['device']}: a forward takes {took:.1f} MiB, estimated {estimated:.1f} MiB "
        f"(ratio {measured['ratio']})"
    )
    if measured["total_bytes"] is not None:
        text += f"; the process holds {_gib(measured['total_bytes'])} GiB of the device"
    return text


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f}"
