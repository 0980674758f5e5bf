"""`list`: one query and its passages a row, `{"query": ..., "passages": [...], ...}`.

The output row is the same object, its passages sorted, each with rank, logit and index. If a passage is null or has no
text, that passage alone is bad: it goes to the errors file with its list, place and id, and the list is ranked without
it. The row is bad only where no passage is left. So rows in = rows out + bad rows, and passages in = passages out + bad
passages.

Lists beside the passages may belong to them (`ids`, `scores`): these are their siblings, which `siblings_and_notes.py`
finds. They come back sorted and cut as the passages are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from rerank_cli.formats import jsonl
from rerank_cli.formats.choices import FieldNames, Selection
from rerank_cli.formats.shapes.fields import (
    ALIASES,
    RowProblem,
    as_list,
    columns_of,
    dump_like,
    field_paths,
    fields_without,
    first_of,
    head_of,
    id_columns_of,
    list_of,
    lookup,
    name_in_row,
    name_of,
    own_passage,
    passage_of,
    required,
    row_error,
    text_of,
    with_value,
)
from rerank_cli.formats.shapes.shape import (
    Exchange,
    Grouped,
    Item,
    Kind,
    as_json_row,
    is_own_output,
    passage_error,
    with_scores,
)
from rerank_cli.records import CandidateList, Gap, Passage, RankedList, Row, RowError

BELONGS = re.compile(
    r"(^|[_.-])(ids?|pids?|docids?|docnos?|uris?|urls?|scores?|ranks?|titles?|texts?|labels?|sources?|distances?|"
    r"similarit(y|ies)|metadatas?|metas?|embeddings?|vectors?|logits?|chunks?|images?|relevances?|grades?|"
    r"ind(ex|exes|ices)|positions?|offsets?)$"
)
"""Names of lists that belong to the passages."""


def has_list(fields: Iterable[str], names: FieldNames) -> bool:
    """Whether a row or table with these fields has a list of passages."""
    return bool(names.passages or set(fields) & set(ALIASES["passages"]))


def _recognise(fields: Mapping[str, Any], names: FieldNames) -> int:
    # A row whose query is an object is a NIM request, unless the user names fields.
    if not has_list(fields, names) or (not names.of_rows and isinstance(fields.get("query"), Mapping)):
        return 0
    if names.of_rows:
        return 2
    # Certainly a list where the first passage is a text, or has one where this shape looks for it.
    passages = fields.get(name_in_row(fields, "passages"))
    found = passages if isinstance(passages, (list, tuple)) else ()
    first = next((one for one in found if one is not None), None)
    if isinstance(first, Mapping):
        return 2 if isinstance(first.get("text"), str) or "image" in first else 1
    return 1 if first is None else 2


def _write(exchange: Exchange, ranked: RankedList, selection: Selection) -> Iterator[dict[str, Any]]:
    again = is_own_output(exchange.passages)
    passages = [with_scores(exchange.passages[entry.index], entry, selection, again=again) for entry in ranked.ranking]
    yield {**exchange.fields, "query": exchange.query, PASSAGES: passages}


PASSAGES = "passages"
"""The field of the passages of lists that were read in another shape."""

LIST = Kind("list", _recognise, lambda names, texts: ListShape(names), _write, tables=True)


@dataclass(frozen=True, slots=True)
class ListShape:
    """One query and its passages a row.

    siblings: paths of the lists that are in step. told: notes for the user, each given once. title_told: one of them is
    about a title that is not read. reading: which field is read for what. `settle_shape` sets them.
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
            try:
                found = self.read(item, bad)
            except RowProblem as problem:
                yield row_error(item, problem.code, str(problem), self.identity(item.fields))
            else:
                yield from bad
                yield found

    def read(self, row: Row, bad: list[RowError] | None = None) -> CandidateList:
        """The list in `row`; raises `RowProblem`. bad: the errors of bad passages are added to it."""
        query = self.query_of(row)
        path, passages = self.passages_of(row)
        if self.siblings:
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
                        raise  # not the fault of this one passage
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
        where, query = required(row, self.names.query, "query")
        return text_of(query, where)

    def passages_of(self, row: Row) -> tuple[str, Sequence[Any]]:
        """The path of the passages, and their list; raises `RowProblem`."""
        path, value = required(row, self.names.passages, "passages")
        return path, list_of(value if isinstance(value, list) else as_list(value), path)

    def passage_at(self, passage: object, where: str, row: Row) -> Passage:
        """What is scored of a passage that is not just a text; raises `RowProblem`."""
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
            _, passages = self.passages_of(as_json_row(row))
            raw = jsonl.dump_value(passages[place]).encode()
        return passage_error(row, identity, place, self.own_id(own), raw, code, message)

    def identity(self, fields: Mapping[str, Any]) -> object:
        """The id of a row, if it has one."""
        return first_of(fields, self.names.id, "list_id")

    def passages_path(self, fields: Mapping[str, Any]) -> str:
        """The path of the passages in a row that `group` has read."""
        return self.names.passages or name_in_row(fields, "passages")

    def render(self, ranked: RankedList, selection: Selection) -> Iterable[dict[str, Any]]:
        """See `Shape`."""
        fields = ranked.source.rows[0].fields
        path = self.passages_path(fields)
        held = lookup(fields, path)
        passages = as_list(held)
        again = is_own_output(passages)
        entries: list[Any] = []
        for entry in ranked.ranking:
            passage = passages[entry.index]
            if isinstance(passage, (list, tuple)):  # LangChain's (document, score): ours belong to the document
                entries.append([with_scores(passage[0], entry, selection), *passage[1:]])
            else:
                own = {"text": passage} if isinstance(passage, str) else passage
                entries.append(with_scores(own, entry, selection, again=again))
        row = with_value(fields, path, dump_like(held, entries))
        for sibling in self.siblings:
            if (value := lookup(row, sibling)) is not None:
                row = with_value(row, sibling, [value[entry.index] for entry in ranked.ranking])
        return [row]

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
        return first_of(passage, self.names.id, "passage_id") if isinstance(passage, Mapping) else None

    def passage_id(self, source: CandidateList, index: int) -> object:
        """See `Shape`. A passage without an id of its own has the one that a sibling holds for it."""
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
        row = as_json_row(source.rows[0])
        fields = row.fields
        path, own = self.passages_of(row)
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


def holds_ids(path: str) -> bool:
    """Whether the name of a list says that it holds the ids of the passages."""
    name = path.rpartition(".")[2].lower().replace("-", "_")
    return name in ("ids", "id", "pids", "docids", "docnos") or name.endswith(("_ids", "_id"))
