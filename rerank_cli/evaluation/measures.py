"""Did reranking help? The given order and the reranked order, measured on the same judgements.

The measures are ir-measures' own (names as it spells them: `nDCG@10`, `RR@10`, `P@5`, ...; `calculate`); nothing is
computed here but the two runs, and whether the difference is more than chance (`significance`). Queries without
judgements are counted and not averaged; a judged query whose list is empty counts with what the measure gives for
nothing found, as it does in ir-measures.

An id that stands several times in a list (chunks of a document) counts at its first place, as a retriever of documents
would answer; repeats are counted. Where no list holds a judged passage, the ids of file and qrels do not meet, and
there is nothing that could be measured: `Evaluation.problem` says so, with an id of each side.

A list is measured when it comes, and only the values are kept: two numbers for each judged query and measure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from rerank_cli.evaluation.calculate import calculate, parse_measure
from rerank_cli.evaluation.changed_most import ChangedMost, Shown
from rerank_cli.evaluation.drawn import sorted_changes
from rerank_cli.evaluation.orders import Orders, drop_repeats
from rerank_cli.evaluation.qrels import read_qrels
from rerank_cli.evaluation.shown_lists import first_passages, shortened
from rerank_cli.evaluation.significance import Significance, randomisation_test

GIVEN_ORDER = "the order of the input"


_FEW = 0.2  # of the judged queries with a judged passage in their list: fewer are rarely meant

Values = list[float | None]
Noted = tuple[Any, ...]
"""What a later process must know of the orders of a query: its id, the values of both, how many ids were repeated,
whether a judged passage was met, the first id, and what is shown of a query that changed much (else None)."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One measure over the judged queries, aggregated as it says (mostly their mean).

    wins, losses: queries where reranking raised or lowered it. undefined: queries that the measure has no value for,
    which are in none of the numbers. given and what follows from it is None where the given order is not known.
    """

    metric: str
    given: float | None
    reranked: float
    difference: float | None
    wins: int | None
    losses: int | None
    ties: int | None
    undefined: int
    significance: Significance | None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """All measures of a run.

    queries: judged and ranked; unjudged: ranked, but not in the qrels; repeated: lists of a judged query that has had
    one before, of which the first counts. given_order: what was taken for it, in words. repeated_passages: ids that
    had stood in their list before. met: judged queries in whose list a judged passage stands. problem: why nothing
    could be measured. note: that few lists hold a judged passage.
    """

    metrics: tuple[Comparison, ...]
    queries: int
    unjudged: int
    repeated: int = 0
    given_order: str | None = GIVEN_ORDER
    repeated_passages: int = 0
    met: int | None = None
    problem: str | None = None
    note: str | None = None

    @classmethod
    def of_report(cls, found: Mapping[str, Any]) -> Evaluation:
        """What `asdict` made a document of."""
        metrics = []
        for metric in found["metrics"]:
            test = metric["significance"]
            metrics.append(Comparison(**{**metric, "significance": Significance(**test) if test else None}))
        return cls(**{**found, "metrics": tuple(metrics)})


@dataclass(frozen=True, slots=True)
class QueryValue:
    """One measure of one query; None where it has no value, or the given order is not known."""

    query_id: str
    metric: str
    given: float | None
    reranked: float | None
    difference: float | None


class Evaluator:
    """Measures orders as they come.

    note: of the orders added last, what `restore` must be told to have them again. scores: of their passages, those of
    relevant ones and those of the others.

    Raises `UsageError` for a measure that cannot be computed here, and `InputError` for qrels that cannot be read.
    """

    def __init__(self, qrels: str, metrics: Sequence[str]) -> None:
        self._measures = list({str(measure): measure for measure in map(parse_measure, metrics)}.values())
        self._file = qrels
        self._qrels = read_qrels(qrels)
        self._values: dict[str, tuple[Values | None, Values]] = {}
        self._unjudged: set[str] = set()
        self._unjudged_in_parts = 0
        self._problem_of_part: str | None = None
        self._repeated = self._repeated_passages = self._met = 0
        self._example: tuple[str, str] | None = None
        self._example_query: str | None = None
        self._changed_most = ChangedMost()
        self.note: list[Noted] = []
        self.scores: tuple[list[float], list[float]] = [], []

    def is_judged(self, query: str) -> bool:
        """Whether the qrels say anything of a query."""
        return query in self._qrels

    @property
    def judged_example(self) -> str:
        """The id of one query of the qrels."""
        return next(iter(self._qrels))

    def add(self, orders: Iterable[Orders]) -> None:
        """Measure the orders of some queries; those of an unjudged query may be empty."""
        added = [drop_repeats(item) for item in orders]
        judged: dict[str, Orders] = {}
        for item in added:
            if self.is_judged(item.query) and item.query not in self._values:
                judged.setdefault(item.query, item)
        reranked = self._measure_orders({query: item.reranked for query, item in judged.items()})
        given = self._measure_orders({query: item.given for query, item in judged.items() if item.given is not None})
        self.note, self.scores = [], self._scores_of(judged.values())
        for item in added:
            met = not self._qrels.get(item.query, {}).keys().isdisjoint(item.reranked)
            example = next(iter(item.reranked), None)
            entry = (item.query, given.get(item.query), reranked.get(item.query), item.repeated, met, example)
            shown = self._take(*entry, show=partial(self._shown, item))
            self.note.append((*entry, shown) if shown else entry)

    def restore(self, note: Iterable[Noted]) -> None:
        """Take what `note` said in an earlier process."""
        for query, given, reranked, *more in note:
            repeated, met, example = more[:3] or (0, True, None)  # of a version that did not note them
            shown = more[3] if len(more) > 3 else None
            self._take(query, given, reranked, repeated, met, example, show=partial(_as_it_is, shown))

    def _take(
        self,
        query: str,
        given: Values | None,
        reranked: Values | None,
        repeated: int,
        met: bool,
        example: str | None,
        *,
        show: Callable[[], Shown | None],
    ) -> Shown | None:
        """Count a query; returns what is shown of it where it changed much."""
        if not self.is_judged(query):
            self._unjudged.add(query)
            self._example_query = self._example_query or query
            return None
        if query in self._values or reranked is None:
            self._repeated += 1
            return None
        self._values[query] = given, reranked
        self._repeated_passages += repeated
        self._met += met
        if example is not None:
            self._example = self._example or (query, example)
        return self._changed_most.add(query, _change(given, reranked), show)

    def _shown(self, item: Orders) -> Shown | None:
        if item.texts is None or item.given is None:
            return None
        texts, grades = item.texts(), self._qrels[item.query]
        return {
            "text": shortened(item.text) or None,
            "given": first_passages(item.given, texts, item.reranked, grades),
            "new": first_passages(item.reranked, texts, item.given, grades),
        }

    def _scores_of(self, judged: Iterable[Orders]) -> tuple[list[float], list[float]]:
        relevant: list[float] = []
        others: list[float] = []
        for item in judged:
            of_query = self._qrels[item.query]
            for name, score in zip(item.reranked, item.scores, strict=False):
                if not math.isnan(score):
                    (relevant if of_query.get(name, 0) > 0 else others).append(score)
        return relevant, others

    def changes(self) -> dict[str, Any] | None:
        """How the first measure changed by query, and the queries that changed most; None where nobody knows."""
        measure = str(self._measures[0])
        changes = [change for given, new in self._values.values() if (change := _change(given, new)) is not None]
        bars = sorted_changes(np.array(changes, dtype=np.float64))
        return None if bars is None else {"metric": measure, **bars, **self._changed_most.document()}

    def add_part(self, values: Iterable[QueryValue], found: Evaluation) -> None:
        """Take what a run of a part of the input has found. values: its `per_query`; found: what it has finished."""
        queries: dict[str, list[QueryValue]] = {}
        for value in values:
            queries.setdefault(value.query_id, []).append(value)
        self.restore(
            (query, [one.given for one in each], [one.reranked for one in each], 0, False, None)
            for query, each in queries.items()
        )
        self._unjudged_in_parts += found.unjudged
        self._repeated += found.repeated
        self._repeated_passages += found.repeated_passages
        self._met += found.met or 0
        self._problem_of_part = self._problem_of_part or found.problem

    def finish(self, given_order: str | None = GIVEN_ORDER) -> Evaluation:
        """The measures of both orders over the queries that were judged and ranked."""
        compared = (self._compare_orders(place, measure) for place, measure in enumerate(self._measures))
        return Evaluation(
            tuple(compared), len(self._values), len(self._unjudged) + self._unjudged_in_parts, self._repeated,
            given_order, self._repeated_passages, self._met, self._explain_nothing_measured(), self._note_of_few(),
        )  # fmt: skip

    def _explain_nothing_measured(self) -> str | None:
        """Why nothing was measured; None where something was, or nothing was ranked."""
        if not self._values and self._example_query is not None:
            return (
                f"no query of {self._file} was ranked: the input has `{self._example_query}`, the judgements have "
                f"`{self.judged_example}`"
            )
        if self._met:
            return None
        if self._example is None:
            return self._problem_of_part
        query, passage = self._example
        return (
            f"no list holds a passage that {self._file} judges: query `{query}` has `{passage}`, the judgements have "
            f"`{next(iter(self._qrels[query]))}`"
        )

    def _note_of_few(self) -> str | None:
        count = len(self._values)
        if not self._met or self._met >= _FEW * count:
            return None
        of_all = f"only {self._met:,} of {count:,} judged queries"
        return f"{of_all} have a judged passage in their list: are the ids the same?"

    def per_query(self) -> Iterable[QueryValue]:
        """Each measure of each judged query, in the order in which they came."""
        for query, (given, reranked) in self._values.items():
            for place, measure in enumerate(self._measures):
                before, after = given[place] if given else None, reranked[place]
                difference = None if before is None or after is None else after - before
                yield QueryValue(query, str(measure), before, after, difference)

    def _compare_orders(self, place: int, measure: Any) -> Comparison:
        knows_given = all(given is not None for given, _ in self._values.values())
        pairs: list[tuple[float, float]] = []
        for given, reranked in self._values.values():
            after = reranked[place]
            before = given[place] if knows_given and given is not None else after
            if before is not None and after is not None:
                pairs.append((before, after))
        changes = [after - before for before, after in pairs]
        given_value = _aggregate(measure, [before for before, _ in pairs])
        reranked_value = _aggregate(measure, [after for _, after in pairs])
        return Comparison(
            metric=str(measure),
            given=given_value if knows_given else None,
            reranked=reranked_value,
            difference=reranked_value - given_value if knows_given else None,
            wins=sum(change > 0 for change in changes) if knows_given else None,
            losses=sum(change < 0 for change in changes) if knows_given else None,
            ties=sum(change == 0 for change in changes) if knows_given else None,
            undefined=len(self._values) - len(pairs),
            significance=randomisation_test(changes) if knows_given else None,
        )

    def _measure_orders(self, orders: Mapping[str, Sequence[str]]) -> dict[str, Values]:
        """The values of each query, in the order of the measures."""
        if not orders:
            return {}
        try:
            values = self._calculate_all(orders)
        except ArithmeticError:  # some measures divide by the number of something that a query has none of
            if len(orders) > 1:
                return {query: self._measure_orders({query: order})[query] for query, order in orders.items()}
            values = {}
            for measure in self._measures:
                values |= self._calculate_if_defined(orders, measure)
        return {query: [values.get((str(one), query)) for one in self._measures] for query in orders}

    def _calculate_if_defined(self, orders: Mapping[str, Sequence[str]], measure: Any) -> dict[Any, float | None]:
        try:
            return self._calculate_all(orders, measure)
        except ArithmeticError:
            return {}

    def _calculate_all(
        self, orders: Mapping[str, Sequence[str]], *measures: Any
    ) -> dict[tuple[str, str], float | None]:
        return calculate(measures or self._measures, self._qrels, orders)


def _as_it_is(shown: Shown | None) -> Shown | None:
    return shown


def _change(given: Values | None, new: Values) -> float | None:
    """By how much the first measure changed."""
    before, after = None if given is None else given[0], new[0]
    return None if before is None or after is None else after - before


def _aggregate(measure: Any, values: Sequence[float]) -> float:
    """What ir-measures says of all queries together."""
    if not values:
        return 0.0
    aggregator = measure.aggregator()
    for value in values:
        aggregator.add(value)
    return float(aggregator.result())
