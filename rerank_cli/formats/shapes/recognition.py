"""All shapes, and how the first rows of a file tell its shape.

To add a shape, add an entry to the table of `other_programs.py`. A shape that writes a form of its own is a file beside
this one and an entry in `SHAPES`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rerank_cli.errors import InputError, UsageError
from rerank_cli.formats.choices import NO_TEXTS, FieldNames
from rerank_cli.formats.shapes.cohere import COHERE
from rerank_cli.formats.shapes.fields import RowProblem, lacks_a_value
from rerank_cli.formats.shapes.flat import FLAT, has_passage
from rerank_cli.formats.shapes.jq_programs import by_column
from rerank_cli.formats.shapes.known_shape import ALL_NAMES, KINDS
from rerank_cli.formats.shapes.lists import LIST, has_list
from rerank_cli.formats.shapes.nim import NIM
from rerank_cli.formats.shapes.openai_batch import OPENAI_BATCH
from rerank_cli.formats.shapes.shape import Item, Kind, ReadsRows
from rerank_cli.formats.shapes.suggestions import no_shape_error, suggested
from rerank_cli.formats.shapes.tei import TEI
from rerank_cli.formats.shapes.trec import TREC
from rerank_cli.records import Gap, JsonRow, Passage

SHAPES: dict[str, Kind] = {kind.name: kind for kind in (LIST, FLAT, NIM, COHERE, TEI, OPENAI_BATCH, TREC)}
"""The shapes in which rows can be read and written, by name."""

READABLE: dict[str, Kind] = {**SHAPES, **ALL_NAMES}
"""All that `--shape` knows: those of other programs too, which are written only for rows that were read in them."""

FIRST_ROWS = 100
"""The most rows at the start of an input that are looked at, for its shape and for what the user is told."""

_FIRST_BYTES = 32 * 2**20
_SURE = 2


def kind_of(name: str, option: str) -> Kind:
    """The shape with this name; `UsageError` naming `option` where there is none."""
    known = SHAPES if option == "--out-format" else READABLE
    if name not in known:
        raise UsageError(f"{option} {name}: not known", hint="known are auto, " + ", ".join(known))
    return known[name]


def detect_shape(columns: Iterable[str], names: FieldNames) -> Kind | None:
    """The shape of a table with these columns: a list of passages, one passage, or neither (None)."""
    present = set(columns)
    if has_list(present, names):
        return LIST
    return FLAT if has_passage(present, names) else None


def recognise(rows: Iterator[Item], seen: list[Item], names: FieldNames, *, stop: int | None = None) -> Kind | None:
    """The shape that the first rows share; None where no row has any. Rows that were read are added to `seen`.

    Rows that fit no shape do not count: they will be bad rows. `InputError` for a mixture, with the rows' numbers.
    stop: how many rows the run reads; no more are looked at.
    """
    most = FIRST_ROWS if stop is None else min(stop, FIRST_ROWS)
    if most < 1:
        return None
    first: JsonRow | None = None
    problems: list[JsonRow] = []
    possible = dict.fromkeys((*SHAPES, *KINDS), 0)
    size = 0
    for row in rows:
        seen.append(row)
        if isinstance(row, JsonRow) and (found := _possible(row.fields, names)):
            problems.append(row)
            # A row that no shape claims (its texts are null) takes away no shape that another row claims.
            if first is None or _SURE in found.values() or _SURE not in possible.values():
                if _SURE not in possible.values() and _SURE in found.values():
                    possible = found
                left = {name: max(sure, found[name]) for name, sure in possible.items() if name in found}
                if not left:
                    raise _mixture(first or row, row, names)
                first, possible = first or row, left
        size += 0 if isinstance(row, Gap) else len(row.raw)
        if (row is Gap.IDLE and first is not None) or len(seen) >= most or size >= _FIRST_BYTES:
            break
    if first is None:
        return None
    return _one_reading(possible, problems, names)


def _possible(fields: Mapping[str, Any], names: FieldNames) -> dict[str, int]:
    if by_column(fields):  # a whole table, whose fields only look like those of a request
        return {}
    found = {name: kind.recognise(fields, names) for name, kind in (*SHAPES.items(), *KINDS.items())}
    return {name: sure for name, sure in found.items() if sure}


def _in_order(possible: Mapping[str, int]) -> list[str]:
    """The shapes that could be meant, best first.

    Those that a row certainly has come first. Of several the later in `SHAPES` is more special; those of other programs
    come after all of them.
    """
    rank = {name: place for place, name in enumerate(reversed(SHAPES))}
    rank |= {name: len(rank) + place for place, name in enumerate(KINDS)}
    return sorted(possible, key=lambda name: (possible[name] != _SURE, rank[name]))


def _one_reading(possible: Mapping[str, int], rows: Sequence[JsonRow], names: FieldNames) -> Kind:
    """The shape that the rows have; `InputError` where two read different texts, or one finds two fields for a role."""
    in_order = _in_order(possible)
    sure = [name for name in in_order if possible[name] == _SURE]
    best = READABLE[in_order[0]]
    if best.texts or best.name == "trec":
        return best
    readings = {name: [_read(READABLE[name], row, names) for row in rows] for name in sure if not READABLE[name].texts}
    own = readings.keys() <= {"list", "flat", *KINDS}  # a request says by its shape where its fields are
    readable = next((name for name, found in readings.items() if any(found)), best.name)
    if own or readable not in ("list", "flat"):  # requests stay requests where each has a null text
        best = READABLE[readable]
    ids = next((READABLE[name] for name in sure if READABLE[name].texts), None)
    if ids is not None and not any(map(any, readings.values())):
        return ids
    unread = own and readings and not any(map(any, readings.values()))
    if unread and not _is_null_alone(best, rows[0], names) and suggested(rows[0].fields, names):
        raise no_shape_error(f"{rows[0].file}:{rows[0].number}", rows[0].fields, names)
    for name, found in readings.items():
        for row, ours, theirs in zip(rows, readings[best.name], found, strict=True):
            if ours is not None and theirs is not None and ours != theirs:
                raise InputError(
                    f"{row.file}:{row.number}: two readings are possible, as {best.name} and as {name}: "
                    f"{_difference(ours, theirs)}",
                    hint="say which one is meant",
                    commands=[["--shape", best.name], ["--shape", name]],
                )
    return best


def _read(kind: Kind, row: JsonRow, names: FieldNames) -> tuple[str, tuple[Passage, ...]] | None:
    """Query and passages that a shape reads in a row; None where it cannot read it."""
    shape = kind.open(names, NO_TEXTS)
    try:
        found = shape.read(row) if isinstance(shape, ReadsRows) else None
    except RowProblem as problem:
        if problem.commands:
            raise InputError(
                f"{row.file}:{row.number}: {problem}", hint="say which one is meant", commands=problem.commands
            ) from problem
        return None
    return None if found is None else (found.query, found.passages)


def _is_null_alone(kind: Kind, row: JsonRow, names: FieldNames) -> bool:
    """Whether a row can be read, or could be if its null fields had values."""
    shape = kind.open(names, NO_TEXTS)
    try:
        return isinstance(shape, ReadsRows) and bool(shape.read(row))
    except RowProblem as problem:
        return lacks_a_value(str(problem))


def _difference(ours: tuple[str, tuple[Passage, ...]], theirs: tuple[str, tuple[Passage, ...]]) -> str:
    pairs = [("query", ours[0], theirs[0]), ("passage", *(next(iter(one[1]), "") for one in (ours, theirs)))]
    what, one, two = next((pair for pair in pairs if pair[1] != pair[2]), pairs[-1])
    return f"the {what} is {_excerpt(one)} or {_excerpt(two)}"


def _excerpt(text: Passage) -> str:
    shown = text if isinstance(text, str) else text.text
    return f"`{shown[:40]}`" + ("..." if len(shown) > 40 else "")


def _mixture(first: JsonRow, other: JsonRow, names: FieldNames) -> InputError:
    one, two = (_in_order(_possible(row.fields, names))[0] for row in (first, other))
    return InputError(
        f"{other.file}:{other.number}: a row of the shape {two} among rows of the shape {one} "
        f"({first.file}:{first.number})",
        hint=f"`--shape {one}` makes rows of other shapes bad rows; or give each shape a file of its own",
    )
