"""Read any shape of the table in `other_programs.py`, and write the same row back in rank order.

    objects    a list of objects or texts at a path          each passage gets our fields, as in the shape `list`
    columns    an object (or the row) whose fields are       every list in step is reordered; ours are lists beside them
               lists in step, one entry a passage
    rows       one passage a row                             `flat.py` does it, with the names of the table

A list that is written as a JSON text comes back as one. The fields that the user names by `--query-field`,
`--passages-field`, `--text-field` and `--id-field` are read in place of those of the table.

Over 400 lines: reading a shape and writing it back are two sides of one table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rerank_cli.errors import UsageError
from rerank_cli.formats.choices import FieldNames, Selection, Texts
from rerank_cli.formats.shapes.corpus import open_corpus
from rerank_cli.formats.shapes.fields import (
    RowProblem,
    as_list,
    dump_like,
    field_paths,
    fields_without,
    head_of,
    image_of,
    joined_text,
    lookup,
    own_passage,
    shown_names,
    text_of,
    two_fields_problem,
    type_in_words,
    with_value,
)
from rerank_cli.formats.shapes.flat import FlatShape
from rerank_cli.formats.shapes.lists import LIST, ListShape
from rerank_cli.formats.shapes.other_programs import KNOWN, SAME_AS, KnownShape
from rerank_cli.formats.shapes.shape import (
    OF_A_CUT,
    Exchange,
    Kind,
    as_json_row,
    kept_under_prefix,
    scores_of,
)
from rerank_cli.formats.text_index import TextFile, open_texts
from rerank_cli.records import CandidateList, ImagePassage, JsonRow, Passage, RankedList, Row


@dataclass(frozen=True, slots=True)
class KnownListShape(ListShape):
    """Rows of a known shape whose passages stand in one row. queries, corpus: the texts of rows of ids."""

    known: KnownShape = KNOWN[0]
    queries: TextFile | None = None
    corpus: TextFile | None = None

    @property
    def kind(self) -> Kind:
        """See `Shape`."""
        return KINDS[self.known.name]

    @property
    def in_columns(self) -> bool:
        """Whether the passages are lists in step."""
        return self.known.layout == "columns"

    def query_of(self, row: Row) -> str:
        """See `ListShape`."""
        path, value = self._first_with_value(row.fields, self.names.query, self.known.query)
        if value is None:
            raise self._missing(row.fields, "the query", self.names.query, self.known.query, "--query-field")
        if self.queries is not None:
            return look_up_text(self.queries, value, "query")
        query = text_of(value, path)
        if self.names.query is None and "." not in path:
            others = (name for name in self.known.query if isinstance(row.fields.get(name), str) and row.fields[name])
            if query and (other := next((name for name in others if row.fields[name] != query), None)):
                raise two_fields_problem("", (path, other), "the query", "--query-field", ("--shape", self.known.name))
        return query

    def passages_of(self, row: Row) -> tuple[str, Sequence[Any]]:
        """See `ListShape`. Lists in step become an object for each passage."""
        path = self.passages_path(row.fields)
        value = as_list(row.fields if path == "" else lookup(row.fields, path))
        if value is None:
            raise self._missing(
                row.fields, "the list of passages", self.names.passages, self.known.passages, "--passages-field"
            )
        if self.in_columns:
            return path, self._from_columns(value, path)
        if not isinstance(value, (list, tuple)):
            raise RowProblem("wrong-type", f"`{path}` is {type_in_words(value)}, not a list")
        return path, value

    def passages_path(self, fields: Mapping[str, Any]) -> str:
        """See `ListShape`: the first path that leads to a list (or lists in step)."""
        if self.names.passages:
            return self.names.passages
        wanted = Mapping if self.in_columns else (list, tuple)
        for path in self.known.passages:
            value = fields if path == "" else lookup(fields, path)
            if isinstance(as_list(value), wanted):
                return path
        return self.known.passages[0]

    def columns_in_step(self, container: Mapping[str, Any]) -> list[str]:
        """The fields of `container` that are lists in step."""
        names = self.known.together or tuple(container)
        return [name for name in names if isinstance(container.get(name), (list, tuple))]

    def text_column(self, container: Mapping[str, Any]) -> str | None:
        """Which of the lists in step holds the texts."""
        names = (*(field_paths(self.names.text)[::-1] if self.names.text else ()), *self.known.text)
        return next((name for name in names if name and isinstance(container.get(name), (list, tuple))), None)

    def _from_columns(self, container: Any, path: str) -> Sequence[Any]:
        where = f"`{path}`" if path else "the row"
        if not isinstance(container, Mapping):
            raise RowProblem("wrong-type", f"{where} is {type_in_words(container)}, not an object of lists")
        columns = {name: container[name] for name in self.columns_in_step(container)}
        text = self.text_column(container)
        if text is None and not (self.names.text and columns):
            raise RowProblem(
                "missing-field",
                f"{where} has no list `{self.names.text or self.known.text[0]}`: it has {shown_names(container)}; "
                "name it by --text-field",
            )
        count = len(columns[text] if text else next(iter(columns.values())))
        for name, values in columns.items():
            if len(values) != count:
                raise RowProblem(
                    "out-of-step", f"`{name}` has {len(values)} entries, and `{text or next(iter(columns))}` {count}"
                )
        return [dict(zip(columns, entry, strict=True)) for entry in zip(*columns.values(), strict=True)]

    def passage_at(self, passage: object, where: str, row: Row) -> Passage:
        """See `ListShape`."""
        if self.corpus is not None:
            value = passage.get(self.known.text[0]) if isinstance(passage, Mapping) else passage
            return look_up_text(self.corpus, value, "passage")
        if not isinstance(passage, (Mapping, list, tuple)):
            raise RowProblem("wrong-type", f"{where} is {type_in_words(passage)}, not a text or an object")
        image = image_of(passage, self.names, row, f"{where}.") if isinstance(passage, Mapping) else None
        text = self._text_of_passage(passage, where)
        if text is None and image is None:
            shown = shown_names(passage) if isinstance(passage, Mapping) else type_in_words(passage)
            names = self.names.text or ", ".join(self.known.text[:3])
            raise RowProblem("missing-field", f"{where} has no `{names}`: it has {shown}; name it by --text-field")
        return ImagePassage(text or "", image) if image else text or ""

    def _text_of_passage(self, passage: Mapping[str, Any] | Sequence[Any], where: str) -> str | None:
        fields = passage if isinstance(passage, Mapping) else {str(n): value for n, value in enumerate(passage)}
        if self.names.text is None:
            return self._text_of_table(fields, where)
        if self.names.text in fields:
            return joined_text(fields, self.names.text, where)
        parts = [self._read_text_part(fields, part, where) for part in field_paths(self.names.text)]
        held = [part for part in parts if part is not None]
        return " ".join(held).strip() if len(parts) > 1 and held else next(iter(held), None)

    def _read_text_part(self, fields: Mapping[str, Any], path: str, where: str) -> str | None:
        """What `--text-field` names in a passage; `title` and `text` are what the table calls so."""
        if (found := joined_text(fields, path, where)) is not None:
            return found
        if path == "title":
            return next(
                (text for one in self.known.title if (text := joined_text(fields, one, where)) is not None), None
            )
        return self._text_of_table(fields, where) if path == "text" else None

    def _text_of_table(self, fields: Mapping[str, Any], where: str) -> str | None:
        found: tuple[str, str] | None = None
        for path in self.known.text:
            if found is not None and found[0].startswith(f"{path}."):
                continue  # what was found is a part of this text
            value = lookup(fields, path)
            if value is None or isinstance(value, Mapping):
                continue
            text = joined_text(fields, path, where)
            if text is not None and found is not None and text and found[1] and text != found[1]:
                raise two_fields_problem(f"{where}: ", (found[0], path), "the text", "--text-field")
            if text is not None and (found is None or not found[1]):
                found = path, text
        return None if found is None else found[1]

    def own_id(self, passage: object) -> object:
        """See `ListShape`."""
        if not isinstance(passage, (Mapping, list, tuple)):
            return None
        fields = passage if isinstance(passage, Mapping) else {str(n): value for n, value in enumerate(passage)}
        paths = (*((self.names.id,) if self.names.id else ()), *self.known.id)
        return next((value for path in paths if _is_scalar(value := lookup(fields, path))), None)

    def identity(self, fields: Mapping[str, Any]) -> object:
        """See `ListShape`."""
        paths = (*((self.names.id,) if self.names.id else ()), *self.known.query_id)
        return next((value for path in paths if _is_scalar(value := lookup(fields, path))), None)

    def render(self, ranked: RankedList, selection: Selection) -> Iterable[dict[str, Any]]:
        """See `Shape`."""
        if not self.in_columns:
            return ListShape.render(self, ranked, selection)
        fields = ranked.source.rows[0].fields
        path = self.passages_path(fields)
        held = fields if path == "" else lookup(fields, path)
        container = as_list(held)
        after = in_rank_order(container, self.columns_in_step(container), ranked, selection)
        return [after if path == "" else with_value(fields, path, dump_like(held, after))]

    def columns(self, names: Sequence[str]) -> Mapping[str, tuple[str, ...] | None]:
        """See `Shape`."""
        mine = (self.names.query, self.names.passages, self.names.id)
        known = (*self.known.query, *self.known.query_id, *self.known.passages, *self.known.together)
        paths = [path for path in (*mine, *known, *self.siblings) if path]
        if self.in_columns and "" in self.known.passages:
            paths += [path for path in (self.names.text, *self.known.text) if path]
        heads = dict.fromkeys(path if path in names else head_of(path, names) for path in paths)
        return dict.fromkeys(head for head in heads if head in names)

    def exchange(self, source: CandidateList) -> Exchange:
        """See `Shape`."""
        row = as_json_row(source.rows[0])
        fields = row.fields
        path, own = self.passages_of(row)
        texts = dict(zip(source.places or range(len(own)), source.passages, strict=True))
        passages = [own_passage(one, texts.get(place, "")) for place, one in enumerate(own)]
        ids = tuple(map(self.own_id, own))
        gone = [path if path in fields else head_of(path, fields)] if path else self.columns_in_step(fields)
        asked, _ = self._first_with_value(fields, self.names.query, self.known.query)
        rest = fields_without(fields, *gone, *self.siblings, head_of(asked, fields) if asked else None)
        if source.id is not None:
            rest = {"query_id": source.id, **rest}
        return Exchange(source.id, source.query, rest, passages, ids)

    @staticmethod
    def _first_with_value(fields: Mapping[str, Any], mine: str | None, known: Sequence[str]) -> tuple[str, Any]:
        """The first path with a value, and the value."""
        paths = (mine,) if mine else known
        for path in paths:
            if (value := lookup(fields, path)) is not None and not (isinstance(value, Mapping) and len(paths) > 1):
                return path, value
        return (paths[0] if paths else ""), None

    @staticmethod
    def _missing(
        fields: Mapping[str, Any], what: str, mine: str | None, known: Sequence[str], option: str
    ) -> RowProblem:
        names = ", ".join(f"`{path}`" for path in ((mine,) if mine else known) if path)
        return RowProblem(
            "missing-field", f"{what} is missing: no {names}; the row has {shown_names(fields)}; name it by {option}"
        )


def in_rank_order(
    container: Mapping[str, Any], in_step: Sequence[str], ranked: RankedList, selection: Selection
) -> dict[str, Any]:
    """`container` with its lists in rank order and ours beside them; what it had under our names is renamed."""
    after = dict(container)
    for name in in_step:
        after[name] = [container[name][entry.index] for entry in ranked.ranking]
    ours = [scores_of(entry, selection) for entry in ranked.ranking]
    more = {
        "prob": selection.prob, "probability": selection.probability is not None, "scored_by": selection.scored_by,
    }  # fmt: skip
    always = ("rank", selection.score, "index", *(name for name, wanted in more.items() if wanted))
    names = dict.fromkeys([*always, *(name for one in ours for name in one)])
    if not {*names, *OF_A_CUT}.isdisjoint(after):
        after = kept_under_prefix(after, {*names, *OF_A_CUT})
    return after | {name: [one.get(name) for one in ours] for name in names}


def look_up_text(texts: TextFile, identity: object, what: str) -> str:
    """The text of an id; raises `RowProblem`. what: whose id it is, for the message."""
    if not _is_scalar(identity):
        raise RowProblem("wrong-type", f"the id of a {what} is {type_in_words(identity)}, not text or a number")
    found = texts.find(str(identity))
    if not isinstance(found, str):
        raise RowProblem(found.code, f"{what} {found.message}")
    return found


def _is_scalar(value: object) -> bool:
    return isinstance(value, (str, int, float)) and not isinstance(value, bool)


@dataclass(frozen=True, slots=True)
class IdPairShape(FlatShape):
    """One pair of ids a row, whose texts are in files."""

    queries: TextFile | None = None
    corpus: TextFile | None = None

    def read(self, row: Row) -> CandidateList:
        """See `FlatShape`."""
        assert self.queries is not None, "opened with its texts"
        assert self.corpus is not None, "opened with its texts"
        query, passage = (lookup(row.fields, path or "") for path in (self.names.query, self.names.text))
        return CandidateList(
            look_up_text(self.queries, query, "query"), (look_up_text(self.corpus, passage, "passage"),), (row,), query
        )


def open_known(known: KnownShape, names: FieldNames, texts: Texts) -> ListShape | FlatShape:
    """The shape for an input; `UsageError` where texts are missing."""
    queries = corpus = None
    told: tuple[str, ...] = ()
    if known.ids_only:
        if texts.queries is None or texts.corpus is None:
            raise UsageError(
                f"rows of the shape {known.name} hold ids only: --queries and --corpus are needed",
                hint="TSV (`id`, tab, text) or JSONL (`_id`, `text`, `title`)",
            )
        queries = open_texts(texts.queries)
        corpus, told = open_corpus(texts.corpus, names.text)
        names = replace(names, text=None)  # it names the text in the corpus
    if known.layout != "rows":
        return KnownListShape(names, told=told, known=known, queries=queries, corpus=corpus)
    names = replace(
        names,
        query=names.query or known.query[0],
        text=names.text or known.text[0],
        id=names.id or known.id[0],
        group_by=names.group_by or known.query_id[0],
    )
    return IdPairShape(names, told, queries=queries, corpus=corpus) if known.ids_only else FlatShape(names)


def fits(known: KnownShape, fields: Mapping[str, Any], names: FieldNames) -> bool:
    """Whether a row has the shape: a mark of it is there, and its query and at least one passage can be read."""
    if names.passages or names.query or names.group_by or not any(_has(fields, mark) for mark in known.marks):
        return False
    if known.layout == "rows":
        return known.ids_only and all(_is_scalar(fields.get(path)) for path in (*known.query, *known.text))
    shape = KnownListShape(names, known=known)
    row = JsonRow("", 0, fields, b"")
    try:
        query = shape.query_of(row)
        _, passages = shape.passages_of(row)
        if known.ids_only:
            return bool(query)
        return not passages or any(_reads(shape, passage, row) for passage in passages)
    except RowProblem as problem:
        return problem.code in ("two-fields", "out-of-step")


def _reads(shape: KnownListShape, passage: object, row: Row) -> bool:
    if isinstance(passage, str):
        return True
    try:
        return shape.passage_at(passage, "", row) is not None
    except RowProblem as problem:
        return problem.code == "two-fields"


def _has(fields: Mapping[str, Any], mark: str) -> bool:
    """Whether a row has this mark: a path, which goes on in any entry of a list on its way."""
    if mark in fields:
        return fields[mark] is not None
    head = head_of(mark, fields)
    rest = mark[len(head) + 1 :]
    return bool(rest) and _has_below(fields.get(head), rest)


def _has_below(value: Any, mark: str) -> bool:
    value = as_list(value)
    if isinstance(value, (list, tuple)) and not mark.partition(".")[0].isdecimal():
        return any(_has_below(one, mark) for one in value)
    if isinstance(value, (list, tuple)):
        value = {str(place): one for place, one in enumerate(value)}
    return isinstance(value, Mapping) and _has(value, mark)


def _kind(known: KnownShape) -> Kind:
    return Kind(
        known.name,
        lambda fields, names: 2 if fits(known, fields, names) else 0,
        lambda names, texts: open_known(known, names, texts),
        LIST.write,
        tables=True,
        texts=known.ids_only,
    )


KINDS: dict[str, Kind] = {known.name: _kind(known) for known in KNOWN}
"""The known shapes by name."""

ALL_NAMES: dict[str, Kind] = {**KINDS, **{name: KINDS[other] for name, other in SAME_AS.items()}}
"""With their other names."""
