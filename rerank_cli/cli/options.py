"""The options that commands share, a row each; those of one command stand in its own module.

A new option is a row here, a field in `job/options.py` (or in a dataclass of its), and the line that uses the field.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, get_args

from rerank_cli.cli.declare import (
    BAD,
    EVALUATION,
    LONG,
    MODEL,
    OUTPUT,
    ROWS,
    RUN,
    SAY,
    SCALE,
    SELECTION,
    Option,
    option,
)
from rerank_cli.encoding.choices import Pool, SpecialTokens, Truncation
from rerank_cli.errors import InputError
from rerank_cli.job.options import LEAST_STORE, ErrorLimit, TemplateText
from rerank_cli.planning.choices import Precision
from rerank_cli.storage import refuse_url

OnError = Literal["collect", "fail"]
Format = Literal["auto", "text", "json"]

_TEMPLATE_BYTES = 2**20

OF_RUNS = {3, 7, 8, 9, 10, 11}
"""Exit codes that only a run of rows can have."""

_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([kmgt]i?b|[kmgt]|b?)")
UNITS = {"B": 1} | {
    f"{prefix}{infix}B": base**power
    for power, prefix in enumerate("KMGT", start=1)
    for infix, base in (("", 1000), ("i", 1024))
}
"""Bytes of a unit of memory."""
_COUNT = re.compile(r"(\d+(?:\.\d+)?(?:e\d{1,2})?)([kmb]?)", re.ASCII)
_TIMES = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}
_MOST = 10**15
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|)")
_SECONDS = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0}


# What the texts of options mean.


def parse_duration(text: str) -> float:
    """Seconds of `90`, `90s`, `500ms`, `1.5m` or `6h`."""
    found = _DURATION.fullmatch(text)
    if found is None:
        raise ValueError("not a time", "for example 90, 5s, 500ms, 10m or 6h")
    return float(found[1]) * _SECONDS[found[2]]


def parse_size(text: str) -> int:
    """Bytes of `500MB`, `10GB` or `8GiB`."""
    found = _SIZE.fullmatch(text.strip().lower())
    if found is None:
        raise ValueError("not a size", "for example 500MB, 10GB or 8GiB")
    unit = found[2].removesuffix("b").upper().replace("I", "i") + "B"  # B, KB and KiB of `b`, `k` and `kib`
    size = int(float(found[1]) * UNITS[unit])
    if not LEAST_STORE <= size <= 2**60:
        raise ValueError("out of range", "1MB is the least")
    return size


def parse_count(text: str) -> int:
    """The number of `10000000`, `10,000,000`, `10M`, `1.5k` or `1e7`."""
    found = _COUNT.fullmatch(text.strip().lower().replace(",", "").replace("_", ""))
    number = float(found[1]) * _TIMES[found[2]] if found else 0.0
    if not 1 <= number <= _MOST or number != int(number):
        raise ValueError("not a whole number above 0", "for example 5000, 500k, 10M or 1e7")
    return int(number)


def parse_shard(text: str) -> tuple[int, int]:
    """(i, n) of `i/n`."""
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise ValueError("not a part", "parts count from 1: 1/4 is the first of four, 4/4 the last")
    return int(found[1]), int(found[2])


def parse_error_limit(text: str) -> ErrorLimit:
    """The limit that `100` or `0.5%` names."""
    if re.fullmatch(r"\d+", text):
        return ErrorLimit(rows=int(text))
    if re.fullmatch(r"\d+(\.\d+)?%", text) and float(text[:-1]) <= 100:
        return ErrorLimit(share=float(text[:-1]) / 100)
    raise ValueError("neither a number of rows nor a percentage", "for example 100 or 0.5%")


def parse_share(text: str) -> float:
    """The share that `5%` names."""
    if re.fullmatch(r"\d+(\.\d+)?%", text) and float(text[:-1]) <= 100:
        return float(text[:-1]) / 100
    raise ValueError("not a percentage", "for example 5%")


def families() -> list[str]:
    """What `--as` takes."""
    from rerank_cli.checkpoint.recipes import RECIPES

    return list(RECIPES)


def read_template(name: str) -> str:
    """The text of a template's file; `none` as it is."""
    if name == "none":
        return name
    refuse_url("--template", name)
    try:
        with Path(name).open("rb") as stream:  # no more of it: /dev/zero has no end
            data = stream.read(_TEMPLATE_BYTES + 1)
        if len(data) > _TEMPLATE_BYTES:
            raise InputError(f"--template {name}: more than {_TEMPLATE_BYTES:,} bytes, which no prompt has")
        return TemplateText(data.decode("utf-8-sig").removesuffix("\n"), name)
    except OSError as error:
        raise InputError(f"--template {name}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"--template {name}: not UTF-8") from error


def parse_out_format(text: str) -> str:
    """A format of files or a shape of rows."""
    return _one_of(text, out_formats())


def parse_blend_of(text: str) -> Any:
    """The blend that `rrf:0.5` or `z:0.3` names."""
    from rerank_cli.evaluation.blend import parse_blend  # with numpy, which a start without the option need not load

    return parse_blend(text)


def parse_first_keep_of(text: str) -> str:
    """What `--first-keep` takes."""
    from rerank_cli.job.first_scorer import parse_first_keep  # with the plans, which a start need not load

    return parse_first_keep(text)


def parse_shape(text: str) -> str:
    """A shape of rows."""
    return _one_of(text, shapes())


def in_formats() -> list[str]:
    """What `--in-format` takes."""
    from rerank_cli.formats.inputs import Format as Known

    return ["auto", *(name for name in get_args(Known) if name != "text")]


def out_formats() -> list[str]:
    """What `--out-format` takes."""
    from rerank_cli.formats.choices import TEACHER_FORMATS
    from rerank_cli.formats.shapes import SHAPES

    return ["auto", "jsonl", "parquet", "csv", "tsv", *SHAPES, *TEACHER_FORMATS]


def shapes() -> list[str]:
    """What `--shape` takes."""
    from rerank_cli.formats.shapes import READABLE

    return ["auto", *READABLE]


def devices() -> list[str]:
    """Devices that a shell offers."""
    return ["auto", "cpu", "cuda", "cuda:0"]


def _one_of(text: str, known: Iterable[str]) -> str:
    if text not in known:
        raise ValueError("not known", "known are " + ", ".join(known))
    return text


# Of every command.

ONE_MODEL = [
    option(
        "--model", str, group=MODEL, into="model", metavar="DIR|ID", basic=True,
        help="Folder or Hugging Face id. Default: the built-in model.",
    ),
    option("--revision", str, group=MODEL, into="revision", metavar="REV", help="Revision of a Hugging Face id."),
    option(
        "--online", bool, group=MODEL, into="online",
        help="Allow a download of the model. Without it no connection is made.",
    ),
    option(
        "--precision", Precision, group=MODEL, into="request.precision", metavar="P", basic=True, case_sensitive=False,
        help="fp32, bf16, fp16, fp8, int8 or auto. auto: fp32 on a CPU, fp16 on a GPU.",
    ),
    option(
        "--engines", int, group=SCALE, into="request.engine_count", aliases=("--engine-count",), metavar="N", min=1,
        help="Copies of the model on each device, a process each. Default: NIM_ENGINE_COUNT, else the profile's.",
    ),
    option(
        "--format", Format, group=SAY, name="output_mode", default="auto", metavar="F",
        help="auto, text or json, for what the command prints; auto is a table on a terminal, JSON in a pipe.",
    ),
]  # fmt: skip

# Of every command that plans a run.

PLANNED = [
    *ONE_MODEL,
    option(
        "--device", str, group=MODEL, into="request.device", metavar="DEVICE", complete=devices,
        help="auto, cpu, cuda or cuda:0,1.",
    ),
    option(
        "--profile", str, group=MODEL, into="request.profile", metavar="NAME|FILE",
        help="A profile of the model, which `profile-select --list` names, or a file of profiles (.toml).",
    ),
    option(
        "--max-tokens", int, group=MODEL, into="request.max_tokens", metavar="N", min=8,
        help="Longest pair in tokens. Default: what the model can read.",
    ),
    option(
        "--token-budget", int, group=MODEL, into="request.token_budget", metavar="N", min=1,
        help="Tokens of a batch. Default: the profile's.",
    ),
]  # fmt: skip

# Of every command that scores.

SCORING = [
    *PLANNED,
    option(
        "--overwrite", bool, group=OUTPUT, into="overwrite", basic=True,
        help="Replace OUT if it exists, once the run is complete.",
    ),
    option(
        "--out-format", str, group=OUTPUT, into="names.out_format", metavar="F", parse=parse_out_format,
        complete=out_formats,
        help="jsonl, parquet, csv or tsv (a passage a row), or the shape of the rows: list, flat, nim, cohere, "
        "openai-batch, trec; or rows to train on: triplet, n-tuple, labeled-list, flagembedding; auto goes by the "
        "suffix and keeps the shape.",
    ),
    option(
        "--report", str, group=OUTPUT, into="names.report", metavar="FILE", basic=True,
        help="Report; a name in .html: a page to look at. Default: OUT.report.json.",
    ),
    option(
        "--max-input-tiles", int, group=MODEL, into="images.max_tiles", metavar="N", min=1, max=64,
        help="Tiles of an image at most, without its thumbnail. Default: the checkpoint's, else 6.",
    ),
    option(
        "--max-image-pixels", int, group=MODEL, into="images.max_pixels", metavar="N", min=1, max=89_478_485,
        help="Largest image; a larger one makes its row a bad row.",
    ),
    option(
        "--special-tokens", SpecialTokens, group=MODEL, into="special_tokens", metavar="MODE",
        help="neutral: `[SEP]` and its like in a text are text; allow: they act as special tokens.",
    ),
    option(
        "--instruction", str, group=MODEL, into="instruction", metavar="TEXT",
        help="Stands in place of the model's own prompt; an empty one: none.",
    ),
    option(
        "--as", str, group=MODEL, name="taken_as", into="taken_as", metavar="FAMILY", complete=families,
        help="Which reranker a language model is, where its files do not say it: qwen3-reranker, mxbai-rerank-v2 or "
        "bge-reranker-v2-gemma.",
    ),
    option(
        "--label", int, group=MODEL, into="label", metavar="N", min=0,
        help="Which label of a classifier is the score, from 0. Default: the one label; of two, 1 less 0.",
    ),
    option(
        "--template", str, group=MODEL, into="template", metavar="FILE|none", parse=read_template,
        help="A file with a prompt that has {query} and {passage}; its last newline does not count. none: the "
        "tokenizer's own encoding of a pair. Default: the model's.",
    ),
    option(
        "--in-format", str, group=ROWS, into="in_format", metavar="F", complete=in_formats,
        help="jsonl (JSON arrays too), parquet, trec, csv, tsv, tsv-quoted, tsv-plain, top1000 (no header) or auto: by "
        "the suffix, then by the content.",
    ),
    option(
        "--query-field", str, group=ROWS, into="fields.query", metavar="PATH", basic=True,
        help="Field of the query. Default: query.",
    ),
    option(
        "--text-field", str, group=ROWS, into="fields.text", metavar="PATH,...", basic=True,
        help="Field of a passage's text, or several: title,text. A blank joins them. Default: text; in a flat row "
        "passage, document, text or doc.",
    ),
    option(
        "--image-field", str, group=ROWS, into="fields.image", metavar="PATH|none",
        help="Field of a passage's image; none: passages have no image, whatever is in the row. Default: image.",
    ),
    option(
        "--image-root", str, group=ROWS, into="fields.image_root", metavar="DIR",
        help="Folder of the images; a path in a row stays below it. Default: the folder of the input.",
    ),
    option(
        "--id-field", str, group=ROWS, into="fields.id", metavar="PATH",
        help="Field of an id, for messages and --qrels. Default: query_id, qid or id.",
    ),
    option(
        "--max-line-bytes", int, group=ROWS, into="max_line_bytes", metavar="N", min=1024,
        help="Longest line of JSON; a longer one is a bad row.",
    ),
    option(
        "--top-n", int, group=SELECTION, into="selection.top_n", metavar="N", min=1, basic=True,
        help="Keep the N best. Default: all.",
    ),
    option(
        "--threshold", float, group=SELECTION, into="selection.threshold", metavar="X",
        help="Keep passages with a logit of at least X.",
    ),
    option(
        "--prob", bool, group=SELECTION, into="selection.prob",
        help="Add `prob`, the sigmoid of the logit, as float64.",
    ),
    option(
        "--calibration", str, group=SELECTION, into="calibration", metavar="FILE",
        help="Add `probability`, which a file of `rerank-cli evaluate --calibrate-to FILE` makes of the score.",
    ),
    option(
        "--truncate", Truncation, group=LONG, into="truncate", metavar="MODE",
        help="end: cut the passage, never the query; error: a pair that is too long is a bad row; chunk: score pieces "
        "and pool them; reference: cut as the model's reference code does.",
    ),
    option(
        "--chunk-overlap", int, group=LONG, into="chunk_overlap", metavar="N", min=0,
        help="Tokens that neighbouring chunks share.",
    ),
    option(
        "--pool", Pool, group=LONG, into="pool", metavar="HOW",
        help="Logit of a passage in chunks: max, mean or first.",
    ),
    option(
        "--errors", str, group=BAD, into="names.errors", metavar="FILE",
        help="Where bad rows go. Default: OUT.errors.jsonl; stderr with `-o -`.",
    ),
    option(
        "--max-errors", str, group=BAD, metavar="N|P%", parse=parse_error_limit,
        help="Stop with exit code 7 when more rows than this are bad.",
    ),
    option(
        "--max-unknown", float, group=BAD, into="max_unknown", metavar="P%", parse=parse_share,
        help="A pair with a larger share of tokens that the model does not know is a bad row.",
    ),
    option(
        "--on-error", OnError, group=BAD, default="collect", metavar="MODE",
        help="collect: put bad rows in a file and go on; fail: stop at the first.",
    ),
    option(
        "--restart", bool, group=RUN, into="restart",
        help="Start over: discard unfinished work on OUT, or do a finished run again.",
    ),
    option(
        "--checkpoint-every", float, group=RUN, into="checkpoint_every", metavar="TIME", parse=parse_duration,
        help="How often finished work is written to disk (5s, 500ms, 1m).",
    ),
    option(
        "--shard", str, group=RUN, into="shard", metavar="I/N", parse=parse_shard,
        help="Do the I-th of N parts of the input, whole queries each. The outputs of all parts, joined in order, are "
        "the output of one run.",
    ),
    option(
        "--lock-wait", float, group=RUN, into="lock_wait", metavar="TIME", parse=parse_duration,
        help="How long to wait while another process works on OUT, before exit code 11.",
    ),
    option(
        "--deadline", float, group=RUN, into="deadline", metavar="TIME", parse=parse_duration,
        help="Stop after this time (6h) with exit code 9; run again to continue.",
    ),
    option("--limit", int, group=RUN, into="limit", metavar="N", min=0, help="Read at most N rows."),
    option("--skip", int, group=RUN, into="skip", metavar="N", min=0, help="Leave out the first N rows."),
    option(
        "--store", str, group=RUN, into="store", metavar="DIR",
        help="Folder of scores that runs share: what one has computed, the others find.",
    ),
    option(
        "--store-limit", int, group=RUN, into="store_limit", metavar="SIZE", parse=parse_size,
        help="Size of the store, as 500MB or 10GB; what was not used for longest goes first.",
    ),
    option(
        "--check-precision", int, group=RUN, into="check_precision", metavar="N", min=1,
        help="Score the first N pairs, whole lists, in fp32 too, and report how well they agree.",
    ),
    option(
        "--dry-run", bool, group=RUN, basic=True,
        help="Score nothing; count rows and tokens, tell the time.",
    ),
    option(
        "--gpu", list[str], group=RUN, metavar="NAME",
        help="With --dry-run: the time on this card too, L4, H100, RTX-4090 or 9.0:80GiB:NAME; may be given several "
        "times.",
    ),
    option("--quiet", bool, group=SAY, short="-q", help="Only errors on stderr."),
    option("--verbose", bool, group=SAY, short="-v", help="Also the plan and its reasons on stderr."),
]  # fmt: skip

# Of every command that evaluates.

JUDGED = [
    option(
        "--qrels", str, group=EVALUATION, into="qrels", metavar="FILE", basic=True,
        help="TREC judgements: measure the order before and after.",
    ),
    option(
        "--metric", list[str], group=EVALUATION, into="metrics", metavar="M",
        help="A measure of ir-measures; may be given several times.",
    ),
    option(
        "--per-query", str, group=EVALUATION, into="names.per_query", metavar="FILE",
        help="Also write both values of each query and measure: .tsv or .jsonl.",
    ),
]  # fmt: skip


def options_without(options: Iterable[Option], *flags: str) -> list[Option]:
    """The rows but those of `flags`, which a command has otherwise or not at all."""
    return [one for one in options if one.flag not in flags]
