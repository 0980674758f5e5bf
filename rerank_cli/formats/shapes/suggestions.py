"""Advice for rows without a shape: the options that would read them, or the command that makes rows of them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from rerank_cli.errors import InputError
from rerank_cli.formats import jsonl
from rerank_cli.formats.choices import FieldNames
from rerank_cli.formats.shapes import jq_programs
from rerank_cli.formats.shapes.fields import ALIASES, RowProblem, as_list, lookup, opened_json, shown_names
from rerank_cli.formats.shapes.flat import FlatShape
from rerank_cli.formats.shapes.known_shape import KINDS, KnownListShape
from rerank_cli.formats.shapes.lists import BELONGS, ListShape
from rerank_cli.formats.shapes.other_programs import KNOWN
from rerank_cli.records import JsonRow
from rerank_cli.storage import shell_name

_TEXTS = re.compile(r"(texts?|chunks?|sources?)$")
_MOST_COMMANDS = 3
_ERROR = frozenset(("error", "errors", "message", "detail", "msg", "fault"))
_BESIDE_AN_ERROR = frozenset(
    ("code", "status", "status_code", "statusCode", "type", "path", "timestamp", "trace", "request_id", "requestId")
) | {"documentation_url", "success", "ok", "title", "param", "object"}
_FEW = 5  # entries of an object that are looked at
_DEPTH = 4  # levels below the top at which rows are looked for
_PYTHON_LIST = re.compile(r"\[\s*['\"{(]")
_NUMBER = re.compile(r"\s*[-+]?[0-9]*\.?[0-9]+([eE][-+]?[0-9]+)?\s*")


def no_shape_error(where: str, fields: Mapping[str, Any], names: FieldNames, *, header: bool = False) -> InputError:
    """The error of an input whose first row has no shape, with the options that would read it, if any are found.

    header: the field names come from the first line of the file.
    """
    if header and any(name == value for name, value in fields.items()):
        return InputError(
            f"{where}: the first line is read as a header and seems to be a row: it has {shown_names(fields)}",
            hint="put the names of the columns before it, such as `query`, `passage`",
        )
    hint = "name the fields: `--query-field`, `--passages-field` (a list) or `--text-field` (a passage a row)"
    commands = commands_for(fields, names)
    program = _program(fields, names)
    if program and (program[0] not in _BESIDE_COMMANDS or not any("--passages-field" in one for one in commands)):
        commands = []
    if not fields.keys().isdisjoint(_ERROR) and fields.keys() <= _ERROR | _BESIDE_AN_ERROR:
        commands, hint = [], "a server seems to have answered with an error in place of the file; fetch it again"
    elif (column := _python_list(fields)) is not None:
        commands, hint = [], _literal_hint(where.rpartition(":")[0], column, header=header)
    elif not commands and _is_corpus(fields):
        hint = "it looks like a corpus of BEIR: `--corpus` takes it, and the input is a run of its ids"
    elif program and (not commands or program[0] == _GOOD_AND_BAD):
        hint = f"{program[0]}: `{_jq(where.rpartition(':')[0], program[1])}` {program[2]}"
    elif not commands and _has_no_query(fields, names):
        command = _jq(where.rpartition(":")[0], '. + {query: "..."}')
        hint = f"no text in it could be the query: `{command}` puts one in"
    elif header:
        hint += "; the first line must hold the names of the columns"
    return InputError(f"{where}: {_what_is_missing(fields, names)}", hint=hint, commands=commands)


def _what_is_missing(fields: Mapping[str, Any], names: FieldNames) -> str:
    passages = lookup(fields, names.passages) if names.passages else None
    if isinstance(passages, list) and passages and isinstance(passages[0], Mapping) and names.text is None:
        return f"no text is known in the passages of `{names.passages}`: the first has {shown_names(passages[0])}"
    return f"neither a list of passages nor a passage: the row has {shown_names(fields)}"


_DEEPER = "the rows seem to lie deeper"
_GOOD_AND_BAD = "all of these lists may be candidates"
_GROUPS = "the passages stand in groups"
_IDS_OF_QUERIES = "it holds ids for each query id"
_BESIDE_COMMANDS = (_DEEPER, _GOOD_AND_BAD, _GROUPS, _IDS_OF_QUERIES)
"""Advice that gives way to commands, if these read a list of passages."""


def _program(fields: Mapping[str, Any], names: FieldNames) -> tuple[str, str, str] | None:
    """Why rows must be made of a document, the jq program that makes them, and what it does, in words."""
    lists = {path: value for path, value in _leaves(fields) if _kind_of_list(value)}

    def passage_text(passage: Mapping[str, Any]) -> str | None:
        path = _text_within(passage)
        return None if path is None else str(_one(lookup(passage, path)))

    def query_of(rest: Mapping[str, Any]) -> str | None:
        return names.query or _likeliest({name: one for name, one in rest.items() if isinstance(one, str)}, _QUERIES)

    found = (
        ("the table is written column by column", jq_programs.by_column(fields), "writes a row a line"),
        (
            _IDS_OF_QUERIES,
            jq_programs.by_query_id(fields),
            "makes rows of them, whose texts --queries and --corpus hold",
        ),
        (
            "the passages stand in numbered fields",
            jq_programs.numbered(fields, _text_within, query_of),
            "makes a list of them",
        ),
        (_DEEPER, _rows_within(fields), "takes them out"),
        (_GROUPS, jq_programs.in_groups(fields, passage_text), "makes one list of them"),
        (_GOOD_AND_BAD, jq_programs.good_and_bad(lists), "makes one list of them"),
    )
    words, program, end = next((one for one in found if one[1]), ("", "", ""))
    if program and words == _DEEPER and "to_entries" in program:
        words = "it holds a row for each key"
    return (words, program, end) if program else None


def _jq(file: str, program: str) -> str:
    quoted = shell_name(file)
    whole = f"(objects, arrays[]) | {program}"  # a document may be an array of what was looked at
    return f"jq -c {shlex.quote(whole)} {quoted} > {quoted}.jsonl"


def _text_within(passage: Mapping[str, Any]) -> str | None:
    """The path of the text of an object that is a passage; None where it has none."""
    inner = {path: one for path, value in _leaves(passage) if _is_words(one := _one(value))}
    return _likeliest({path: one for path, one in inner.items() if _last_name(path) not in _IDS}, _PASSAGES)


def _has_no_query(fields: Mapping[str, Any], names: FieldNames) -> bool:
    """Whether a row has passages, and no text beside them."""
    leaves = dict(_leaves(fields))
    texts = {path: value for path, value in leaves.items() if isinstance(value, str) and value}
    found = any(_last_name(path) not in (*_IDS, *_LABELS) for path in texts)
    return names.query is None and not found and any(map(_kind_of_list, leaves.values()))


def _python_list(fields: Mapping[str, Any]) -> str | None:
    """The field whose text is a list as Python prints it."""
    held = (name for name, value in fields.items() if isinstance(value, str) and _PYTHON_LIST.match(value))
    return next((name for name in held if opened_json(fields[name]) is None), None)


def _literal_hint(file: str, column: str, *, header: bool) -> str:
    """The command that makes JSON of such a column, where the file can be read; else words alone."""
    words = f"`{column}` holds a list as Python prints it; write it by json.dumps"
    path = Path(file)
    if path.suffix not in (".csv", ".tsv", ".jsonl", ".json") or not path.is_file():
        return words
    name, opened = jsonl.dump_value(column), f'open({jsonl.dump_value(file)}, newline="", encoding="utf-8-sig")'
    rows = f"map(json.loads, {opened})"
    if header:
        with path.open(encoding="utf-8-sig", errors="replace") as stream:
            line = stream.readline(100_000).strip()
        cells = {mark: [cell.strip('"') for cell in line.split(mark)] for mark in ",;\t|"}
        mark = next((mark for mark, found in cells.items() if len(found) > 1 and column in found), None)
        if mark is None:
            return words
        rows = f"csv.DictReader({opened}, delimiter={jsonl.dump_value(mark)})"
    change = f'row | {{{name}: ast.literal_eval(row[{name}] or "[]")}}'
    program = f"import ast, csv, json; csv.field_size_limit(10**9); [print(json.dumps({change})) for row in {rows}]"
    return f"{words}: `python3 -c {shlex.quote(program)} > {shlex.quote(file)}.jsonl`"


def commands_for(fields: Mapping[str, Any], names: FieldNames) -> list[list[str]]:
    """Sets of options, each of which would read a row: several where several lists could hold the passages."""
    first = suggested(fields, names)
    if "--passages-field" not in first:
        return [first] if first and not _is_corpus(fields) else []
    chosen = first[first.index("--passages-field") + 1]
    kind = _kind_of_list(lookup(fields, chosen))
    others = [path for path, value in _leaves(fields) if path != chosen and kind and _kind_of_list(value) == kind]
    more = [suggested(fields, names, only=path) for path in others if not _is_beside(path, lookup(fields, path))]
    return [first, *(options for options in more if "--passages-field" in options)][:_MOST_COMMANDS]


def commands_for_pair(fields: Mapping[str, Any], names: FieldNames) -> list[list[str]]:
    """Options that would read a row as a pair, as `commands_for`."""
    options = suggested(fields, names, only="")
    return [options] if options else []


def _is_beside(path: str, values: Sequence[Any]) -> bool:
    """Whether the name of a list of texts says that it holds ids, titles or addresses."""
    return isinstance(values[0], str) and bool(BELONGS.search(path.lower())) and not _TEXTS.search(path.lower())


def _is_corpus(fields: Mapping[str, Any]) -> bool:
    return {"_id", "text"} <= fields.keys() <= {"_id", "text", "title", "metadata"}


def _kind_of_list(value: Any) -> type | None:
    """The type of the entries of a list of texts or objects; None for any other value."""
    first = value[0] if isinstance(value, (list, tuple)) and value else None
    return type(first) if isinstance(first, (str, dict)) else None


def _rows_within(value: Any, path: str = "", depth: int = _DEPTH) -> str | None:
    """The program of jq that takes rows out of a document that holds them deeper down."""
    if isinstance(value, Mapping):
        if path and _is_row(value):
            return path
        entries = list(islice(value.values(), _FEW))
        if len(entries) > 1 and all(
            isinstance(one, Mapping) and (_is_row(one) or "--passages-field" in suggested(one, FieldNames()))
            for one in entries
        ):
            return f"{path or '.'} | to_entries[] | {{id: .key}} + .value"
    if not depth:
        return None
    if isinstance(value, Mapping):
        inner = ((f"{path or '.'}[{jsonl.dump_value(name)}]", one) for name, one in value.items())
        return next((found for at, one in inner if (found := _rows_within(one, at, depth - 1))), None)
    return _rows_within(value[0], f"{path}[]", depth - 1) if isinstance(value, list) and value else None


def _is_row(fields: Mapping[str, Any]) -> bool:
    """Whether an object is a row that can be read without options."""
    row = JsonRow("", 0, fields, b"")
    for shape in (ListShape(FieldNames()), FlatShape(FieldNames())):
        try:
            return bool(shape.read(row))
        except RowProblem:
            continue
    return any(kind.recognise(fields, FieldNames()) for kind in KINDS.values())


def suggested(fields: Mapping[str, Any], names: FieldNames, *, only: str | None = None) -> list[str]:
    """Options that would read a row; empty where none are found. only: the path of the one list to consider."""
    options = _guess_options(fields, names, only)
    pairs = zip(options[::2], options[1::2], strict=True)
    asked = replace(names, **{_FIELDS[option]: value for option, value in pairs if option in _FIELDS})
    shape: ListShape | FlatShape = FlatShape(asked) if asked.passages is None else ListShape(asked)
    if "--shape" in options:
        shape = KnownListShape(asked, known=next(one for one in KNOWN if one.name == "msmarco"))
    try:
        return options if options and shape.read(JsonRow("", 0, fields, b"")) else []
    except RowProblem:
        return []


_FIELDS = {"--query-field": "query", "--passages-field": "passages", "--text-field": "text", "--id-field": "id"}


def _guess_options(fields: Mapping[str, Any], names: FieldNames, only: str | None) -> list[str]:
    leaves = dict(_leaves(fields))
    texts = {path: value for path, value in leaves.items() if _is_words(value)}
    lists = {
        path: value
        for path, value in leaves.items()
        if isinstance(value, (list, tuple))
        and value
        and only in (None, path)
        and not _is_beside(path, value)
        and not _is_talk(value)
    }
    query = names.query or _query_of(texts, flat=not lists)
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
            inner = {at: one for at, value in _leaves(first) if _is_words(one := _one(value))}
            if (text := _text_within(first)) is None:
                continue
            short = {at: one for at, one in _leaves(first) if type(one) in (str, int) and len(str(one)) < 200}
            identity = _likeliest(short, _IDS, named=True)
            found = (len(inner[text]) + 10_000, path, text, [identity] if identity else [])
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
        return asked + (["--id-field", ids[0]] if ids and ids[0] not in ALIASES["passage_id"] else [])
    rest = {path: value for path, value in texts.items() if path != query and _last_name(path) not in _IDS}
    text = _likeliest(rest, _PASSAGES)
    return [*asked, "--text-field", text] if text else []


def _query_of(texts: Mapping[str, str], *, flat: bool) -> str | None:
    """The path of the text that is most likely the query; never that of an id, a model's name or another label."""
    named = {path: value for path, value in texts.items() if _last_name(path) not in (*_IDS, *_LABELS)}
    if flat and len(named) > 1 and not _likeliest(named, _QUERIES, named=True):
        return next(iter(named))  # of two texts without known names the query comes first, as `sentence1` does
    return _likeliest(named, _QUERIES)


_IN_STEP = "lists in step: "
_QUERIES = ("query", "question", "q", "user_input", "input", "search", "prompt", "claim", "topic", "title")
_PASSAGES = (
    "text", "passage", "contents", "content", "body", "document", "doc", "segment", "chunk", "abstract", "snippet",
    "description", "reference", "answer",
)  # fmt: skip
_SPEAKERS = ("user", "assistant", "system", "developer", "tool", "human", "ai")
_LABELS = ("model", "object", "type", "status", "namespace", "index", "collection", "url", "created", "version")
_IDS = ("id", "_id", "docid", "doc_id", "docno", "pid", "passage_id", "key", "uid", "uuid")


def _leaves(fields: Mapping[str, Any], before: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """The paths of a row down to texts, numbers and lists."""
    for name, value in fields.items():
        path = f"{before}{name}"
        if "," in path or not name or name != name.strip() or name.startswith("-"):
            continue  # no option could name it
        if isinstance(value, Mapping) and depth < 6:
            yield from _leaves(value, f"{path}.", depth + 1)
        else:
            opened = as_list(value)
            yield path, opened if isinstance(opened, list) else value


def _one(value: Any) -> Any:
    return value[0] if isinstance(value, (list, tuple)) and len(value) == 1 else value


def _is_words(value: object) -> bool:
    """Whether a value is a text that could be scored: neither empty nor a number."""
    return isinstance(value, str) and bool(value) and not _NUMBER.fullmatch(value)


def _last_name(path: str) -> str:
    return path.rpartition(".")[2].lower()


def _is_talk(value: Sequence[Any]) -> bool:
    """Whether a list holds the messages of a conversation."""
    first = value[0]
    return isinstance(first, Mapping) and "content" in first and (first.get("role") or first.get("type")) in _SPEAKERS


def _likeliest(values: Mapping[str, Any], words: Sequence[str], *, named: bool = False) -> str | None:
    """The path whose name is the earliest of `words`.

    Else, unless it must be `named`, one whose name contains a word, or else that of the longest text.
    """
    if not values:
        return None
    by_word = [path for word in words for path in values if _last_name(path) == word]
    near = [path for word in words for path in values if word in _last_name(path)]
    if by_word or (near and not named):
        return (by_word or near)[0]
    return None if named else max(values, key=lambda path: len(str(values[path])))
