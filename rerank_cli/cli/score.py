"""`rerank-cli score`."""

from __future__ import annotations

from typing import Annotated

import typer

from rerank_cli.cli import options as opt
from rerank_cli.cli.options import ROWS
from rerank_cli.errors import UsageError
from rerank_cli.machine.this_process import keep_freed_memory, prepare_process

Input = Annotated[
    str, typer.Argument(metavar="IN", help="A file of pairs; `-`, the default, is stdin.", show_default=False)
]
Query = Annotated[
    str | None, opt.option("--query", group=ROWS, metavar="Q", help="One query for all rows; rows need no query then.")
]
Lines = Annotated[
    bool, opt.option("--lines", group=ROWS, help="The input is plain text, a passage a line; needs --query.")
]


def score(
    context: typer.Context,
    input: Input = "-",
    output: opt.Output = "-",
    query: Query = None,
    lines: Lines = False,
    model: opt.Model = None,
    revision: opt.Revision = None,
    online: opt.Online = False,
    device: opt.Device = "auto",
    precision: opt.Precision = "auto",
    profile: opt.ProfileName = "auto",
    engines: opt.Engines = None,
    max_tokens: opt.MaxTokens = None,
    max_input_tiles: opt.MaxInputTiles = None,
    max_image_pixels: opt.MaxImagePixels = 40_000_000,
    token_budget: opt.TokenBudget = None,
    special_tokens: opt.SpecialTokens = "neutral",
    instruction: opt.Instruction = None,
    template: opt.Template = None,
    in_format: opt.InFormat = "auto",
    out_format: opt.OutFormat = "auto",
    query_field: opt.QueryField = None,
    text_field: opt.TextField = None,
    image_field: opt.ImageField = None,
    image_root: opt.ImageRoot = None,
    id_field: opt.IdField = None,
    max_line_bytes: opt.MaxLineBytes = 64 * 2**20,
    top_n: opt.TopN = None,
    threshold: opt.Threshold = None,
    prob: opt.Prob = False,
    embeddings: opt.Embeddings = None,
    truncate: opt.Truncate = "end",
    chunk_overlap: opt.ChunkOverlap = 64,
    pool: opt.Pool = "max",
    errors: opt.Errors = None,
    max_errors: opt.MaxErrors = None,
    on_error: opt.OnError = "collect",
    overwrite: opt.Overwrite = False,
    restart: opt.Restart = False,
    checkpoint_every: opt.CheckpointEvery = "5s",
    shard: opt.Shard = None,
    lock_wait: opt.LockWait = "0s",
    deadline: opt.Deadline = None,
    limit: opt.Limit = None,
    skip: opt.Skip = 0,
    check_precision: opt.CheckPrecision = None,
    dry_run: opt.DryRun = False,
    report: opt.Report = None,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
    output_mode: opt.OutputMode = "auto",
) -> int:
    """Add a logit to each pair, in input order, as a stream.

    \b
    rerank-cli score samples/pairs.jsonl
    grep -h "def " rerank_cli/*.py | rerank-cli score --query "close a file" --lines --top-n 5
    """
    prepare_process(online=online)
    keep_freed_memory()
    # Imported here because they load numpy and more, which --help must not wait for.
    from rerank_cli.cli.command_line import command_of
    from rerank_cli.cli.plan_request import read_plan_request
    from rerank_cli.cli.running import print_dry_run, run_and_report
    from rerank_cli.encoding.encoder import ImageLimits
    from rerank_cli.formats.shapes import FieldNames, Selection
    from rerank_cli.job.options import ErrorLimit, JobOptions
    from rerank_cli.job.output_names import Names

    if lines and query is None:
        raise UsageError("--lines: needs --query", hint="plain lines hold passages only")
    rows, share = opt.parse_error_limit(max_errors, on_error)
    asked = read_plan_request(context)
    options = JobOptions(
        inputs=(input,),
        names=Names(output=output, errors=errors, report=report, out_format=out_format, embeddings=embeddings),
        pairs=True,
        query=query,
        in_format="text" if lines else in_format,
        fields=FieldNames(query=query_field, text=text_field, id=id_field, image=image_field, image_root=image_root),
        model=model,
        revision=revision,
        online=online,
        request=asked.request,
        request_notes=asked.notes,
        profiles_file=asked.profiles_file,
        truncate=opt.choice("--truncate", truncate, ("end", "error", "chunk", "reference")),
        chunk_overlap=chunk_overlap,
        pool=opt.choice("--pool", pool, ("max", "mean", "first")),
        special_tokens=opt.choice("--special-tokens", special_tokens, ("neutral", "allow")),
        images=ImageLimits(max_tiles=max_input_tiles, max_pixels=max_image_pixels),
        instruction=instruction,
        template=opt.read_template(template),
        template_file=None if template == "none" else template,
        selection=Selection(top_n=top_n, threshold=threshold, prob=prob),
        error_limit=ErrorLimit(rows=rows, share=share),
        overwrite=overwrite,
        restart=restart,
        checkpoint_every=opt.parse_duration("--checkpoint-every", checkpoint_every),
        shard=opt.parse_shard(shard),
        lock_wait=opt.parse_duration("--lock-wait", lock_wait),
        deadline=None if deadline is None else opt.parse_duration("--deadline", deadline),
        limit=limit,
        skip=skip,
        max_line_bytes=max_line_bytes,
        command=command_of(context),
        check_precision=check_precision,
    )
    if dry_run:
        return print_dry_run(options, output_mode)
    return run_and_report(options, quiet=quiet, verbose=verbose, output_mode=output_mode)
