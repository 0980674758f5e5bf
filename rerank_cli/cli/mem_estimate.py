"""`rerank-cli mem-estimate`."""

from __future__ import annotations

import os
import re
import sys
from typing import TYPE_CHECKING, Annotated, Any

from rerank_cli.cli import options as opt
from rerank_cli.cli.console import forget_stdout, print_json, print_table, say
from rerank_cli.cli.options import ROWS
from rerank_cli.cli.report_command import ReportCommand, error_to_json, wants_json
from rerank_cli.errors import DoesNotFitError, RerankError, UsageError, printable
from rerank_cli.machine.this_process import prepare_process

if TYPE_CHECKING:
    from rerank_cli.planning.memory.table import Row
    from rerank_cli.planning.memory_answer import MemoryAnswer

POINT, ROOM, BESIDE = "point", "room", "beside the estimate"
_BATCH_SIZES, _LENGTHS = "1,8,16,30", "1024,2048,4096,8192"
_UNITS = {"B": 1} | {
    f"{prefix}{infix}B": base**power
    for power, prefix in enumerate("KMGT", start=1)
    for infix, base in (("", 1000), ("i", 1024))
}

Device = Annotated[
    str,
    opt.option(
        "--device", group=POINT, metavar="DEVICE",
        help="cuda, what a GPU needs, or cpu. Default: auto (cuda; with --measure what this torch can use).",
    ),
]  # fmt: skip
Precision = Annotated[
    str,
    opt.option(
        "--precision", group=POINT, metavar="P",
        help="auto, fp32, bf16, fp16, fp8 or int8. Default: NIM_PRECISION or NIM_ENGINE_PRECISION, else auto (fp16 on "
        "a GPU, fp32 on a CPU).",
    ),
]  # fmt: skip
BatchSizes = Annotated[
    str | None,
    opt.option("--batch-size", group=POINT, metavar="N,...", help=f"Pairs of a batch. Default: {_BATCH_SIZES}."),
]
Lengths = Annotated[
    str | None,
    opt.option(
        "--max-tokens", group=POINT, metavar="N,...",
        help=f"Tokens of a pair. Default: {_LENGTHS}, up to what the model can read.",
    ),
]  # fmt: skip
EngineCount = Annotated[
    int | None,
    opt.option(
        "--engine-count", group=POINT, metavar="N", min=1,
        help="Loaded copies of the model on the device. Default: NIM_ENGINE_COUNT, else 1.",
    ),
]  # fmt: skip
Images = Annotated[
    int,
    opt.option("--images", group=POINT, metavar="N", min=0, help="Pairs of a batch that have an image. Default: 0."),
]
Tiles = Annotated[
    int | None,
    opt.option("--max-input-tiles", group=POINT, metavar="N", min=1, help="Tiles of an image, without its thumbnail."),
]
FromFile = Annotated[
    str | None,
    opt.option(
        "--from-file", group=ROWS, metavar="IN",
        help="The lengths of the pairs in this file: a batch is the longest of them, cut at --max-tokens.",
    ),
]  # fmt: skip
GpuOption = Annotated[
    str | None,
    opt.option("--gpu", group=ROOM, metavar="CC:MEM[:NAME]", help="The GPU, for example 8.9:24GB:NVIDIA-L4."),
]
Vram = Annotated[
    str | None, opt.option("--vram", group=ROOM, metavar="SIZE", help="Memory of the device, for example 24GiB.")
]
Fits = Annotated[
    bool,
    opt.option(
        "--fits", group=ROOM,
        help="Exit with 6 where a point does not fit --vram, --gpu, or what is free on the first device here.",
    ),
]  # fmt: skip
Solve = Annotated[
    str | None,
    opt.option(
        "--solve", group=ROOM, metavar="WHAT",
        help="batch-size or max-tokens: the largest that fits, for each of the other.",
    ),
]  # fmt: skip
Compare = Annotated[
    str | None,
    opt.option("--compare", group=BESIDE, metavar="NAME", help="nim: the published value, never blended in."),
]
Measure = Annotated[
    bool,
    opt.option(
        "--measure",
        group=BESIDE,
        help="Run one point, with zeros for weights that are not here, and print what it took.",
    ),
]
Plot = Annotated[
    str | None,
    opt.option(
        "--plot", group=BESIDE, metavar="FILE", help="Draw memory against batch size, a line a length: .png or .html."
    ),
]


def mem_estimate(
    model: opt.Model = None,
    revision: opt.Revision = None,
    online: opt.Online = False,
    device: Device = "auto",
    precision: Precision = "auto",
    batch_size: BatchSizes = None,
    max_tokens: Lengths = None,
    engine_count: EngineCount = None,
    images: Images = 0,
    max_input_tiles: Tiles = None,
    from_file: FromFile = None,
    gpu: GpuOption = None,
    vram: Vram = None,
    fits: Fits = False,
    solve: Solve = None,
    compare: Compare = None,
    measure: Measure = False,
    plot: Plot = None,
    output_mode: opt.OutputMode = "auto",
) -> int:
    """Say how much memory a model needs, before anything is loaded.

    \b
    rerank-cli mem-estimate
    rerank-cli mem-estimate --model nvidia/llama-nemotron-rerank-1b-v2 --vram 24GiB --solve batch-size
    rerank-cli mem-estimate --from-file samples/python-docs.jsonl --batch-size 64
    """
    as_json = wants_json(output_mode)
    prepare_process(online=online)
    # Imported here because --help must not wait for them.
    from rerank_cli.engine.memory_tools import MeasuringTools
    from rerank_cli.planning.known_model import find_model
    from rerank_cli.planning.memory_answer import SCHEMA, MemoryRequest, answer_memory

    try:
        opt.choice("--format", output_mode, ("auto", "text", "json"))
        request = MemoryRequest(
            device=opt.choice("--device", device.partition(":")[0], ("auto", "cuda", "cpu")),
            precision=_precision(precision),
            batch_sizes=_numbers("--batch-size", batch_size),
            max_tokens=_numbers("--max-tokens", max_tokens),
            engines=engine_count or _nim_engine_count(),
            images=images,
            max_input_tiles=max_input_tiles,
            from_file=from_file,
            gpu=gpu,
            capacity=None if vram is None else _bytes("--vram", vram),
            room=fits or solve is not None,
            solve=None if solve is None else opt.choice("--solve", solve, ("batch-size", "max-tokens")),
            compare=compare is not None and bool(opt.choice("--compare", compare, ("nim",))),
            measure=measure,
        )
        answer = answer_memory(request, find_model(model, revision=revision, online=online), MeasuringTools())
    except RerankError as error:
        if as_json:
            print_json({"schema": SCHEMA, "error": error_to_json(error)})
        raise
    if plot is not None:
        from rerank_cli.cli.mem_plot import draw

        draw(answer, plot)
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
        raise _does_not_fit(answer)
    return 0


class MemEstimateCommand(ReportCommand):
    """The command, of which a document without rows tells an error."""

    def error_document(self, error: RerankError) -> dict[str, Any]:
        """See `ReportCommand`."""
        from rerank_cli.planning.memory_answer import SCHEMA

        return {"schema": SCHEMA, "error": error_to_json(error)}


# Options.


def _precision(given: str) -> str:
    """The precision that is asked for; NVIDIA's variables are heard below ours."""
    if given == "auto":
        nim = (os.environ.get(name, "").strip() for name in ("NIM_PRECISION", "NIM_ENGINE_PRECISION"))
        given = next(filter(None, nim), "auto").casefold()
    known: str = opt.choice("--precision", given, ("auto", "fp32", "bf16", "fp16", "fp8", "int8"))
    return known


def _nim_engine_count() -> int:
    text = os.environ.get("NIM_ENGINE_COUNT", "").strip() or "1"
    if not re.fullmatch(r"[1-9][0-9]{0,3}", text, re.ASCII):
        raise UsageError(f"NIM_ENGINE_COUNT {text}: not a whole number above 0")
    return int(text)


def _numbers(flag: str, text: str | None) -> tuple[int, ...] | None:
    """`1,8,16` as numbers."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"[1-9][0-9]{0,6}", part, re.ASCII) for part in parts):
        raise UsageError(
            f"{flag} {text}: not whole numbers above 0 with commas between them", hint="for example 1,8,16"
        )
    return tuple(map(int, parts))


def _bytes(flag: str, text: str) -> int:
    """`24GiB` in bytes."""
    match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,6})?)\s*([KMGT]i?B|B)", text.strip(), re.ASCII)
    size = round(float(match[1]) * _UNITS[match[2]]) if match else 0
    if size < 1:
        raise UsageError(f"{flag} {text}: not a size", hint="for example 24GiB, 80GB (10^9 bytes each) or 81559MiB")
    return size


# Output.


def _does_not_fit(answer: MemoryAnswer) -> DoesNotFitError:
    capacity = answer.question.capacity or 0
    smallest = min(row.estimate.total for row in answer.too_large if row.estimate)
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
    title = f"{answer.known.name}, {place.precision} on {device}{engines}{room}; GiB, by {answer.method}"
    cells = [_cells(row, answer) for row in answer.rows]
    shown = [name for name in cells[0] if any(row[name] not in ("-", "0.00") for row in cells)]
    if answer.question.model is not None or answer.question.tables:
        sys.stdout.write(printable(title) + "\n")
        print_table(shown, [[row[name] for name in shown] for row in cells])
    if not answer.question.tables and answer.published:
        _print_published(answer)
    for row in answer.rows:
        if row.measured:
            say(_told(row))
    if answer.file:
        tokens = ", ".join(f"{name} {number}" for name, number in answer.file["tokens"].items())
        say(f"{answer.file['path']}: {answer.file['pairs']:,} pairs; tokens: {tokens}")
    if any(row.nim and row.nim.kind != "published" for row in answer.rows):
        say("NIM: `~` is interpolated between published values, `=` is published without a batch size or length")
    for note in answer.notes:
        say(f"note: {note}")


def _cells(row: Row, answer: MemoryAnswer) -> dict[str, str]:
    """The cells of a row by column; a column without a single value is left out of the table."""
    found, mark = row.estimate, {"interpolated": "~", "published-any": "="}
    parts: dict[str, int | None] = dict.fromkeys(("weights", "activations", "attn", "vision", "runtime", "total"))
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
            + found.loading,
            "total": found.total,
        }
    return {
        "pairs": str(row.batch_size),
        "tokens": str(row.max_tokens),
        **{name: "-" if size is None else _gib(size) for name, size in parts.items()},
        "fit": {True: "yes", False: "no", None: "-"}[row.fits],
        "NIM": f"{mark.get(row.nim.kind, '')}{row.nim.gib:.2f}" if row.nim else "-",
    }


def _print_published(answer: MemoryAnswer) -> None:
    """Every published table, where no GPU is named whose values could stand beside the rows."""
    rows = [
        [table["sku"] or table["compute_capability"], table["precision"], *_point(row), f"{row['gib']:.2f}"]
        for table in answer.published
        for row in table["rows"]
    ]
    print_table(["published for", "precision", "pairs", "tokens", "GiB"], rows)


def _point(row: dict[str, Any]) -> list[str]:
    return [str(row[key] or "-") for key in ("max_batch_size", "max_sequence_length")]


def _told(row: Row) -> str:
    measured = row.measured
    text = (
        f"measured on {measured['device']}: a forward takes {_mib(measured['forward_bytes'])} MiB, "
        f"estimated {_mib(measured['estimated_forward_bytes'])} MiB (ratio {measured['ratio']})"
    )
    if measured["total_bytes"] is not None:
        text += f"; the process holds {_gib(measured['total_bytes'])} GiB of the device"
    return text


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f}"


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f}"
