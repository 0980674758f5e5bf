"""`rerank-cli rerank-file`."""

from __future__ import annotations

from typing import Annotated

import typer

from rerank_cli.cli import options as opt
from rerank_cli.cli.options import ROWS
from rerank_cli.errors import UsageError
from rerank_cli.machine.this_process import keep_freed_memory, prepare_process

Inputs = Annotated[
    list[str], typer.Argument(metavar="IN...", help="Files of candidate lists; `-` is stdin.", show_default=False)
]
Shape = Annotated[
    str,
    opt.option(
        "--shape", group=ROWS, metavar="SHAPE",
        help="auto, list (a list a row), flat (a pair a row), nim, cohere or openai-batch (a request a row), trec, or "
        "what another program writes: rank_llm, anserini, dpr, elasticsearch, vespa, qdrant, haystack, langchain, "
        "llamaindex, ragas, phoenix, msmarco, mteb, beir, ... Default: by the first rows.",
    ),
]  # fmt: skip
Queries = Annotated[
    str | None,
    opt.option("--queries", group=ROWS, metavar="FILE", help="Texts of the queries of a TREC run: TSV or JSONL."),
]
Corpus = Annotated[
    str | None,
    opt.option(
        "--corpus", group=ROWS, metavar="FILE",
        help="Texts of its passages: TSV (id, text) or JSONL (_id, title, text); looked up, not held in memory.",
    ),
]  # fmt: skip
PassagesField = Annotated[
    str | None,
    opt.option(
        "--passages-field", group=ROWS, metavar="PATH",
        help="Field of the list of passages. Default: passages, candidates, documents or docs.",
    ),
]  # fmt: skip
Siblings = Annotated[
    str | None,
    opt.option(
        "--siblings", group=ROWS, metavar="PATH,...|none",
        help="Lists beside the passages that are in step with them and come back in the same order. Default: those "
        "that are as long in all of the first rows.",
    ),
]  # fmt: skip
GroupBy = Annotated[
    str | None,
    opt.option(
        "--group-by", group=ROWS, metavar="PATH",
        help="Field that tells which flat rows belong together. Default: query_id, else the query's text.",
    ),
]  # fmt: skip
Qrels = Annotated[
    str | None,
    opt.option(
        "--qrels", group="evaluation", metavar="FILE", help="TREC judgements: compare the given order and the new one."
    ),
]
Metrics = Annotated[
    list[str] | None,
    opt.option(
        "--metric", group="evaluation", metavar="M", help="Measures of ir-measures, repeatable. Default: nDCG@10."
    ),
]
PerQuery = Annotated[
    str | None,
    opt.option(
        "--per-query", group="evaluation", metavar="FILE",
        help="Also write both values of each query and measure: .tsv or .jsonl.",
    ),
]  # fmt: skip
EvaluateOnly = Annotated[
    bool,
    opt.option(
        "--evaluate-only", group="evaluation",
        help="Measure a file that was reranked before; no model is loaded. -o is then the report, and may be left out.",
    ),
]  # fmt: skip
Output = Annotated[
    str | None, opt.option("--output", "-o", group=opt.RUN, help="Where the result goes; `-` is stdout.", metavar="OUT")
]


def rerank_file(
    context: typer.Context,
    inputs: Inputs,
    output: Output = None,
    model: opt.Model = None,
    revision: opt.Revision = None,
    online: opt.Online = False,
    device: opt.Device = "auto",
    precision: opt.Precision = "auto",
    profile: opt.ProfileName = "auto",
    max_tokens: opt.MaxTokens = None,
    max_input_tiles: opt.MaxInputTiles = None,
    max_image_pixels: opt.MaxImagePixels = 40_000_000,
    token_budget: opt.TokenBudget = None,
    special_tokens: opt.SpecialTokens = "neutral",
    instruction: opt.Instruction = None,
    template: opt.Template = None,
    shape: Shape = "auto",
    queries: Queries = None,
    corpus: Corpus = None,
    in_format: opt.InFormat = "auto",
    out_format: opt.OutFormat = "auto",
    query_field: opt.QueryField = None,
    passages_field: PassagesField = None,
    text_field: opt.TextField = None,
    image_field: opt.ImageField = None,
    image_root: opt.ImageRoot = None,
    id_field: opt.IdField = None,
    group_by: GroupBy = None,
    siblings: Siblings = None,
    max_line_bytes: opt.MaxLineBytes = 64 * 2**20,
    top_n: opt.TopN = None,
    threshold: opt.Threshold = None,
    prob: opt.Prob = False,
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
    engine: opt.EngineKind = "local",
    engines: opt.Engines = None,
    ray_address: opt.RayAddress = None,
    cpus_per_engine: opt.CpusPerEngine = None,
    gpus_per_engine: opt.GpusPerEngine = None,
    qrels: Qrels = None,
    metric: Metrics = None,
    per_query: PerQuery = None,
    evaluate_only: EvaluateOnly = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
    output_mode: opt.OutputMode = "auto",
) -> int:
    """Put each query's passages in the order of their relevance.

    \b
    rerank-cli rerank-file samples/python-docs.jsonl -o out.jsonl
    rerank-cli rerank-file samples/python-docs-flat.parquet -o top5.parquet --top-n 5
    rerank-cli rerank-file samples/nim.jsonl -o answers.jsonl
    rerank-cli rerank-file --evaluate-only samples/expected/python-docs.top3.jsonl --qrels samples/qrels.txt
    zcat lists.jsonl.gz | rerank-cli rerank-file - -o - | head -3
    rerank-cli rerank-file --engine ray lists/ -o reranked/
    """
    prepare_process(online=online)
    keep_freed_memory()
    # Imported here because they load numpy and more, which --help must not wait for.
    from rerank_cli.cli.command_line import command_of
    from rerank_cli.cli.evaluation import metrics_of, refuse_what_needs_a_model, run_evaluation
    from rerank_cli.cli.plan_request import read_plan_request
    from rerank_cli.cli.running import print_dry_run, run_and_report
    from rerank_cli.encoding.encoder import ImageLimits
    from rerank_cli.evaluation.evaluate import EvaluateOptions
    from rerank_cli.formats.inputs import ReadOptions
    from rerank_cli.formats.shapes import FieldNames, Selection, Texts
    from rerank_cli.job.options import ErrorLimit, JobOptions
    from rerank_cli.job.output_names import Names

    metrics = metrics_of(context)
    fields = FieldNames(
        query=query_field,
        passages=passages_field,
        text=text_field,
        id=id_field,
        group_by=group_by,
        image=image_field,
        image_root=image_root,
        siblings=siblings,
    )
    if evaluate_only:
        refuse_what_needs_a_model(context)
        asked_for = EvaluateOptions(
            inputs=tuple(inputs),
            qrels=opt.needed("--qrels", qrels),
            metrics=metrics,
            in_format=in_format,
            shape=shape,
            fields=fields,
            read=ReadOptions(max_line_bytes, skip=skip, limit=limit),
            report=None if output == "-" else output,
            per_query=per_query,
            overwrite=overwrite,
        )
        return run_evaluation(asked_for, quiet=quiet, output_mode="json" if output == "-" else output_mode)
    rows, share = opt.parse_error_limit(max_errors, on_error)
    asked = read_plan_request(context)
    options = JobOptions(
        inputs=tuple(inputs),
        names=Names(opt.needed("--output", output), errors, report, out_format, per_query=per_query),
        in_format=in_format,
        shape=shape,
        texts=Texts(queries, corpus),
        fields=fields,
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
        qrels=qrels,
        metrics=metrics,
        command=command_of(context),
        check_precision=check_precision,
    )
    if opt.choice("--engine", engine, ("local", "ray")) == "ray":
        from rerank_cli.cluster import ClusterOptions

        if dry_run:
            raise UsageError("--dry-run: cannot be had with `--engine ray`", hint="leave out `--engine`")
        cluster = ClusterOptions(ray_address, engines, cpus_per_engine, gpus_per_engine)
        return run_and_report(options, cluster, quiet=quiet, verbose=verbose, output_mode=output_mode)
    if any(value is not None for value in (ray_address, cpus_per_engine, gpus_per_engine)):
        raise UsageError("--ray-address, --cpus-per-engine, --gpus-per-engine: need `--engine ray`")
    if dry_run:
        return print_dry_run(options, output_mode)
    return run_and_report(options, quiet=quiet, verbose=verbose, output_mode=output_mode)
