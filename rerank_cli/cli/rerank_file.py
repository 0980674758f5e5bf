"""`rerank-cli rerank-file`: the options that no other command has, and the order in which things are done."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Literal

import typer

from rerank_cli.cli.declare import EVALUATION, OUTPUT, ROWS, SCALE, SELECTION, argument, option, takes, typed_options
from rerank_cli.cli.options import JUDGED, SCORING
from rerank_cli.cli.parsers import parse_blend_of, parse_first_keep_of, parse_shape, shapes
from rerank_cli.errors import EXIT_CODES, UsageError
from rerank_cli.job.options import STDOUT, Need, refuse_idle
from rerank_cli.machine.this_process import keep_freed_memory, prepare_process

EngineKind = Literal["local", "ray"]

OPTIONS = [
    argument("inputs", list[str], metavar="IN...", help="Files of candidate lists; `-` is stdin."),
    option(
        "--output", str, group=OUTPUT, short="-o", into="names.output", metavar="OUT", basic=True,
        help="Where the result goes; `-` is stdout.",
    ),
    option(
        "--shape", str, group=ROWS, into="shape", metavar="SHAPE", parse=parse_shape, complete=shapes,
        help="list: a list a row; flat: a pair a row; nim, cohere, tei, openai-batch: a request a row; trec: a run; or "
        "the program that wrote it: rank_llm, dpr, elasticsearch, haystack, ... auto goes by the first rows.",
    ),
    option(
        "--queries", str, group=ROWS, into="texts.queries", metavar="FILE",
        help="Texts of the queries of a TREC run: TSV or JSONL.",
    ),
    option(
        "--corpus", str, group=ROWS, into="texts.corpus", metavar="FILE",
        help="Texts of its passages: TSV (id, text) or JSONL (_id, title, text); looked up, not held in memory.",
    ),
    option(
        "--passages-field", str, group=ROWS, into="fields.passages", metavar="PATH", basic=True,
        help="Field of the passages. Default: passages, candidates, documents or docs.",
    ),
    option(
        "--siblings", str, group=ROWS, into="fields.siblings", metavar="PATH,...|none",
        help="Lists beside the passages that come back in the same order. Default: those that are as long in all of "
        "the first rows.",
    ),
    option(
        "--group-by", str, group=ROWS, into="fields.group_by", metavar="PATH",
        help="Field that tells which flat rows belong together. Default: query_id, else the query's text.",
    ),
    option(
        "--depth", int, group=SELECTION, into="depth", metavar="N", min=1,
        help="Score the first N candidates of a list alone; those below keep their place. Default: all.",
    ),
    option(
        "--blend", str, group=SELECTION, into="blend", metavar="rrf:W|z:W", parse=parse_blend_of,
        help="Join the scores with the given order, which has the weight W from 0 to 1: by reciprocal ranks or by "
        "z-scores. `rerank-cli evaluate` says what helps. Default: the scores alone.",
    ),
    option(
        "--drop-duplicates", bool, group=SELECTION, into="drop_duplicates",
        help="Leave out passages that are equal to one before them in their list but for case, white space and "
        "the marks around words, before anything is scored.",
    ),
    option(
        "--first", str, group=SELECTION, into="first.scorer", metavar="MODEL|PRECISION",
        help="A cheap scorer that reads every candidate: the same model in int8 or bf16, another model, or "
        "MODEL:PRECISION. The model of the run reads what can still matter.",
    ),
    option(
        "--first-keep", str, group=SELECTION, into="first.keep", metavar="N|P%|auto|exact", parse=parse_first_keep_of,
        help="What is read again: so many of a list, a share, what sampled lists needed, or (a precision alone) what "
        "can still reach the first. Default: exact with a precision, else auto.",
    ),
    option(
        "--first-top", int, group=SELECTION, into="first.top", metavar="N", min=1,
        help="With --first: how many of each list are to be those of a full run. Default: --top-n, else 10.",
    ),
    option(
        "--negatives", int, group=SELECTION, into="teacher.negatives", metavar="N", min=1,
        help="Of rows to train on: negatives of a row, or of a positive, the hardest first.",
    ),
    option(
        "--absolute-margin", float, group=SELECTION, into="teacher.absolute_margin", metavar="X", min=0.0,
        help="Of rows to train on: a negative's score is lower than the positive's by at least X.",
    ),
    option(
        "--relative-margin", float, group=SELECTION, into="teacher.relative_margin", metavar="X", min=0.0, max=1.0,
        help="Of rows to train on: the sigmoid of a negative's logit is lower by this share; 0.05: at most 95 % of the "
        "positive's.",
    ),
    option(
        "--positive-field", str, group=SELECTION, into="teacher.positive_field", metavar="PATH",
        help="Of rows to train on: field of a passage that is true, or a grade, where it is positive. Default: "
        "--qrels.",
    ),
    option(
        "--relevant-from", int, group=SELECTION, into="teacher.relevant_from", aliases=("--positive-from",),
        metavar="GRADE", min=1, help="Of rows to train on: the lowest grade of a positive.",
    ),
    option(
        "--engine", EngineKind, group=SCALE, default="local", metavar="KIND",
        help="local: on the devices of this machine; ray: on a Ray cluster, files or folders in, a folder out.",
    ),
    option(
        "--ray-address", str, group=SCALE, metavar="A",
        help="The cluster: host:port, ray://... or auto. Default: RAY_ADDRESS, else one on this machine.",
    ),
    option(
        "--cpus-per-engine", int, group=SCALE, metavar="N", min=1,
        help="CPUs of an engine on a Ray cluster. Default: 1 with a GPU, else 4.",
    ),
    option(
        "--gpus-per-engine", float, group=SCALE, metavar="X", min=0.0,
        help="GPUs of such an engine, or a share of one. Default: 1 where the cluster has any.",
    ),
    option(
        "--evaluate-only", bool, group=EVALUATION, hidden=True,  # the command `evaluate` does more
        help="Measure a file that was reranked before; no model is loaded. -o is then the report, and may be left out.",
    ),
    *JUDGED,
    *SCORING,
]  # fmt: skip

EXAMPLES = r"""
Rerank a file with the built-in model, and say whether it helped:
  rerank-cli rerank-file samples/python-docs.jsonl -o out.jsonl \
      --qrels samples/qrels.txt
Keep the five best passages of each query, from a stream:
  cat samples/python-docs.jsonl | rerank-cli rerank-file - -o - --top-n 5
"""


@takes(OPTIONS, examples=EXAMPLES, exit_codes=EXIT_CODES)
def rerank_file(context: typer.Context, *, output: str | None, output_mode: str, online: bool, **given: Any) -> int:
    """Put each query's passages in order of relevance."""
    prepare_process(online=online)
    keep_freed_memory()
    if output is None and not given["evaluate_only"] and not given["dry_run"]:
        raise UsageError("missing option --output", hint="`-o out.jsonl`, or `-o -` for stdout")
    # Imported here because they load more than --help must wait for.
    from rerank_cli.cli.job_request import read_job_options
    from rerank_cli.cli.measures_text import evaluate_only
    from rerank_cli.cli.run_text import print_dry_run, refuse_gpu, run_and_report

    if given["evaluate_only"]:
        return evaluate_only(context)
    if output is None:
        context.params["output"] = STDOUT  # a dry run writes nothing, so no output need be named
    options = read_job_options(context, inputs=tuple(given["inputs"]))
    told = {"quiet": given["quiet"], "verbose": given["verbose"], "output_mode": output_mode}
    if given["engine"] == "ray":
        from rerank_cli.cluster import ClusterOptions

        for flag in ("depth", "blend", "first", "drop-duplicates", "dry-run"):
            if given[flag.replace("-", "_")] not in (None, False):
                raise UsageError(f"--{flag}: does not work with `--engine ray`", hint="leave out `--engine`")
        cluster = ClusterOptions(*(given[name] for name in ("ray_address", "engines", *_OF_ENGINES)))
        return run_and_report(options, cluster, **told)
    refuse_idle(SimpleNamespace(**given), typed_options(context), _OF_A_CLUSTER)
    if given["dry_run"]:
        return print_dry_run(options, output_mode, given["gpu"] or ())
    refuse_gpu(given["gpu"])
    return run_and_report(options, **told)


_OF_ENGINES = ("cpus_per_engine", "gpus_per_engine")
_OF_A_CLUSTER = dict.fromkeys(("ray_address", *_OF_ENGINES), Need({"engine": "--engine ray"}, ("ray",)))
