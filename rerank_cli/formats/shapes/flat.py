"""`flat`: one pair a row, grouped by query, `{"query": ..., "passage": ..., "query_id"?: ..., ...}`.

The rows come back sorted within their group, each with rank, logit and index.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import Any, ClassVar

from rerank_cli.formats.choices import FieldNames, Selection
from rerank_cli.formats.jsonl import ExactFloat
from rerank_cli.formats.shapes.fields import (
    ALIASES,
    RowProblem,
    columns_of,
    fields_without,
    first_of,
    head_of,
    id_columns_of,
    image_of,
    joined_text,
    name_of,
    one_of,
    own_passage,
    passage_columns_of,
    required,
    row_error,
    shown_names,
    text_of,
)
from rerank_cli.formats.shapes.shape import (
    Exchange,
    Grouped,
    Item,
    Kind,
    as_json_row,
    is_own_output,
    read_or_error,
    with_scores,
)
from rerank_cli.records import CandidateList, Gap, ImagePassage, Passage, RankedList, Row, RowError


def has_passage(fields: Iterable[str], names: FieldNames) -> bool:
    """Whether a row or table with these fields has a passage of its own."""
    present = set(fields)
    return bool(names.text or head_of(names.image_path) in present or present & set(ALIASES["passage"]))


def _recognise(fields: Mapping[str, Any], names: FieldNames) -> int:
    has_list = names.passages or set(fields) & set(ALIASES["passages"])
    return 2 if has_passage(fields, names) and not has_list else 0


def _write(exchange: Exchange, ranked: RankedList, selection: Selection) -> Iterator[dict[str, Any]]:
    of_list = {**exchange.fields, "query": exchange.query}
    for entry in ranked.ranking:
        passage, identity = exchange.passages[entry.index], exchange.ids[entry.index]
        own = {} if identity is None else {"passage_id": identity}
        if "text" in passage:
            own["passage"] = passage["text"]
        taken = of_list.keys() | own.keys()
        for name, value in passage.items():
            if name != "text" and not (name in ALIASES["passage_id"] and value == identity):
                own[f"passage.{name}" if name in taken else name] = value
        yield with_scores({**of_list, **own}, entry, selection)


FLAT = Kind("flat", _recognise, lambda names, texts: FlatShape(names), _write, tables=True)


@dataclass(frozen=True, slots=True)
class FlatShape:
    """One pair a row; the rows of a query stand together."""

    kind: ClassVar[Kind] = FLAT
    names: FieldNames
    told: tuple[str, ...] = ()
    title_told: bool = False
    reading: str = ""

    def group(self, items: Iterable[Item]) -> Iterator[Grouped]:
        """See `Shape`. Rows of a query that come after those of another one are a `RowError` each."""
        rows: list[tuple[Row, Passage]] = []
        current = 0
        query = ""
        finished: set[int] = set()
        for item in items:
            if isinstance(item, (RowError, Gap)):
                yield item
                continue
            found = read_or_error(self, item)
            if isinstance(found, RowError):
                yield found
                continue
            key = self.group_key(item.fields)
            # Rows of a table and rows of JSON are written in different ways, so they cannot share a list.
            if rows and (key != current or type(item) is not type(rows[0][0])):
                yield self._close(rows, query)
                finished.add(current)
                rows = []
            if key in finished:
                message = "the rows of its query are not adjacent; sort them, or give a file"
                yield row_error(item, "scattered-group", message, found.id)
            elif rows and found.query != query:
                message = "its query is not that of the rows before it with the same id"
                yield row_error(item, "query-differs", message, found.id)
            else:
                current, query = key, found.query
                rows.append((item, found.passages[0]))
        if rows:
            yield self._close(rows, query)

    def read(self, row: Row) -> CandidateList:
        """The one pair in `row`; raises `RowProblem`."""
        pair = read_pair(row, self.names, query=None, identity=self.identity(row.fields))
        if self.names.group_by is not None:
            required(row, self.names.group_by, "query_id")
        else:
            one_of(row.fields, None, "query_id")
        return pair

    def identity(self, fields: Mapping[str, Any]) -> object:
        """The id of a row's query, if it has one."""
        return first_of(fields, self.names.group_by, "query_id")

    def _close(self, rows: list[tuple[Row, Passage]], query: str) -> CandidateList:
        first = rows[0][0]
        return CandidateList(
            query=query,
            passages=tuple(passage for _, passage in rows),
            rows=tuple(row for row, _ in rows),
            id=self.identity(first.fields),
        )

    def render(self, ranked: RankedList, selection: Selection) -> Iterator[dict[str, Any]]:
        """See `Shape`."""
        rows = ranked.source.rows
        again = "rank" in rows[0].fields and is_own_output([row.fields for row in rows])
        for entry in ranked.ranking:
            yield with_scores(rows[entry.index].fields, entry, selection, again=again)

    def columns(self, names: Sequence[str]) -> Mapping[str, tuple[str, ...] | None]:
        """See `Shape`."""
        wanted = columns_of(names, self.names.query, "query") + passage_columns_of(names, self.names)
        return dict.fromkeys(wanted + self.key_columns(names) + id_columns_of(names, self.names.id, "passage_id"))

    def key_columns(self, names: Sequence[str]) -> list[str]:
        """The columns that decide a row's group."""
        path = self.names.group_by
        if path is not None:
            return columns_of(names, path, "query_id")
        return id_columns_of(names, None, "query_id") + columns_of(names, self.names.query, "query")

    def group_key(self, fields: Mapping[str, Any]) -> int:
        """The key of a row's group, made of its query id, or of its query's text where it has no id.

        It is a digest of 128 bits: 10 million groups must not keep 10 million query texts in memory, and Python's own
        `hash` is the same for -1 and -2. Values of different types differ (1, 1.0, "1"), and so do numbers that are
        written differently (1.10, 1.1).
        """
        role, value = "id", first_of(fields, self.names.group_by, "query_id")
        if value is None:
            role, value = "query", first_of(fields, self.names.query, "query")
        if type(value) is str:
            return _key_of_text(role, value)
        return digest_of(f"{role} {value.text if isinstance(value, ExactFloat) else repr(value)}")

    def passage_id(self, source: CandidateList, index: int) -> object:
        """See `Shape`."""
        return first_of(source.row_of(index).fields, self.names.id, "passage_id")

    def exchange(self, source: CandidateList) -> Exchange:
        """See `Shape`."""
        passages, ids = [], []
        for index, (row, passage) in enumerate(zip(source.rows, source.passages, strict=True)):
            fields, names = as_json_row(row).fields, self.names
            read = (
                name_of(fields, names.query, "query"),
                name_of(fields, names.text, "passage"),
                name_of(fields, names.group_by, "query_id"),
            )
            passages.append(own_passage(fields_without(fields, *read), passage))
            ids.append(self.passage_id(source, index))
        of_list = {} if source.id is None else {"query_id": source.id}
        return Exchange(source.id, source.query, of_list, passages, ids)


@lru_cache(maxsize=2)  # the rows of a query mostly stand together
def _key_of_text(role: str, value: str) -> int:
    return digest_of(f"{role} {value!r}")


def digest_of(text: str) -> int:
    """A digest of `text` in 128 bits."""
    return int.from_bytes(blake2b(text.encode(), digest_size=16).digest(), "big")


def flat_text(fields: Mapping[str, Any], names: FieldNames) -> str | None:
    """The text of a row's passage; None where it has none. Raises `RowProblem`."""
    if names.text is not None:
        return joined_text(fields, names.text)
    name, found = one_of(fields, None, "passage")
    if found is None or type(found) is str:
        return found
    if isinstance(found, Mapping):
        hint = f"it has {shown_names(found)}; name its text by --text-field {name}.NAME"
        raise RowProblem("wrong-type", f"`{name}` is an object, not text: {hint}")
    return text_of(found, name)


def read_pair(row: Row, names: FieldNames, *, query: str | None, identity: object) -> CandidateList:
    """The pair in `row`; raises `RowProblem`. query: the user's one query for all rows; None: the row has its own."""
    if query is None:
        where, query = required(row, names.query, "query")
        query = text_of(query, where)
    image = image_of(row.fields, names, row)
    found = flat_text(row.fields, names)
    if found is None and image is None:
        required(row, names.text, "passage")
    passage = ImagePassage(found or "", image) if image else found or ""
    return CandidateList(query=query, passages=(passage,), rows=(row,), id=identity)
