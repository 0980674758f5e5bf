"""A look at the first rows before anything is opened for writing: without a row of the shape the run ends here.

The look ends at the first row that has the shape, so most files cost one row. It goes through 100 rows at most, and
never waits: where a live input pauses, what it has is scored. Rows that were looked at are not lost.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain

from rerank_cli.errors import InputError
from rerank_cli.formats.compression import is_regular, open_input
from rerank_cli.formats.first_bytes import HEAD_BYTES, KNOWN_FIELDS, Description, describe
from rerank_cli.formats.shapes import FIRST_ROWS, Item, PairShape, Shape, commands_for, commands_for_pair
from rerank_cli.formats.shapes.fields import lacks_a_value
from rerank_cli.records import CandidateList, Gap, RowError

_OF_ANOTHER_SHAPE = ("missing-field", "bad-run-line")


def look_at(items: Iterator[Item], shape: Shape) -> Iterator[Item]:
    """`items`, all of them; `InputError` where none of the first rows has the shape."""
    seen: list[Item] = []
    first: RowError | None = None
    rows = 0
    for item in items:
        seen.append(item)
        if item is Gap.IDLE:
            break
        if item is Gap.BLANK:
            continue
        rows += 1
        error = _error_of(item, shape)
        if error is None:
            break
        first = first or error
        if rows == FIRST_ROWS:
            raise no_rows_error(first, rows, shape)
    else:
        if first is not None:
            raise no_rows_error(first, rows, shape)
    return chain(seen, items)


def look_later(items: Iterator[Item], shape: Shape) -> Iterator[Item]:
    """As `look_at`, but the look waits until the first row is asked for."""
    yield from look_at(items, shape)


def _error_of(item: Item, shape: Shape) -> RowError | None:
    """Why a row does not have the shape; None for one that does, even if it cannot be scored."""
    if isinstance(item, RowError):
        return item
    errors = []
    for found in shape.group([item]):
        if isinstance(found, CandidateList):
            return None
        if isinstance(found, RowError):
            errors.append(found)
    other = (error for error in errors if error.code in _OF_ANOTHER_SHAPE)
    return next((error for error in other if not lacks_a_value(error.message, KNOWN_FIELDS)), None)


def no_rows_error(first: RowError, rows: int, shape: Shape | None = None) -> InputError:
    """The failure of a file in which no row was found.

    Args:
        first: The first bad row.
        rows: How many rows were looked at.
        shape: The shape that was expected.
    """
    count = "its only row cannot be read" if rows == 1 else f"none of its first {rows} rows can be read"
    if isinstance(shape, PairShape) and _has_a_list(first.raw):
        looks = Description("lists of passages", "`score` takes a pair a row; `rerank-cli rerank-file` takes lists")
    elif first.code == "missing-field":  # what was read is a row: its format is right
        looks = Description("JSON lines")
    else:
        head = first.raw  # of a pipe only the row itself is left to look at
        if is_regular(first.file):
            with suppress(InputError), open_input(first.file) as stream:
                head = stream.read(HEAD_BYTES)
        looks = describe(head, first.file)
    like = f", and it looks like {looks.words}" if looks.words != "JSON lines" else ""
    commands = []
    if first.code == "missing-field" and shape is not None:
        fields = json.loads(first.raw)
        if not isinstance(shape, PairShape):
            commands = commands_for(fields, shape.names)
        elif looks.words == "JSON lines":
            commands = commands_for_pair(fields, shape.names)
    return InputError(
        f"{first.file}:{first.row}: {first.message} ({count}{like}); nothing was replaced",
        hint=looks.hint,
        commands=commands,
    )


def _has_a_list(raw: bytes) -> bool:
    """Whether a row has a field that could be a list of passages."""
    try:
        fields = json.loads(raw)
    except ValueError:
        return False
    return isinstance(fields, dict) and any(
        isinstance(value, list) and value and isinstance(value[0], (str, dict)) for value in fields.values()
    )
