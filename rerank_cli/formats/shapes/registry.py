"""All shapes, and how the shape of a file is told by its first rows.

A new shape is a file beside this one and a row in `SHAPES`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rerank_cli.errors import InputError, UsageError
from rerank_cli.formats.choices import FieldNames
from rerank_cli.formats.shapes.cohere import COHERE
from rerank_cli.formats.shapes.flat import FLAT, has_passage
from rerank_cli.formats.shapes.lists import LIST, has_list
from rerank_cli.formats.shapes.nim import NIM
from rerank_cli.formats.shapes.openai_batch import OPENAI_BATCH
from rerank_cli.formats.shapes.shape import Item, Kind
from rerank_cli.formats.shapes.trec import TREC
from rerank_cli.records import Gap, JsonRow

SHAPES: dict[str, Kind] = {kind.name: kind for kind in (LIST, FLAT, NIM, COHERE, OPENAI_BATCH, TREC)}
"""By name."""

_FIRST_ROWS = 100
_FIRST_BYTES = 32 * 2**20
_SURE = 2


def kind_of(name: str, option: str) -> Kind:
    """The shape with this name; `UsageError` naming `option` where there is none."""
    if name not in SHAPES:
        raise UsageError(f"{option} {name}: not known", hint="known are auto, " + ", ".join(SHAPES))
    return SHAPES[name]


def detect_shape(columns: Iterable[str], names: FieldNames) -> Kind | None:
    """The shape of a table with these columns: a list of passages, one passage, or neither (None)."""
    present = set(columns)
    if has_list(present, names):
        return LIST
    return FLAT if has_passage(present, names) else None


def recognise(rows: Iterator[Item], seen: list[Item], names: FieldNames, *, stop: int | None = None) -> Kind | None:
    """The shape that the first rows have in common, or None where none has any; what was read is added to `seen`.

    Rows that no shape fits do not count: they will be bad rows. `InputError` for a mixture, with the rows' numbers.
    stop: how many rows may be looked at, where the run reads no more.
    """
    most = _FIRST_ROWS if stop is None else min(stop, _FIRST_ROWS)
    if most < 1:
        return None
    first: JsonRow | None = None
    possible = dict.fromkeys(SHAPES, 0)
    size = 0
    for row in rows:
        seen.append(row)
        if isinstance(row, JsonRow) and (found := _possible(row.fields, names)):
            left = {name: max(sure, found[name]) for name, sure in possible.items() if name in found}
            if not left:
                raise _mixture(first or row, row, names)
            first, possible = first or row, left
        size += 0 if isinstance(row, Gap) else len(row.raw)
        if (row is Gap.IDLE and first is not None) or len(seen) >= most or size >= _FIRST_BYTES:
            break
    if first is None:
        return None
    return _best(possible)


def _possible(fields: Mapping[str, Any], names: FieldNames) -> dict[str, int]:
    found = {name: kind.recognise(fields, names) for name, kind in SHAPES.items()}
    return {name: sure for name, sure in found.items() if sure}


def _best(possible: Mapping[str, int]) -> Kind:
    """Of several shapes one that some row claims for itself; the latest row of the registry knows most."""
    return SHAPES[max(possible, key=lambda name: (possible[name] == _SURE, list(SHAPES).index(name)))]


def _mixture(first: JsonRow, other: JsonRow, names: FieldNames) -> InputError:
    one, two = (_best(_possible(row.fields, names)).name for row in (first, other))
    return InputError(
        f"{other.file}:{other.number}: a row of the shape {two} among rows of the shape {one} "
        f"({first.file}:{first.number})",
        hint=f"`--shape {one}` makes rows of other shapes bad rows; or give each shape a file of its own",
    )
