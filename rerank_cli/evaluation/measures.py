"""Calls ir-measures: finds measures by name, and measures orders by them. No measure is computed here.

A run of ir-measures needs a strictly falling score per query, so an order scores by place, and no measure's tie rule
can change it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rerank_cli.errors import UsageError

Values = list[float | None]
"""Of one query, by each measure; None where a measure has no value."""

_KNOWN = "for example nDCG@10, RR@10, P@5"


def measure_orders(
    measures: Sequence[Any], grades: Mapping[str, Mapping[str, int]], orders: Mapping[str, Sequence[str]]
) -> dict[str, Values]:
    """The values of each query, in the order of `measures`. orders: passage ids by query, best first."""
    if not orders:
        return {}
    try:
        values = calculate(measures, grades, orders)
    except ArithmeticError:  # some measures divide by the number of something that a query has none of
        if len(orders) > 1:
            return {query: measure_orders(measures, grades, {query: order})[query] for query, order in orders.items()}
        if len(measures) > 1:
            alone = [measure_orders([measure], grades, orders) for measure in measures]
            return {query: [one[query][0] for one in alone] for query in orders}
        values = {}
    return {query: [values.get((str(one), query)) for one in measures] for query in orders}


def calculate(
    measures: Sequence[Any], grades: Mapping[str, Mapping[str, int]], orders: Mapping[str, Sequence[str]]
) -> dict[tuple[str, str], float | None]:
    """The values by measure and query; `ArithmeticError` of a measure that divides by 0."""
    import ir_measures

    qrels = {query: dict(grades[query]) for query in orders}
    run = {
        query: {passage: -float(place) for place, passage in enumerate(order)}
        for query, order in orders.items()
        if order  # a run file has no line for an empty list either
    }
    # ir-measures 0.4.3 applies the gains of one measure to all in the same call: nDCG@10 beside `nDCG(gains={1: 3})@5`
    # had another value than alone.
    groups = [[one] for one in measures if "gains" in one.params]
    if others := [one for one in measures if "gains" not in one.params]:
        groups.insert(0, others)
    values = ((one, float(one.value)) for group in groups for one in ir_measures.iter_calc(group, qrels, run))
    return {(str(one.measure), one.query_id): value if math.isfinite(value) else None for one, value in values}


def change_of(given: Values | None, new: Values) -> float | None:
    """By how much the first measure changed."""
    before, after = None if given is None else given[0], new[0]
    return None if before is None or after is None else after - before


def parse_measures(names: Iterable[str]) -> list[Any]:
    """The measures of ir-measures with these names, each once; `UsageError` for one that cannot be computed here."""
    # Imported here: it costs 0.3 s, which a run without judgements need not pay.
    import ir_measures

    found = {}
    for name in names:
        if not name.isascii():
            raise UsageError(f"--metric {name}: not a measure: digits are 0 to 9", hint=_KNOWN)
        try:
            measure = ir_measures.parse_measure(name)
            # Some fail only when they compute, as a program or an option is missing: better now than after the run.
            run = [ir_measures.ScoredDoc("q", "p", 1.0), ir_measures.ScoredDoc("q", "other", 0.0)]
            list(ir_measures.iter_calc([measure], [ir_measures.Qrel("q", "p", 1)], run))
        except Exception as error:
            raise UsageError(f"--metric {name}: cannot be measured: {error}", hint=_nearest(name)) from error
        found[str(measure)] = measure
    return list(found.values())


def _nearest(name: str) -> str:
    """A hint with measures whose names are spelled nearly like `name`."""
    import difflib

    from ir_measures.measures import registry

    base, at, cutoff = name.partition("@")
    by_letters = {known.casefold(): known for known in reversed(registry) if known.isascii()}
    if base in registry or not (near := difflib.get_close_matches(base.casefold(), by_letters, n=3, cutoff=0.5)):
        return _KNOWN
    names = [by_letters[one] for one in near[: 1 if near[0] == base.casefold() else 3]]
    return "did you mean " + " or ".join(f"{one}{at}{cutoff}" for one in names) + "?"
