"""Did reranking help? The given order and the reranked order, measured on the same judgements.

The measures are those of ir-measures, by its names (`nDCG@10`, `RR@10`, `P@5`, ...; see `measures.py`); `significance`
tells whether the difference is more than chance. Queries without judgements are counted but not averaged. A judged
query whose list is empty counts with what the measure gives for nothing found, as it does in ir-measures.

An id that stands several times in a list (chunks of a document) counts at its first place only, as if documents had
been retrieved; repeats are counted. Where no list holds a judged passage, the ids of file and qrels do not match, and
nothing can be measured: `Evaluation.problem` says so, with an id of each side.

Each list is measured as it comes, and only the values are kept: two numbers for each judged query and measure.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rerank_cli.evaluation.changed_most import ChangedMost, Shown
from rerank_cli.evaluation.chart_data import sorted_changes
from rerank_cli.evaluation.measures import Values, change_of, measure_orders, parse_measures
from rerank_cli.evaluation.orders import Orders, drop_repeats
from rerank_cli.evaluation.qrels import read_qrels
from rerank_cli.evaluation.shown_lists import show_list
from rerank_cli.evaluation.significance import Significance, randomisation_test

GIVEN_ORDER = "the order of the input"

_FEW = 0.2  # of judged queries: a smaller share with a judged passage in their list is rarely intended

Noted = tuple[Any, ...]
"""What a resumed run must know about a query: its id, the values of both orders, how many ids were repeated, whether
the list held a judged passage, its first id, and, if the query changed much, what is shown of it."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One measure over the judged queries, aggregated as the measure itself does (mostly the mean).

    wins, losses: queries where reranking raised or lowered it. undefined: queries without a value, which count in no
    other number. Where the given order is not known, `given` and all that compares with it is None.
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

    queries: judged and ranked. unjudged: ranked, but not in the qrels. repeated: further lists of a judged query; the
    first one counts. given_order: what was taken for it, in words. repeated_passages: ids that stood in their list
    before. met: judged queries whose list holds a judged passage. problem: why nothing could be measured. note: a
    warning that few lists hold a judged passage.
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
        """An `Evaluation` from the document that `asdict` made of one."""
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

    note: what `restore` needs to take the orders added last again. scores: of their relevant passages, and of their
    other ones.

    Raises `UsageError` for a measure that cannot be computed here, and `InputError` for qrels that cannot be read.
    """

    def __init__(self, qrels: str, metrics: Sequence[str]) -> None:
        self._measures = parse_measures(metrics)
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
        """Whether the qrels name a query."""
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
        reranked = measure_orders(self._measures, self._qrels, {query: item.reranked for query, item in judged.items()})
        given_orders = {query: item.given for query, item in judged.items() if item.given is not None}
        given = measure_orders(self._measures, self._qrels, given_orders)
        self.note, self.scores = [], ([], [])
        relevant, others = self.scores
        for item in judged.values():
            grades = self._qrels[item.query]
            for name, score in zip(item.reranked, item.scores, strict=False):
                if not math.isnan(score):
                    (relevant if grades.get(name, 0) > 0 else others).append(score)
        for item in added:
            met = not self._qrels.get(item.query, {}).keys().isdisjoint(item.reranked)
            example = next(iter(item.reranked), None)
            entry = (item.query, given.get(item.query), reranked.get(item.query), item.repeated, met, example)
            shown = self._take(*entry, item)
            self.note.append((*entry, shown) if shown else entry)

    def restore(self, note: Iterable[Noted]) -> None:
        """Take queries from the `note` of an earlier process, without measuring them again."""
        for query, given, reranked, *more in note:
            repeated, met, example = more[:3] or (0, True, None)  # notes of older versions lack them
            shown = more[3] if len(more) > 3 else None
            self._take(query, given, reranked, repeated, met, example, shown)

    def _take(
        self,
        query: str,
        given: Values | None,
        reranked: Values | None,
        repeated: int,
        met: bool,
        example: str | None,
        found: Orders | Shown | None,
    ) -> Shown | None:
        """Count a query; returns what is shown of it if it changed much. found: its orders, or what was shown."""
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
        change = change_of(given, reranked)
        if change is None or not self._changed_most.wants(change):
            return None
        if isinstance(found, Orders):
            item, found = found, None
            if item.texts is not None and item.given is not None:
                found = show_list(item.text, item.given, item.reranked, item.texts(), self._qrels[query])
        if found is not None:
            self._changed_most.add(query, change, found)
        return found

    def changes(self) -> dict[str, Any] | None:
        """How the first measure changed by query, and the queries that changed most; None if no change is known."""
        measure = str(self._measures[0])
        changes = [change for given, new in self._values.values() if (change := change_of(given, new)) is not None]
        bars = sorted_changes(np.array(changes, dtype=np.float64))
        most = self._changed_most
        return None if bars is None else {"metric": measure, **bars, "gained": most.gained, "lost": most.lost}

    def add_part(self, values: Iterable[QueryValue], found: Evaluation) -> None:
        """Add what the run of one part of the input found. values: from its `per_query`. found: from its `finish`."""
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
        count, note = len(self._values), None
        if self._met and self._met < _FEW * count:
            few = f"only {self._met:,} of {count:,} judged queries"
            note = f"{few} have a judged passage in their list: are the ids the same?"
        return Evaluation(
            tuple(compared), count, len(self._unjudged) + self._unjudged_in_parts, self._repeated, given_order,
            self._repeated_passages, self._met, self._explain_nothing_measured(), note,
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

    def per_query(self) -> Iterable[QueryValue]:
        """Each measure of each judged query, in the order in which the queries came."""
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


def _aggregate(measure: Any, values: Sequence[float]) -> float:
    """The value of all queries together, aggregated by ir-measures."""
    if not values:
        return 0.0
    aggregator = measure.aggregator()
    for value in values:
        aggregator.add(value)
    return float(aggregator.result())
