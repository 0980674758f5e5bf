"""What the first rows say of an input: which lists are in step, what is told once, and the command that would read it.

A list beside the passages is a sibling where it has as many entries as they have in each of the first rows, and either
these numbers differ from row to row or its name says that it belongs (`doc_ids`, `scores`). Where neither does, nobody
knows: the input is refused with both commands. A known shape says itself what is in step.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from rerank_cli.errors import InputError, UsageError
from rerank_cli.formats import jsonl
from rerank_cli.formats.choices import FieldNames
from rerank_cli.formats.shapes.fields import ALIASES, RowProblem, field_paths, lookup, shown_names
from rerank_cli.formats.shapes.flat import FlatShape
from rerank_cli.formats.shapes.known_shape import KINDS, PathShape
from rerank_cli.formats.shapes.lists import ListShape, as_list
from rerank_cli.formats.shapes.other_programs import KNOWN
from rerank_cli.formats.shapes.shape import OWN_PREFIX, Item, Shape, is_own_output
from rerank_cli.records import Gap, JsonRow, Row, RowError

_BELONGS = re.compile(
    r"(^|[_.-])(ids?|pids?|docids?|docnos?|uris?|urls?|scores?|ranks?|titles?|texts?|labels?|sources?|distances?|"
    r"similarit(y|ies)|metadatas?|metas?|embeddings?|vectors?|logits?|chunks?|images?|relevances?|grades?)$"
)
_OURS = ("rank", "logit", "cosine", "index")
_MOST_COMMANDS = 3
_ERROR = frozenset(("error", "errors", "message", "detail", "msg", "fault"))
_BESIDE_AN_ERROR = frozenset(
    ("code", "status", "status_code", "statusCode", "type", "path", "timestamp", "trace", "request_id", "requestId")
) | {"documentation_url", "success", "ok", "title", "param", "object"}
_DEPTH = 4  # in which rows are looked for


def settle_shape(shape: Shape, rows: Sequence[Row]) -> Shape:
    """`shape` with what its first rows say of it: `siblings`, `told` (once, to the user), `reading` (what is read).

    `InputError` where they leave open which lists are in step.
    """
    if isinstance(shape, ListShape):
        shape = replace(shape, siblings=_siblings(shape, rows))
        told = (*_told_of_lists(shape, rows), *shape.told)
        return replace(shape, told=told, reading=_in_words(reading_of(shape, rows)))
    if isinstance(shape, FlatShape):
        told = (*_told_of_rows(shape, rows), *shape.told)
        return replace(shape, told=told, reading=_in_words(reading_of(shape, rows)))
    return shape


# Siblings


def _siblings(shape: ListShape, rows: Sequence[Row]) -> tuple[str, ...]:
    asked = shape.names.siblings
    if asked == "none":
        return ()
    if asked is not None:
        return field_paths(asked)
    if isinstance(shape, PathShape):
        return () if shape.in_columns else shape.known.together
    counts = list(_counts(shape, rows))
    sure: list[str] = []
    for path in dict.fromkeys(path for _, lists in counts for path in lists):
        pairs = [(count, lists[path]) for count, lists in counts if path in lists]
        if any(count != length for count, length in pairs) or max(count for count, _ in pairs) < 2:
            continue
        if len({count for count, _ in pairs}) > 1 or _BELONGS.search(path.lower()):
            sure.append(path)
            continue
        passages = shape.passages_path(rows[0].fields)
        raise InputError(
            f"{rows[0].file}: `{path}` has as many entries as `{passages}`: does it belong to it?",
            hint="`--siblings` says which lists are brought in the same order",
            commands=[["--siblings", ",".join([*sure, path])], ["--siblings", ",".join(sure) or "none"]],
        )
    return tuple(sure)


def _counts(shape: ListShape, rows: Sequence[Row]) -> Iterator[tuple[int, dict[str, int]]]:
    """Of each good row the number of its passages, and of the entries of each list beside them."""
    for row in rows:
        try:
            path, passages = shape.passages_of(row)
        except RowProblem:
            continue
        head, dot, last = path.rpartition(".")
        beside = lookup(row.fields, head) if dot and path not in row.fields else row.fields
        if not isinstance(beside, Mapping):
            continue
        lists: dict[str, int] = {}
        for name, value in beside.items():
            if name == (last if dot and path not in row.fields else path):
                continue
            before = f"{head}." if dot and path not in row.fields else ""
            if isinstance(value, (list, tuple)):
                lists[f"{before}{name}"] = len(value)
            elif isinstance(value, Mapping) and value and all(isinstance(one, list) for one in value.values()):
                lists |= {f"{before}{name}.{inner}": len(one) for inner, one in value.items()}
        yield len(passages), lists


# What is told once


def _told_of_lists(shape: ListShape, rows: Sequence[Row]) -> Iterator[str]:
    if isinstance(shape, PathShape):
        yield f"read as {shape.known.name} ({shape.known.of}): {_in_words(reading_of(shape, rows))}"
    if shape.siblings:
        yield "in step with the passages: " + ", ".join(f"`{path}`" for path in shape.siblings)
    passages: list[Mapping[str, Any]] = []
    whole: list[Sequence[Any]] = []
    for row in rows:
        try:
            _, found = shape.passages_of(row)
        except RowProblem:
            continue
        whole.append(found)
        passages += [one for one in found if isinstance(one, Mapping)]
    titles = shape.known.title if isinstance(shape, PathShape) else ("title",)
    yield from _title_note(titles, passages, shape.names)
    if not any(map(is_own_output, whole)):
        taken = passages if not (isinstance(shape, PathShape) and shape.in_columns) else [row.fields for row in rows]
        yield from _own_note(taken)


def _told_of_rows(shape: FlatShape, rows: Sequence[Row]) -> Iterator[str]:
    fields = [row.fields for row in rows]
    yield from _title_note(("title",), fields, shape.names)
    if not is_own_output(fields[:1]):
        yield from _own_note(fields)


def _title_note(titles: Sequence[str], passages: Iterable[Mapping[str, Any]], names: FieldNames) -> Iterator[str]:
    asked = field_paths(names.text) if names.text else ()
    for title in titles:
        if title in asked or "title" in asked:
            return
        if any(lookup(one, title) for one in passages):
            text = (asked or ("text",))[-1]
            yield f"passages have a `{title}`, which is not read: `--text-field title,{text}` reads it"
            return


def _own_note(passages: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    own = [name for name in _OURS if any(name in one for one in passages)]
    own = [name for name in own if name != "cosine" or "logit" not in own]
    if own:
        kept = ", ".join(f"`{name}` as `{OWN_PREFIX}{name}`" for name in own)
        yield f"the input has fields of our names, which are kept: {kept}"


def reading_of(shape: Shape, rows: Sequence[Row]) -> dict[str, str]:
    """Which field was read for what, by the first good row."""
    if isinstance(shape, PathShape):
        for row in rows:
            try:
                shape.query_of(row)
                path, passages = shape.passages_of(row)
            except RowProblem:
                continue
            known, names = shape.known, shape.names
            first: Any = next((one for one in passages if one is not None), {})
            fields = first if isinstance(first, Mapping) else {str(n): v for n, v in enumerate(first or ())}
            found = {
                "query": _first_at(row.fields, (names.query,) if names.query else known.query),
                "query id": _first_at(row.fields, known.query_id),
                "passages": path,
                "text": names.text or _first_at(fields, known.text),
                "id": names.id or _first_at(fields, known.id),
            }
            return {role: path for role, path in found.items() if path}
        return {}
    names = shape.names
    if isinstance(shape, ListShape) and rows:
        passages_at = shape.passages_path(rows[0].fields)
        found = {"query": names.query or "query", "passages": passages_at, "text": names.text or "text"}
        identity = _first_at(rows[0].fields, (names.id, *ALIASES["list_id"]) if names.id else ALIASES["list_id"])
        passages = as_list(lookup(rows[0].fields, passages_at))
        first = passages[0] if isinstance(passages, (list, tuple)) and passages else None
        if isinstance(first, Mapping):
            found["id"] = _first_at(first, (names.id, *ALIASES["passage_id"]) if names.id else ALIASES["passage_id"])
        return {role: path for role, path in {**found, "query id": identity}.items() if path}
    if isinstance(shape, FlatShape) and rows:
        fields = rows[0].fields
        found = {
            "query": names.query or "query",
            "query id": names.group_by or _first_at(fields, ALIASES["query_id"]),
            "text": names.text or _first_at(fields, ALIASES["passage"]),
            "id": names.id or _first_at(fields, ALIASES["passage_id"]),
        }
        return {role: path for role, path in found.items() if path}
    return {}


def _first_at(fields: Mapping[str, Any], paths: Iterable[str]) -> str:
    return next((path for path in paths if path and lookup(fields, path) is not None), "")


def _in_words(reading: Mapping[str, str]) -> str:
    return ", ".join(f"{role} `{path}`" for role, path in reading.items())


# The command that would read it


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
        if isinstance(value, (list, tuple)) and value and only in (None, path)
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


def refuse_siblings(names: FieldNames, kind: str) -> None:
    """`UsageError` where lists in step are named for rows that have none."""
    if names.siblings is not None:
        raise UsageError(f"--siblings: rows of the shape {kind} hold no list of passages")


def sample(rows: Iterable[Item]) -> list[Row]:
    """The good rows among these."""
    return [row for row in rows if not isinstance(row, (RowError, Gap))]
