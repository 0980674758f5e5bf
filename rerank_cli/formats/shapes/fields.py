"""Fields of a row by name: dotted paths that the user gave, or the aliases of the field's common spellings.

`passage_of` is the one place where a passage's own value becomes what is scored; every shape reads passages by it.

A passage may have an image: a path, a `data:` URI, the bytes of a file, or the object of a Hugging Face data set that
holds path or bytes (`ImagePassage`). No image is opened here; whether the model reads any is found out later, and one
that is not read is an error, never ignored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rerank_cli.formats.choices import NO_IMAGES, FieldNames
from rerank_cli.formats.jsonl import ExactFloat
from rerank_cli.records import ImagePassage, ImageSource, Passage, Row, RowError

ALIASES = {
    "query": ("query",),
    "passages": ("passages", "candidates", "documents", "docs"),
    "passage": ("passage", "document", "text", "doc"),
    "query_id": ("query_id", "qid"),
    "list_id": ("query_id", "qid", "id"),
    "passage_id": ("passage_id", "doc_id", "docid", "pid", "id", "_id"),
}
"""Names that are tried, in order, where the user names no field."""


class RowProblem(Exception):  # noqa: N818 (never leaves this package)
    """A row lacks the shape. code: a stable word for programs; the message is a sentence for people."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


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


def first_of(fields: Mapping[str, Any], path: str | None, kind: str) -> Any:
    """The value at the user's path, or at the first alias of `kind` that the row has; None where there is none."""
    if path is not None:
        return lookup(fields, path)
    return next((fields[name] for name in ALIASES[kind] if fields.get(name) is not None), None)


def identity_of(fields: Mapping[str, Any], path: str | None, kind: str) -> Any:
    """As `first_of`, but where nothing stands at the user's path the aliases are tried."""
    found = None if path is None else lookup(fields, path)
    return first_of(fields, None, kind) if found is None else found


def name_of(fields: Mapping[str, Any], path: str | None, kind: str) -> str | None:
    """The top-level field that `first_of` reads whole; None where there is none or only a part of one is read."""
    if path is not None:
        return path if path in fields else None
    return next((name for name in ALIASES[kind] if fields.get(name) is not None), None)


def required(row: Row, path: str | None, kind: str, option: str) -> Any:
    """As `first_of`; raises `RowProblem` where there is nothing. option: what names the field."""
    value = first_of(row.fields, path, kind)
    if value is None:
        hint = "" if path else f"; name it by {option}"
        raise RowProblem(
            "missing-field", f"field `{path or kind}` is missing; the row has {shown_names(row.fields)}{hint}"
        )
    return value


def text_of(value: object, where: str) -> str:
    """`value`, which must be text."""
    if not isinstance(value, str):
        raise RowProblem("wrong-type", f"`{where}` is {type_in_words(value)}, not text")
    return value


def list_of(value: object, where: str) -> Sequence[Any]:
    """`value`, which must be a list."""
    if not isinstance(value, (list, tuple)):
        raise RowProblem("wrong-type", f"field `{where}` is {type_in_words(value)}, not a list")
    return value


def number_of(fields: Mapping[str, Any], name: str, *, least: int) -> int | None:
    """The whole number in a field of a request, at least `least`; None where there is none."""
    value = fields.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise RowProblem("bad-value", f"`{name}` is {_shown(value)}, not a whole number from {least}")
    return value


def passage_of(passage: object, where: str, names: FieldNames, row: Row) -> Passage:
    """What is scored of a passage that is a string or an object; raises `RowProblem`."""
    if isinstance(passage, str):
        return passage
    if not isinstance(passage, Mapping):
        raise RowProblem("wrong-type", f"{where} is {type_in_words(passage)}, not a text or an object")
    path = names.text or "text"
    text, image = lookup(passage, path), image_of(passage, names, row, f"{where}.")
    if text is None and image is None:
        raise RowProblem("missing-field", f"{where} has no `{path}`: it has {shown_names(passage)}")
    found = "" if text is None else text_of(text, f"{where}.{path}")
    return ImagePassage(found, image) if image else found


def image_of(fields: Mapping[str, Any], names: FieldNames, row: Row, where: str = "") -> ImageSource | None:
    """Where the image of a passage is; None where it has none: a missing field, null, or a text without characters."""
    value = None if names.image == NO_IMAGES else lookup(fields, names.image_path)
    if isinstance(value, Mapping):  # the `Image` feature of a Hugging Face data set
        value = value.get("bytes") or value.get("path")
    if value is None or value == "":
        return None
    if not isinstance(value, (str, bytes)):
        what = f"`{where}{names.image_path}` is {type_in_words(value)}, not a path, a data URI or bytes"
        raise RowProblem("wrong-type", f"{what}; if it is no image of the passage, say `--image-field {NO_IMAGES}`")
    folder = "." if row.file == "-" else str(Path(row.file).parent)
    return ImageSource(value, folder if names.image_root is None else names.image_root)


def own_passage(own: object, passage: Passage) -> dict[str, Any]:
    """A passage as an object of its own fields, with what was scored as text in `text`.

    A field of its own that has this name and was not scored is `passage.text`.
    """
    fields = dict(own) if isinstance(own, Mapping) else {}
    text = passage.text if isinstance(passage, ImagePassage) else passage
    if fields.get("text", text) != text:
        fields["passage.text"] = fields.pop("text")
    return fields if isinstance(passage, ImagePassage) and not text else {**fields, "text": text}


def type_in_words(value: object) -> str:
    """A JSON value's type in words."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    names = {
        str: "text", bytes: "binary data", int: "a number", float: "a number", list: "a list", tuple: "a list"
    }  # fmt: skip
    return next((name for kind, name in names.items() if isinstance(value, kind)), "an object")


def shown_names(fields: Mapping[str, Any], limit: int = 8) -> str:
    """The names of the fields, for a message."""
    shown = ", ".join(f"`{name}`" + (" (null)" if fields[name] is None else "") for name in list(fields)[:limit])
    return (shown or "no fields") + (", ..." if len(fields) > limit else "")


def with_value(fields: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy of `fields` with the value at a dotted path replaced; only the objects on the way are copied."""
    if path in fields:
        return {**fields, path: value}
    head, _, rest = path.partition(".")
    return {**fields, head: with_value(fields[head], rest, value)}


def without(fields: Mapping[str, Any], *names: str | None) -> dict[str, Any]:
    """A copy of `fields` without those named."""
    return {name: value for name, value in fields.items() if name not in names}


def columns_of(names: Sequence[str], path: str | None, kind: str) -> list[str]:
    """The top-level columns of a path or of all aliases; where none is there the first, so that the reader names it."""
    if path is not None:
        return [path if path in names else head_of(path)]
    return [name for name in ALIASES[kind] if name in names] or [ALIASES[kind][0]]


def passage_columns_of(names: Sequence[str], fields: FieldNames) -> list[str]:
    """The columns of a flat row's passage: its image, if there is such a column, and its text."""
    image = [name for name in columns_of(names, fields.image_path, "passage") if name in names]
    texts = columns_of(names, fields.text, "passage")
    return [name for name in texts if name in names or not image] + [name for name in image if name not in texts]


def head_of(path: str) -> str:
    """The top-level field of a dotted path."""
    return path.split(".")[0]


def id_columns_of(names: Sequence[str], path: str | None, kind: str) -> list[str]:
    """The top-level columns that may hold an id, as far as they are there."""
    own = [] if path is None else columns_of(names, path, kind)
    return [name for name in (*own, *ALIASES[kind]) if name in names]


def written(value: object) -> str:
    """A value for comparing: 1, 1.0 and "1" differ, and so do numbers that are written differently."""
    return value.text if isinstance(value, ExactFloat) else repr(value)


def _shown(value: object) -> str:
    return f"`{value}`" if isinstance(value, (str, int, float)) and len(str(value)) < 40 else type_in_words(value)
