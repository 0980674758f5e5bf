"""`list`: one query and its passages a row, `{"query": ..., "passages": [...], ...}`.

It comes back as the same object, its passages sorted, each with rank, logit and index.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from rerank_cli.errors import UsageError
from rerank_cli.formats.choices import FieldNames, Selection, Texts
from rerank_cli.formats.shapes.fields import (
    ALIASES,
    columns_of,
    head_of,
    id_columns_of,
    identity_of,
    list_of,
    lookup,
    name_of,
    own_passage,
    passage_of,
    required,
    text_of,
    with_value,
    without,
)
from rerank_cli.formats.shapes.shape import Exchange, Grouped, Item, Kind, group_rows, own_fields, scored
from rerank_cli.records import CandidateList, RankedList, Row


def has_list(fields: Iterable[str], names: FieldNames) -> bool:
    """Whether a row or table with these fields has a list of passages."""
    return bool(names.passages or set(fields) & set(ALIASES["passages"]))


def _recognise(fields: Mapping[str, Any], names: FieldNames) -> int:
    # An object as query is a NIM request unless the user says where the text is.
    return 2 if has_list(fields, names) and (names.of_rows or not isinstance(fields.get("query"), Mapping)) else 0


def _open(names: FieldNames, texts: Texts) -> ListShape:
    return ListShape(names)


def _write(exchange: Exchange, ranked: RankedList, selection: Selection) -> Iterator[dict[str, Any]]:
    passages = [scored(exchange.passages[entry.index], entry, selection) for entry in ranked.ranking]
    yield {**exchange.fields, "query": exchange.query, PASSAGES: passages}


PASSAGES = "passages"
"""Where the passages of lists that were read in another shape stand."""

LIST = Kind("list", _recognise, _open, _write, tables=True)


@dataclass(frozen=True, slots=True)
class ListShape:
    """One query and its passages a row."""

    kind: ClassVar[Kind] = LIST
    names: FieldNames

    def group(self, items: Iterable[Item]) -> Iterator[Grouped]:
        """See `Shape`."""
        return group_rows(self, items)

    def read(self, row: Row) -> CandidateList:
        """The list in `row`; raises `RowProblem`."""
        query = text_of(required(row, self.names.query, "query", "--query-field"), "query")
        passages = list_of(required(row, self.names.passages, "passages", "--passages-field"), "passages")
        found = tuple(
            passage_of(passage, f"passages[{index}]", self.names, row) for index, passage in enumerate(passages)
        )
        return CandidateList(query=query, passages=found, rows=(row,), id=self.identity(row.fields))

    def identity(self, fields: Mapping[str, Any]) -> object:
        """The id of a row, if it has one."""
        return identity_of(fields, self.names.id, "list_id")

    def passages_path(self, fields: Mapping[str, Any]) -> str:
        """Where the passages stand in a row that `group` has read."""
        return self.names.passages or next(name for name in ALIASES["passages"] if fields.get(name) is not None)

    def render(self, ranked: RankedList, selection: Selection) -> Iterator[dict[str, Any]]:
        """See `Shape`."""
        fields = ranked.source.rows[0].fields
        path = self.passages_path(fields)
        passages = lookup(fields, path)
        assert isinstance(passages, (list, tuple)), "group() has checked it"
        entries = []
        for entry in ranked.ranking:
            passage = passages[entry.index]
            own = {"text": passage} if isinstance(passage, str) else passage
            entries.append(scored(own, entry, selection))
        yield with_value(fields, path, entries)

    def columns(self, names: Sequence[str]) -> Mapping[str, tuple[str, ...] | None]:
        """See `Shape`."""
        path = self.names.passages
        if path is not None and path not in names and "." in path:
            raise UsageError(f"--passages-field {path}: in Parquet the list of passages is a column of its own")
        named = (self.names.text or "text", self.names.id, self.names.image_path)
        heads = [head_of(name) for name in named if name]
        wanted: dict[str, tuple[str, ...] | None] = dict.fromkeys(columns_of(names, self.names.query, "query"))
        wanted |= dict.fromkeys(id_columns_of(names, self.names.id, "list_id"))
        return wanted | dict.fromkeys(columns_of(names, path, "passages"), (*heads, *ALIASES["passage_id"]))

    def passage_id(self, source: CandidateList, index: int) -> object:
        """See `Shape`."""
        fields = source.rows[0].fields
        passage = lookup(fields, self.passages_path(fields))[index]
        return identity_of(passage, self.names.id, "passage_id") if isinstance(passage, Mapping) else None

    def exchange(self, source: CandidateList) -> Exchange:
        """See `Shape`."""
        fields = own_fields(source.rows[0])
        path = self.passages_path(source.rows[0].fields)
        passages = list(map(own_passage, lookup(fields, path), source.passages))
        rest = without(fields, path, name_of(fields, self.names.query, "query"))
        ids = tuple(self.passage_id(source, index) for index in range(len(passages)))
        return Exchange(source.id, source.query, rest, passages, ids)
