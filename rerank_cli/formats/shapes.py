"""Row shapes: an input row to a candidate list, and a ranked list back to output rows.

    list   one query and its passages a row       {"query": ..., "passages": [...], ...}
    flat   one pair a row, grouped by query        {"query": ..., "passage": ..., "query_id"?: ..., ...}
    pair   one pair a row, in input order (`score`)

A shape reads only the fields it needs and leaves the row's own mapping alone; what comes back is a copy with our fields
put in, everything else as it was and where it was. Field names are dotted paths (`body.query`); where the user names
none, the aliases in `ALIASES` are tried in order.

A passage may have an image: a path, a `data:` URI, the bytes of a file, or the object of a Hugging Face data set that
holds path or bytes (`ImagePassage`). No image is opened here; whether the model reads any is found out later, and one
that is not read is an error, never ignored.

A row that does not have the shape is a `RowError`, not an exception: the rows around it are scored.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

from rerank_cli.errors import UsageError
from rerank_cli.formats.jsonl import ExactFloat
from rerank_cli.records import (
    CandidateList,
    Gap,
    ImagePassage,
    ImageSource,
    Passage,
    RankedList,
    RankedPassage,
    Row,
    RowError,
)

ALIASES = {
    "query": ("query",),
    "passages": ("passages", "candidates", "documents", "docs"),
    "passage": ("passage", "document", "text", "doc"),
    "query_id": ("query_id", "qid"),
    "list_id": ("query_id", "qid", "id"),
    "passage_id": ("passage_id", "doc_id", "docid", "pid", "id", "_id"),
}
"""Names that are tried, in order, where the user names no field."""

NO_IMAGES = "none"
"""In place of a path to the image: what stands in `image` is no image of the passage."""

_OF_A_SCORE = frozenset({"truncated", "tokens", "kept_tokens", "tiles", "kept_tiles"})
_SCORES = frozenset({"logit", "cosine"})


@dataclass(frozen=True, slots=True)
class FieldNames:
    """Dotted paths that the user gave; None means the aliases.

    id: of a row and of a passage; where the one or the other has nothing there, its aliases are tried.
    image: of a passage; `none` where passages have no images, whatever the row says. image_root: the folder that paths
    of images start from; None for that of the input file.
    """

    query: str | None = None
    passages: str | None = None
    text: str | None = None
    id: str | None = None
    group_by: str | None = None
    image: str | None = None
    image_root: str | None = None

    @property
    def image_path(self) -> str:
        """Where the image of a passage is."""
        return self.image or "image"


@dataclass(frozen=True, slots=True)
class Selection:
    """Which scored passages come back, and with what.

    top_n: the first n of each list; threshold: only logits of at least this; prob: adds `prob`, the sigmoid of the
    logit. score: what the model's score is called in the output.
    """

    top_n: int | None = None
    threshold: float | None = None
    prob: bool = False
    score: str = "logit"


Item = Row | RowError | Gap
Grouped = CandidateList | RowError | Gap


class Shape(Protocol):
    """How rows become candidate lists and come back."""

    @property
    def names(self) -> FieldNames:
        """Where the user says that the fields are."""

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
            yield item if isinstance(item, (RowError, Gap)) else _candidates(self, item)

    def read(self, row: Row) -> CandidateList:
        """The list in `row`; raises `_RowProblem`."""
        query = _text(_required(row, self.names.query, "query", "--query-field"), "query")
        passages = _required(row, self.names.passages, "passages", "--passages-field")
        if not isinstance(passages, (list, tuple)):
            raise _RowProblem("wrong-type", f"field `passages` is {_kind(passages)}, not a list")
        found = tuple(self._passage(passage, index, row) for index, passage in enumerate(passages))
        return CandidateList(query=query, passages=found, rows=(row,), id=self.identity(row.fields))

    def identity(self, fields: Mapping[str, Any]) -> object:
        """The id of a row, if it has one."""
        return _id(fields, self.names.id, "list_id")

    def _passage(self, passage: object, index: int, row: Row) -> Passage:
        where = f"passages[{index}]"
        if isinstance(passage, str):
            return passage
        if not isinstance(passage, Mapping):
            raise _RowProblem("wrong-type", f"{where} is {_kind(passage)}, not a text or an object")
        path = self.names.text or "text"
        text, image = lookup(passage, path), _image(passage, self.names, row, f"{where}.")
        if text is None and image is None:
            raise _RowProblem("missing-field", f"{where} has no `{path}`: it has {_names(passage)}")
        found = "" if text is None else _text(text, f"{where}.{path}")
        return ImagePassage(found, image) if image else found

    def passages_path(self, fields: Mapping[str, Any]) -> str:
        """Where the passages stand in a row that `group` has read."""
        return self.names.passages or next(name for name in ALIASES["passages"] if fields.get(name) is not None)

    def render(self, ranked: RankedList, selection: Selection) -> Iterator[dict[str, Any]]:
        """See `Shape`."""
        fields = ranked.source.rows[0].fields
        path = self.passages_path(fields)
        passages = lookup(fields, path)
        assert isinstance(passages, (list, tuple)), "group() has checked it"
        scored = []
        for entry in ranked.ranking:
            passage = passages[entry.index]
            own = {"text": passage} if isinstance(passage, str) else passage
            scored.append(_scored(own, entry, selection))
        yield _with_value(fields, path, scored)

    def columns(self, names: Sequence[str]) -> Mapping[str, tuple[str, ...] | None]:
        """See `Shape`."""
        path = self.names.passages
        if path is not None and path not in names and "." in path:
            raise UsageError(f"--passages-field {path}: in Parquet the list of passages is a column of its own")
        named = (self.names.text or "text", self.names.id, self.names.image_path)
        heads = [_head(name) for name in named if name]
        wanted: dict[str, tuple[str, ...] | None] = dict.fromkeys(_columns(names, self.names.query, "query"))
        wanted |= dict.fromkeys(_id_columns(names, self.names.id, "list_id"))
        return wanted | dict.fromkeys(_columns(names, path, "passages"), (*heads, *ALIASES["passage_id"]))


@dataclass(frozen=True, slots=True)
class FlatShape:
    """One pair a row; the rows of a query stand together."""

    names: FieldNames

    def group(self, items: Iterable[Item]) -> Iterator[Grouped]:
        """See `Shape`. A group that comes back after another one has begun is a `RowError` for each of its rows."""
        rows: list[tuple[Row, Passage]] = []
        current = 0
        query = ""
        finished: set[int] = set()
        for item in items:
            if isinstance(item, (RowError, Gap)):
                yield item
                continue
            found = _candidates(self, item)
            if isinstance(found, RowError):
                yield found
                continue
            key = group_key(item.fields, self.names)
            # Rows of a table and rows of JSON cannot come back together: each kind has its own way out.
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
        """The one pair in `row`; raises `_RowProblem`."""
        pair = _read_pair(row, self.names, query=None, identity=self.identity(row.fields))
        if self.names.group_by is not None:
            _required(row, self.names.group_by, "query_id", "--group-by")
        return pair

    def identity(self, fields: Mapping[str, Any]) -> object:
        """The id of a row's query, if it has one."""
        return _first(fields, self.names.group_by, "query_id")

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
        for entry in ranked.ranking:
            own = ranked.source.rows[entry.index].fields
            yield _scored(own, entry, selection)

    def columns(self, names: Sequence[str]) -> Mapping[str, tuple[str, ...] | None]:
        """See `Shape`."""
        wanted = _columns(names, self.names.query, "query") + _passage_columns(names, self.names)
        return dict.fromkeys(wanted + self.key_columns(names) + _id_columns(names, self.names.id, "passage_id"))

    def key_columns(self, names: Sequence[str]) -> list[str]:
        """The columns that decide a row's group."""
        path = self.names.group_by
        if path is not None:
            return _columns(names, path, "query_id")
        return _id_columns(names, None, "query_id") + _columns(names, self.names.query, "query")


@dataclass(frozen=True, slots=True)
class PairShape:
    """One pair a row, each on its own; `query` is the user's one query for all rows, if given."""

    names: FieldNames
    query: str | None = None

    def group(self, items: Iterable[Item]) -> Iterator[Grouped]:
        """See `Shape`."""
        for item in items:
            yield item if isinstance(item, (RowError, Gap)) else _candidates(self, item)

    def read(self, row: Row) -> CandidateList:
        """The pair in `row`; raises `_RowProblem`."""
        return _read_pair(row, self.names, query=self.query, identity=self.identity(row.fields))

    def identity(self, fields: Mapping[str, Any]) -> object:
        """The id of a row, if it has one."""
        return _id(fields, self.names.id, "list_id")

    def render(self, ranked: RankedList, selection: Selection) -> Iterator[dict[str, Any]]:
        """See `Shape`."""
        for entry in ranked.ranking:
            yield _scored(ranked.source.rows[0].fields, entry, selection, ranks=False)

    def columns(self, names: Sequence[str]) -> Mapping[str, tuple[str, ...] | None]:
        """See `Shape`."""
        wanted = _passage_columns(names, self.names)
        if self.query is None:
            wanted += _columns(names, self.names.query, "query")
        return dict.fromkeys(wanted + _id_columns(names, self.names.id, "list_id"))


def detect_shape(fields: Iterable[str], names: FieldNames) -> type[ListShape] | type[FlatShape] | None:
    """The shape of a row with these top-level fields: a list of passages, one passage, or neither (None)."""
    present = set(fields)
    if names.passages or present & set(ALIASES["passages"]):
        return ListShape
    if names.text or _head(names.image_path) in present or present & set(ALIASES["passage"]):
        return FlatShape
    return None


def _head(path: str) -> str:
    """The top-level field of a dotted path."""
    return path.split(".")[0]


def group_key(fields: Mapping[str, Any], names: FieldNames) -> int:
    """What decides the group of a flat row: its query id, or its query's text where it has no id.

    A digest of 128 bits, because 10 million groups must not hold 10 million query texts, and the interpreter's own
    `hash` takes -1 for -2. Values of different types differ (1, 1.0, "1"), and so do numbers that are written
    differently (1.10, 1.1).
    """
    kind, value = "id", _first(fields, names.group_by, "query_id")
    if value is None:
        kind, value = "query", _first(fields, names.query, "query")
    written = value.text if isinstance(value, ExactFloat) else repr(value)
    return int.from_bytes(blake2b(f"{kind} {written}".encode(), digest_size=16).digest(), "big")


def passage_id(ranked: RankedList, index: int, shape: Shape) -> object:
    """The id of a passage, for evaluation; None where the input has none."""
    fields = ranked.source.row_of(index).fields
    if not isinstance(shape, ListShape):
        return _id(fields, shape.names.id, "passage_id")
    passage = lookup(fields, shape.passages_path(fields))[index]
    return _id(passage, shape.names.id, "passage_id") if isinstance(passage, Mapping) else None


def row_error(row: Row, code: str, message: str, identity: object) -> RowError:
    """The error of a row that could be read but not scored. identity: the row's id, kept if it is text or a number."""
    shown = identity if isinstance(identity, (str, int, float)) else None
    return RowError(file=row.file, row=row.number, id=shown, code=code, message=message, raw=row.raw)


def lookup(fields: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path, or None where there is none. A field whose very name holds the dots wins."""
    if path in fields:
        return fields[path]
    head, _, rest = path.partition(".")
    inner = fields.get(head)
    return lookup(inner, rest) if rest and isinstance(inner, Mapping) else None


def _scored(
    own: Mapping[str, Any], entry: RankedPassage, selection: Selection, *, ranks: bool = True
) -> dict[str, Any]:
    """A copy of a row or passage with our fields as its last; what an earlier run said of its own score is left out."""
    ours: dict[str, Any] = {selection.score: entry.logit}
    if ranks:
        ours = {"rank": entry.rank, **ours, "index": entry.index}
    if selection.prob:
        ours["prob"] = entry.probability
    if entry.truncated:
        ours |= {"truncated": True, "tokens": entry.tokens, "kept_tokens": entry.kept_tokens}
    if entry.retiled:
        ours |= {"tiles": entry.tiles, "kept_tiles": entry.kept_tiles}
    replaced = set(ours)
    if not _SCORES.isdisjoint(own):
        replaced |= _OF_A_SCORE | ({"prob"} if selection.score == "logit" else set())
    return {name: value for name, value in own.items() if name not in replaced} | ours


def _candidates(shape: ListShape | FlatShape | PairShape, row: Row) -> CandidateList | RowError:
    try:
        return shape.read(row)
    except _RowProblem as problem:
        return row_error(row, problem.code, str(problem), shape.identity(row.fields))


def _read_pair(row: Row, names: FieldNames, *, query: str | None, identity: object) -> CandidateList:
    if query is None:
        query = _text(_required(row, names.query, "query", "--query-field"), "query")
    image = _image(row.fields, names, row)
    found = _first(row.fields, names.text, "passage")
    if found is None and image is None:
        _required(row, names.text, "passage", "--text-field")
    text = "" if found is None else _text(found, "passage")
    passage = ImagePassage(text, image) if image else text
    return CandidateList(query=query, passages=(passage,), rows=(row,), id=identity)


def _image(fields: Mapping[str, Any], names: FieldNames, row: Row, where: str = "") -> ImageSource | None:
    """Where the image of a passage is; None where it has none: a missing field, null, or a text without characters."""
    value = None if names.image == NO_IMAGES else lookup(fields, names.image_path)
    if isinstance(value, Mapping):  # the `Image` feature of a Hugging Face data set
        value = value.get("bytes") or value.get("path")
    if value is None or value == "":
        return None
    if not isinstance(value, (str, bytes)):
        what = f"`{where}{names.image_path}` is {_kind(value)}, not a path, a data URI or bytes"
        raise _RowProblem("wrong-type", f"{what}; if it is no image of the passage, say `--image-field {NO_IMAGES}`")
    folder = "." if row.file == "-" else str(Path(row.file).parent)
    return ImageSource(value, folder if names.image_root is None else names.image_root)


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


def _id(fields: Mapping[str, Any], path: str | None, kind: str) -> Any:
    """As `_first`, but where nothing stands at the user's path the aliases are tried."""
    found = None if path is None else lookup(fields, path)
    return _first(fields, None, kind) if found is None else found


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise _RowProblem("wrong-type", f"`{where}` is {_kind(value)}, not text")
    return value


def _kind(value: object) -> str:
    """A JSON value's type in words."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    names = {
        str: "text", bytes: "binary data", int: "a number", float: "a number", list: "a list", tuple: "a list"
    }  # fmt: skip
    return next((name for kind, name in names.items() if isinstance(value, kind)), "an object")


def _names(fields: Mapping[str, Any], limit: int = 8) -> str:
    shown = ", ".join(f"`{name}`" + (" (null)" if fields[name] is None else "") for name in list(fields)[:limit])
    return (shown or "no fields") + (", ..." if len(fields) > limit else "")


def _with_value(fields: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy of `fields` with the value at a dotted path replaced; only the objects on the way are copied."""
    if path in fields:
        return {**fields, path: value}
    head, _, rest = path.partition(".")
    return {**fields, head: _with_value(fields[head], rest, value)}


def _columns(names: Sequence[str], path: str | None, kind: str) -> list[str]:
    """The top-level columns of a path or of all aliases; where none is there the first, so that the reader names it."""
    if path is not None:
        return [path if path in names else path.split(".")[0]]
    return [name for name in ALIASES[kind] if name in names] or [ALIASES[kind][0]]


def _passage_columns(names: Sequence[str], fields: FieldNames) -> list[str]:
    """The columns of a flat row's passage: its image, if there is such a column, and its text."""
    image = [name for name in _columns(names, fields.image_path, "passage") if name in names]
    texts = _columns(names, fields.text, "passage")
    return [name for name in texts if name in names or not image] + [name for name in image if name not in texts]


def _id_columns(names: Sequence[str], path: str | None, kind: str) -> list[str]:
    """The top-level columns that may hold an id, as far as they are there."""
    own = [] if path is None else _columns(names, path, kind)
    return [name for name in (*own, *ALIASES[kind]) if name in names]
