"""`rerank-cli evaluate`: every system against the given order or a baseline, as one document.

    systems    read and measured, a file each                    systems.py
    verdicts   one family: each system by each measure           verdict.py
    use        depth and blend, for systems that have scores     use.py, crossfit.py
    limits     candidates, judgements, queries                   limits.py
    likeness   orders against each other, without judgements     compare.py

A recommended setting has a verdict of its own, on values that were not used to choose it; those of several systems are
a family of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import Any

import numpy as np

from rerank_cli.errors import InputError, UsageError
from rerank_cli.evaluation.compare import Ids, compare
from rerank_cli.evaluation.limits import find_limits
from rerank_cli.evaluation.qrels import read_qrels
from rerank_cli.evaluation.systems import Measurer, System, Values, read_system
from rerank_cli.evaluation.use import together, use_of
from rerank_cli.evaluation.verdict import SHIP_AT, Verdict, decide, paired_test
from rerank_cli.evaluation.words import headline, sentence
from rerank_cli.formats.shapes import FieldNames
from rerank_cli.records import RowError

SCHEMA = "rerank-cli/verdict/1"

_GIVEN = "the given order"


@dataclass(frozen=True, slots=True)
class EvaluationRequest:
    """What the user asked for. qrels: None compares without judgements."""

    files: tuple[str, ...]
    qrels: str | None = None
    baseline: str | None = None
    metrics: tuple[str, ...] = ("nDCG@10",)
    ship_at: float = SHIP_AT
    in_format: str = "auto"
    fields: FieldNames = field(default_factory=FieldNames)


def evaluate_systems(question: EvaluationRequest, on_error: Callable[[RowError], None]) -> dict[str, Any]:
    """The document; raises `InputError` and `UsageError` where there is nothing to answer."""
    repeated = sorted({file for file in question.files if question.files.count(file) > 1})
    if repeated:
        raise UsageError(f"{repeated[0]}: is named twice")
    grades = read_qrels(question.qrels) if question.qrels else {}
    measurer = Measurer(grades, question.metrics) if question.qrels else None

    def read(path: str) -> System:
        return read_system(
            path, measurer, grades, names=question.fields, in_format=question.in_format, on_error=on_error
        )

    systems = [read(path) for path in question.files]
    baseline = read(question.baseline) if question.baseline else None
    everything = [*systems, *([baseline] if baseline else [])]
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "inputs": list(question.files),
        "qrels": question.qrels,
        "baseline": question.baseline or _GIVEN,
        "ship_at": question.ship_at,
        "rows_error": sum(one.rows_error for one in everything),
    }
    if measurer is not None:
        document |= _judged(question, systems, baseline, measurer, grades)
    document["likeness"] = _likeness(systems, baseline)
    if measurer is None and not document["likeness"]:
        raise UsageError(
            "one order alone: there is nothing to compare it with", hint="`--qrels FILE` names the judgements"
        )
    return document


def _judged(
    question: EvaluationRequest,
    systems: Sequence[System],
    baseline: System | None,
    measurer: Measurer,
    grades: Mapping[str, Mapping[str, int]],
) -> dict[str, Any]:
    known = {query: None for one in (*systems, *([baseline] if baseline else [])) for query in one.lists}
    if not any((ranked.grades > 0).any() for one in systems for ranked in one.lists.values()):
        raise InputError(f"{question.qrels}: no list holds a passage that is judged relevant; are the ids the same?")
    nothing: dict[str, Values] = {}

    def values_of(found: Mapping[str, Values], query: str) -> Values:
        if query in found:
            return found[query]
        return nothing.setdefault(query, measurer.nothing(query))

    befores = [_before(one, systems, baseline) for one in systems]
    rows: list[tuple[System, int, Any, Any]] = []
    for system, before in zip(systems, befores, strict=True):
        for place in range(len(measurer.names)):
            pairs = [
                (old, new)
                for query in known
                for old, new in [(values_of(before, query)[place], values_of(system.values, query)[place])]
                if old is not None and new is not None
            ]
            if not pairs:
                raise InputError(f"{system.name}: no query has a value of {measurer.names[place]}")
            rows.append((system, place, *np.array(pairs).T))
    verdicts = decide([paired_test(new - old) for _, _, old, new in rows], question.ship_at)
    compared_with = question.baseline or _GIVEN
    found = []
    for system, before in zip(systems, befores, strict=True):
        measures = [
            _measured(system.name, measurer.names[place], verdict, old, new, compared_with)
            for (one, place, old, new), verdict in zip(rows, verdicts, strict=True)
            if one is system
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
                "limits": find_limits(system, list(known), before, grades),
                "use": use_of(system, measurer.measures[0], grades),
            }
        )
    _add_chosen(found, question)
    document = {
        "queries": len(known),
        "queries_in_no_file": len(grades.keys() - known.keys()),
        "systems": found,
        "together": together(systems, measurer.measures[0], grades),
    }
    return {**document, "headline": headline(found, compared_with)}


def _before(system: System, systems: Sequence[System], baseline: System | None) -> Mapping[str, Values]:
    """What a system is held against: the baseline, its own given order, or that of another file."""
    if baseline is not None:
        return baseline.values
    for one in (system, *systems):
        if one.given_order is not None:
            return one.given
    raise UsageError(
        f"{system.name}: nothing in it says the order before reranking", hint="`--baseline FILE` names a file with it"
    )


def _measured(name: str, metric: str, verdict: Verdict, old: Any, new: Any, compared_with: str) -> dict[str, Any]:
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
    """The verdicts on recommended settings and the commands that use them."""
    chosen = [one["use"] for one in found if one["use"].get("recommended")]
    tests = [paired_test(use["differences"]) for use in chosen]
    for one in found:
        use = one["use"]
        if use.get("recommended"):
            verdict = decide(tests, question.ship_at)[chosen.index(use)]
            given, value = use["given"], use["given"] + verdict.test.difference
            old, new = np.full(len(use["differences"]), given), given + np.array(use["differences"])
            name = f"{one['file']} with {use['recommended']}"
            use["verdict"] = _measured(name, use["measure"], verdict, old, new, _GIVEN) | {"value": value}
            use["command"] = f"rerank-cli rerank-file IN -o OUT {use['recommended']}"
        use.pop("differences", None)


def _likeness(systems: Sequence[System], baseline: System | None) -> list[dict[str, Any]]:
    """The orders against each other: each system's and its given one, and all pairs of systems."""
    orders: list[tuple[str, Mapping[str, Ids]]] = [(one.name, _ids(one)) for one in systems]
    pairs = list(combinations(orders, 2))
    if baseline is not None:
        pairs = [*((one, (baseline.name, _ids(baseline))) for one in orders), *pairs]
    else:
        own = [
            (order, (_GIVEN, _given_ids(one)))
            for order, one in zip(orders, systems, strict=True)
            if one.given_order is not None
        ]
        pairs = [*own, *pairs]
    return [asdict(compare(*one, *other)) for one, other in pairs]


def _ids(system: System) -> dict[str, Ids]:
    return {query: ranked.ids for query, ranked in system.lists.items()}


def _given_ids(system: System) -> dict[str, Ids]:
    return {
        query: ranked.ids[np.argsort(ranked.places)]
        for query, ranked in system.lists.items()
        if ranked.places is not None
    }
