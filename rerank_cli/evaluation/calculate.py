"""The measures of ir-measures: which there are, and the values of orders by them. Nothing is computed here.

A run of ir-measures needs a strictly falling score per query, so an order scores by place, and no measure's tie rule
can change it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rerank_cli.errors import UsageError

_KNOWN = "for example nDCG@10, RR@10, P@5"


def calculate(
    measures: Sequence[Any], grades: Mapping[str, Mapping[str, int]], orders: Mapping[str, Sequence[str]]
) -> dict[tuple[str, str], float | None]:
    """The values of orders, by measure and query; `ArithmeticError` of a measure that divides by nothing."""
    import ir_measures

    qrels = {query: dict(grades[query]) for query in orders}
    run = {
        query: {passage: -float(place) for place, passage in enumerate(order)}
        for query, order in orders.items()
        if order  # as in a file, which has no line for it
    }
    values = (
        (one, float(one.value)) for together in _apart(measures) for one in ir_measures.iter_calc(together, qrels, run)
    )
    return {(str(one.measure), one.query_id): value if math.isfinite(value) else None for one, value in values}


def _apart(measures: Sequence[Any]) -> list[list[Any]]:
    """Measures that are computed at once.

    ir-measures 0.4.3 gives the gains of one measure to all that stand beside it: nDCG@10 was another with
    `nDCG(gains={1: 3})@5` than alone.
    """
    alone = [[one] for one in measures if "gains" in one.params]
    others = [one for one in measures if "gains" not in one.params]
    return [others, *alone] if others else alone


def parse_measure(name: str) -> Any:
    """The measure of ir-measures with this name; `UsageError` where there is none, or it cannot be computed here."""
    # Imported here: it costs 0.3 s that a run without judgements need not pay.
    import ir_measures

    if not name.isascii():
        raise UsageError(f"--metric {name}: not a measure: digits are 0 to 9", hint=_KNOWN)
    try:
        measure = ir_measures.parse_measure(name)
        # Some fail only when they compute, for want of a program or of an option; better now than after the run.
        run = [ir_measures.ScoredDoc("q", "p", 1.0), ir_measures.ScoredDoc("q", "other", 0.0)]
        list(ir_measures.iter_calc([measure], [ir_measures.Qrel("q", "p", 1)], run))
    except Exception as error:
        raise UsageError(f"--metric {name}: cannot be measured: {error}", hint=_nearest(name)) from error
    return measure


def _nearest(name: str) -> str:
    """Names of measures that are spelled nearly so, for a hint."""
    import difflib

    from ir_measures.measures import registry

    base, at, cutoff = name.partition("@")
    by_letters = {known.casefold(): known for known in reversed(registry) if known.isascii()}
    if base in registry or not (near := difflib.get_close_matches(base.casefold(), by_letters, n=3, cutoff=0.5)):
        return _KNOWN
    names = [by_letters[one] for one in near[: 1 if near[0] == base.casefold() else 3]]
    return "did you mean " + " or ".join(f"{one}{at}{cutoff}" for one in names) + "?"
