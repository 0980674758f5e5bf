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
        of_query = grades.get(item.query, {})
        texts = {one.id: one.text for one in reversed(item.reranked)}  # of a repeated id, the first
        new = [one.id for one in item.reranked]
        given = None if item.given is None else [one.id for one in item.given]
        found[item.query] = {
            "text": next((shortened(one.query) for one in item.reranked if one.query), None),
            "given": None if given is None else first_passages(given, texts, new, of_query),
            "new": first_passages(new, texts, given, of_query),
        }
        if len(found) == len(wanted):
            break
    return found


def shortened(text: str, most: int = CHARACTERS) -> str:
    """The beginning of a text, on one line."""
    line = " ".join(text[: 4 * most].split())
    return line if len(line) <= most else line[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"


def first_passages(
    names: Sequence[str | None],
    texts: Mapping[str | None, str | None],
    other_order: Sequence[str | None] | None,
    grades: Mapping[str, int],
) -> list[dict[str, Any]]:
    """The first passages of an order, with the place of each in `other_order`, which is None where it is not known."""
    elsewhere = None if other_order is None else _places_by_id(other_order)
    return [
        {
            "id": name,
            "text": shortened(texts.get(name) or "") or None,
            "grade": None if name is None else grades.get(name),
            "place": None if elsewhere is None else elsewhere.get(name),
        }
        for name in list(_places_by_id(names))[:PASSAGES]
    ]


def _places_by_id(names: Sequence[str | None]) -> dict[str | None, int]:
    places: dict[str | None, int] = {}
    for name in names:
        places.setdefault(name, len(places) + 1)
    return places
