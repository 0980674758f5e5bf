"""Prints the measures of a run (`--qrels`), and of a file that is reranked already (`--evaluate-only`)."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from rerank_cli.cli.console import ErrorTeller, print_json, print_table, say, write
from rerank_cli.cli.declare import typed_options
from rerank_cli.cli.json_command import wants_json
from rerank_cli.errors import InputError, UsageError
from rerank_cli.job.options import STDOUT

if TYPE_CHECKING:
    import typer

    from rerank_cli.evaluation.evaluator import Evaluation

_USED = {
    "inputs", "output", "shape", "in_format", "passages_field", "id_field", "group_by", "max_line_bytes", "overwrite",
    "limit", "skip", "qrels", "metric", "per_query", "evaluate_only", "quiet", "verbose", "output_mode",
}  # fmt: skip
"""The parameters of `rerank-file` that have an effect with `--evaluate-only`."""


def print_evaluation(evaluation: Evaluation, output_mode: str, *, to_stdout: bool, quiet: bool) -> None:
    """Print the measures as a table or a document; as lines on stderr if stdout has the rows."""
    from rerank_cli.evaluation.evaluate_only import SCHEMA

    if evaluation.problem:
        hint = "the rows are written; `rerank-cli evaluate OUT --qrels FILE` measures them with the right ids"
        raise InputError(evaluation.problem, hint=hint)
    if not quiet:
        _warn(evaluation)
    if not to_stdout:
        for row in evaluation.metrics:
            given = "" if row.given is None else f"{row.given:.4f} given, "
            say(f"{row.metric}: {given}{row.reranked:.4f} reranked")
    elif wants_json(output_mode):
        print_json({"schema": SCHEMA, **asdict(evaluation)})
    else:
        print_evaluation_table(evaluation)


def _warn(evaluation: Evaluation) -> None:
    if not evaluation.queries:
        say("warning: none of the queries has a judgement; is the query id the one of the qrels?")
    if evaluation.note:
        say(f"warning: {evaluation.note}")
    if evaluation.repeated_passages:
        say(
            f"note: {evaluation.repeated_passages:,} passages have an id that stands before them in their list; "
            "the first one counts"
        )
    if evaluation.repeated:
        say(f"warning: {evaluation.repeated:,} lists of a query that had one before are not measured")


def print_evaluation_table(evaluation: Evaluation) -> None:
    """Print a table with a row for each measure."""
    unjudged = f", {evaluation.unjudged:,} without judgements left out" if evaluation.unjudged else ""
    columns = ["metric", "given", "reranked", "change", "better", "worse", "same", "p"]
    rows = []
    for row in evaluation.metrics:
        given = "" if row.given is None else f"{row.given:.4f}"
        change = "" if row.difference is None else f"{row.difference:+.4f}"
        counts = ["" if number is None else f"{number:,}" for number in (row.wins, row.losses, row.ties)]
        chance = ""
        if row.significance is not None:
            value = row.significance.p_value
            chance = "<0.0001" if value < 0.0001 else f"{value:.4f}"
        rows.append([row.metric, given, f"{row.reranked:.4f}", change, *counts, chance])
    print_table(columns, rows, title=f"{evaluation.queries:,} queries{unjudged}")


def evaluate_only(context: typer.Context) -> int:
    """Measure a reranked file by the options of `rerank-file`; returns the exit code.

    `UsageError` for options on the command line that would be ignored.
    """
    from rerank_cli.cli.job_request import read_job_options
    from rerank_cli.evaluation.evaluate_only import EvaluateOptions, evaluate_file
    from rerank_cli.formats.inputs import ReadOptions

    for name, flag in typed_options(context).items():
        if name not in _USED:
            raise UsageError(
                f"{flag}: nothing is scored with --evaluate-only", hint="leave it out; `-o` names the report"
            )
    output = context.params["output"]
    options = read_job_options(context, inputs=tuple(context.params["inputs"]))
    if options.qrels is None:
        raise UsageError("missing option --qrels", hint="`--qrels FILE` names the judgements to measure with")
    found = evaluate_file(
        EvaluateOptions(
            inputs=options.inputs,
            qrels=options.qrels,
            metrics=options.metrics,
            in_format=options.in_format,
            shape=options.shape,
            fields=options.fields,
            read=ReadOptions(options.max_line_bytes, skip=options.skip, limit=options.limit),
            report=None if output == STDOUT else output,
            per_query=options.names.per_query,
            overwrite=options.overwrite,
        ),
        ErrorTeller(),
    )
    evaluation = found.evaluation
    if not context.params["quiet"]:
        say(*(f"note: {note}" for note in found.notes))
        _warn(evaluation)
    if output == STDOUT or wants_json(context.params["output_mode"]):
        print_json(found.document)
    else:
        print_evaluation_table(evaluation)
        if evaluation.given_order:
            write(f"given order: {evaluation.given_order}; new order: {found.document['reranked_order']}")
    if found.rows_error:
        say(f"{found.rows_error:,} rows could not be read")
    return 3 if found.rows_error else 0
