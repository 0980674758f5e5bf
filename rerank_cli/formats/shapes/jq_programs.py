"""Programs of jq that turn a document of another arrangement into rows; the refusal of such a document shows one.

Each function looks at the first object of a file and returns the program that takes rows out of it, or None. The rows
that it makes are read, or refused with the options that read them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rerank_cli.formats import jsonl

_DEPTH = 4  # levels below the top at which rows are looked for
_ASKED = frozenset(("query", "question", "user_input"))
_NUMBERED = re.compile(r"(.+?)\.(\d+)\.(.+)")
_GOOD = re.compile(r"(^|_)pos(itives?)?(_|$)")
_BAD = re.compile(r"(^|_)neg(atives?)?(_|$)")


def by_column(fields: Mapping[str, Any]) -> str | None:
    """For a table that is written column by column.

    It may be as pandas writes it by default (`{"query": {"0": ...}, ...}`), lists of one length, or names and values
    apart.
    """
    rows = fields["data"] if {"columns", "data"} <= fields.keys() <= {"columns", "data", "index"} else None
    if isinstance(rows, list) and rows and isinstance(rows[0], list):
        return ".columns as $names | .data[] | [$names, .] | transpose | map({(.[0]): .[1]}) | add"
    lengths = {len(value) if isinstance(value, list) else -1 for value in fields.values()}
    if _ASKED.intersection(fields) and len(lengths) == 1 and min(lengths) > 0:
        name = jsonl.dump_value(next(iter(fields)))
        return f". as $all | range(.[{name}] | length) as $row | $all | map_values(.[$row])"
    first = next(iter(fields.values()), None)
    if len(fields) < 2 or not isinstance(first, Mapping) or not first or not all(map(str.isdecimal, first)):
        return None
    if not all(isinstance(value, Mapping) and value.keys() == first.keys() for value in fields.values()):
        return None
    name = jsonl.dump_value(next(iter(fields)))
    return f". as $all | .[{name}] | keys_unsorted[] as $row | $all | map_values(.[$row])"


def by_query_id(value: Any, path: str = "", depth: int = _DEPTH) -> str | None:
    """For results as BEIR and MTEB write them: an object of ids and scores (or a list of ids) for each query id."""
    if not isinstance(value, Mapping) or not value:
        return None
    entries = list(value.values())
    if all(isinstance(entry, Mapping) and entry and all(map(_is_number, entry.values())) for entry in entries):
        inner = '.key as $query | .value | to_entries[] | {"query-id": $query, "corpus-id": .key, score: .value}'
        return f"{path or '.'} | to_entries[] | {inner}"
    if all(_is_list_of_ids(entry) for entry in entries) and value.keys().isdisjoint(("query", "query-id")):
        return f'{path or "."} | to_entries[] | {{"query-id": .key, "corpus-ids": .value}}'
    if not depth:
        return None
    within = (by_query_id(one, f"{path or '.'}[{jsonl.dump_value(name)}]", depth - 1) for name, one in value.items())
    return next(filter(None, within), None)


def in_groups(fields: Mapping[str, Any], text_of: Callable[[Mapping[str, Any]], str | None]) -> str | None:
    """For passages in groups: their lists are joined. text_of: gives the text of an object, if it has one."""
    found = max(_lists_within(fields, "", _DEPTH * 3, text_of), default=(0, ""))[1]
    return f". + {{passages: [{found}]}}" if found.count("[]") > 1 else None


def _lists_within(
    value: Any, path: str, depth: int, text_of: Callable[[Mapping[str, Any]], str | None]
) -> Iterator[tuple[int, str]]:
    """(length of the first text, path) of each list of objects that have a text."""
    if isinstance(value, Mapping):
        for name, one in value.items():
            if depth and isinstance(one, (Mapping, list)):
                yield from _lists_within(one, f"{path or '.'}[{jsonl.dump_value(name)}]", depth - 1, text_of)
    elif isinstance(value, list) and value and isinstance(value[0], Mapping):
        if path and (text := text_of(value[0])) is not None:
            yield len(text), f"{path}[]"
        if depth:
            yield from _lists_within(value[0], f"{path}[]", depth - 1, text_of)


def numbered(
    fields: Mapping[str, Any],
    likeliest_text: Callable[[Mapping[str, Any]], str | None],
    likeliest_query: Callable[[Mapping[str, Any]], str | None],
) -> str | None:
    """For a list that is spread over numbered fields: `documents.0.content`, `documents.1.content`."""
    lists: dict[str, dict[str, Any]] = {}
    rest = {}
    for name, value in fields.items():
        if (found := _NUMBERED.fullmatch(name)) is None:
            rest[name] = value
        elif found[3] not in lists.setdefault(found[1], {}):
            lists[found[1]][found[3]] = value
    for before, entries in lists.items():
        text, query = likeliest_text(entries), likeliest_query(rest)
        if text is None or query is None:
            continue
        ends = {"text": text, **{name: end for end in entries if (name := end.rpartition(".")[2]) in ("id", "title")}}
        start, end = jsonl.dump_value(f"{before}."), jsonl.dump_value(f".{text}")
        passage = ", ".join(f"{name}: $row[$at + {jsonl.dump_value(f'.{end}')}]" for name, end in ends.items())
        taken = f"keys_unsorted[] | select(startswith({start}) and endswith({end})) | rtrimstr({end}) as $at"
        kept = f"with_entries(select(.key | startswith({start}) | not))"
        return f". as $row | {kept} + {{query: .[{jsonl.dump_value(query)}], passages: [{taken} | {{{passage}}}]}}"
    return None


def good_and_bad(lists: Mapping[str, Any]) -> str | None:
    """For training rows, with a list of good passages and lists of bad ones: all of them are candidates."""
    good = [path for path in lists if _GOOD.search(path.lower()) and "." not in path]
    bad = [path for path in lists if _BAD.search(path.lower()) and "." not in path]
    if len(good) != 1 or not bad:
        return None
    return f". + {{passages: [{', '.join(f'.[{jsonl.dump_value(path)}][]' for path in (*good, *bad))}]}}"


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_list_of_ids(value: object) -> bool:
    if not isinstance(value, list) or not value:
        return False
    return all(isinstance(one, str) and len(one) < 100 and len(one.split()) == 1 for one in value)
