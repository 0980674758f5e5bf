"""Reads the given and the new order from a file that was reranked before, by this program or another.

A row may be a list of passages, one passage (rows of a query stand together), an answer in the form of NIM, Cohere or
an OpenAI batch file as far as it holds passage ids, or a line of a TREC run. Where both orders stand is decided once,
by the fields that all passages of the first list have:

    new order      `rank`, if `index` stands beside it (our own output); else the score of a reranker, highest first;
                   else the order of the file. A TREC run: by score, equal ones in the order of the lines
    given order    `index`, the place in the list that was reranked; else the `rank` or the `score` of a first stage;
                   else the order of the file, if that is not the new order; else it is not known
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rerank_cli.errors import InputError
from rerank_cli.formats.inputs import Input, ReadOptions, read_items
from rerank_cli.formats.shapes import FieldNames, KnownListShape, lookup
from rerank_cli.formats.shapes.fields import (
    ALIASES,
    RowProblem,
    columns_of,
    first_of,
    head_of,
    id_text,
    row_error,
    shown_names,
)
from rerank_cli.formats.shapes.known_shape import fits
from rerank_cli.formats.shapes.lists import LIST
from rerank_cli.formats.shapes.other_programs import KNOWN
from rerank_cli.formats.shapes.trec import RunLine, parse_line
from rerank_cli.records import Gap, Row, RowError

_NEW_SCORES = ("logit", "cosine", "dot", "relevance_score", "rerank_score")
_PLACES = ("rank", "index", "score", *_NEW_SCORES)
_TEXTS = ("text", "passage", "document", "doc", "content", "contents", "body")
_ANSWERS = ("rankings", "results", "response.body.results", "response.body.rankings")
_NO_IDS_IN_ANSWER = "an answer has its passages' ids only in `document`; `--out-format list` keeps them"


@dataclass(frozen=True, slots=True)
class Order:
    """One way to sort passages."""

    field: str | None
    """None is the order of the file."""
    words: str
    """What messages call this order."""
    falling: bool = False

    def sorted(self, passages: Sequence[OrderedPassage]) -> list[OrderedPassage]:
        """The passages, best first; equal ones keep their order."""
        if self.field is None:
            return list(passages)
        sign = -1 if self.falling else 1
        keys = [sign * passage.number(self.field) for passage in passages]
        return [passages[place] for place in sorted(range(len(keys)), key=keys.__getitem__)]


@dataclass(frozen=True, slots=True)
class OrderedPassage:
    """A passage with the fields that tell its place."""

    id: str | None
    fields: Mapping[str, Any]
    where: str
    """The file and line, for messages."""
    query: str | None = None
    """The text of the query, if the row has it."""
    in_answer: bool = False
    """Whether it stands in the answer to a request, which often has no ids."""

    @property
    def text(self) -> str | None:
        """The text of the passage, if a field has it."""
        return next((text for name in _TEXTS if isinstance(text := self.fields.get(name), str)), None)

    def has(self, field: str) -> bool:
        """Whether `field` is a number, or a text that reads as one."""
        return _number(self.fields.get(field)) is not None

    def number(self, field: str | None) -> float:
        """The number in `field`; `InputError` if there is none."""
        found = None if field is None else _number(self.fields.get(field))
        if found is None:
            raise InputError(f"{self.where} has no number in `{field}`, by which the first list is ordered")
        return found


@dataclass(frozen=True, slots=True)
class OrderedList:
    """One query with its passages in both orders. given: None where it is not known."""

    query: str
    given: Sequence[OrderedPassage] | None
    reranked: Sequence[OrderedPassage]


class RerankedFile:
    """The lists of reranked files.

    given, reranked: both orders, known once the first list was read. differ: whether they differed in any list so far.
    cut: how many lists have fewer passages than were reranked. texts: also read the text columns of tables.
    """

    def __init__(
        self, inputs: Sequence[Input], names: FieldNames, options: ReadOptions, *, texts: bool = False
    ) -> None:
        self._columns = _Columns(names, texts=texts)
        self._inputs = inputs
        self._names = names
        self._options = options
        runs = [item.path for item in inputs if item.format == "trec"]
        if runs and len(runs) < len(inputs):
            raise InputError(f"{runs[0]}: a TREC run among files of other formats", hint="evaluate each on its own")
        self._is_run = bool(runs)
        self._known: KnownListShape | Literal[False] | None = None
        self._lacks_id = names.id is not None and not self._is_run
        self.given: Order | None = None
        self.reranked: Order | None = None
        self.differ = False
        self.cut = 0

    def lists(self, wanted: Callable[[str], bool], on_error: Callable[[RowError], None]) -> Iterator[OrderedList]:
        """All lists, one after another; `on_error` gets each row that cannot be read.

        `InputError` at the end where no row had the id field that the user names.

        wanted: whether a query counts. The list of a query that does not is left empty.
        """
        items = read_items(self._inputs, self._columns, self._options)
        for query, passages in self._group_by_query(items, wanted, on_error):
            if passages is None:
                yield OrderedList(query, (), ())
                continue
            if self.reranked is None and passages:
                self.given, self.reranked = _orders_of(passages, is_run=self._is_run)
            if not passages or self.reranked is None:
                yield OrderedList(query, None if self.reranked and not self.given else (), ())
                continue
            reranked = self.reranked.sorted(passages)
            given = self.given.sorted(passages) if self.given else None
            self.differ = self.differ or given not in (None, reranked)
            if self.given is not None and self.given.field == "index":
                self.cut += max(passage.number("index") for passage in passages) >= len(passages)
            yield OrderedList(query, given, reranked)
        if self._lacks_id and self.reranked is not None:
            raise InputError(f"--id-field {self._names.id}: no row of {self._inputs[0].path} has it")

    def _group_by_query(
        self,
        items: Iterable[Row | RowError | Gap],
        wanted: Callable[[str], bool],
        on_error: Callable[[RowError], None],
    ) -> Iterator[tuple[str, list[OrderedPassage] | None]]:
        """Queries with their passages; None for those of a query that is not wanted."""
        current: tuple[str, list[OrderedPassage] | None] | None = None
        finished: set[str] = set()
        for item, (query, passages, is_whole) in self._read_rows(items, wanted, on_error):
            if current is not None and (is_whole or query != current[0]):
                yield current
                finished.add(current[0])
                current = None
            if is_whole:
                yield query, passages
                continue
            if query in finished:
                raise InputError(
                    f"{item.file}:{item.number}: the rows of query `{query}` are not adjacent",
                    hint="sort them by query",
                )
            if current is None:
                current = (query, passages)
            elif current[1] is not None:
                current[1].extend(passages or ())
        if current is not None:
            yield current

    def _read_rows(
        self,
        items: Iterable[Row | RowError | Gap],
        wanted: Callable[[str], bool],
        on_error: Callable[[RowError], None],
    ) -> Iterator[tuple[Row, tuple[str, list[OrderedPassage] | None, bool]]]:
        """The rows that can be read, each with the result of `_read`."""
        for item in items:
            if isinstance(item, Gap):
                continue
            found = item if isinstance(item, RowError) else self._read(item, wanted)
            if isinstance(found, RowError):
                on_error(found)
            elif not isinstance(item, RowError):
                yield item, found

    def _read(
        self, row: Row, wanted: Callable[[str], bool]
    ) -> tuple[str, list[OrderedPassage] | None, bool] | RowError:
        """A row's query, its passages, and whether these are the whole list; None for an unwanted query's passages."""
        if self._is_run:
            line = parse_line(row)
            return _read_run_line(row, line, wanted) if isinstance(line, RunLine) else line
        fields, names = row.fields, self._names
        if self._known is None:
            self._known = _known_shape(fields, names) or False
        if self._known:
            self._lacks_id = False  # the shape says where ids are
            return _read_known(row, self._known)
        entries, in_answer = _find_passages(fields, names)
        if self._lacks_id:
            self._lacks_id = not _has_id(fields, entries, names)
        if entries is None:
            return _read_flat(row, names, wanted)
        if not isinstance(entries, (list, tuple)):
            return row_error(row, "wrong-type", "its passages are not a list", None)
        where = f"{row.file}:{row.number}"
        query = fields.get("custom_id")  # first: the `id` beside it is that of the answer
        query = _query_id(first_of(fields, names.id, "list_id") if query is None else query, where, fields)
        if not wanted(query):
            return query, None, True
        passages, asked = [], _query_text(fields)
        for place, entry in enumerate(entries):
            own = entry if isinstance(entry, Mapping) else {}
            name = _passage_id(own, fields, names)
            passages.append(OrderedPassage(name, own, f"{where}: passages[{place}]", asked, in_answer))
        return query, passages, True


def passage_names(passages: Iterable[OrderedPassage]) -> list[str]:
    """The ids of passages; `InputError` for a passage without one."""
    names = []
    for passage in passages:
        if passage.id is None:
            raise InputError(
                f"{passage.where}: no passage id; it has {shown_names(passage.fields)}", hint=_hint_for(passage)
            )
        names.append(passage.id)
    return names


class _Columns:
    """The columns of a table that tell orders; satisfies `ReadsColumns`."""

    def __init__(self, names: FieldNames, *, texts: bool = False) -> None:
        self._names = names
        self._texts = _TEXTS if texts else ()

    def columns(self, names: Sequence[str]) -> Mapping[str, tuple[str, ...] | None]:
        """See `ReadsColumns`."""
        mine = self._names
        ids = [head_of(name) for name in (mine.id, mine.group_by) if name]
        known = (*ids, "query", *ALIASES["list_id"], *ALIASES["passage_id"], *_PLACES, *self._texts)
        wanted: dict[str, tuple[str, ...] | None] = dict.fromkeys(name for name in names if name in known)
        lists = [name for name in columns_of(names, mine.passages, "passages") if name in names]
        of_passage = [head_of(mine.id)] if mine.id else []
        return wanted | dict.fromkeys(lists, (*of_passage, *ALIASES["passage_id"], *_PLACES, *self._texts))


def _find_passages(fields: Mapping[str, Any], names: FieldNames) -> tuple[Any, bool]:
    """The passages of a row, and whether they stand in an answer to a request; None if the row is one passage."""
    paths = (names.passages,) if names.passages else (*_ANSWERS, *ALIASES["passages"])
    found = ((lookup(fields, path), path in _ANSWERS) for path in paths)
    return next((one for one in found if one[0] is not None), (None, False))


def _has_id(fields: Mapping[str, Any], entries: Any, names: FieldNames) -> bool:
    """Whether a row, or one of the objects where `_passage_id` looks, has the id field that the user names."""
    asked = first_of(fields, names.passages, "passages")
    inner = [one for found in (entries, asked) if isinstance(found, (list, tuple)) for one in found]
    places = [fields, *inner, *(one.get("document") for one in inner if isinstance(one, Mapping))]
    return any(isinstance(one, Mapping) and lookup(one, names.id or "") is not None for one in places)


def _passage_id(entry: Mapping[str, Any], fields: Mapping[str, Any], names: FieldNames) -> str | None:
    """A passage's id: its own, that of its `document`, or that in the request beside the answer."""
    found = first_of(entry, names.id, "passage_id")
    if found is None and isinstance(document := entry.get("document"), Mapping):
        found = first_of(document, names.id, "passage_id")
    index, asked = entry.get("index"), first_of(fields, names.passages, "passages")
    if found is None and isinstance(index, int) and isinstance(asked, (list, tuple)) and 0 <= index < len(asked):
        asked_for = asked[index]
        found = first_of(asked_for, names.id, "passage_id") if isinstance(asked_for, Mapping) else None
    return _optional_id(found)


def _read_run_line(
    row: Row, line: RunLine, wanted: Callable[[str], bool]
) -> tuple[str, list[OrderedPassage] | None, bool]:
    if not wanted(line.query):
        return line.query, None, False
    where = f"{row.file}:{row.number}"
    return line.query, [OrderedPassage(line.passage, {"score": line.score}, where)], False


def _read_flat(
    row: Row, names: FieldNames, wanted: Callable[[str], bool]
) -> tuple[str, list[OrderedPassage] | None, bool]:
    fields, where = row.fields, f"{row.file}:{row.number}"
    query = _query_id(first_of(fields, names.group_by, "query_id"), where, fields)
    if not wanted(query):
        return query, None, False
    name = _optional_id(first_of(fields, names.id, "passage_id"))
    return query, [OrderedPassage(name, fields, where, _query_text(fields))], False


def _query_id(value: object, where: str, fields: Mapping[str, Any]) -> str:
    if value is None:
        hint = (
            "name its field with `--id-field` (a list a row) or `--group-by` (a pair a row); where none holds it, "
            "add a `query_id`, as the judgements have it, to each row"
        )
        raise InputError(f"{where}: no query id, which --qrels needs; the row has {shown_names(fields)}", hint=hint)
    return id_text(value)


def _query_text(fields: Mapping[str, Any]) -> str | None:
    """The text of the query, if the row has one in `query`."""
    found = fields.get("query")
    found = found.get("text") if isinstance(found, Mapping) else found
    return found if isinstance(found, str) else None


def _optional_id(value: object) -> str | None:
    return None if value is None else id_text(value)


def _number(value: object) -> float | None:
    if type(value) is float:  # nearly always, and this is called a million times
        return value if math.isfinite(value) else None
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        found = float(value)
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def _known_shape(fields: Mapping[str, Any], names: FieldNames) -> KnownListShape | None:
    """The shape of a row written by another program; None for our own shapes."""
    if _find_passages(fields, names)[0] is not None and LIST.recognise(fields, names) == 2:
        return None
    found = next((one for one in KNOWN if one.layout != "rows" and fits(one, fields, names)), None)
    return None if found is None else KnownListShape(names, known=found)


def _read_known(row: Row, shape: KnownListShape) -> tuple[str, list[OrderedPassage], bool] | RowError:
    where = f"{row.file}:{row.number}"
    try:
        path, entries = shape.passages_of(row)
    except RowProblem as problem:
        return row_error(row, problem.code, str(problem), None)
    held = lookup(row.fields, path) if path else row.fields
    passages = []
    for place, entry in enumerate(entries):
        own = dict(entry) if isinstance(entry, Mapping) else {}
        if shape.in_columns and isinstance(held, Mapping):
            of_ours = {name: held[name] for name in _PLACES if isinstance(held.get(name), list)}
            own |= {name: values[place] for name, values in of_ours.items() if len(values) == len(entries)}
        score = next((lookup(own, at) for at in shape.known.score if _number(lookup(own, at)) is not None), None)
        own = own if score is None else {"score": score, **own}
        passages.append(OrderedPassage(_optional_id(shape.own_id(entry)), own, f"{where}: {path}[{place}]"))
    return _query_id(shape.identity(row.fields), where, row.fields), passages, True


def _hint_for(passage: OrderedPassage) -> str:
    """What to do about a passage without an id."""
    if passage.in_answer:
        return _NO_IDS_IN_ANSWER
    known = {*_PLACES, *_TEXTS, *ALIASES["query"], *ALIASES["query_id"], "title", "prob", "probability"}
    others = [
        name for name, value in passage.fields.items()
        if name not in known and isinstance(value, (str, int)) and not isinstance(value, bool)
    ]  # fmt: skip
    if others:
        return f"name its field with `--id-field`: {', '.join(others[:5])}"
    return "judgements name passages by ids: add an `id` to each passage of the file that is reranked; it is kept"


def _orders_of(passages: Sequence[OrderedPassage], *, is_run: bool) -> tuple[Order | None, Order]:
    """The given order, if a field tells it, and the new one."""
    if is_run:
        return None, Order("score", "the scores of the run", falling=True)
    in_file = Order(None, "the order of the file")
    has = {field for field in _PLACES if all(passage.has(field) for passage in passages)}
    score = next((Order(name, f"`{name}`", falling=True) for name in _NEW_SCORES if name in has), None)
    rank, first_score = Order("rank", "`rank`"), Order("score", "`score`", falling=True)
    if "index" in has:
        return Order("index", "`index`"), rank if "rank" in has else score or in_file
    of_first_stage = next((order for order in (rank, first_score) if order.field in has), None)
    if of_first_stage is None and score is not None:
        of_first_stage = in_file
    return of_first_stage, score or in_file
