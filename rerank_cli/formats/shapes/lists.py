"""`list`: one query and its passages a row, `{"query": ..., "passages": [...], ...}`.

It comes back as the same object, its passages sorted, each with rank, logit and index. A passage that is null or has no
text is bad alone: it goes to the errors file with its list, place and id, and the list is ranked without it. Only where
no passage is left, the row is bad. So rows in = rows out + bad rows, and passages in = passages out + bad passages.

Lists beside that of the passages that belong to it (`ids`, `scores`) are its siblings (`siblings.py`): they come back
in the same order, cut where it is cut.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from rerank_cli.formats import jsonl
from rerank_cli.formats.choices import FieldNames, Selection, Texts
from rerank_cli.formats.shapes.fields import (
    ALIASES,
    RowProblem,
    columns_of,
    field_paths,
    fields_without,
    head_of,
    id_columns_of,
    identity_of,
    list_of,
    lookup,
    name_in_row,
    name_of,
    opened_json,
    own_passage,
    passage_of,
    required,
    text_of,
    with_value,
)
from rerank_cli.formats.shapes.shape import (
    Exchange,
    Grouped,
    Item,
    Kind,
    candidates,
    is_own_output,
    own_fields,
    passage_error,
    scored,
)
from rerank_cli.records import CandidateList, Gap, Passage, RankedList, Row, RowError

BELONGS = re.compile(
    r"(^|[_.-])(ids?|pids?|docids?|docnos?|uris?|urls?|scores?|ranks?|titles?|texts?|labels?|sources?|distances?|"
    r"similarit(y|ies)|metadatas?|metas?|embeddings?|vectors?|logits?|chunks?|images?|relevances?|grades?|"
    r"ind(ex|exes|ices)|positions?|offsets?)$"
)
"""Names of lists that belong to that of the passages."""


def has_list(fields: Iterable[str], names: FieldNames) -> bool:
    """Whether a row or table with these fields has a list of passages."""
    return bool(names.passages or set(fields) & set(ALIASES["passages"]))


def _recognise(fields: Mapping[str, Any], names: FieldNames) -> int:
    # An object as query is a NIM request unless the user says where the text is.
    if not has_list(fields, names) or (not names.of_rows and isinstance(fields.get("query"), Mapping)):
        return 0
    return 2 if names.of_rows or _can_be_read(fields) else 1


def _can_be_read(fields: Mapping[str, Any]) -> bool:
    """Whether the first passage is a text or has one where this shape looks for it; no passage tells nothing."""
    passages = fields.get(name_in_row(fields, None, "passages"))
    if not isinstance(passages, (list, tuple)):
        return False
    first = next((one for one in passages if one is not None), None)
    if not isinstance(first, Mapping):
        return first is not None
    return isinstance(first.get("text"), str) or "image" in first


def _open(names: FieldNames, texts: Texts) -> ListShape:
    return ListShape(names)


def _write(exchange: Exchange, ranked: RankedList, selection: Selection) -> Iterator[dict[str, Any]]:
    again = is_own_output(exchange.passages)
    passages = [scored(exchange.passages[entry.index], entry, selection, again=again) for entry in ranked.ranking]
    yield {**exchange.fields, "query": exchange.query, PASSAGES: passages}


PASSAGES = "passages"
"""Where the passages of lists that were read in another shape stand."""

LIST = Kind("list", _recognise, _open, _write, tables=True)


@dataclass(frozen=True, slots=True)
class ListShape:
    """One query and its passages a row.

    siblings: paths of the lists that are in step. told, reading: see `settle_shape`.
    title_told: among what is told is a title that is not read.
    """

    names: FieldNames
    siblings: tuple[str, ...] = ()
    told: tuple[str, ...] = ()
    title_told: bool = False
    reading: str = ""

    @property
    def kind(self) -> Kind:
        """See `Shape`."""
        return LIST

    def group(self, items: Iterable[Item]) -> Iterator[Grouped]:
        """See `Shape`. The bad passages of a list come right before it."""
        for item in items:
            if isinstance(item, (RowError, Gap)):
                yield item
                continue
            bad: list[RowError] = []
            found = candidates(_Reader(self, bad), item)
            if isinstance(found, CandidateList):
                yield from bad
            yield found

    def read(self, row: Row, bad: list[RowError] | None = None) -> CandidateList:
        """The list in `row`; raises `RowProblem`. bad: takes its bad passages."""
        query = self.query_of(row)
        path, passages = self.passages_of(row)
        self._check_siblings(row.fields, passages)
        found: list[Passage] = []
        problems: list[tuple[int, RowProblem]] = []
        places: list[int] | None = None
        for place, passage in enumerate(passages):
            if type(passage) is str:
                found.append(passage)
            else:
                try:
                    found.append(self.passage_at(passage, f"{path}[{place}]", row))
                except RowProblem as problem:
                    if problem.code == "two-fields":
                        raise  # it is no fault of the one passage
                    if places is None:
                        places = list(range(place))
                    problems.append((place, problem))
                    continue
            if places is not None:
                places.append(place)
        if problems and not found:
            raise problems[0][1]
        identity = self.identity(row.fields)
        tell = partial(self._passage_error, row, identity)
        if bad is not None:
            bad += [tell(place, problem.code, str(problem)) for place, problem in problems]
        return CandidateList(
            query=query,
            passages=tuple(found),
            rows=(row,),
            id=identity,
            places=tuple(places or ()),
            passage_error=tell,
        )

    def query_of(self, row: Row) -> str:
        """The query of a row; raises `RowProblem`."""
        return text_of(required(row, self.names.query, "query", "--query-field"), self.names.query or "query")

    def passages_of(self, row: Row) -> tuple[str, Sequence[Any]]:
        """Where the passages stand, and the list; raises `RowProblem`."""
        value = required(row, self.names.passages, "passages", "--passages-field")
        path = self.passages_path(row.fields)
        return path, list_of(value if isinstance(value, list) else as_list(value), path)

    def passage_at(self, passage: object, where: str, row: Row) -> Passage:
        """What is scored of a passage that is no plain text; raises `RowProblem`."""
        return passage_of(passage, where, self.names, row, "--text-field")

    def _check_siblings(self, fields: Mapping[str, Any], passages: Sequence[Any]) -> None:
        for path in self.siblings:
            value = lookup(fields, path)
            if value is None:
                continue
            if not isinstance(value, (list, tuple)) or len(value) != len(passages):
                has = f"{len(value)} entries" if isinstance(value, (list, tuple)) else "no list"
                raise RowProblem(
                    "out-of-step", f"`{path}` is in step with the passages and has {has}, not {len(passages)}"
                )

    def _passage_error(self, row: Row, identity: object, place: int, code: str, message: str) -> RowError:
        path, passages = self.passages_of(row)
        own = passages[place]
        if code != "missing-field" and not message.startswith((path, f"`{path}")):
            message = f"{path}[{place}]: {message}"
        try:
            raw = jsonl.dump_value(own).encode()
        except (TypeError, ValueError):  # bytes of a table
            _, passages = self.passages_of(_JsonOfTable(row))
            raw = jsonl.dump_value(passages[place]).encode()
        return passage_error(row, identity, place, self.own_id(own), raw, code, message)

    def identity(self, fields: Mapping[str, Any]) -> object:
        """The id of a row, if it has one."""
        return identity_of(fields, self.names.id, "list_id")

    def passages_path(self, fields: Mapping[str, Any]) -> str:
        """Where the passages stand in a row that `group` has read."""
        return self.names.passages or name_in_row(fields, None, "passages")

    def render(self, ranked: RankedList, selection: Selection) -> Iterator[dict[str, Any]]:
        """See `Shape`."""
        fields = ranked.source.rows[0].fields
        path = self.passages_path(fields)
        held = lookup(fields, path)
        passages = as_list(held)
        again = is_own_output(passages) if has_rank(passages) else False
        entries = []
        for entry in ranked.ranking:
            passage = passages[entry.index]
            own = {"text": passage} if isinstance(passage, str) else passage
            entries.append(scored(own, entry, selection, again=again))
        yield self.with_siblings(with_value(fields, path, written_like(held, entries)), ranked)

    def with_siblings(self, fields: dict[str, Any], ranked: RankedList) -> dict[str, Any]:
        """`fields` with the siblings in the order of the ranking."""
        for path in self.siblings:
            value = lookup(fields, path)
            if value is not None:
                fields = with_value(fields, path, [value[entry.index] for entry in ranked.ranking])
        return fields

    def columns(self, names: Sequence[str]) -> Mapping[str, tuple[str, ...] | None]:
        """See `Shape`."""
        path = self.names.passages
        wanted: dict[str, tuple[str, ...] | None] = dict.fromkeys(columns_of(names, self.names.query, "query"))
        wanted |= dict.fromkeys(id_columns_of(names, self.names.id, "list_id"))
        wanted |= dict.fromkeys(sibling if sibling in names else head_of(sibling, names) for sibling in self.siblings)
        if path is not None and path not in names and "." in path:
            return wanted | {head_of(path, names): None}
        texts = (self.names.text, *field_paths(self.names.text)) if self.names.text else ("text",)
        named = (*texts, self.names.id, self.names.image_path)
        heads = list(dict.fromkeys(part for name in named if name for part in (name, head_of(name))))
        return wanted | dict.fromkeys(columns_of(names, path, "passages"), (*heads, *ALIASES["passage_id"]))

    def own_id(self, passage: object) -> object:
        """The id that a passage has itself."""
        return identity_of(passage, self.names.id, "passage_id") if isinstance(passage, Mapping) else None

    def passage_id(self, source: CandidateList, index: int) -> object:
        """See `Shape`. A passage that is a text has the id that a sibling holds for it."""
        row = source.rows[0]
        _, passages = self.passages_of(row)
        found = self.own_id(passages[index])
        return self.sibling_id(row.fields, index) if found is None else found

    def sibling_id(self, fields: Mapping[str, Any], index: int) -> object:
        """The id of a passage in the one sibling that holds ids; None where none or several do."""
        ids = [path for path in self.siblings if holds_ids(path)]
        value = lookup(fields, ids[0]) if len(ids) == 1 else None
        return None if value is None else value[index]

    def exchange(self, source: CandidateList) -> Exchange:
        """See `Shape`."""
        fields = own_fields(source.rows[0])
        path, own = self.passages_of(_JsonOfTable(source.rows[0]))
        scored_texts = dict(zip(source.places or range(len(own)), source.passages, strict=True))
        passages = [own_passage(one, scored_texts.get(place, "")) for place, one in enumerate(own)]
        for sibling in self.siblings:
            if (values := lookup(fields, sibling)) is not None:
                name = sibling.rpartition(".")[2]
                passages = [{name: value, **one} for value, one in zip(values, passages, strict=True)]
        heads = [sibling for sibling in self.siblings if sibling in fields]
        rest = fields_without(fields, path, name_of(fields, self.names.query, "query"), *heads)
        ids = tuple(self.passage_id(source, index) for index in range(len(passages)))
        return Exchange(source.id, source.query, rest, passages, ids)


@dataclass(frozen=True, slots=True)
class _Reader:
    """A shape, and where the bad passages of the row that it reads go; satisfies `RowShape`."""

    shape: ListShape
    bad: list[RowError]

    def read(self, row: Row) -> CandidateList:
        """See `RowShape`."""
        return self.shape.read(row, self.bad)

    def identity(self, fields: Mapping[str, Any]) -> object:
        """See `RowShape`."""
        return self.shape.identity(fields)


class _JsonOfTable:
    """A row with all of its fields as JSON says them; satisfies `Row`."""

    def __init__(self, row: Row) -> None:
        self.file, self.number, self.raw = row.file, row.number, b""
        self.fields = own_fields(row)


def holds_ids(path: str) -> bool:
    """Whether a list of this name holds the ids of its neighbours."""
    name = path.rpartition(".")[2].lower().replace("-", "_")
    return name in ("ids", "id", "pids", "docids", "docnos") or name.endswith(("_ids", "_id"))


def has_rank(passages: Sequence[Any]) -> bool:
    """Whether passages may have been ranked before."""
    return bool(passages) and isinstance(passages[0], Mapping) and "rank" in passages[0]


def as_list(value: Any) -> Any:
    """A list that is written as a JSON text, as the list that it says."""
    if isinstance(value, str) and (opened := opened_json(value)) is not None:
        return opened
    return value


def written_like(before: object, after: Sequence[Any] | Mapping[str, Any]) -> Any:
    """The list `after`; as a JSON text where `before` was one."""
    return jsonl.dump_value(after) if isinstance(before, str) else after
