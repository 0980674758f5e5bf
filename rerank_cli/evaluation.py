"""Did reranking help? The given order and the reranked order, measured on the same judgements.

The measures are ir-measures' own (names as it spells them: `nDCG@10`, `RR@10`, `P@5`, ...); nothing is computed here
but the two runs. A run needs a strictly falling score per query: the given order scores by place, the reranked one by
rank, so that no measure's tie rule can change an order. Queries without judgements are counted and not averaged; a
judged query whose list is empty counts with what the measure gives for nothing found, as it does in ir-measures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rerank_cli.errors import InputError, UsageError
from rerank_cli.formats.shapes import Shape, passage_id
from rerank_cli.records import RankedList

_ID_HINT = "name its field with `--id-field` (a list a row) or `--group-by` (a pair a row)"


@dataclass(frozen=True, slots=True)
class Comparison:
    """One measure over the judged queries, aggregated as it says (mostly their mean).

    wins, losses: queries where reranking raised or lowered it.
    """

    metric: str
    given: float
    reranked: float
    wins: int
    losses: int
    ties: int


@dataclass(frozen=True, slots=True)
class Evaluation:
    """All measures of a run. queries: judged and ranked; unjudged: ranked, but not in the qrels."""

    metrics: tuple[Comparison, ...]
    queries: int
    unjudged: int


class Evaluator:
    """Collects the orders of a run, then measures them.

    note: of the lists added last, what `restore` must be told to have them again.

    Raises `UsageError` for a measure that cannot be computed here, and `InputError` for qrels that cannot be read.
    """

    def __init__(self, qrels: str, metrics: Sequence[str], shape: Shape) -> None:
        self._measures = [_parse_measure(name) for name in metrics]
        self._qrels = _read_qrels(qrels)
        self._shape = shape
        self._given: list[Any] = []
        self._reranked: list[Any] = []
        self._seen: set[str] = set()
        self._unjudged: set[str] = set()
        self._judged = {qrel.query_id for qrel in self._qrels}
        self.note: list[tuple[str, list[tuple[str, int, int]]]] = []

    def add(self, ranked: Sequence[RankedList]) -> None:
        """Take the lists of a window, whose rankings must be complete (selection comes after evaluation)."""
        self.note = []
        for item in ranked:
            if item.source.id is None:
                row = item.source.rows[0]
                raise InputError(f"{row.file}:{row.number}: no query id, which --qrels needs", hint=_ID_HINT)
            self.note.append((str(item.source.id), self._places(item)))
        self.restore(self.note)

    def restore(self, note: Sequence[tuple[str, Sequence[tuple[str, int, int]]]]) -> None:
        """Take what `note` said of a window in an earlier process."""
        import ir_measures

        for query, places in note:
            (self._seen if query in self._judged else self._unjudged).add(query)
            for passage, index, rank in places:
                self._given.append(ir_measures.ScoredDoc(query, passage, -float(index)))
                self._reranked.append(ir_measures.ScoredDoc(query, passage, -float(rank)))

    def _places(self, item: RankedList) -> list[tuple[str, int, int]]:
        """(id, index, rank) of each passage of a judged query."""
        if str(item.source.id) not in self._judged:
            return []
        places = []
        for entry in item.ranking:
            passage = passage_id(item, entry.index, self._shape)
            if passage is None:
                row = item.source.row_of(entry.index)
                raise InputError(f"{row.file}:{row.number}: passage {entry.index} has no id, which --qrels needs")
            places.append((str(passage), entry.index, entry.rank))
        return places

    def finish(self) -> Evaluation:
        """The measures of both orders over the queries that were judged and ranked."""
        import ir_measures

        qrels = [qrel for qrel in self._qrels if qrel.query_id in self._seen]
        given = _by_query(ir_measures.iter_calc(self._measures, qrels, self._given)) if qrels else {}
        reranked = _by_query(ir_measures.iter_calc(self._measures, qrels, self._reranked)) if qrels else {}
        comparisons = []
        for measure in self._measures:
            pairs = [(given[key], reranked[key]) for key in given if key[0] == str(measure)]
            comparisons.append(
                Comparison(
                    metric=str(measure),
                    given=_aggregated(measure, [before for before, _ in pairs]),
                    reranked=_aggregated(measure, [after for _, after in pairs]),
                    wins=sum(1 for before, after in pairs if after > before),
                    losses=sum(1 for before, after in pairs if after < before),
                    ties=sum(1 for before, after in pairs if after == before),
                )
            )
        return Evaluation(metrics=tuple(comparisons), queries=len(self._seen), unjudged=len(self._unjudged))


def _by_query(values: Any) -> dict[tuple[str, str], float]:
    return {(str(value.measure), value.query_id): float(value.value) for value in values}


def _aggregated(measure: Any, values: Sequence[float]) -> float:
    """What ir-measures says of all queries together."""
    if not values:
        return 0.0
    aggregator = measure.aggregator()
    for value in values:
        aggregator.add(value)
    return float(aggregator.result())


def _parse_measure(name: str) -> Any:
    # Imported here: it costs 0.3 s that a run without judgements need not pay.
    import ir_measures

    try:
        measure = ir_measures.parse_measure(name)
        # Some fail only when they compute, for want of a program or of an option; better now than after the run.
        list(ir_measures.iter_calc([measure], [ir_measures.Qrel("q", "p", 1)], [ir_measures.ScoredDoc("q", "p", 1.0)]))
    except Exception as error:
        raise UsageError(
            f"--metric {name}: cannot be measured: {error}", hint="for example nDCG@10, RR@10, P@5"
        ) from error
    return measure


def _read_qrels(path: str) -> list[Any]:
    import ir_measures

    try:
        qrels = list(ir_measures.read_trec_qrels(path))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path}: not TREC qrels (`query_id 0 passage_id grade`): {error}") from error
    if not qrels:
        raise InputError(f"{path}: no judgements")
    return qrels
