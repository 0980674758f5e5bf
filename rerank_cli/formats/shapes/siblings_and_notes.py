"""What the first rows tell of an input: which lists go with the passages, entry by entry, and the notes for the user.

A list beside the passages is their sibling if it has as many entries as there are passages in each of the first rows,
and either that number differs from row to row or its name says that it belongs to them (`doc_ids`, `scores`). If
neither holds, nobody knows, and the input is refused with both commands. A list whose name says that it belongs, and
which is out of step in fewer than half of the rows, is a sibling too: those rows are bad. A known shape says itself
what is in step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from rerank_cli.errors import InputError
from rerank_cli.formats.choices import NO_IMAGES
from rerank_cli.formats.shapes.conversion import Conversion
from rerank_cli.formats.shapes.fields import ALIASES, RowProblem, as_list, field_paths, lookup, name_in_row, shown_names
from rerank_cli.formats.shapes.flat import FlatShape
from rerank_cli.formats.shapes.known_shape import KnownListShape
from rerank_cli.formats.shapes.lists import BELONGS, ListShape
from rerank_cli.formats.shapes.shape import OF_A_CUT, OWN_PREFIX, Grouped, Item, Shape, is_own_output
from rerank_cli.records import CandidateList, Gap, Row, RowError

_OURS = ("rank", "logit", "cosine", "index", *OF_A_CUT)


def settle_shape(shape: Shape, rows: Sequence[Row]) -> Shape:
    """`shape` with `siblings`, `told`, `title_told` and `reading` as its first rows tell them.

    `InputError` where they leave open which lists are in step, or have none of a field that the user names.
    """
    if not isinstance(shape, ListShape | FlatShape):
        return shape
    places = _places(shape, rows)
    if shape.names.id:
        _refuse_missing("--id-field", (shape.names.id,), [*places, *(row.fields for row in rows)], rows)
    if isinstance(shape, ListShape) and shape.names.group_by and rows:
        raise InputError(f"--group-by: the rows of {rows[0].file} are lists, and each is a group of its own")
    if shape.names.image not in (None, NO_IMAGES):
        _refuse_missing("--image-field", (shape.names.image_path,), places, rows)
    _check_joined_texts(shape.names.text, places, rows)
    if isinstance(shape, ListShape):
        shape = replace(shape, siblings=_siblings(shape, rows))
    title = _note_title(shape, places)
    reading = ", ".join(f"{role} `{path}`" for role, path in reading_of(shape, rows).items())
    told = (*_notes(shape, rows, reading, title), *shape.told)
    return replace(shape, told=told, title_told=title is not None, reading=reading)


# Siblings


def _siblings(shape: ListShape, rows: Sequence[Row]) -> tuple[str, ...]:
    """The paths of the lists that are in step: those that the user names, else as the head of this file says."""
    asked = shape.names.siblings
    if asked == "none":
        return ()
    if asked is not None:
        paths = field_paths(asked)
        _refuse_missing("--siblings", paths, [row.fields for row in rows], rows)
        return paths
    if isinstance(shape, KnownListShape):
        return () if shape.in_columns else shape.known.together
    counts = list(_counts(shape, rows))
    sure: list[str] = []
    for path in dict.fromkeys(path for _, lists in counts for path in lists):
        pairs = [(count, lists[path]) for count, lists in counts if path in lists]
        if max(count for count, _ in pairs) < 2:
            continue
        odd = sum(count != length for count, length in pairs)
        if odd:
            if odd * 2 < len(pairs) and BELONGS.search(path.lower()):
                sure.append(path)  # the rows where it is out of step are bad ones
            continue
        if len({count for count, _ in pairs}) > 1 or BELONGS.search(path.lower()):
            sure.append(path)
            continue
        passages = shape.passages_path(rows[0].fields)
        raise InputError(
            f"{rows[0].file}: `{path}` has as many entries as `{passages}`: does it belong to it?",
            hint="`--siblings` says which lists are brought in the same order",
            commands=[["--siblings", ",".join([*sure, path])], ["--siblings", ",".join(sure) or "none"]],
        )
    return tuple(sure)


def _refuse_missing(
    option: str, paths: Sequence[str], places: Sequence[Mapping[str, Any]], rows: Sequence[Row]
) -> None:
    """`InputError` for a field that the user names and none of the first rows has. places: where it may be."""
    gone = next((path for path in paths if rows and all(lookup(fields, path) is None for fields in places)), None)
    if gone is not None:
        has = shown_names(places[0]) if places else "no fields"
        raise InputError(f"{option} {gone}: none of the first {len(rows)} rows of {rows[0].file} has it: one has {has}")


def _check_joined_texts(text: str | None, places: Sequence[Mapping[str, Any]], rows: Sequence[Row]) -> None:
    """`InputError` where the last of several `--text-field` is in none of the first passages, which have another text.

    Otherwise the title alone would be scored.
    """
    paths = field_paths(text) if text else ()
    if len(paths) < 2 or not places or any(lookup(fields, paths[-1]) is not None for fields in places):
        return
    held = (name for name in ALIASES["passage"] if any(isinstance(fields.get(name), str) for fields in places))
    other = next((name for name in held if name not in paths), None)
    if other is not None and any(lookup(fields, path) is not None for fields in places for path in paths):
        raise InputError(
            f"--text-field {text}: none of the first {len(rows)} rows of {rows[0].file} has "
            f"`{paths[-1]}`: one has {shown_names(places[0])}",
            commands=[["--text-field", ",".join([*paths[:-1], other])]],
        )


def _lists_of_passages(shape: ListShape, rows: Sequence[Row]) -> Iterator[Sequence[Any]]:
    """The passages of each good row."""
    for row in rows:
        try:
            yield shape.passages_of(row)[1]
        except RowProblem:
            continue


def _places(shape: ListShape | FlatShape, rows: Sequence[Row]) -> list[Mapping[str, Any]]:
    """The user's objects that hold a passage each: those passages of lists that are objects, or flat rows."""
    if not isinstance(shape, ListShape):
        return [row.fields for row in rows]
    return [one for passages in _lists_of_passages(shape, rows) for one in passages if isinstance(one, Mapping)]


def _counts(shape: ListShape, rows: Sequence[Row]) -> Iterator[tuple[int, dict[str, int]]]:
    """For each good row the number of its passages, and the lengths of the lists beside them by path."""
    for row in rows:
        try:
            path, passages = shape.passages_of(row)
        except RowProblem:
            continue
        beside: Any = row.fields
        own, before = path, ""
        if "." in path and path not in row.fields:
            head, _, own = path.rpartition(".")
            beside, before = lookup(row.fields, head), f"{head}."
        if not isinstance(beside, Mapping):
            continue
        lists: dict[str, int] = {}
        for name, value in beside.items():
            if name == own:
                continue
            if isinstance(value, (list, tuple)):
                lists[f"{before}{name}"] = len(value)
            elif isinstance(value, Mapping) and value and all(isinstance(one, list) for one in value.values()):
                lists |= {f"{before}{name}.{inner}": len(one) for inner, one in value.items()}
        yield len(passages), lists


# Notes for the user, each given once


def _notes(shape: ListShape | FlatShape, rows: Sequence[Row], reading: str, title: str | None) -> Iterator[str]:
    """How the rows are read, the note about titles, and which of the user's fields are renamed."""
    if isinstance(shape, KnownListShape):
        yield f"read as {shape.known.name} ({shape.known.of}): {reading}"
    if isinstance(shape, ListShape) and shape.siblings:
        yield "in step with the passages: " + ", ".join(f"`{path}`" for path in shape.siblings)
    if title is not None:
        yield title
    if isinstance(shape, FlatShape):
        again = is_own_output([row.fields for row in rows[:1]])
    else:
        again = any(map(is_own_output, _lists_of_passages(shape, rows)))
    in_rows = isinstance(shape, KnownListShape) and shape.in_columns
    places = [row.fields for row in rows] if in_rows else _places(shape, rows)
    own = [name for name in _OURS if any(name in one for one in places)]
    own = [name for name in own if name != "cosine" or "logit" not in own]
    if own and not again:
        kept = ", ".join(f"`{name}` as `{OWN_PREFIX}{name}`" for name in own)
        yield f"the input has fields of our names, which are kept: {kept}"


def _titles_of(shape: ListShape | FlatShape) -> tuple[str, ...]:
    """The paths of titles that are not read; none where the user asked for a title, or was told of one already."""
    titles = shape.known.title if isinstance(shape, KnownListShape) else ("title",)
    asked = field_paths(shape.names.text) if shape.names.text else ()
    return () if shape.title_told or "title" in asked or any(title in asked for title in titles) else titles


def _note_title(shape: ListShape | FlatShape, passages: Iterable[Mapping[str, Any]]) -> str | None:
    """The note about a title in these passages that is not read, if there is one."""
    for title in _titles_of(shape):
        held = next((one for one in passages if lookup(one, title)), None)
        if held is not None:
            return _title_in_words(title, shape, held)
    return None


def _title_in_words(title: str, shape: ListShape | FlatShape, held: Mapping[str, Any]) -> str:
    """The note about a title that is not read. held: the fields of a passage, one of which is its text."""
    text = shape.names.text or ("text" if isinstance(shape, ListShape) else name_in_row(held, "passage"))
    return f"passages have a `{title}`, which is not read: `--text-field title,{field_paths(text)[-1]}` reads it"


def with_titles_of_table(shape: Shape, fields: Callable[[], set[str]]) -> Shape:
    """`shape`, with a note about a title that its first rows did not have. fields: gives those with any value."""
    if not isinstance(shape, ListShape | FlatShape) or not (titles := _titles_of(shape)):
        return shape
    held = dict.fromkeys(fields(), "a text")
    for title in titles:
        if title in held if isinstance(shape, FlatShape) else any(name.endswith(f".{title}") for name in held):
            return replace(shape, told=(*shape.told, _title_in_words(title, shape, held)), title_told=True)
    return shape


def tell_of_late_titles(lists: Iterable[Grouped], shape: Shape, tell: Callable[[str], None]) -> Iterator[Grouped]:
    """`lists`, unchanged; `tell` gets a note about the first title that is not read and was not in the first rows."""
    own = shape.source if isinstance(shape, Conversion) else shape
    found = iter(lists)
    if isinstance(own, ListShape | FlatShape) and _titles_of(own):
        for one in found:
            yield one
            if isinstance(one, CandidateList) and (note := _note_title(own, _places(own, one.rows))):
                tell(note)
                break
    yield from found


def reading_of(shape: Shape, rows: Sequence[Row]) -> dict[str, str]:
    """Which field is read for which role, by the first good row."""
    if isinstance(shape, KnownListShape):
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


def good_rows(rows: Iterable[Item]) -> list[Row]:
    """The good rows among these."""
    return [row for row in rows if not isinstance(row, (RowError, Gap))]
