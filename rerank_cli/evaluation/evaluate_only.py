"""`rerank-file --evaluate-only`: measure a file that is reranked already. No model is loaded and nothing is scored."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

from rerank_cli.errors import InputError
from rerank_cli.evaluation.evaluator import Evaluation, Evaluator
from rerank_cli.evaluation.orders import Orders
from rerank_cli.evaluation.output_paths import refuse_outputs
from rerank_cli.evaluation.per_query import per_query_bytes, refuse_per_query_name
from rerank_cli.evaluation.reranked_file import RerankedFile, passage_names
from rerank_cli.formats.inputs import STDIN, ReadOptions, resolve_inputs
from rerank_cli.formats.jsonl import dump_document
from rerank_cli.formats.shapes import FieldNames
from rerank_cli.journal import Files, write_file
from rerank_cli.records import RowError
from rerank_cli.storage import path_of

SCHEMA = "rerank-cli/evaluation/1"

_QUERIES_AT_ONCE = 100
_IDS = "`--id-field` names the field of the passages' ids"


@dataclass(frozen=True, slots=True)
class EvaluateOptions:
    """What the user asked for. report, per_query: files to write, or None."""

    inputs: tuple[str, ...]
    qrels: str
    metrics: tuple[str, ...]
    in_format: str = "auto"
    shape: str = "auto"
    fields: FieldNames = field(default_factory=FieldNames)
    read: ReadOptions = field(default_factory=ReadOptions)
    report: str | None = None
    per_query: str | None = None
    overwrite: bool = False


@dataclass(frozen=True, slots=True)
class FileEvaluation:
    """What was found. rows_error: the number of rows that could not be read. notes: for the user."""

    evaluation: Evaluation
    document: dict[str, Any]
    rows_error: int
    notes: tuple[str, ...]


def evaluate_file(options: EvaluateOptions, on_error: Callable[[RowError], None]) -> FileEvaluation:
    """Measure both orders of reranked files; raises `InputError` if there is nothing to measure."""
    inputs = resolve_inputs(options.inputs, options.in_format, options.shape)
    if options.per_query:
        refuse_per_query_name(options.per_query)
    read = [*(item.path for item in inputs if item.path != STDIN), options.qrels]
    refuse_outputs({"--output": options.report, "--per-query": options.per_query}, read, overwrite=options.overwrite)
    evaluator = Evaluator(options.qrels, options.metrics)
    file = RerankedFile(inputs, options.fields, options.read)
    bad = 0

    def count(error: RowError) -> None:
        nonlocal bad
        bad += 1
        on_error(error)

    seen: list[str] = []
    orders = (
        Orders(item.query, None if item.given is None else passage_names(item.given), passage_names(item.reranked))
        for item in file.lists(evaluator.is_judged, count)
    )
    while some := list(islice(orders, _QUERIES_AT_ONCE)):
        seen = seen or [some[0].query]
        evaluator.add(some)
    given_order = file.given.words if file.given else None
    evaluation = evaluator.finish(given_order)
    if not evaluation.queries:
        example = f": the file has `{seen[0]}`, the judgements have `{evaluator.judged_example}`" if seen else ""
        raise InputError(f"{options.inputs[0]}: no query of {options.qrels} is in it{example}")
    if evaluation.problem:
        raise InputError(f"{options.inputs[0]}: {evaluation.problem}", hint=_IDS)
    document = {
        "schema": SCHEMA,
        "inputs": list(options.inputs),
        "qrels": options.qrels,
        "reranked_order": file.reranked.words if file.reranked else None,
        **asdict(evaluation),
        "rows_error": bad,
        "lists_cut": file.cut,
    }
    if options.per_query:
        values = b"".join(per_query_bytes(evaluator.per_query(), options.per_query))
        write_file(path_of(options.per_query), values, Files())
    if options.report:
        write_file(path_of(options.report), dump_document(document), Files())
    return FileEvaluation(evaluation, document, bad, tuple(_notes(file)))


def _notes(file: RerankedFile) -> Iterator[str]:
    if file.given is None:
        yield "nothing in the file says the given order; only the new one is measured"
    elif file.given.field in ("rank", "score") and not file.differ:
        yield f"{file.given.words} was taken for the given order, and in every list it is the new one"
    if file.cut:
        yield (f"{file.cut:,} lists have fewer passages than were reranked; both orders are measured on what is left")
