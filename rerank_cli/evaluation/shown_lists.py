"""The lists of a few queries with their texts, for people to look at: reads files that were measured a second time.

The first reading keeps numbers only, as there may be a hundred thousand queries. What is shown is cut: the first
passages of both orders, and the beginning of each text.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rerank_cli.evaluation.reranked_file import RerankedFile
from rerank_cli.evaluation.systems import Grades
from rerank_cli.formats.inputs import ReadOptions, can_be_reread, resolve_inputs
from rerank_cli.formats.shapes import FieldNames

PASSAGES = 5
CHARACTERS = 200


def lists_of(
    path: str, wanted: Collection[str], grades: Grades, *, names: FieldNames, in_format: str = "auto"
) -> dict[str, dict[str, Any]]:
    """The text of each wanted query, and the first passages of its given and its new order.

    Empty for a file that can be read only once, such as a pipe.
    """
    inputs = resolve_inputs([path], in_format)
    if not wanted or not can_be_reread(inputs):
        return {}
    file = RerankedFile(inputs, names, ReadOptions(), texts=True)
    found: dict[str, dict[str, Any]] = {}
    for item in file.lists(lambda query: query in wanted, lambda error: None):
        if item.query not in wanted or item.query in found:
            continue
        text = next((one.query for one in item.reranked if one.query), "")
        texts = {one.id: one.text for one in reversed(item.reranked)}  # of a repeated id, the first
        given = None if item.given is None else [one.id for one in item.given]
        new = [one.id for one in item.reranked]
        found[item.query] = show_list(text, given, new, texts, grades.get(item.query, {}))
        if len(found) == len(wanted):
            break
    return found


def show_list(
    text: str,
    given: Sequence[str | None] | None,
    new: Sequence[str | None],
    texts: Mapping[str | None, str | None],
    grades: Mapping[str, int],
) -> dict[str, Any]:
    """What is shown of a list: the query's text, and the first passages of both orders.

    Args:
        text: Of the query.
        given: Passage ids in the given order; None where it is not known.
        new: Passage ids in the new order.
        texts: Of the passages, by id.
        grades: Of the passages that are judged, by id.
    """
    given_places, new_places = None if given is None else _places_by_id(given), _places_by_id(new)

    def first_passages(order: Mapping[str | None, int], other: Mapping[str | None, int] | None) -> list[dict[str, Any]]:
        return [
            {
                "id": name,
                "text": _shorten(texts.get(name) or "") or None,
                "grade": None if name is None else grades.get(name),
                "place": None if other is None else other.get(name),
            }
            for name in list(order)[:PASSAGES]
        ]

    return {
        "text": _shorten(text) or None,
        "given": None if given_places is None else first_passages(given_places, new_places),
        "new": first_passages(new_places, given_places),
    }


def _shorten(text: str) -> str:
    """The beginning of a text, on one line."""
    line = " ".join(text[: 4 * CHARACTERS].split())
    return line if len(line) <= CHARACTERS else line[: CHARACTERS - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _places_by_id(names: Sequence[str | None]) -> dict[str | None, int]:
    places: dict[str | None, int] = {}
    for name in names:
        places.setdefault(name, len(places) + 1)
    return places
