"""The systems that `evaluate` compares: files of ranked lists, each read once and measured as its lists come.

For each judged query a system keeps the values of the measures and, as arrays, what blends and comparisons need of its
list: a hash of each passage's id, its grade, its place in the given order and its score (`kept_lists`). Without
judgements every query counts.

A query that a file lacks counts as nothing found, as it does in ir-measures. Only the first list of a query and the
first place of an id count.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from rerank_cli.errors import InputError
from rerank_cli.evaluation.kept_lists import UNJUDGED, KeptLists, KeptValues, SystemList
from rerank_cli.evaluation.measures import Values, measure_orders, parse_measures
from rerank_cli.evaluation.reranked_file import OrderedPassage, RerankedFile, passage_names
from rerank_cli.formats.inputs import ReadOptions, resolve_inputs
from rerank_cli.formats.shapes import FieldNames
from rerank_cli.formats.text_index import digest_of_id
from rerank_cli.records import RowError

SCORES = ("logit", "cosine", "dot", "relevance_score", "rerank_score", "score")

_QUERIES_AT_ONCE = 200

Grades = Mapping[str, Mapping[str, int]]


@dataclass(slots=True)
class System:
    """One file of ranked lists and its measures, by query."""

    name: str
    new_order: str = ""
    given_order: str | None = None
    lists: KeptLists = field(default_factory=KeptLists)
    values: KeptValues = field(init=False)
    given: KeptValues = field(init=False)
    perfect: KeptValues = field(init=False)
    """By the first measure, with the same candidates in the order of their grades."""
    condensed: KeptValues = field(init=False)
    """By the first measure, for the given and the new order without their unjudged passages."""
    unjudged: int = 0
    repeated: int = 0
    repeated_passages: int = 0
    rows_error: int = 0
    score: str = ""
    """The field of the new order's scores; empty where it has none."""
    cut: int = 0
    """Lists with fewer passages than were reranked."""

    def __post_init__(self) -> None:
        """Values stand in the order of the lists."""
        self.values, self.given, self.perfect, self.condensed = (KeptValues(self.lists.numbers) for _ in range(4))


class Measurer:
    """Measures orders by ir-measures."""

    def __init__(self, grades: Grades, metrics: Sequence[str]) -> None:
        self.measures = parse_measures(metrics)
        self.names = [str(one) for one in self.measures]
        self._grades = grades
        cutoffs = [one.params.get("cutoff") for one in self.measures]
        # Passages below every cutoff change no value.
        self._cutoff = None if None in cutoffs else max(cutoffs)

    def of(self, orders: Mapping[str, Sequence[str]], *, first_only: bool = False) -> dict[str, Values]:
        """The values of each query, in the order of the measures. first_only: of the first measure alone."""
        measures = self.measures[:1] if first_only else self.measures
        return measure_orders(measures, self._grades, {query: order[: self._cutoff] for query, order in orders.items()})


def read_system(
    path: str,
    measurer: Measurer | None,
    grades: Grades,
    *,
    names: FieldNames,
    in_format: str = "auto",
    on_error: Callable[[RowError], None],
) -> System:
    """Read and measure a file; without a measurer every query is kept and none is measured."""
    file = RerankedFile(resolve_inputs([path], in_format), names, ReadOptions())
    system = System(path)

    def count(error: RowError) -> None:
        system.rows_error += 1
        on_error(error)

    lists = _read_lists(file, system, grades, count, keep_all=measurer is None)
    while some := list(islice(lists, _QUERIES_AT_ONCE)):
        if measurer is not None:
            _measure(system, measurer, grades, some)
        for query, _, _, ranked in some:
            system.lists.add(query, ranked)
    system.cut = file.cut
    system.new_order = file.reranked.words if file.reranked else ""
    system.given_order = file.given.words if file.given else None
    if grades and not system.lists:
        example = next(iter(grades))
        raise InputError(f"{path}: no query of the judgements is in it; they have `{example}`")
    return system


def _read_lists(
    file: RerankedFile, system: System, grades: Grades, on_error: Callable[[RowError], None], *, keep_all: bool
) -> Iterator[tuple[str, list[str] | None, list[str], SystemList]]:
    seen: set[str] = set()
    score: str | None = None
    for item in file.lists(lambda query: keep_all or query in grades, on_error):
        if not keep_all and item.query not in grades:
            system.unjudged += 1
            continue
        if item.query in seen:
            system.repeated += 1
            continue
        query = sys.intern(item.query)  # a text that all systems and the judgements share
        seen.add(query)
        passages: dict[str, OrderedPassage] = {}  # each at its first place
        for name, passage in zip(passage_names(item.reranked), item.reranked, strict=True):
            passages.setdefault(name, passage)
        new = list(passages)
        system.repeated_passages += len(item.reranked) - len(new)
        given = None if item.given is None else list(dict.fromkeys(passage_names(item.given)))
        if score is None and passages:
            # The field of the new order's scores; none if it is the given order's, or a passage lacks it.
            of_given = file.given.field if file.given else None
            fields = (name for name in SCORES if name != of_given and all(one.has(name) for one in passages.values()))
            system.score = score = next(fields, "")
        scores = np.array([one.number(score) for one in passages.values()]) if score else None
        place = None if given is None else {name: at for at, name in enumerate(given)}
        of_query = grades.get(item.query, {})
        ranked = SystemList(
            ids=np.array([digest_of_id(name) for name in new], dtype=np.uint64),
            grades=np.array([of_query.get(name, UNJUDGED) for name in new], dtype=np.int32),
            places=None if place is None else np.array([place[name] for name in new], dtype=np.int32),
            scores=scores,
        )
        yield query, given, new, ranked


def _measure(
    system: System,
    measurer: Measurer,
    grades: Grades,
    some: Iterable[tuple[str, list[str] | None, list[str], SystemList]],
) -> None:
    new = {query: order for query, _, order, _ in some}
    given = {query: order for query, order, _, _ in some if order is not None}
    values, values_of_given = measurer.of(new), measurer.of(given)
    perfect = measurer.of(  # mypy infers no type for a default of a lambda
        {query: sorted(order, key=lambda name, of=grades[query]: -of.get(name, 0)) for query, order in new.items()},  # type: ignore[misc]
        first_only=True,
    )
    kept_new, kept_given = (
        measurer.of(
            {query: [one for one in order if one in grades[query]] for query, order in orders.items()}, first_only=True
        )
        for orders in (new, given)
    )
    width = len(measurer.names)
    for query in new:
        system.values.append(values[query], width)
        system.given.append(values_of_given.get(query), width)
        system.perfect.append(perfect[query], 1)
        system.condensed.append([kept_given[query][0] if query in kept_given else None, kept_new[query][0]], 2)
