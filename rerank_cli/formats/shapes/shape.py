"""What every shape is: how rows become candidate lists, and how ranked lists become rows again.

A shape is known by its `Kind`: its name, how its rows are recognised, what it can carry, and how a list of any other
shape is written in it. The lists of other shapes come as `Exchange`, which is what all shapes have in common.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from rerank_cli.errors import UsageError
from rerank_cli.formats import jsonl
from rerank_cli.formats.choices import FieldNames, Selection, Texts
from rerank_cli.formats.shapes.fields import RowProblem, identity_of, row_error
from rerank_cli.records import CandidateList, Gap, JsonRow, RankedList, RankedPassage, Row, RowError

OF_A_CUT = ("truncated", "tokens", "kept_tokens")
"""Our fields of a passage that was cut. A name of these is ours in every row, so that it never means two things."""

_OF_A_SCORE = frozenset({*OF_A_CUT, "tiles", "kept_tiles"})
_CUT = frozenset(OF_A_CUT)
_SCORES = frozenset({"logit", "cosine", "dot"})

Item = Row | RowError | Gap
Grouped = CandidateList | RowError | Gap
Content = Literal["query ids", "fields of rows", "texts", "passage ids", "fields of passages"]
Outcome = Literal["logits", "marks of truncation", "prob", "probability"]

ALL_CONTENT: frozenset[Content] = frozenset(
    ("query ids", "fields of rows", "texts", "passage ids", "fields of passages")
)
ALL_OUTCOMES: frozenset[Outcome] = frozenset(("logits", "marks of truncation", "prob", "probability"))


@dataclass(frozen=True, slots=True)
class Exchange:
    """A candidate list in no shape.

    fields: of the row, its ids included, without query, passages and what only steered the request. passages: objects
    with their text in `text` (none where they are only an image), in input order, so that `RankedPassage.index` finds
    them. ids: of the passages.
    """

    id: object
    query: str
    fields: Mapping[str, Any]
    passages: Sequence[Mapping[str, Any]]
    ids: Sequence[object]


@dataclass(frozen=True, slots=True)
class Kind:
    """One row of `recognition.SHAPES`.

    recognise: whether a row with these fields is of this shape: 0 no, 1 it could be, 2 it says so itself. open: the
    shape for an input. write: a ranked list of another shape in this one. has: what its inputs hold; carries: what
    survives in its output. tables: it can be read from and written to Parquet. refuse: why a list of another shape
    cannot be written in this one, as (code, message); None where any can. dump, dump_error: the line of a row, and
    of a bad row. texts: its rows hold ids, whose texts are in `Texts`. sigmoids: its scores are sigmoids of logits,
    so a model without logits has none.
    """

    name: str
    recognise: Callable[[Mapping[str, Any], FieldNames], int]
    open: Callable[[FieldNames, Texts], Shape]
    write: Callable[[Exchange, RankedList, Selection], Iterator[dict[str, Any]]]
    has: frozenset[Content] = ALL_CONTENT
    carries: frozenset[Content | Outcome] = ALL_CONTENT | ALL_OUTCOMES
    tables: bool = False
    texts: bool = False
    sigmoids: bool = False
    refuse: Callable[[Exchange], tuple[str, str] | None] | None = None
    dump: Callable[[Mapping[str, Any]], bytes] = jsonl.dump_row
    dump_error: Callable[[RowError], bytes] = jsonl.error_row


class ReadsColumns(Protocol):
    """Whoever reads a table says which columns."""

    def columns(self, names: Sequence[str]) -> Mapping[str, tuple[str, ...] | None]:
        """The columns that are read of a table with these, each with the struct fields wanted of it."""


class Shape(Protocol):
    """How rows become candidate lists and come back."""

    @property
    def kind(self) -> Kind:
        """Its row of `recognition.SHAPES`."""

    @property
    def names(self) -> FieldNames:
        """Where the user says that the fields are."""

    def group(self, items: Iterable[Item]) -> Iterator[Grouped]:
        """The candidate lists of `items`, in order; rows without the shape become `RowError`s."""

    def render(self, ranked: RankedList, selection: Selection) -> Iterator[dict[str, Any]]:
        """The output rows of a ranked list."""

    def columns(self, names: Sequence[str]) -> Mapping[str, tuple[str, ...] | None]:
        """The columns that the shape reads of a table with these, each with the struct fields wanted of it."""

    def passage_id(self, source: CandidateList, index: int) -> object:
        """The id of a passage, for evaluation; None where the input has none."""

    def exchange(self, source: CandidateList) -> Exchange:
        """A list that `group` made, for another shape."""


@runtime_checkable
class ReadsRows(Protocol):
    """A shape that reads a row by itself."""

    def read(self, row: Row) -> CandidateList:
        """The list in `row`, or the one passage of it; raises `RowProblem`."""


class RowShape(Protocol):
    """A shape whose rows are lists, each by itself."""

    def read(self, row: Row) -> CandidateList:
        """The list in `row`; raises `RowProblem`."""

    def identity(self, fields: Mapping[str, Any]) -> object:
        """The id of a row, if it has one."""


@dataclass(frozen=True, slots=True)
class RequestShape(ABC):
    """What the shapes of web services have in common: a row is a request, whose fields have fixed names."""

    names: FieldNames

    @abstractmethod
    def read(self, row: Row) -> CandidateList:
        """The request in `row`; raises `RowProblem`."""

    def group(self, items: Iterable[Item]) -> Iterator[Grouped]:
        """See `Shape`."""
        return group_rows(self, items)

    def identity(self, fields: Mapping[str, Any]) -> object:
        """The id that a caller has put into the request, if there is one."""
        return identity_of(fields, self.names.id, "list_id")

    def columns(self, names: Sequence[str]) -> Mapping[str, tuple[str, ...] | None]:
        """See `Shape`."""
        return dict.fromkeys(names)


def group_rows(shape: RowShape, items: Iterable[Item]) -> Iterator[Grouped]:
    """`Shape.group` of a `RowShape`."""
    for item in items:
        yield item if isinstance(item, (RowError, Gap)) else candidates(shape, item)


def passage_error(
    row: Row, identity: object, place: int, passage_id: object, raw: bytes, code: str, message: str
) -> RowError:
    """The error of one passage, whose list is ranked without it."""
    shown, own = (value if isinstance(value, (str, int, float)) else None for value in (identity, passage_id))
    return RowError(row.file, row.number, shown, code, message, raw, place, own)


def candidates(shape: RowShape, row: Row) -> CandidateList | RowError:
    """The list in `row`, or why there is none."""
    try:
        return shape.read(row)
    except RowProblem as problem:
        return row_error(row, problem.code, str(problem), shape.identity(row.fields))


def own_fields(row: Row) -> Mapping[str, Any]:
    """All fields of a row; a row of a table as JSON says them."""
    if isinstance(row, JsonRow):
        return row.fields
    fields: Mapping[str, Any] = json.loads(row.raw)
    return fields


def scores_of(entry: RankedPassage, selection: Selection, *, ranks: bool = True) -> dict[str, Any]:
    """Our fields of a passage."""
    ours: dict[str, Any] = {selection.score: entry.logit if entry.is_scored else None}
    if ranks:
        ours = {"rank": entry.rank, **ours, "index": entry.index}
    if selection.prob:
        ours["prob"] = entry.probability if entry.is_scored else None
    if selection.probability:
        ours["probability"] = selection.probability(entry.logit) if entry.is_scored else None
    if selection.scored_by:
        ours["scored_by"] = entry.scored_by or None
    if entry.truncated:
        ours |= {"truncated": True, "tokens": entry.tokens, "kept_tokens": entry.kept_tokens}
    if entry.retiled:
        ours |= {"tiles": entry.tiles, "kept_tiles": entry.kept_tiles}
    return ours


def scored(
    own: Mapping[str, Any], entry: RankedPassage, selection: Selection, *, ranks: bool = True, again: bool = False
) -> dict[str, Any]:
    """A copy of a row or passage with our fields as its last.

    Its own fields of the same names stay, under `OWN_PREFIX` and their name. again: they are those of an earlier run of
    this program (`is_own_output`), which are replaced.
    """
    ours = scores_of(entry, selection, ranks=ranks)
    if again:
        replaced = ours.keys() | _OF_A_SCORE | _SCORES | {"rank", "index", "prob", "probability", "scored_by"}
        return {name: value for name, value in own.items() if name not in replaced} | ours
    if ours.keys().isdisjoint(own) and _CUT.isdisjoint(own):
        return {**own, **ours}
    return kept_under_prefix(own, ours.keys() | _CUT) | ours


OWN_PREFIX = "input_"
"""Before the name of a field of the user's whose name we need."""


def kept_under_prefix(own: Mapping[str, Any], ours: Collection[str]) -> dict[str, Any]:
    """A copy of `own` in which no field has a name of `ours`: such a one gets prefixes until its name is free."""
    names = {name: kept_name(name, {*own, *ours}) if name in ours else name for name in own}
    return {names[name]: value for name, value in own.items()}


def kept_name(name: str, taken: Collection[str]) -> str:
    """The name under which a field of the user's stays."""
    name = OWN_PREFIX + name
    while name in taken:
        name = OWN_PREFIX + name
    return name


def is_own_output(items: Sequence[object]) -> bool:
    """Whether these passages (or rows of a query) are what a run of this program has written.

    They say it all together: ranks from 1 in their order, scores that do not rise (those of each of two scorers by
    themselves), places in a list that differ; below `--depth` there is none. What a blend has ordered cannot be told
    from another program's, so its fields are kept.
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
    """The tokens that a model read for a request, as the APIs count them; nothing is generated."""
    return {"prompt_tokens": ranked.tokens, "total_tokens": ranked.tokens}


def refuse_field_names(kind: str, names: FieldNames) -> None:
    """`UsageError` where the user names fields of a shape whose fields have fixed names."""
    if names.of_rows:
        raise UsageError(f"{names.of_rows[0]}: the fields of the shape {kind} have fixed names")
