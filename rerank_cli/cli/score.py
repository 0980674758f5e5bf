"""`rerank-cli score`: the options that no other command has, and the order in which things are done."""

from __future__ import annotations

from typing import Any

import typer

from rerank_cli.cli.declare import OUTPUT, ROWS, argument, option, takes
from rerank_cli.cli.options import SCORING
from rerank_cli.errors import EXIT_CODES, UsageError
from rerank_cli.job.options import STDOUT
from rerank_cli.machine.this_process import keep_freed_memory, prepare_process

OPTIONS = [
    argument("input", str, metavar="[IN]", default=STDOUT, help="A file of pairs; `-`, the default, is stdin."),
    option(
        "--output", str, group=OUTPUT, short="-o", into="names.output", default=STDOUT, metavar="OUT", basic=True,
        help="Where the result goes; `-`, the default, is stdout.",
    ),
    option(
        "--embeddings", str, group=OUTPUT, into="names.embeddings", metavar="FILE.parquet",
        help="Also write the vectors of an embedding model: kind, text, vector.",
    ),
    option(
        "--query", str, group=ROWS, into="query", metavar="Q", basic=True,
        help="One query for all rows, which need none of their own.",
    ),
    option(
        "--lines", bool, group=ROWS, basic=True,
        help="The input is plain text, a passage a line; needs --query.",
    ),
    *SCORING,
]  # fmt: skip

EXAMPLES = r"""
Score a file of {"query", "passage"} rows:
  rerank-cli score samples/pairs.jsonl
Find the lines of a stream that answer a question best:
  grep -h "def " rerank_cli/*.py |
      rerank-cli score --query "close a file" --lines --top-n 5
"""


@takes(OPTIONS, examples=EXAMPLES, exit_codes=EXIT_CODES)
def score(context: typer.Context, *, lines: bool, dry_run: bool, online: bool, **given: Any) -> int:
    """Add a logit to each pair, in input order, as a stream."""
    prepare_process(online=online)
    keep_freed_memory()
    # Imported here because they load numpy and more, which --help must not wait for.
    from rerank_cli.cli.job_request import read_job_options
    from rerank_cli.cli.run_text import print_dry_run, refuse_gpu, run_and_report

    if lines and given["query"] is None:
        raise UsageError("--lines: needs --query", hint="plain lines hold passages only")
    more = {"in_format": "text"} if lines else {}
    options = read_job_options(context, inputs=(given["input"],), pairs=True, **more)
    if dry_run:
        return print_dry_run(options, given["output_mode"], given["gpu"] or ())
    refuse_gpu(given["gpu"])
    return run_and_report(options, quiet=given["quiet"], verbose=given["verbose"], output_mode=given["output_mode"])
