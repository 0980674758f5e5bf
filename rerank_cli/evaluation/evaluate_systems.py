"""`rerank-cli evaluate`: every system against the given order or a baseline, as one document.

    systems    read and measured, a file each                    systems.py
    verdicts   one for each system and measure, one family       verdict.py
    use        depth and blend, for systems that have scores     depth_and_blend.py, crossfit.py
    limits     candidates, judgements, queries                   failure_analysis.py
    chances    how probable relevance is, by the score           probability.py, calibration.py
    likeness   how alike the orders are, without judgements      likeness.py
    lists      of the queries that changed most                  shown_lists.py

A recommended setting gets a verdict of its own, on values that were not used to choose it. The verdicts on the settings
of several systems are a second family.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from rerank_cli.errors import InputError, UsageError
from rerank_cli.evaluation.calibration import Kind
from rerank_cli.evaluation.calibration_file import document_of, report_of
from rerank_cli.evaluation.chart_data import moves_of, scores_by_relevance, sorted_changes
from rerank_cli.evaluation.depth_and_blend import together, use_of
from rerank_cli.evaluation.failure_analysis import find_limits
from rerank_cli.evaluation.kept_lists import KeptLists
from rerank_cli.evaluation.likeness import Ids, compare
from rerank_cli.evaluation.measures import Values
from rerank_cli.evaluation.probability import RELEVANT_FROM, fit_system, keep_precision, pool_of, probabilities_of
from rerank_cli.evaluation.qrels import read_qrels
from rerank_cli.evaluation.recommended_command import recommended_command
from rerank_cli.evaluation.shown_lists import lists_of
from rerank_cli.evaluation.systems import Grades, Measurer, System, read_system
from rerank_cli.evaluation.verdict import SHIP_AT, Verdict, decide, paired_test
from rerank_cli.evaluation.verdict_words import GIVEN_ORDER, headline, headline_of_likeness, sentence
from rerank_cli.formats.shapes import FieldNames
from rerank_cli.records import RowError

SCHEMA = "rerank-cli/verdict/1"


@dataclass(frozen=True, slots=True)
class EvaluationRequest:
    """What the user asked for."""

    files: tuple[str, ...]
    qrels: str | None = None
    """None compares the orders without judgements."""
    baseline: str | None = None
    metrics: tuple[str, ...] = ("nDCG@10",)
    ship_at: float = SHIP_AT
    in_format: str = "auto"
    fields: FieldNames = field(default_factory=FieldNames)
    keep_precision: float | None = None
    """Find a threshold that keeps passages of which this share is relevant."""
    relevant_from: int = RELEVANT_FROM
    """The lowest grade that counts as relevant, for thresholds and probabilities."""
    calibrate: bool = False
    """Fit a calibration; needs exactly one file."""
    calibrator: Kind | None = None
    """None takes the better of both kinds."""
    run_report: str | None = None
    """The report of the run that scored the file; None looks beside the file."""


@dataclass(frozen=True, slots=True)
class SystemValue:
    """One measure of one query in one system; None where it has no value."""

    file: str
    query_id: str
    metric: str
    given: float | None
    """The value of the order that the system is compared with."""
    reranked: float | None
    difference: float | None


@dataclass(frozen=True, slots=True)
class Answer:
    """What an evaluation found."""

    document: dict[str, Any]
    calibration: dict[str, Any] | None
    """The content of the calibration file, if one was asked for."""
    values: Callable[[], Iterator[SystemValue]]
    """Makes the values of each query, for `--per-query`."""


def evaluate_systems(question: EvaluationRequest, on_error: Callable[[RowError], None]) -> Answer:
    """Read, measure and compare all files; raises `InputError` and `UsageError` where there is nothing to compare."""
    repeated = sorted({file for file in question.files if question.files.count(file) > 1})
    if repeated:
        raise UsageError(f"{repeated[0]}: is named twice")
    if question.calibrate and len(question.files) > 1:
        raise UsageError(f"--calibrate-to: a calibration is of one model, and {len(question.files)} files are named")
    grades = read_qrels(question.qrels) if question.qrels else {}
    measurer = Measurer(grades, question.metrics) if question.qrels else None
    read = partial(
        read_system, measurer=measurer, grades=grades, names=question.fields, in_format=question.in_format,
        on_error=on_error,
    )  # fmt: skip
    systems = [read(path) for path in question.files]
    baseline = read(question.baseline) if question.baseline else None
    everything = [*systems, *([baseline] if baseline else [])]
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "inputs": list(question.files),
        "qrels": question.qrels,
        "baseline": question.baseline or GIVEN_ORDER,
        "ship_at": question.ship_at,
        "rows_error": sum(one.rows_error for one in everything),
    }
    values: list[_Compared] = []
    calibration = None
    if measurer is not None:
        values = _values(systems, baseline, measurer, grades, question.qrels or "")
        document |= _judge_systems(question, systems, values, measurer, grades)
        calibration = _calibration(question, systems[0]) if question.calibrate else None
    document["likeness"] = _likeness(systems, baseline)
    document["lists"] = _lists(document, question, grades)
    if measurer is None and not document["likeness"]:
        raise UsageError(
            "one order alone: there is nothing to compare it with", hint="`--qrels FILE` names the judgements"
        )
    if measurer is None:
        document["headline"] = headline_of_likeness(document["likeness"])
    return Answer(document, calibration, lambda: _values_of_queries(values))


@dataclass(frozen=True, slots=True)
class _Compared:
    """One measure of one system, before and after."""

    system: System
    metric: str
    queries: Sequence[str]
    old: npt.NDArray[np.float64]
    """float64 [queries], as `new`; NaN where a query has no value."""
    new: npt.NDArray[np.float64]
    before: Mapping[str, Values]
    """All measures of the order that the system is compared with, by query."""

    @property
    def both(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """`old` and `new` of the queries that have both values."""
        there = np.isfinite(self.old) & np.isfinite(self.new)
        return self.old[there], self.new[there]


def _values_of_queries(values: Sequence[_Compared]) -> Iterator[SystemValue]:
    for one in values:
        for query, old, new in zip(one.queries, one.old.tolist(), one.new.tolist(), strict=True):
            given, reranked = (None if math.isnan(value) else value for value in (old, new))
            change = None if given is None or reranked is None else reranked - given
            yield SystemValue(one.system.name, query, one.metric, given, reranked, change)


def _calibration(question: EvaluationRequest, system: System) -> dict[str, Any]:
    report = report_of(system.name, question.run_report)
    try:
        curve, facts = fit_system(system, question.calibrator, question.relevant_from)
    except ValueError as error:
        raise InputError(f"{system.name}: cannot be calibrated: {error}") from error
    score = (report.get("scores") or {}).get("score", "logit")
    if system.score != score:
        raise InputError(
            f"{system.name}: the new order is by `{system.score}`, and the run that scored it gave a {score}"
        )
    return document_of(
        curve, report, facts, file=system.name, qrels=question.qrels or "", relevant_from=question.relevant_from
    )


def _lists(document: Mapping[str, Any], question: EvaluationRequest, grades: Grades) -> dict[str, dict[str, Any]]:
    """The lists of the queries that the document names, by file and query."""
    wanted: dict[str, dict[str, None]] = {file: {} for file in question.files}
    if question.baseline:
        wanted.setdefault(question.baseline, {})
    for one in document.get("systems", ()):
        queries = {each["query"]: None for kind in ("worst", "best") for each in one["limits"][kind]}
        for file in {one["file"], question.baseline} - {None}:
            wanted[file] |= queries
    for one in document["likeness"]:
        for name in (one["one"], one["other"]):
            if name in wanted:
                wanted[name] |= dict.fromkeys(one["most_different"])
    found = {
        file: lists_of(file, queries, grades, names=question.fields, in_format=question.in_format)
        for file, queries in wanted.items()
    }
    texts = {query: one["text"] for lists in found.values() for query, one in lists.items() if one["text"]}
    for query, one in ((query, one) for lists in found.values() for query, one in lists.items()):
        one["text"] = one["text"] or texts.get(query)  # a TREC run has none, and another file may
    return found


def _values(
    systems: Sequence[System], baseline: System | None, measurer: Measurer, grades: Grades, qrels: str
) -> list[_Compared]:
    known = list({query: None for one in (*systems, *([baseline] if baseline else [])) for query in one.lists})
    if not any(one.lists.have_relevant() for one in systems):
        raise InputError(f"{qrels}: no list holds a passage that is judged relevant; are the ids the same?")
    nothing: dict[str, Values] = {}

    def values_of(found: Mapping[str, Values], query: str) -> Values:
        if query in found:
            return found[query]
        return nothing.setdefault(query, measurer.of({query: ()})[query])

    found = []
    for system in systems:
        # The order to compare with: the baseline, the system's own given order, or that of another file.
        given = next((one.given for one in (system, *systems) if one.given_order is not None), None)
        before = given if baseline is None else baseline.values
        if before is None:
            raise UsageError(
                f"{system.name}: nothing in it says the order before reranking",
                hint="`--baseline FILE` names a file with it",
            )
        for place, metric in enumerate(measurer.names):
            old, new = (
                np.array([values_of(values, query)[place] for query in known], dtype=np.float64)
                for values in (before, system.values)
            )
            if not (np.isfinite(old) & np.isfinite(new)).any():
                raise InputError(f"{system.name}: no query has a value of {metric}")
            found.append(_Compared(system, metric, known, old, new, before))
    return found


def _judge_systems(
    question: EvaluationRequest,
    systems: Sequence[System],
    values: Sequence[_Compared],
    measurer: Measurer,
    grades: Grades,
) -> dict[str, Any]:
    known = values[0].queries
    verdicts = decide([paired_test(np.subtract(*one.both[::-1])) for one in values], question.ship_at)
    compared_with = question.baseline or GIVEN_ORDER
    found = []
    for system in systems:
        own = [(one, verdict) for one, verdict in zip(values, verdicts, strict=True) if one.system is system]
        before, pool = own[0][0].before, pool_of(system, question.relevant_from)
        measures = [
            _describe_measure(system.name, one.metric, verdict, *one.both, compared_with) for one, verdict in own
        ]
        found.append(
            {
                "file": system.name,
                "new_order": system.new_order,
                "given_order": system.given_order,
                "missing_queries": len(known) - len(system.lists),
                "unjudged_queries": system.unjudged,
                "repeated_lists": system.repeated,
                "lists_cut": system.cut,
                "repeated_passages": system.repeated_passages,
                "measures": measures,
                "changes": sorted_changes(np.subtract(*own[0][0].both[::-1])),
                "limits": find_limits(system, known, before, grades),
                "use": use_of(system, measurer.measures[0], grades),
                "probabilities": probabilities_of(system, pool),
                "scores_by_relevance": None if pool is None else scores_by_relevance(pool.scores, pool.relevant),
                "moves": moves_of(system.lists.values()),
                **(
                    {}
                    if question.keep_precision is None
                    else {"threshold": keep_precision(pool, question.keep_precision)}
                ),
            }
        )
    _add_chosen(found, question)
    document = {
        "queries": len(known),
        "queries_in_no_file": len(grades.keys() - set(known)),
        "systems": found,
        "together": together(systems, measurer.measures[0], grades),
    }
    return {**document, "headline": headline(found, compared_with)}


def _describe_measure(
    name: str, metric: str, verdict: Verdict, old: Any, new: Any, compared_with: str
) -> dict[str, Any]:
    changes = new - old
    facts = {
        "metric": metric,
        "baseline": float(old.mean()),
        "value": float(new.mean()),
        "verdict": verdict.word,
        "more_queries": verdict.more_queries,
        "too_small": verdict.too_small,
        **asdict(verdict.test),
        "p_corrected": verdict.p_corrected,
        "family": verdict.family,
        "better": int((changes > 0).sum()),
        "worse": int((changes < 0).sum()),
        "same": int((changes == 0).sum()),
    }
    return {**facts, "sentence": sentence(name, facts, compared_with)}


def _add_chosen(found: Sequence[dict[str, Any]], question: EvaluationRequest) -> None:
    """Add the verdicts on recommended settings and the commands that use them."""
    chosen = [one["use"] for one in found if one["use"].get("recommended")]
    tests = [paired_test(use["differences"]) for use in chosen]
    for one in found:
        use = one["use"]
        if use.get("recommended"):
            verdict = decide(tests, question.ship_at)[chosen.index(use)]
            given, value = use["given"], use["given"] + verdict.test.difference
            old, new = np.full(len(use["differences"]), given), given + np.array(use["differences"])
            name = f"{one['file']} with {use['recommended']}"
            use["verdict"] = _describe_measure(name, use["measure"], verdict, old, new, GIVEN_ORDER) | {"value": value}
            use["command"] = recommended_command(one["file"], use["recommended"])
        use.pop("differences", None)


def _likeness(systems: Sequence[System], baseline: System | None) -> list[dict[str, Any]]:
    """How alike the orders are: each system and the order it is compared with, then all pairs of systems."""
    orders = [(one.name, _IdsOf(one.lists)) for one in (*systems, *([baseline] if baseline else []))]
    new = orders[: len(systems)]
    if baseline is not None:
        pairs = [(order, orders[-1]) for order in new]
    else:
        pairs = [
            (order, (GIVEN_ORDER, _IdsOf(one.lists, given=True)))
            for order, one in zip(new, systems, strict=True)
            if one.given_order is not None
        ]
    return [asdict(compare(*one, *other)) for one, other in (*pairs, *combinations(new, 2))]


@dataclass(frozen=True, slots=True)
class _IdsOf(Mapping[str, Ids]):
    """The ids of lists by query, made when asked for. given: in the given order, of those that have one."""

    lists: KeptLists
    given: bool = False

    def __getitem__(self, query: str) -> Ids:
        ranked = self.lists[query]
        if not self.given:
            return ranked.ids
        if ranked.places is None:
            raise KeyError(query)
        return ranked.ids[np.argsort(ranked.places)]

    def __iter__(self) -> Iterator[str]:
        return (query for query in self.lists if query in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)
