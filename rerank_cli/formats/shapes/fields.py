"""Fields of a row by name: dotted paths that the user gave, or the usual names (aliases); title and text are joined.

A path goes through objects by name, through lists by place (`hits.0.text`), and through a text that is JSON as if it
were the parsed value. A field whose own name has dots in it comes first.

If a row has two aliases of one role and they differ, it is a bad row: nobody knows which one the user means.

Titles follow one rule in every shape: the fields that `--text-field` names are scored, joined by a blank as BEIR joins
them (`title,text`). Without the option a row's text is read without its title, and a corpus as BEIR defines its
documents, title and text (`text_index.py`). Where there is a title, the user is told which of the two was done.

`passage_of` makes what is scored of a passage's own value.

A passage may have an image: a path, a `data:` URI, the bytes of a file, or the object of a Hugging Face data set that
holds path or bytes (`ImagePassage`). No image is opened here. Whether the model reads images is known later; where it
does not, an image is an error, never ignored.

Over 400 lines: what a name means in a row is decided by these small functions together, for every shape.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Container, Mapping, Sequence
from functools import cache
from typing import Any

from rerank_cli.formats import jsonl
from rerank_cli.formats.choices import NO_IMAGES, FieldNames
from rerank_cli.records import ImagePassage, ImageSource, Passage, Row, RowError
from rerank_cli.storage import path_of

ALIASES = {
    "query": ("query",),
    "passages": ("passages", "candidates", "documents", "docs"),
    "passage": ("passage", "document", "text", "doc"),
    "query_id": ("query_id", "qid", "query-id"),
    "list_id": ("query_id", "qid", "query-id", "id"),
    "passage_id": ("passage_id", "doc_id", "docid", "pid", "docno", "id", "_id"),
}
"""For each role the names to try, in order, where the user names no field."""

OPTIONS = {
    "query": "--query-field", "passages": "--passages-field", "passage": "--text-field", "query_id": "--group-by",
    "list_id": "--id-field", "passage_id": "--id-field",
}  # fmt: skip
"""For each role the option that names its field."""

_ROLES = {
    "query": "the query", "passages": "the list of passages", "passage": "the passage", "query_id": "the query's id"
}  # fmt: skip


class RowProblem(Exception):  # noqa: N818 (never leaves this package)
    """A row does not have the shape. code: a stable word for programs; the message is a sentence for people.

    commands: sets of options, each of which would settle what is meant.
    """

    def __init__(self, code: str, message: str, commands: Sequence[Sequence[str]] = ()) -> None:
        super().__init__(message)
        self.code = code
        self.commands = commands


def two_fields_problem(
    where: str, names: Sequence[str], role: str, option: str, beside: Sequence[str] = ()
) -> RowProblem:
    """The problem of a row in which two fields could have one role. beside: options that each command needs too."""
    message = f"`{names[0]}` and `{names[1]}` could both be {role}, and they differ: "
    return RowProblem(
        "two-fields",
        f"{where}{message}say `{option} {names[0]}` or `{option} {names[1]}`",
        [[*beside, option, name] for name in names],
    )


_NULLS = re.compile(r"`([^`]+)` \(null\)")
_QUOTED = re.compile(r"`([^`]+)`")


def lacks_a_value(message: str, known: Container[str] = ()) -> bool:
    """Whether the field that a row lacks is there but null, by the message of its problem: then the row has the shape.

    known: other names that the field may have.
    """
    missing, _, has = message.partition(" has `")
    wanted = {part for name in _QUOTED.findall(missing) for part in (name, head_of(name), name.rpartition(".")[2])}
    return any(name in wanted or name in known for name in _NULLS.findall(f"`{has}"))


def row_error(row: Row, code: str, message: str, identity: object) -> RowError:
    """The error of a row that could be read but not scored. identity: the row's id, kept if it is text or a number."""
    shown = identity if isinstance(identity, (str, int, float)) else None
    return RowError(file=row.file, row=row.number, id=shown, code=code, message=message, raw=row.raw)


def lookup(fields: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path, or None where there is none. A field whose own name has dots in it comes first."""
    if path in fields:
        return fields[path]
    head, _, rest = path.partition(".")
    if rest and head not in fields:
        head = head_of(path, fields)
        rest = path[len(head) + 1 :]
    return _value_below(fields.get(head), rest) if rest else None


def _value_below(inner: object, path: str) -> Any:
    """The value at a path that goes on below `inner`."""
    if isinstance(inner, Mapping):
        return lookup(inner, path)
    if isinstance(inner, (list, tuple)):
        head, _, rest = path.partition(".")
        found = inner[int(head)] if head.isdecimal() and int(head) < len(inner) else None
        return _value_below(found, rest) if rest else found
    opened = opened_json(inner)
    return None if opened is None else _value_below(opened, path)


def opened_json(value: object) -> Any:
    """The list or object that a text holds as JSON; None for any other value."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return None
    try:
        return jsonl.parse_value(value)
    except ValueError:
        return None


def as_list(value: Any) -> Any:
    """The list or object that a JSON text holds; any other value itself."""
    if isinstance(value, str) and (opened := opened_json(value)) is not None:
        return opened
    return value


def dump_like(before: object, after: Sequence[Any] | Mapping[str, Any]) -> Any:
    """`after`, as a JSON text where `before` was one."""
    return jsonl.dump_value(after) if isinstance(before, str) else after


def first_of(fields: Mapping[str, Any], path: str | None, role: str) -> Any:
    """The value at the user's path, or at the first alias of `role` that the row has; None where there is none.

    `--id-field` may name the ids of rows or those of passages, so the aliases of both are tried where it finds nothing.
    """
    if path is not None:
        found = lookup(fields, path)
        if found is not None or OPTIONS[role] != "--id-field":
            return found
    for name in ALIASES[role]:  # no generator: this is asked of each row several times
        value = fields.get(name)
        if value is not None:
            return value
    return None


def one_of(fields: Mapping[str, Any], path: str | None, role: str) -> tuple[str, Any]:
    """The user's path and the value there, or the name and the value of the alias of `role`; None where there is none.

    An alias does not count where it holds nothing, or a value that cannot have the role (a number is no passage).
    Raises `RowProblem` where two aliases could be meant and differ.
    """
    if path is not None:
        return path, lookup(fields, path)
    held = [name for name in ALIASES[role] if fields.get(name) is not None]
    if len(held) > 1:
        fit = [name for name in held if _fits(fields[name], role)]
        for name in fit[1:]:
            if fields[name] != fields[fit[0]]:
                raise two_fields_problem("", (fit[0], name), _ROLES[role], OPTIONS[role])
        held = fit or held
    return (held[0], fields[held[0]]) if held else (role, None)


def _fits(value: object, role: str) -> bool:
    if role == "passages":
        return isinstance(value, (list, tuple, Mapping)) or opened_json(value) is not None
    if role == "passage":
        return isinstance(value, (str, Mapping, list)) and bool(value)
    return not isinstance(value, (list, dict)) and value != ""


def name_of(fields: Mapping[str, Any], path: str | None, role: str) -> str | None:
    """The top-level field that `first_of` reads whole; None where there is none or only a part of one is read."""
    if path is not None:
        return path if path in fields else None
    return name_in_row(fields, role) if any(fields.get(name) is not None for name in ALIASES[role]) else None


def required(row: Row, path: str | None, role: str) -> tuple[str, Any]:
    """As `one_of`; raises `RowProblem` where there is nothing."""
    name, value = one_of(row.fields, path, role)
    if value is None:
        hint = "" if path else f"; name it by {OPTIONS[role]}"
        raise RowProblem(
            "missing-field", f"field `{path or role}` is missing; the row has {shown_names(row.fields)}{hint}"
        )
    return name, value


def name_in_row(fields: Mapping[str, Any], role: str) -> str:
    """The alias of `role` that `one_of` reads."""
    held = [name for name in ALIASES[role] if fields.get(name) is not None]
    return next((name for name in held if _fits(fields[name], role)), held[0] if held else role)


def text_of(value: object, where: str) -> str:
    """`value`; raises `RowProblem` where it is no text."""
    if not isinstance(value, str):
        raise RowProblem("wrong-type", f"`{where}` is {type_in_words(value)}, not text")
    return value


def list_of(value: object, where: str) -> Sequence[Any]:
    """`value`; raises `RowProblem` where it is no list."""
    if not isinstance(value, (list, tuple)):
        hint = ""
        if isinstance(value, str) and value.lstrip().startswith("["):
            hint = ": it looks like a list as Python prints it; write it by json.dumps"
        raise RowProblem("wrong-type", f"field `{where}` is {type_in_words(value)}, not a list{hint}")
    return value


def number_of(fields: Mapping[str, Any], name: str, *, least: int) -> int | None:
    """The whole number, at least `least`, in a field of a request; None where it is missing. Raises `RowProblem`."""
    value = fields.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        is_short = isinstance(value, (str, int, float)) and len(str(value)) < 40
        shown = f"`{value}`" if is_short else type_in_words(value)
        raise RowProblem("bad-value", f"`{name}` is {shown}, not a whole number from {least}")
    return value


def passage_of(passage: object, where: str, names: FieldNames, row: Row, option: str = "") -> Passage:
    """What is scored of a passage, a string or an object; raises `RowProblem`. option: the one that names its text."""
    if isinstance(passage, str):
        return passage
    if not isinstance(passage, Mapping):
        raise RowProblem("wrong-type", f"{where} is {type_in_words(passage)}, not a text or an object")
    if names.text is None and names.image is None and type(passage.get("text")) is str and "image" not in passage:
        text: str = passage["text"]  # most passages: nothing slower may be done for them
        return text
    if names.text is None:
        found = passage.get("text")
        found = None if found is None else text_of(found, f"{where}.text")
    else:
        found = joined_text(passage, names.text, where)
    image = image_of(passage, names, row, f"{where}.")
    if found is None and image is None:
        hint = f"; name it by {option}" if option and not names.text else ""
        shown = shown_names(passage)
        raise RowProblem("missing-field", f"{where} has no `{names.text or 'text'}`: it has {shown}{hint}")
    return ImagePassage(found or "", image) if image else found or ""


@cache
def field_paths(text: str) -> tuple[str, ...]:
    """The fields that `--text-field` names."""
    return tuple(filter(None, (path.strip() for path in text.split(","))))


def joined_text(fields: Mapping[str, Any], text: str, where: str = "") -> str | None:
    """The texts at the paths in `text`, joined by a blank as BEIR joins title and text; None where there are none."""
    before = f"{where}." if where else ""
    paths = (text,) if text in fields else field_paths(text)
    if len(paths) == 1:
        found = lookup(fields, paths[0])
        return None if found is None else text_of(_unwrap_single(found), f"{before}{paths[0]}")
    found = [(path, value) for path in paths if (value := lookup(fields, path)) is not None]
    if not found:
        return None
    return " ".join(text_of(_unwrap_single(value), f"{before}{path}") for path, value in found).strip()


def _unwrap_single(value: object) -> object:
    """The text of a list that holds just one, as search engines answer; any other value itself."""
    if isinstance(value, (list, tuple)) and len(value) == 1 and isinstance(value[0], str):
        return value[0]
    return value


def image_of(fields: Mapping[str, Any], names: FieldNames, row: Row, where: str = "") -> ImageSource | None:
    """Where the image of a passage is; None where its field is missing, null or an empty text."""
    value = None if names.image == NO_IMAGES else lookup(fields, names.image_path)
    if isinstance(value, Mapping):  # the `Image` feature of a Hugging Face data set
        value = value.get("bytes") or value.get("path")
    if value is None or value == "":
        return None
    if not isinstance(value, (str, bytes)):
        what = f"`{where}{names.image_path}` is {type_in_words(value)}, not a path, a data URI or bytes"
        raise RowProblem("wrong-type", f"{what}; if it is no image of the passage, say `--image-field {NO_IMAGES}`")
    folder = "." if row.file == "-" else str(path_of(row.file).parent)
    return ImageSource(value, folder if names.image_root is None else names.image_root)


def own_passage(own: object, passage: Passage) -> dict[str, Any]:
    """A passage as an object of its own fields, with the text that was scored in `text`.

    A field of its own named `text` that was not scored becomes `passage.text`.
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
    head = head_of(path, fields)
    return {**fields, head: _with_below(fields[head], path[len(head) + 1 :], value)}


def _with_below(inner: Any, path: str, value: Any) -> Any:
    if isinstance(inner, Mapping):
        return with_value(inner, path, value)
    if isinstance(inner, (list, tuple)):
        head, _, rest = path.partition(".")
        copy = list(inner)
        copy[int(head)] = _with_below(copy[int(head)], rest, value) if rest else value
        return copy
    return jsonl.dump_value(_with_below(opened_json(inner), path, value))


def fields_without(fields: Mapping[str, Any], *names: str | None) -> dict[str, Any]:
    """A copy of `fields` without those named."""
    return {name: value for name, value in fields.items() if name not in names}


def columns_of(names: Sequence[str], path: str | None, role: str) -> list[str]:
    """The top-level columns of a path or of all aliases; where none is there the first, so that an error names it."""
    if path is not None:
        paths = (path,) if path in names else field_paths(path)
        return list(dict.fromkeys(one if one in names else head_of(one, names) for one in paths))
    return [name for name in ALIASES[role] if name in names] or [ALIASES[role][0]]


def passage_columns_of(names: Sequence[str], fields: FieldNames) -> list[str]:
    """The columns of a flat row's passage: its image, if there is such a column, and its text."""
    image = [name for name in columns_of(names, fields.image_path, "passage") if name in names]
    texts = columns_of(names, fields.text, "passage")
    return [name for name in texts if name in names or not image] + [name for name in image if name not in texts]


def head_of(path: str, names: Container[str] = ()) -> str:
    """The top-level field of a dotted path: the one of `names` that begins it, dots included, else its first part."""
    parts = path.split(".")
    beginnings = (".".join(parts[:count]) for count in range(1, len(parts) + 1))
    return next((head for head in beginnings if head in names), parts[0])


def id_columns_of(names: Sequence[str], path: str | None, role: str) -> list[str]:
    """Those of the columns `names` that may hold an id."""
    own = [] if path is None else columns_of(names, path, role)
    return [name for name in (*own, *ALIASES[role]) if name in names]


def text_or_type(value: object) -> str:
    """A text itself, of any other value its type: for a message about what should be one of a few words."""
    return f"`{value}`" if isinstance(value, str) else type_in_words(value)


def id_text(value: object) -> str:
    """An id as a text to compare and to write in a run: a whole number has no fraction, and bytes are text."""
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        return str(int(value))
    if isinstance(value, bytes):  # Parquet that does not say that its texts are UTF-8
        try:
            return value.decode()
        except UnicodeDecodeError:
            return base64.b64encode(value).decode()
    return str(value)


def number_in(text: str) -> float:
    """The number that a text is to every program that reads runs and judgements; NaN if it is none.

    Python alone reads `1_0`, and digits of other scripts.
    """
    try:
        return float(text) if text.isascii() and "_" not in text else math.nan
    except ValueError:
        return math.nan
