"""Options that several subcommands share, each with its environment variable and its group in the help."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from rerank_cli.errors import InputError, UsageError

MODEL, ROWS, SELECTION, LONG, BAD, RUN, SCALE, SAY = (
    "model", "rows and fields", "selection", "long passages", "bad rows", "run", "scale", "messages"
)  # fmt: skip


def option(flag: str, *more: str, group: str, help: str, **settings: Any) -> Any:
    """A Typer option with `RERANK_<OPTION>` as its environment variable."""
    name = "RERANK_" + flag.lstrip("-").split("/")[0].upper().replace("-", "_")
    return typer.Option(
        flag, *more, help=help, rich_help_panel=group, envvar=name, show_envvar=False, show_default=False, **settings
    )


Output = Annotated[
    str, option("--output", "-o", group=RUN, help="Where the result goes; `-` is stdout.", metavar="OUT")
]
Model = Annotated[
    str | None,
    option(
        "--model",
        group=MODEL,
        metavar="DIR|ID",
        help="A checkpoint folder or a Hugging Face id. Default: the built-in model.",
    ),
]
Revision = Annotated[
    str | None, option("--revision", group=MODEL, metavar="REV", help="Revision of a Hugging Face id.")
]
Online = Annotated[
    bool, option("--online", group=MODEL, help="May download a model. Without it no connection is made.")
]
Device = Annotated[
    str, option("--device", group=MODEL, metavar="DEVICE", help="auto, cpu, cuda or cuda:0,1. Default: auto.")
]
Precision = Annotated[
    str,
    option(
        "--precision", group=MODEL, metavar="P",
        help="auto, fp32, bf16, fp16, fp8 or int8. Default: NIM_PRECISION or NIM_ENGINE_PRECISION, else auto (fp32 on "
        "a CPU, fp16 on a GPU).",
    ),
]  # fmt: skip
CheckPrecision = Annotated[
    int | None,
    option(
        "--check-precision", group=RUN, metavar="N", min=1,
        help="Score the first N pairs (whole lists) in fp32 too, and report how far they agree.",
    ),
]  # fmt: skip
ProfileName = Annotated[
    str,
    option(
        "--profile", group=MODEL, metavar="NAME|FILE",
        help="A profile of the model (`profile-select --list` has their names), or a profile file (.toml) in place "
        "of its own. Default: auto.",
    ),
]  # fmt: skip
Engines = Annotated[
    int | None,
    option(
        "--engines", group=SCALE, metavar="N", min=1,
        help="Loaded copies of the model on each device, a process each; with `--engine ray`, in all. Default: "
        "NIM_ENGINE_COUNT, else what the profile says.",
    ),
]  # fmt: skip
EngineKind = Annotated[
    str,
    option(
        "--engine", group=SCALE, metavar="KIND",
        help="local: engines on the devices of this machine; ray: on a Ray cluster, files or folders in, a folder out. "
        "Default: local.",
    ),
]  # fmt: skip
RayAddress = Annotated[
    str | None,
    option(
        "--ray-address", group=SCALE, metavar="A",
        help="The cluster (host:port, ray://... or auto). Default: that of RAY_ADDRESS, else one on this machine.",
    ),
]  # fmt: skip
CpusPerEngine = Annotated[
    int | None,
    option(
        "--cpus-per-engine", group=SCALE, metavar="N", min=1,
        help="CPUs that an engine on a Ray cluster takes. Default: 1 with a GPU, else 4.",
    ),
]  # fmt: skip
GpusPerEngine = Annotated[
    float | None,
    option(
        "--gpus-per-engine", group=SCALE, metavar="X", min=0.0,
        help="GPUs that it takes, or a share of one. Default: 1 where the cluster has any.",
    ),
]  # fmt: skip
MaxTokens = Annotated[
    int | None,
    option(
        "--max-tokens",
        group=MODEL,
        metavar="N",
        min=8,
        help="Longest pair in tokens. Default: what the model can read.",
    ),
]
MaxInputTiles = Annotated[
    int | None,
    option(
        "--max-input-tiles", group=MODEL, metavar="N", min=1, max=64,
        help="Tiles that an image is cut in at most, its thumbnail not counted. Default: the checkpoint's, or 6.",
    ),
]  # fmt: skip
MaxImagePixels = Annotated[
    int,
    option(
        "--max-image-pixels", group=MODEL, metavar="N", min=1, max=89_478_485,
        help="Largest image; one with more pixels is a bad row. Default: 40000000.",
    ),
]  # fmt: skip
TokenBudget = Annotated[
    int | None, option("--token-budget", group=MODEL, metavar="N", min=1, help="Tokens a batch may hold.")
]
SpecialTokens = Annotated[
    str,
    option(
        "--special-tokens", group=MODEL, metavar="MODE",
        help="neutral: `[SEP]` and its like in a text are text; allow: they act. Default: neutral.",
    ),
]  # fmt: skip
Instruction = Annotated[
    str | None,
    option("--instruction", group=MODEL, metavar="TEXT", help="What a yes/no model is asked, in place of its default."),
]
Template = Annotated[
    str | None,
    option(
        "--template", group=MODEL, metavar="FILE|none",
        help="A prompt with {query} and {passage} in place of the model's own (one newline at the end of the file does "
        "not count); none: the tokenizer's own encoding of a pair.",
    ),
]  # fmt: skip
InFormat = Annotated[
    str,
    option("--in-format", group=ROWS, metavar="F", help="auto, jsonl, parquet, trec or tsv. Default: by the suffix."),
]
OutFormat = Annotated[
    str,
    option(
        "--out-format", group=ROWS, metavar="F",
        help="auto, jsonl or parquet, or the shape of the rows (list, flat, nim, cohere, openai-batch, trec). "
        "Default: by the suffix, rows in the shape they came in.",
    ),
]  # fmt: skip
QueryField = Annotated[
    str | None, option("--query-field", group=ROWS, metavar="PATH", help="Field of the query. Default: query.")
]
TextField = Annotated[
    str | None,
    option(
        "--text-field", group=ROWS, metavar="PATH[,PATH]",
        help="Field of a passage's text; several are joined by a blank (title,text). Default: text in a list; passage, "
        "document, text or doc in a flat row.",
    ),
]  # fmt: skip
ImageField = Annotated[
    str | None,
    option(
        "--image-field", group=ROWS, metavar="PATH|none",
        help="Field of a passage's image; none: what stands there is no image of the passage. Default: image.",
    ),
]  # fmt: skip
ImageRoot = Annotated[
    str | None,
    option(
        "--image-root", group=ROWS, metavar="DIR",
        help="Folder that paths of images start from and stay below. Default: the input file's folder.",
    ),
]  # fmt: skip
IdField = Annotated[
    str | None,
    option(
        "--id-field",
        group=ROWS,
        metavar="PATH",
        help="Field of an id, for messages and --qrels. Default: query_id.",
    ),
]
MaxLineBytes = Annotated[
    int, option("--max-line-bytes", group=ROWS, metavar="N", min=1024, help="Longest JSON line. Default: 67108864.")
]
TopN = Annotated[int | None, option("--top-n", group=SELECTION, metavar="N", min=1, help="Keep the N best.")]
Threshold = Annotated[
    float | None, option("--threshold", group=SELECTION, metavar="X", help="Keep passages with a logit of at least X.")
]
Prob = Annotated[bool, option("--prob", group=SELECTION, help="Add `prob`, the sigmoid of the logit (float64).")]
Embeddings = Annotated[
    str | None,
    option(
        "--embeddings", group=SELECTION, metavar="FILE.parquet",
        help="Also write the vectors of an embedding model: kind, text, vector.",
    ),
]  # fmt: skip
Truncate = Annotated[
    str,
    option(
        "--truncate", group=LONG, metavar="MODE",
        help="end: cut the passage, never the query; error: an over-long pair is a bad row; chunk: score pieces and "
        "pool; reference: cut as the model's reference code does. Default: end.",
    ),
]  # fmt: skip
ChunkOverlap = Annotated[
    int,
    option(
        "--chunk-overlap", group=LONG, metavar="N", min=0, help="Tokens that neighbouring chunks share. Default: 64."
    ),
]
Pool = Annotated[
    str,
    option("--pool", group=LONG, metavar="HOW", help="Logit of a chunked passage: max, mean or first. Default: max."),
]
Errors = Annotated[
    str | None,
    option(
        "--errors",
        group=BAD,
        metavar="FILE",
        help="Where bad rows go. Default: OUT.errors.jsonl, or stderr with `-o -`.",
    ),
]
MaxErrors = Annotated[
    str | None,
    option("--max-errors", group=BAD, metavar="N|P%", help="Stop with exit code 7 when more rows than this are bad."),
]
OnError = Annotated[
    str,
    option("--on-error", group=BAD, metavar="MODE", help="collect, or fail at the first bad row. Default: collect."),
]
Overwrite = Annotated[
    bool, option("--overwrite", group=RUN, help="Replace OUT if it exists, once the run is complete.")
]
Restart = Annotated[
    bool, option("--restart", group=RUN, help="Start over: throw away the unfinished work on OUT, or do it all again.")
]
CheckpointEvery = Annotated[
    str,
    option(
        "--checkpoint-every", group=RUN, metavar="TIME",
        help="How often finished work is brought to disk (5s, 500ms, 1m). Default: 5s.",
    ),
]  # fmt: skip
LockWait = Annotated[
    str,
    option(
        "--lock-wait", group=RUN, metavar="TIME",
        help="How long to wait while another process works on OUT. Default: 0s, then exit code 11.",
    ),
]  # fmt: skip
Deadline = Annotated[
    str | None,
    option("--deadline", group=RUN, metavar="TIME", help="Stop after this time (6h) with exit code 9."),
]
Shard = Annotated[
    str | None,
    option(
        "--shard", group=RUN, metavar="I/N",
        help="Do the I-th of N parts of the input, whole queries each; the outputs of 1/N to N/N, one after another, "
        "are the output of all.",
    ),
]  # fmt: skip
Limit = Annotated[int | None, option("--limit", group=RUN, metavar="N", min=0, help="Read at most N rows.")]
Skip = Annotated[int, option("--skip", group=RUN, metavar="N", min=0, help="Leave out the first N rows.")]
DryRun = Annotated[
    bool, option("--dry-run", group=RUN, help="Read and tokenise, score nothing: rows, pairs, lengths, expected time.")
]
Report = Annotated[
    str | None,
    option(
        "--report", group=RUN, metavar="FILE",
        help="Where the report goes; a name in .html gets a page of it, and the JSON its default name. "
        "Default: OUT.report.json.",
    ),
]  # fmt: skip
Quiet = Annotated[bool, option("--quiet", "-q", group=SAY, help="Only errors on stderr.")]
Verbose = Annotated[bool, option("--verbose", "-v", group=SAY, help="Also the plan and its reasons.")]
OutputMode = Annotated[
    str,
    option("--format", group=SAY, metavar="F", help="auto, text or json, for what a command prints. Default: auto."),
]


def choice(flag: str, value: str, known: tuple[str, ...]) -> Any:
    """`value`, or `UsageError` naming what is known."""
    if value not in known:
        raise UsageError(f"{flag} {value}: not known", hint="known are " + ", ".join(known))
    return value


def needed(flag: str, value: str | None) -> str:
    """`value`, or `UsageError` where an option that must be there is not."""
    if value is None:
        raise UsageError(f"missing option {flag}", hint="rerank-cli rerank-file --help")
    return value


def read_template(name: str | None) -> str | None:
    """The text of a template's file; `none` and None as they are."""
    if name is None or name == "none":
        return name
    try:
        return Path(name).read_text(encoding="utf-8").removesuffix("\n")
    except OSError as error:
        raise InputError(f"--template {name}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"--template {name}: not UTF-8") from error


def parse_duration(flag: str, text: str) -> float:
    """Seconds of `90`, `90s`, `500ms`, `1.5m` or `6h`."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h|)", text)
    if found is None:
        raise UsageError(f"{flag} {text}: not a time", hint="for example 90, 5s, 500ms, 10m or 6h")
    return float(found[1]) * {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0}[found[2]]


def parse_shard(text: str | None) -> tuple[int, int] | None:
    """(i, n) of `i/n`."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise UsageError(f"--shard {text}: not a part", hint="for example 1/4, the first of four")
    return int(found[1]), int(found[2])


def parse_error_limit(max_errors: str | None, on_error: str) -> tuple[int | None, float | None]:
    """The bad rows a run bears as (rows, share of all rows); (None, None) is any number."""
    choice("--on-error", on_error, ("collect", "fail"))
    if on_error == "fail":
        return 0, None
    if max_errors is None:
        return None, None
    if re.fullmatch(r"\d+", max_errors):
        return int(max_errors), None
    if re.fullmatch(r"\d+(\.\d+)?%", max_errors) and float(max_errors[:-1]) <= 100:
        return None, float(max_errors[:-1]) / 100
    raise UsageError(
        f"--max-errors {max_errors}: neither a number of rows nor a percentage", hint="for example 100 or 0.5%"
    )
