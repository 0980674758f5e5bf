"""What every shape is: how rows become candidate lists, and how ranked lists become rows again.

Each shape has a `Kind`: its name, how its rows are recognised, what it can carry, and how a list of any other shape is
written in it. Lists go from one shape to another as an `Exchange`, which holds what all shapes have in common.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from rerank_cli.errors import UsageError
from rerank_cli.formats import jsonl
from rerank_cli.formats.choices import FieldNames, Selection, Texts
from rerank_cli.formats.shapes.fields import RowProblem, first_of, row_error
from rerank_cli.records import CandidateList, Gap, JsonRow, RankedList, RankedPassage, Row, RowError

OF_A_CUT = ("truncated", "tokens", "kept_tokens")
"""Our fields of a passage that was cut. A name of these is ours in every row, so that it never means two things."""

_OF_A_SCORE = frozenset({*OF_A_CUT, "tiles", "kept_tiles"})
_CUT = frozenset(OF_A_CUT)
_SCORES = frozenset({"logit", "cosine", "dot"})

Item = Row | RowError | Gap
Grouped = CandidateList | RowError | Gap
RowContent = Literal["query ids", "fields of rows", "texts", "passage ids", "fields of passages"]
Outcome = Literal["logits", "marks of truncation", "prob", "probability"]

ALL_ROW_CONTENT: frozenset[RowContent] = frozenset(
    ("query ids", "fields of rows", "texts", "passage ids", "fields of passages")
)
ALL_OUTCOMES: frozenset[Outcome] = frozenset(("logits", "marks of truncation", "prob", "probability"))


@dataclass(frozen=True, slots=True)
class Exchange:
    """A candidate list in no particular shape.

    fields: those of the row, ids included, without query, passages and what only steered the request. passages: objects
    in input order, so that `RankedPassage.index` finds them; their text is `text` (missing where they are only an
    image). ids: of the passages.
    """

    id: object
    query: str
    fields: Mapping[str, Any]
    passages: Sequence[Mapping[str, Any]]
    ids: Sequence[object]


@dataclass(frozen=True, slots=True)
class Kind:
    """One row of `recognition.SHAPES`.

    recognise: whether a row with these fields has this shape: 0 no, 1 possibly, 2 certainly. open: the shape for an
    input. write: a ranked list of any shape as rows of this one. has: what its inputs hold; carries: what its output
    keeps. tables: it can be read from and written to Parquet. refuse: why a list of another shape cannot be written in
    this one, as (code, message); None where every list can. dump, dump_error: the line of a row, and of a bad row.
    texts: its rows hold ids, whose texts are in `Texts`. sigmoids: its scores are sigmoids of logits, so a model
    without logits cannot give them.
    """

    name: str
    recognise: Callable[[Mapping[str, Any], FieldNames], int]
    open: Callable[[FieldNames, Texts], Shape]
    write: Callable[[Exchange, RankedList, Selection], Iterator[dict[str, Any]]]
    has: frozenset[RowContent] = ALL_ROW_CONTENT
    carries: frozenset[RowContent | Outcome] = ALL_ROW_CONTENT | ALL_OUTCOMES
    tables: bool = False
    texts: bool = False
    sigmoids: bool = False
    refuse: Callable[[Exchange], tuple[str, str] | None] | None = None
    dump: Callable[[Mapping[str, Any]], bytes] = jsonl.dump_row
    dump_error: Callable[[RowError], bytes] = jsonl.error_row


class ReadsColumns(Protocol):
    """Whatever says which columns of a table it reads."""

    def columns(self, names: Sequence[str]) -> Mapping[str, tuple[str, ...] | None]:
        """Of the columns `names` those to read, each with the struct fields wanted of it; None for all of them."""


class Shape(ReadsColumns, Protocol):
    """How rows become candidate lists and come back."""

    @property
    def kind(self) -> Kind:
        """Its row of `recognition.SHAPES`."""

    @property
    def names(self) -> FieldNames:
        """The field names that the user gave."""

    def group(self, items: Iterable[Item]) -> Iterator[Grouped]:
        """The candidate lists in `items`, in order; rows without the shape become `RowError`s."""

    def render(self, ranked: RankedList, selection: Selection) -> Iterable[dict[str, Any]]:
        """The output rows of a ranked list."""

    def passage_id(self, source: CandidateList, index: int) -> object:
        """The id of a passage, for evaluation; None where the input has none."""

    def exchange(self, source: CandidateList) -> Exchange:
        """A list that `group` made, ready to be written in another shape."""


@runtime_checkable
class ReadsRows(Protocol):
    """A shape that can read one row without its neighbours."""

    def read(self, row: Row) -> CandidateList:
        """The list in `row`, or the one passage of it; raises `RowProblem`."""

    def identity(self, fields: Mapping[str, Any]) -> object:
        """The id of a row, if it has one."""


@dataclass(frozen=True, slots=True)
class RowShape(ABC):
    """What shapes have in common whose rows are lists, each by itself."""

    kind: ClassVar[Kind]
    names: FieldNames

    @abstractmethod
    def read(self, row: Row) -> CandidateList:
        """The list in `row`; raises `RowProblem`."""

    def group(self, items: Iterable[Item]) -> Iterator[Grouped]:
        """See `Shape`."""
        for item in items:
            yield item if isinstance(item, (RowError, Gap)) else read_or_error(self, item)

    def identity(self, fields: Mapping[str, Any]) -> object:
        """The id of a row, if it has one."""
        return first_of(fields, self.names.id, "list_id")


class RequestShape(RowShape):
    """What the shapes of web services have in common: a row is a request, whose fields have fixed names.

    `UsageError` where the user names other fields.
    """

    __slots__ = ()

    def __post_init__(self) -> None:
        refuse_field_names(self.kind.name, self.names)

    def columns(self, names: Sequence[str]) -> Mapping[str, tuple[str, ...] | None]:
        """See `Shape`."""
        return dict.fromkeys(names)


def passage_error(
    row: Row, identity: object, place: int, passage_id: object, raw: bytes, code: str, message: str
) -> RowError:
    """The error of one passage, whose list is ranked without it."""
    shown, own = (value if isinstance(value, (str, int, float)) else None for value in (identity, passage_id))
    return RowError(row.file, row.number, shown, code, message, raw, place, own)


def read_or_error(shape: ReadsRows, row: Row) -> CandidateList | RowError:
    """The list in `row`, or the reason why there is none."""
    try:
        return shape.read(row)
    except RowProblem as problem:
        return row_error(row, problem.code, str(problem), shape.identity(row.fields))


def as_json_row(row: Row) -> JsonRow:
    """A row with all of its fields; those of a table's row as they are in JSON."""
    return row if isinstance(row, JsonRow) else JsonRow(row.file, row.number, json.loads(row.raw), row.raw)


def scores_of(entry: RankedPassage, selection: Selection, *, ranks: bool = True) -> dict[str, Any]:
    """Our fields for a passage."""
    is_scored = entry.is_scored
    score = entry.logit if is_scored else None
    ours: dict[str, Any]
    ours = {"rank": entry.rank, selection.score: score, "index": entry.index} if ranks else {selection.score: score}
    if selection.prob:
        ours["prob"] = entry.probability if is_scored else None
    if selection.probability:
        ours["probability"] = selection.probability(entry.logit) if is_scored else None
    if selection.scored_by:
        ours["scored_by"] = entry.scored_by or None
    if entry.truncated:
        ours |= {"truncated": True, "tokens": entry.tokens, "kept_tokens": entry.kept_tokens}
    if entry.retiled:
        ours |= {"tiles": entry.tiles, "kept_tiles": entry.kept_tiles}
    return ours


def with_scores(
    own: Mapping[str, Any], entry: RankedPassage, selection: Selection, *, ranks: bool = True, again: bool = False
) -> dict[str, Any]:
    """A copy of a row or passage with our fields at its end.

    Its own fields of the same names stay, with `OWN_PREFIX` before their names. again: an earlier run of this program
    wrote them (`is_own_output`), so they are replaced.
    """
    ours = scores_of(entry, selection, ranks=ranks)
    if again:
        replaced = ours.keys() | _OF_A_SCORE | _SCORES | {"rank", "index", "prob", "probability", "scored_by"}
        return {name: value for name, value in own.items() if name not in replaced} | ours
    if ours.keys().isdisjoint(own) and _CUT.isdisjoint(own):
        return {**own, **ours}
    return kept_under_prefix(own, ours.keys() | _CUT) | ours


OWN_PREFIX = "input_"
"""Stands before the name of a user's field whose own name we need."""


def kept_under_prefix(own: Mapping[str, Any], ours: Collection[str]) -> dict[str, Any]:
    """A copy of `own` in which no field has a name of `ours`: fields that had one are renamed by `kept_name`."""
    names = {name: kept_name(name, {*own, *ours}) if name in ours else name for name in own}
    return {names[name]: value for name, value in own.items()}


def kept_name(name: str, taken: Collection[str]) -> str:
    """The new name of a user's field whose own name we need: prefixes are added until it is not `taken`."""
    name = OWN_PREFIX + name
    while name in taken:
        name = OWN_PREFIX + name
    return name


def is_own_output(items: Sequence[object]) -> bool:
    """Whether a run of this program wrote these passages (or rows of a query).

    They must fit together: ranks count from 1, scores never rise (with two scorers: those of each by themselves; below
    `--depth` there is none), and each has another place in the list. What a blend has ordered cannot be told from the
    output of another program, so its fields are kept.
    """
    places: set[object] = set()
    last, scorer = math.inf, None
    for rank, item in enumerate(items, 1):
        if not isinstance(item, Mapping) or type(item.get("rank")) is not int or item["rank"] != rank:
            return False
        score, place = item.get("logit", item.get("cosine", "")), item.get("index")
        if score is None and rank > 1:
            score = -math.inf
        if item.get("scored_by") != scorer:
            last, scorer = math.inf, item.get("scored_by")
        if not isinstance(score, (int, float)) or type(place) is not int or place < 0 or not score <= last:
            return False
        last = score
        places.add(place)
    return len(places) == len(items) > 0


def usage_of(ranked: RankedList) -> dict[str, int]:
    """The tokens that a model read for a request, under the names of the APIs; nothing is generated."""
    return {"prompt_tokens": ranked.tokens, "total_tokens": ranked.tokens}


def refuse_field_names(kind: str, names: FieldNames) -> None:
    """`UsageError` where the user names fields of a shape whose fields have fixed names."""
    if names.of_rows:
        raise UsageError(f"{names.of_rows[0]}: the fields of the shape {kind} have fixed names")
