"""`rerank-cli evaluate`: its options, and the checks of the files that they name."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

import typer

from rerank_cli.cli.console import ErrorTeller, print_json, say
from rerank_cli.cli.declare import EVALUATION, OUTPUT, ROWS, argument, declared_options, option, takes, typed_options
from rerank_cli.cli.json_command import wants_json
from rerank_cli.cli.options import JUDGED, ONE_MODEL, SCORING
from rerank_cli.errors import EXIT_CODES, UsageError
from rerank_cli.job.options import PAGE_SUFFIXES, Need, refuse_idle
from rerank_cli.machine.this_process import prepare_process

if TYPE_CHECKING:
    from rerank_cli.evaluation.evaluate_systems import Answer

Calibrator = Literal["auto", "isotonic", "platt"]

_SHARED = ("--in-format", "--id-field", "--quiet", "--overwrite")

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
        help="The gain that is worth having.",
    ),
    option(
        "--output", str, group=OUTPUT, short="-o", metavar="FILE", basic=True,
        help="Write all that is said to a file: .json, or .html for a page to look at.",
    ),
    option(
        "--title", str, group=OUTPUT, metavar="TEXT",
        help="What the page is called. Default: the name of the first file.",
    ),
    option(
        "--calibrate-to", str, group=EVALUATION, metavar="FILE", basic=True,
        help="Fit how probable relevance is by the score, and write it to a file for `--calibration`.",
    ),
    option(
        "--calibrator", Calibrator, group=EVALUATION, default="auto", metavar="KIND",
        help="isotonic, platt, or auto: the one with the lower Brier score on queries that it has not seen.",
    ),
    option(
        "--keep-precision", float, group=EVALUATION, metavar="P", min=0.0, max=1.0, basic=True,
        help="Find the threshold above which this share of the passages is relevant: 0.9.",
    ),
    option(
        "--relevant-from", int, group=EVALUATION, default=1, metavar="GRADE", min=1,
        help="The lowest grade of a relevant passage, for `--calibrate-to` and `--keep-precision`.",
    ),
    option(
        "--run-report", str, group=EVALUATION, metavar="FILE",
        help="The report of the run that has scored FILE, which says the model. Default: FILE.report.json.",
    ),
    option(
        "--passages-field", str, group=ROWS, into="fields.passages", metavar="PATH",
        help="Field of the passages. Default: passages, candidates, documents or docs.",
    ),
    option(
        "--group-by", str, group=ROWS, into="fields.group_by", metavar="PATH",
        help="Field that tells which flat rows belong together. Default: query_id.",
    ),
    *JUDGED,
    *(one for one in ONE_MODEL if one.flag == "--format"),
    *(one for one in SCORING if one.flag in _SHARED),
]  # fmt: skip

EXAMPLES = r"""
Should this order ship?
  rerank-cli evaluate samples/expected/python-docs.top3.jsonl \
      --qrels samples/qrels.txt --metric nDCG@3
Systems against a run of the first stage, as JSON:
  rerank-cli evaluate samples/expected/python-docs.top3.jsonl \
      samples/bm25.trec --baseline samples/bm25.trec \
      --qrels samples/qrels.txt --format json
How probable is relevance by the score, and above which score is it 80 %?
  rerank-cli rerank-file samples/python-docs.jsonl -o scored.jsonl
  rerank-cli evaluate scored.jsonl --qrels samples/qrels.txt \
      --calibrate-to model.calibration.json --keep-precision 0.8 -o scored.html
How alike are two orders? No judgements are needed:
  rerank-cli evaluate samples/expected/python-docs.top3.jsonl samples/bm25.trec
"""


@takes(OPTIONS, examples=EXAMPLES, exit_codes=set(EXIT_CODES) - {5, 6, 7, 8, 9, 10, 11})
def evaluate(
    context: typer.Context, *, inputs: list[str], ship_at: float, output_mode: str, quiet: bool, **given: Any
) -> int:
    """Say whether new orders should ship, and how to use the scores. No model is loaded."""
    prepare_process(online=False)
    from rerank_cli.cli.evaluate_text import notes_of, print_answer, print_calibration
    from rerank_cli.evaluation.evaluate_systems import EvaluationRequest, evaluate_systems
    from rerank_cli.formats.shapes import FieldNames

    _refuse_options(context, inputs, given)
    names = FieldNames(passages=given["passages_field"], id=given["id_field"], group_by=given["group_by"])
    found = evaluate_systems(
        EvaluationRequest(
            tuple(inputs), given["qrels"], given["baseline"], tuple(given["metric"]), ship_at, given["in_format"],
            names,
            keep_precision=given["keep_precision"], relevant_from=given["relevant_from"],
            calibrate=given["calibrate_to"] is not None,
            calibrator=None if given["calibrator"] == "auto" else given["calibrator"],
            run_report=given["run_report"],
        ),
        ErrorTeller(),
    )  # fmt: skip
    document = found.document
    if not quiet:
        for note in notes_of(document):
            say(f"note: {note}")
    _write(found, given)
    if wants_json(output_mode):
        print_json(document)
    else:
        print_answer(document)
        if given["calibrate_to"]:
            print_calibration(given["calibrate_to"], found.calibration or {})
    if document["rows_error"]:
        say(f"{document['rows_error']:,} rows could not be read")
    return 3 if document["rows_error"] else 0


_JUDGED = Need({"qrels": "--qrels FILE"})
_CALIBRATED = Need({"calibrate_to": "--calibrate-to FILE"})
_NEEDS = {
    **dict.fromkeys(("metric", "ship_at", "per_query", "calibrate_to", "keep_precision"), _JUDGED),
    **dict.fromkeys(("calibrator", "run_report"), _CALIBRATED),
    "relevant_from": Need({**_CALIBRATED.fields, "keep_precision": "--keep-precision P"}),
}
"""What options need, by parameter."""
_ANSWERED = ("per_query", "calibrate_to", "keep_precision")
"""Parameters that ask for something: without what they need they are refused, wherever they were set."""


def _refuse_options(context: typer.Context, inputs: list[str], given: dict[str, Any]) -> None:
    """Refuse options that miss another one and files that cannot be written, before anything is read."""
    from rerank_cli.evaluation.output_paths import refuse_outputs
    from rerank_cli.evaluation.per_query import refuse_per_query_name
    from rerank_cli.formats.inputs import resolve_inputs

    declared = declared_options(context)
    asked = {name: declared[name].flag for name in _ANSWERED if given[name] is not None}
    refuse_idle(SimpleNamespace(**given), typed_options(context) | asked, _NEEDS)
    output = given["output"]
    if output is not None and Path(output).suffix.lower() not in (".json", *PAGE_SUFFIXES):
        raise UsageError(f"--output {output}: the suffix tells no format", hint="end the name in .json or .html")
    if given["title"] is not None and (output is None or Path(output).suffix.lower() not in PAGE_SUFFIXES):
        raise UsageError("--title: there is no page for it", hint="`-o evaluation.html` writes one")
    if given["per_query"] is not None:
        refuse_per_query_name(given["per_query"])
    outputs = {"--output": output, "--per-query": given["per_query"], "--calibrate-to": given["calibrate_to"]}
    named = [item.path for item in resolve_inputs([path for path in inputs if path != "-"], "auto", "auto")]
    named += [given[name] for name in ("qrels", "baseline", "run_report")]
    refuse_outputs(outputs, [path for path in named if path not in (None, "-")], overwrite=given["overwrite"])


def _write(found: Answer, given: dict[str, Any]) -> None:
    """Write the files that were asked for."""
    from rerank_cli.evaluation.evaluate_systems import SystemValue
    from rerank_cli.evaluation.per_query import per_query_bytes
    from rerank_cli.formats.jsonl import dump_document
    from rerank_cli.journal import Files, write_file
    from rerank_cli.storage import path_of

    files = Files()
    if path := given["per_query"]:
        write_file(path_of(path), b"".join(per_query_bytes(found.values(), path, SystemValue)), files)
    if path := given["calibrate_to"]:
        write_file(path_of(path), dump_document(found.calibration or {}), files)
    if path := given["output"]:
        if Path(path).suffix.lower() in PAGE_SUFFIXES:
            from rerank_cli.report.page import render_evaluation

            write_file(path_of(path), render_evaluation(found.document, given["title"]), files)
        else:
            write_file(path_of(path), dump_document(found.document), files)
