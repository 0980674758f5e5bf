"""`rerank-cli evaluate`."""

from __future__ import annotations

import sys
from typing import Any

import typer

from rerank_cli.cli.console import print_json, print_table, say
from rerank_cli.cli.declare import EVALUATION, ROWS, argument, option, takes
from rerank_cli.cli.options import JUDGED, ONE_MODEL, SCORING
from rerank_cli.cli.report_command import wants_json
from rerank_cli.errors import EXIT_CODES, UsageError
from rerank_cli.machine.this_process import prepare_process
from rerank_cli.records import RowError

_SHOWN_ERRORS = 20
_READ = ("--in-format", "--id-field", "--quiet")

OPTIONS = [
    argument(
        "inputs", list[str], metavar="FILE...",
        help="Scored files, of this program or another, or TREC runs: a system each, over the same queries.",
    ),
    option(
        "--baseline", str, group=EVALUATION, metavar="FILE", basic=True,
        help="What every system is held against. Default: the given order, which a scored file says.",
    ),
    option(
        "--ship-at", float, group=EVALUATION, default=0.01, metavar="X", min=0.0, max=1.0, basic=True,
        help="The gain that is worth having: 0.01.",
    ),
    option(
        "--passages-field", str, group=ROWS, into="fields.passages", metavar="PATH",
        help="Field of the passages. Default: passages, candidates, documents or docs.",
    ),
    option(
        "--group-by", str, group=ROWS, into="fields.group_by", metavar="PATH",
        help="Field that tells which flat rows belong together. Default: query_id.",
    ),
    *(one for one in JUDGED if one.flag in ("--qrels", "--metric")),
    *(one for one in ONE_MODEL if one.flag == "--format"),
    *(one for one in SCORING if one.flag in _READ),
]  # fmt: skip

EXAMPLES = r"""
Should this order ship?
  rerank-cli evaluate samples/expected/python-docs.top3.jsonl \
      --qrels samples/qrels.txt --metric nDCG@3
Systems against a run of the first stage, as JSON:
  rerank-cli evaluate samples/expected/python-docs.top3.jsonl \
      samples/bm25.trec --baseline samples/bm25.trec \
      --qrels samples/qrels.txt --format json
How alike are two orders? No judgements are needed:
  rerank-cli evaluate samples/expected/python-docs.top3.jsonl samples/bm25.trec
"""


@takes(OPTIONS, examples=EXAMPLES, exit_codes=set(EXIT_CODES) - {5, 6, 7, 8, 9, 10, 11})
def evaluate(
    context: typer.Context, *, inputs: list[str], ship_at: float, output_mode: str, quiet: bool, **given: Any
) -> int:
    """Say whether new orders should ship, and how to use the scores. No model is loaded."""
    prepare_process(online=False)
    from rerank_cli.cli.evaluation import refuse_metrics_without_qrels
    from rerank_cli.evaluation.answer import EvaluationRequest, evaluate_systems
    from rerank_cli.formats.shapes import FieldNames

    refuse_metrics_without_qrels(context)
    if given["qrels"] is None and len(inputs) < 2 and given["baseline"] is None and not inputs:
        raise UsageError("missing option --qrels", hint="`--qrels FILE` names the judgements to measure with")
    told = 0

    def tell(error: RowError) -> None:
        nonlocal told
        told += 1
        if told <= _SHOWN_ERRORS:
            say(f"{error.file}:{error.row}: {error.message} ({error.code})")

    names = FieldNames(passages=given["passages_field"], id=given["id_field"], group_by=given["group_by"])
    document = evaluate_systems(
        EvaluationRequest(
            tuple(inputs), given["qrels"], given["baseline"], tuple(given["metric"]), ship_at, given["in_format"], names
        ),
        tell,
    )
    if not quiet:
        for note in _notes(document):
            say(f"note: {note}")
    if wants_json(output_mode):
        print_json(document)
    else:
        _print_text(document)
    if document["rows_error"]:
        say(f"{document['rows_error']:,} rows could not be read")
    return 3 if document["rows_error"] else 0


def _notes(document: dict[str, Any]) -> list[str]:
    notes = []
    if missing := document.get("queries_in_no_file"):
        notes.append(f"{missing:,} judged queries are in no file and are left out")
    for system in document.get("systems", ()):
        for key, text in (
            ("missing_queries", "judged queries are missing, and count as nothing found"),
            ("unjudged_queries", "queries have no judgement and are left out"),
            ("lists_cut", "lists have fewer passages than were reranked; both orders are measured on what is left"),
            ("repeated_lists", "lists of a query that had one before are left out"),
            ("repeated_passages", "passages have an id that stands before them in their list; the first one counts"),
        ):
            if system[key]:
                notes.append(f"{system['file']}: {system[key]:,} {text}")
    return notes


def _print_text(document: dict[str, Any]) -> None:
    write = sys.stdout.write
    for line in document.get("headline", ()):
        write(line + "\n")
    systems = document.get("systems", ())
    if systems:
        write("\nVerdicts\n")
    for system in systems:
        for facts in system["measures"]:
            write(f"  {facts['sentence']}.\n")
        if facts := system["use"].get("verdict"):
            write(f"  {facts['sentence']}; setting chosen by cross-fitting.\n")
    for system in systems:
        _print_use(system)
        _print_limits(system)
    if joined := document.get("together"):
        write(
            f"\nTogether ({joined['how']}): {joined['measure']} {joined['value']:.4f}; the best alone has "
            f"{joined['best_alone']:.4f}\n"
        )
    if document["likeness"]:
        rows = [
            [
                f"{one['one']} / {one['other']}", f"{one['queries']:,}", f"{one['overlap']:.3f}", f"{one['rbo']:.3f}",
                "" if one["kendall_tau"] is None else f"{one['kendall_tau']:.3f}", " ".join(one["most_different"][:3]),
            ]
            for one in document["likeness"]
        ]  # fmt: skip
        print_table(["how alike", "queries", "overlap@10", "RBO .9", "Kendall's tau", "differ most"], rows)


def _print_use(system: dict[str, Any]) -> None:
    use = system["use"]
    write = sys.stdout.write
    write(f"\nHow to use the scores of {system['file']}\n")
    if reason := use.get("reason"):
        write(f"  not looked at: {reason}\n")
        return
    if use["recommended"]:
        write(
            f"  {use['recommended']} brings {use['gain_of_choosing']:+.4f} over the scores alone, on queries that were "
            f"not used to choose it:\n    {use['command']}\n"
        )
    else:
        write(
            f"  as they are: choosing a depth or a blend would bring {use['gain_of_choosing']:+.4f} "
            f"(standard error {use['standard_error']:.4f}), which is not clearly more than nothing\n"
        )
    curve = use["depths"]
    shown = [one for one in curve if one["depth"] in (5, 10, 20, 50, 100, curve[-1]["depth"])]
    print_table(
        ["depth", "candidates read", use["measure"], "of the gain"],
        [
            [
                str(one["depth"]), f"{one['read']:.0%}", f"{one['value']:.4f}",
                "" if one["of_gain"] is None else f"{one['of_gain']:.0%}",
            ]
            for one in shown
        ],
    )  # fmt: skip


def _print_limits(system: dict[str, Any]) -> None:
    limits, metric = system["limits"], system["measures"][0]["metric"]
    write = sys.stdout.write
    write(f"What limits {system['file']}\n")
    write(f"  a perfect order of the same candidates has {metric} {limits['perfect_order']:.4f}\n")
    if limits["without_relevant_candidate"]:
        examples = ", ".join(limits["examples_without"])
        write(
            f"  {limits['without_relevant_candidate']:,} queries have no relevant candidate, which no reranker can "
            f"mend: {examples}\n"
        )
    if limits["judged_in_top_10"] is not None:
        write(f"  {limits['judged_in_top_10']:.0%} of the ten best passages are judged\n")
    if kept := limits["condensed"]:
        given = "" if kept["given"] is None else f"{kept['given']:.4f} given, "
        write(f"  without unjudged passages {metric} is {given}{kept['value']:.4f} now\n")
    for kind in ("worst", "best"):
        if limits[kind]:
            queries = ", ".join(f"{one['query']} ({one['change']:+.3f})" for one in limits[kind])
            write(f"  {kind} queries: {queries}\n")
