"""Row shapes: an input row to a candidate list, and a ranked list back to output rows.

    list   one query and its passages a row       {"query": ..., "passages": [...], ...}
    flat   one pair a row, grouped by query        {"query": ..., "passage": ..., "query_id"?: ..., ...}
    pair   one pair a row, in input order (`score`)

A shape reads only the fields it needs and leaves the row's own mapping alone; what comes back is a copy with our fields
put in, everything else as it was and where it was. Field names are dotted paths (`body.query`); where the user names
none, the aliases in `ALIASES` are tried in order.

A row that does not have the shape is a `RowError`, not an exception: the rows around it are scored.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rerank_cli.records import CandidateList, Gap, RankedList, RankedPassage, Row, RowError

ALIASES = {
    "query": ("query",),
    "passages": ("passages", "candidates", "documents", "docs"),
    "passage": ("passage", "document", "text", "doc"),
    "query_id": ("query_id", "qid"),
    "list_id": ("query_id", "qid", "id"),
    "passage_id": ("passage_id", "doc_id", "docid", "pid", "id", "_id"),
}
"""Names that are tried, in order, where the user names no field."""


@dataclass(frozen=True, slots=True)
class FieldNames:
    """Dotted paths that the user gave; None means the aliases."""

    query: str | None = None
    passages: str | None = None
    text: str | None = None
    id: str | None = None
    group_by: str | None = None


@dataclass(frozen=True, slots=True)
class Selection:
    """Which scored passages come back, and with what.

    top_n: the first n of each list; threshold: only logits of at least this; prob: adds `prob`, the sigmoid of the
    logit.
    """

    top_n: int | None = None
    threshold: float | None = None
    prob: bool = False


Item = Row | RowError | Gap
Grouped = CandidateList | RowError | Gap


class Shape(Protocol):
    """How rows become candidate lists and come back."""

    def group(self, items: Iterable[Item]) -> Iterator[Grouped]:
        """The candidate lists of `items`, in order; rows without the shape become `RowError`s."""

    def render(self, ranked: RankedList, selection: Selection) -> Iterator[dict[str, Any]]:
        """The output rows of a ranked list whose rows are JSON objects."""

    def columns(self, names: Sequence[str]) -> Mapping[str, tuple[str, ...] | None]:
        """The columns that the shape reads of a table with these, each with the struct fields wanted of it."""


class _RowProblem(Exception):  # noqa: N818 (never leaves this module)
    """A row lacks the shape."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class ListShape:
    """One query and its passages a row."""

    names: FieldNames

    def group(self, items: Iterable[Item]) -> Iterator[Grouped]:
        """See `Shape`."""
        for item in items:
            yield item if isinstance(item, (RowError, Gap)) else _guarded(self._read, item)

    def _read(self, row: Row) -> CandidateList:
        query = _text(_required(row, self.names.query, "query", "--query-field"), "query")
        passages = _required(row, self.names.passages, "passages", "--passages-field")
        if not isinstance(passages, (list, tuple)):
            raise _RowProblem("wrong-type", f"field `passages` is {_kind(passages)}, not a list")
        texts = tuple(self._passage_text(passage, index) for index, passage in enumerate(passages))
        return CandidateList(query=query, passages=texts, rows=(row,), id=_first(row.fields, self.names.id, "list_id"))

    def _passage_text(self, passage: object, index: int) -> str:
        where = f"passages[{index}]"
        if isinstance(passage, str):
            return passage
        if not isinstance(passage, Mapping):
            raise _RowProblem("wrong-type", f"{where} is {_kind(passage)}, not a text or an object")
        path = self.names.text or "text"
        if (text := lookup(passage, path)) is None:
            what = "only an image, and this model reads text" if "image" in passage else f"it has {_names(passage)}"
            raise _RowProblem("missing-field", f"{where} has no `{path}`: {what}")
        return _text(text, f"{where}.{path}")

    def passages_path(self, fields: Mapping[str, Any]) -> str:
        """Where the passages stand in a row that `group` has read."""
        return self.names.passages or next(name for name in ALIASES["passages"] if name in fields)

    def render(self, ranked: RankedList, selection: Selection) -> Iterator[dict[str, Any]]:
        """See `Shape`."""
        fields = ranked.source.rows[0].fields
        path = self.passages_path(fields)
        passages = lookup(fields, path)
        assert isinstance(passages, (list, tuple)), "group() has checked it"
        scored = []
        for entry in ranked.ranking:
            passage = passages[entry.index]
            own = {"text": passage} if isinstance(passage, str) else dict(passage)
            scored.append(own | {"rank": entry.rank} | score_fields(entry, selection) | {"index": entry.index})
        yield _with_value(fields, path, scored)

    def columns(self, names: Sequence[str]) -> Mapping[str, tuple[str, ...] | None]:
        """See `Shape`."""
        passages = _column(names, self.names.passages, "passages")
        text = (self.names.text or "text").split(".")[0]
        wanted: dict[str, tuple[str, ...] | None] = {_column(names, self.names.query, "query"): None}
        wanted |= dict.fromkeys(_optional_column(names, self.names.id, "list_id"))
        return wanted | {passages: (text, *ALIASES["passage_id"])}


@dataclass(frozen=True, slots=True)
class FlatShape:
    """One pair a row; the rows of a query stand together."""

    names: FieldNames

    def group(self, items: Iterable[Item]) -> Iterator[Grouped]:
        """See `Shape`. A group that comes back after another one has begun is a `RowError` for each of its rows."""
        rows: list[tuple[Row, str]] = []
        current: Hashable = None
        query = ""
        finished: set[int] = set()  # hashes, not keys: 10 million groups must not hold 10 million query texts
        for item in items:
            if isinstance(item, (RowError, Gap)):
                yield item
                continue
            found = _guarded(self._read, item)
            if isinstance(found, RowError):
                yield found
                continue
            key = group_key(item, self.names)
            if rows and key != current:
                yield self._close(rows, query)
                finished.add(hash(current))
                rows = []
            if hash(key) in finished:
                yield row_error(
                    item, "scattered-group", "the rows of its query are not adjacent; sort them, or give a file"
                )
            elif rows and found.query != query:
                yield row_error(item, "query-differs", "its query is not that of the rows before it with the same id")
            else:
                current, query = key, found.query
                rows.append((item, found.passages[0]))
        if rows:
            yield self._close(rows, query)

    def _read(self, row: Row) -> CandidateList:
        return _read_pair(row, self.names, query=None)

    def _close(self, rows: list[tuple[Row, str]], query: str) -> CandidateList:
        first = rows[0][0]
        return CandidateList(
            query=query,
            passages=tuple(passage for _, passage in rows),
            rows=tuple(row for row, _ in rows),
            id=_first(first.fields, self.names.group_by, "query_id"),
        )

    def render(self, ranked: RankedList, selection: Selection) -> Iterator[dict[str, Any]]:
        """See `Shape`."""
        for entry in ranked.ranking:
            fields = dict(ranked.source.rows[entry.index].fields)
            yield fields | {"rank": entry.rank} | score_fields(entry, selection) | {"index": entry.index}

    def columns(self, names: Sequence[str]) -> Mapping[str, tuple[str, ...] | None]:
        """See `Shape`."""
        wanted = [_column(names, self.names.query, "query"), _column(names, self.names.text, "passage")]
        wanted += _optional_column(names, self.names.group_by, "query_id") + _optional_column(
            names, self.names.id, "passage_id"
        )
        return dict.fromkeys(wanted)


@dataclass(frozen=True, slots=True)
class PairShape:
    """One pair a row, each on its own; `query` is the user's one query for all rows, if given."""

    names: FieldNames
    query: str | None = None

    def group(self, items: Iterable[Item]) -> Iterator[Grouped]:
        """See `Shape`."""
        for item in items:
            yield item if isinstance(item, (RowError, Gap)) else _guarded(self._read, item)

    def _read(self, row: Row) -> CandidateList:
        return _read_pair(row, self.names, query=self.query)

    def render(self, ranked: RankedList, selection: Selection) -> Iterator[dict[str, Any]]:
        """See `Shape`."""
        for entry in ranked.ranking:
            yield dict(ranked.source.rows[0].fields) | score_fields(entry, selection)

    def columns(self, names: Sequence[str]) -> Mapping[str, tuple[str, ...] | None]:
        """See `Shape`."""
        wanted = [_column(names, self.names.text, "passage")]
        if self.query is None:
            wanted.append(_column(names, self.names.query, "query"))
        return dict.fromkeys(wanted + _optional_column(names, self.names.id, "list_id"))


def detect_shape(fields: Iterable[str], names: FieldNames) -> type[ListShape] | type[FlatShape] | None:
    """The shape of a row with these top-level fields: a list of passages, one passage, or neither (None)."""
    present = set(fields)
    if names.passages or present & set(ALIASES["passages"]):
        return ListShape
    if names.text or present & set(ALIASES["passage"]):
        return FlatShape
    return None


def group_key(row: Row, names: FieldNames) -> Hashable:
    """What decides the group of a flat row: its query id, or its query's text where it has no id."""
    value = _first(row.fields, names.group_by, "query_id")
    if value is None:
        value = _first(row.fields, names.query, "query")
    return (type(value).__name__, value if isinstance(value, Hashable) else repr(value))


def score_fields(entry: RankedPassage, selection: Selection) -> dict[str, Any]:
    """The fields that a score adds to a row or passage."""
    fields: dict[str, Any] = {"logit": entry.logit}
    if selection.prob:
        fields["prob"] = entry.probability
    if entry.truncated:
        fields |= {"truncated": True, "tokens": entry.tokens, "kept_tokens": entry.kept_tokens}
    return fields


def passage_id(ranked: RankedList, index: int, names: FieldNames) -> object:
    """The id of a passage, for evaluation; None where the input has none."""
    source = ranked.source
    row = source.row_of(index)
    if len(source.rows) == len(source.passages) and len(source.rows) > 1:
        return _first(row.fields, names.id, "passage_id")
    passages = _first(row.fields, names.passages, "passages")
    if isinstance(passages, (list, tuple)):
        passage = passages[index]
        return _first(passage, names.id, "passage_id") if isinstance(passage, Mapping) else None
    return _first(row.fields, names.id, "passage_id")


def row_error(row: Row, code: str, message: str) -> RowError:
    """The error of a row that could be read but not scored."""
    found = _first(row.fields, None, "list_id")
    identity = found if isinstance(found, (str, int, float)) else None
    return RowError(file=row.file, row=row.number, id=identity, code=code, message=message, raw=row.raw)


def lookup(fields: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path, or None where there is none. A field whose very name holds the dots wins."""
    if path in fields:
        return fields[path]
    head, _, rest = path.partition(".")
    inner = fields.get(head)
    return lookup(inner, rest) if rest and isinstance(inner, Mapping) else None


def _guarded(read: Any, row: Row) -> CandidateList | RowError:
    try:
        found: CandidateList = read(row)
    except _RowProblem as problem:
        return row_error(row, problem.code, str(problem))
    return found


def _read_pair(row: Row, names: FieldNames, *, query: str | None) -> CandidateList:
    if query is None:
        query = _text(_required(row, names.query, "query", "--query-field"), "query")
    passage = _text(_required(row, names.text, "passage", "--text-field"), "passage")
    return CandidateList(query=query, passages=(passage,), rows=(row,), id=_first(row.fields, names.id, "list_id"))


def _required(row: Row, path: str | None, kind: str, option: str) -> Any:
    value = _first(row.fields, path, kind)
    if value is None:
        hint = "" if path else f"; name it by {option}"
        raise _RowProblem("missing-field", f"field `{path or kind}` is missing; the row has {_names(row.fields)}{hint}")
    return value


def _first(fields: Mapping[str, Any], path: str | None, kind: str) -> Any:
    """The value at the user's path, or at the first alias of `kind` that the row has; None where there is none."""
    if path is not None:
        return lookup(fields, path)
    return next((fields[name] for name in ALIASES[kind] if fields.get(name) is not None), None)


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise _RowProblem("wrong-type", f"`{where}` is {_kind(value)}, not text")
    return value


def _kind(value: object) -> str:
    """A JSON value's type in words."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    names = {str: "text", int: "a number", float: "a number", list: "a list", tuple: "a list"}
    return next((name for kind, name in names.items() if isinstance(value, kind)), "an object")


def _names(fields: Mapping[str, Any], limit: int = 8) -> str:
    shown = ", ".join(f"`{name}`" for name in list(fields)[:limit])
    return (shown or "no fields") + (", ..." if len(fields) > limit else "")


def _with_value(fields: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy of `fields` with the value at a dotted path replaced; only the objects on the way are copied."""
    if path in fields:
        return {**fields, path: value}
    head, _, rest = path.partition(".")
    return {**fields, head: _with_value(fields[head], rest, value)}


def _column(names: Sequence[str], path: str | None, kind: str) -> str:
    """The top-level column of a path or alias; the alias itself where none is there, so that the reader can name it."""
    if path is not None:
        return path if path in names else path.split(".")[0]
    return next((name for name in ALIASES[kind] if name in names), ALIASES[kind][0])


def _optional_column(names: Sequence[str], path: str | None, kind: str) -> list[str]:
    column = _column(names, path, kind)
    return [column] if column in names else []
