"""What is told of rows without a shape: the options that would read them, or the command that makes rows of them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from rerank_cli.errors import InputError
from rerank_cli.formats import jsonl
from rerank_cli.formats.choices import FieldNames
from rerank_cli.formats.shapes.fields import ALIASES, RowProblem, lookup, shown_names
from rerank_cli.formats.shapes.flat import FlatShape
from rerank_cli.formats.shapes.known_shape import KINDS, PathShape
from rerank_cli.formats.shapes.lists import BELONGS, ListShape, as_list
from rerank_cli.formats.shapes.other_programs import KNOWN
from rerank_cli.records import JsonRow

_TEXTS = re.compile(r"(texts?|chunks?|sources?)$")
_MOST_COMMANDS = 3
_ERROR = frozenset(("error", "errors", "message", "detail", "msg", "fault"))
_BESIDE_AN_ERROR = frozenset(
    ("code", "status", "status_code", "statusCode", "type", "path", "timestamp", "trace", "request_id", "requestId")
) | {"documentation_url", "success", "ok", "title", "param", "object"}
_DEPTH = 4  # in which rows are looked for


def no_shape(where: str, fields: Mapping[str, Any], names: FieldNames, *, header: bool = False) -> InputError:
    """The error of an input whose first row has no shape, with the options that would read it, if they can be told.

    header: the names of the fields were read from the first line of a file.
    """
    if header and any(name == value for name, value in fields.items()):
        return InputError(
            f"{where}: the first line is read as a header and seems to be a row: it has {shown_names(fields)}",
            hint="put the names of the columns before it, such as `query`, `passage`",
        )
    hint = "name the fields: `--query-field`, `--passages-field` (a list) or `--text-field` (a passage a row)"
    program = _rows_within(fields)
    commands = [] if program and "to_entries" in program else _commands(fields, names)
    if _is_error(fields):
        commands, hint = [], "a server seems to have answered with an error in place of the file; fetch it again"
    elif not commands and _is_corpus(fields):
        hint = "it looks like a corpus of BEIR: `--corpus` takes it, and the input is a run of its ids"
    elif not commands and program:
        file = where.rpartition(":")[0]
        quoted = shlex.quote(file)
        whole = f"(objects, arrays[]) | {program}"  # a document may be an array of what was looked at
        hint = f"the rows seem to lie deeper: `jq -c {shlex.quote(whole)} {quoted} > {quoted}.jsonl` takes them out"
    elif header:
        hint += "; the first line must hold the names of the columns"
    return InputError(
        f"{where}: neither a list of passages nor a passage: the row has {shown_names(fields)}",
        hint=hint,
        commands=commands,
    )


def _commands(fields: Mapping[str, Any], names: FieldNames) -> list[list[str]]:
    """Options each set of which would read a row: several where several lists could be that of the passages."""
    first = suggested(fields, names)
    if "--passages-field" not in first:
        return [first] if first and not _is_corpus(fields) else []
    chosen = first[first.index("--passages-field") + 1]
    kind = _kind_of_list(lookup(fields, chosen))
    others = [path for path, value in _leaves(fields) if path != chosen and kind and _kind_of_list(value) == kind]
    found = [first, *(suggested(fields, names, only=path) for path in others)]
    return [options for options in found if options][:_MOST_COMMANDS]


def _is_beside(path: str, values: Sequence[Any]) -> bool:
    """Whether a list of texts is one of ids, titles or addresses, by its name."""
    return isinstance(values[0], str) and bool(BELONGS.search(path.lower())) and not _TEXTS.search(path.lower())


def _is_corpus(fields: Mapping[str, Any]) -> bool:
    return {"_id", "text"} <= fields.keys() <= {"_id", "text", "title", "metadata"}


def _is_error(fields: Mapping[str, Any]) -> bool:
    """Whether an object is what a web service answers where it has failed."""
    return not fields.keys().isdisjoint(_ERROR) and fields.keys() <= _ERROR | _BESIDE_AN_ERROR


def _kind_of_list(value: Any) -> type | None:
    """What stands in a list; None for what is no list of texts or objects."""
    first = value[0] if isinstance(value, (list, tuple)) and value else None
    return type(first) if isinstance(first, (str, dict)) else None


def _rows_within(value: Any, path: str = "", depth: int = _DEPTH) -> str | None:
    """The program of jq that takes rows out of a document that holds them deeper down."""
    if isinstance(value, Mapping):
        if path and _is_row(value):
            return path
        if len(value) > 1 and all(isinstance(one, Mapping) and _is_row(one) for one in value.values()):
            return f"{path or '.'} | to_entries[] | {{id: .key}} + .value"
    if not depth:
        return None
    if isinstance(value, Mapping):
        inner = ((f"{path or '.'}[{jsonl.dump_value(name)}]", one) for name, one in value.items())
        return next((found for at, one in inner if (found := _rows_within(one, at, depth - 1))), None)
    return _rows_within(value[0], f"{path}[]", depth - 1) if isinstance(value, list) and value else None


def _is_row(fields: Mapping[str, Any]) -> bool:
    """Whether an object is a row that could be read, with options or without."""
    row = JsonRow("", 0, fields, b"")
    for shape in (ListShape(FieldNames()), FlatShape(FieldNames())):
        try:
            return bool(shape.read(row))
        except RowProblem:
            continue
    return any(kind.recognise(fields, FieldNames()) for kind in KINDS.values())


def suggested(fields: Mapping[str, Any], names: FieldNames, *, only: str | None = None) -> list[str]:
    """Options that would read a row; none where nothing is found that does. only: the one list that may be meant."""
    options = _guessed(fields, names, only)
    pairs = zip(options[::2], options[1::2], strict=True)
    asked = replace(names, **{_FIELDS[option]: value for option, value in pairs if option in _FIELDS})
    shape: ListShape | FlatShape = FlatShape(asked) if asked.passages is None else ListShape(asked)
    if "--shape" in options:
        shape = PathShape(asked, known=next(one for one in KNOWN if one.name == "msmarco"))
    try:
        return options if options and shape.read(JsonRow("", 0, fields, b"")) else []
    except RowProblem:
        return []


_FIELDS = {"--query-field": "query", "--passages-field": "passages", "--text-field": "text", "--id-field": "id"}


def _guessed(fields: Mapping[str, Any], names: FieldNames, only: str | None) -> list[str]:
    leaves = dict(_leaves(fields))
    texts = {path: value for path, value in leaves.items() if isinstance(value, str) and value}
    lists = {
        path: value
        for path, value in leaves.items()
        if isinstance(value, (list, tuple)) and value and only in (None, path) and not _is_beside(path, value)
    }
    query = names.query or _likeliest(texts, _QUERIES)
    best: tuple[int, str, str, list[str]] | None = None
    for path, value in lists.items():
        head, _, last = path.rpartition(".")
        holder = lookup(fields, head) if head else None
        first = next((one for one in value if one is not None), None)
        if isinstance(first, str):
            found: tuple[int, str, str, list[str]] = (len(first), path, "", [])
            if isinstance(holder, Mapping) and all(isinstance(one, list) for one in holder.values()):
                found = (len(first), head, f"{_IN_STEP}{last}", [])
        elif isinstance(first, Mapping):
            inner = {at: one for at, one in _leaves(first) if isinstance(_one(one), str) and _one(one)}
            text = _likeliest({at: _one(one) for at, one in inner.items()}, _PASSAGES)
            if text is None:
                continue
            identity = _likeliest({at: one for at, one in _leaves(first) if _is_id(one)}, _IDS, named=True)
            found = (len(_one(inner[text])) + 10_000, path, text, [identity] if identity else [])
        else:
            continue
        best = max(best, found, key=lambda one: one[0]) if best else found
    if query is None:
        return []
    asked = [] if query == "query" else ["--query-field", query]
    if best is not None:
        _, path, of_passage, ids = best
        asked += ["--passages-field", path]
        if of_passage.startswith(_IN_STEP):  # an object of lists in step, which one shape of the table is
            return ["--shape", "msmarco", *asked, "--text-field", of_passage.removeprefix(_IN_STEP)]
        asked += ["--text-field", names.text or of_passage] if of_passage and of_passage != "text" else []
        known = (*ALIASES["passage_id"],)
        return asked + (["--id-field", ids[0]] if ids and ids[0] not in known else [])
    rest = {path: value for path, value in texts.items() if path != query}
    text = _likeliest(rest, _PASSAGES)
    return [*asked, "--text-field", text] if text else []


_IN_STEP = "lists in step: "
_QUERIES = ("query", "question", "q", "user_input", "input", "search", "prompt", "claim", "topic", "title")
_PASSAGES = (
    "text", "passage", "contents", "content", "body", "document", "doc", "segment", "chunk", "abstract", "snippet",
    "description", "answer",
)  # fmt: skip
_IDS = ("id", "_id", "docid", "doc_id", "docno", "pid", "passage_id", "key", "uid", "uuid")


def _leaves(fields: Mapping[str, Any], before: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """The paths of a row down to texts, numbers and lists."""
    for name, value in fields.items():
        path = f"{before}{name}"
        if "," in path or lookup_is_blocked(name):
            continue
        if isinstance(value, Mapping) and depth < 6:
            yield from _leaves(value, f"{path}.", depth + 1)
        else:
            opened = as_list(value)
            yield path, opened if isinstance(opened, list) else value


def lookup_is_blocked(name: str) -> bool:
    """Whether a field cannot be reached by a path."""
    return not name or name != name.strip() or name.startswith("-")


def _one(value: Any) -> Any:
    return value[0] if isinstance(value, (list, tuple)) and len(value) == 1 else value


def _is_id(value: object) -> bool:
    return isinstance(value, (str, int)) and not isinstance(value, bool) and len(str(value)) < 200


def _likeliest(values: Mapping[str, Any], words: Sequence[str], *, named: bool = False) -> str | None:
    """The path whose name is the first of `words`; else (but not where it must be `named`) that of the longest text."""
    if not values:
        return None
    by_word = [path for word in words for path in values if path.rpartition(".")[2].lower() == word]
    near = [path for word in words for path in values if word in path.rpartition(".")[2].lower()]
    if by_word or (near and not named):
        return (by_word or near)[0]
    return None if named else max(values, key=lambda path: len(str(values[path])))
