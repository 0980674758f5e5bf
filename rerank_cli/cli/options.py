"""The options that several commands share, a row each; options of one command stand in its module.

A new option is a row here, a field in `job/options.py` (or in a dataclass there), and the line that uses the field.
"""

from __future__ import annotations

from typing import Literal, get_args

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
    option,
)
from rerank_cli.cli.parsers import (
    devices,
    families,
    in_formats,
    out_formats,
    parse_duration,
    parse_error_limit,
    parse_out_format,
    parse_shard,
    parse_share,
    parse_size,
    read_template,
)
from rerank_cli.encoding.choices import Pool, SpecialTokens, Truncation
from rerank_cli.planning.choices import Precision, parse_precision

OnError = Literal["collect", "fail"]
Format = Literal["auto", "text", "json"]

OF_RUNS = {3, 7, 8, 9, 10, 11}
"""Exit codes that only a run of rows can have."""

# Of every command.

ONE_MODEL = [
    option(
        "--model", str, group=MODEL, into="model", metavar="DIR|ID", basic=True,
        help="Folder or Hugging Face id. Default: the built-in one.",
    ),
    option("--revision", str, group=MODEL, into="revision", metavar="REV", help="Revision of a Hugging Face id."),
    option(
        "--online", bool, group=MODEL, into="online",
        help="Allow a download of the model. Without it no connection is made.",
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
        "--precision", str, group=MODEL, into="request.precision", metavar="P", basic=True, parse=parse_precision,
        complete=lambda: get_args(Precision),
        help="fp32, bf16, fp16, fp8, int8 or auto. auto: fp32 on a CPU, on a GPU fp16, or bf16 if the model was "
        "trained in it; auto:0.99: the cheapest of a CPU whose ten best are to 99 % those of fp32 on the first lists.",
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
        "--title", str, group=OUTPUT, into="names.title", metavar="TEXT",
        help="What the page is called. Default: the name of the output.",
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
        help="Field of a passage's text, or several: title,text. A blank joins them. Default: text, in a flat row "
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
        help="Field of an id, of a query or a passage, for messages and --qrels. Default: query_id, qid or id; of a "
        "passage passage_id, doc_id, docid, pid, docno, id or _id.",
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
        help="Folder of scores and vectors that runs share: what one has computed, the others find.",
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
        help="Score nothing; count rows, and estimate the time.",
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
