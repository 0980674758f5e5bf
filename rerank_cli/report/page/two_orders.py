"""Sections about two orders, for the pages of a run and of `evaluate`: changes by query, lists, scores, moves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rerank_cli.report.page import Document, charts, curves
from rerank_cli.report.page.wording import number, percent, plural, signed


def change_section(found: Document | None, metric: str, queries: tuple[int, int, int]) -> dict[str, Any] | None:
    """The change of each query, as sorted bars. queries: how many are better, worse and the same."""
    if not found:
        return None
    better, worse, same = map(number, queries)
    counts = f"{better} better, {worse} worse, {same} the same"
    many = found["queries"] > len(found["bars"])
    return {
        "metric": metric,
        "told": counts,
        "chart": curves.changes(found["bars"], label=f"changes of {metric} by query: {counts}"),
        "note": f"A bar is the mean of {number(found['queries'] / len(found['bars']))} queries." if many else "",
    }


def lists_section(
    metric: str, best: Sequence[Mapping[str, Any]], worst: Sequence[Mapping[str, Any]]
) -> dict[str, Any] | None:
    """The queries that gained and lost most, with the first passages before and after."""
    kinds = [
        {
            "title": title,
            "queries": [
                lists_of_query(one, (("before", one.get("given")), ("after", one.get("new"))), moves=True)
                for one in found
            ],
        }
        for title, found in (("gained most", best), ("lost most", worst))
        if found
    ]
    return {"metric": metric, "kinds": kinds} if kinds else None


def lists_of_query(
    one: Mapping[str, Any], columns: Sequence[tuple[str, Sequence[Mapping[str, Any]] | None]], *, moves: bool = False
) -> dict[str, Any]:
    """A query with its lists side by side.

    Args:
        one: The query, and how its measure changed.
        columns: The title of each list, and its passages, None where they are not known.
        moves: The columns are `before` and `after`, and show how each passage moved.
    """
    change = one.get("change")
    return {
        "id": one["query"],
        "text": one.get("text") or "",
        "change": "" if change is None else signed(change),
        "rose": (change or 0) >= 0,
        "columns": [
            {
                "title": title,
                "passages": [_passage(each, place, title if moves else "") for place, each in enumerate(found, 1)],
            }
            for title, found in columns
            if found is not None
        ],
    }


def _passage(one: Mapping[str, Any], place: int, column: str) -> dict[str, Any]:
    """A passage of a list. column: `before` and `after` also tell how it moved between both orders."""
    grade, other = one.get("grade"), one.get("place")
    moved = ""
    if column and other not in (None, place):
        arrow = f"{'↑' if other > place else '↓'} {abs(other - place)}"
        moved = arrow if column == "after" else f"now {other}"
    return {
        "place": place,
        "text": one.get("text") or one.get("id") or "",
        "id": one.get("id") if one.get("text") else "",
        "relevant": grade is not None and grade > 0,
        "grade": "not judged" if grade is None else f"grade {grade}",
        "moved": moved,
    }


def relevance_section(found: Document | None, score: str = "score") -> dict[str, Any] | None:
    """The scores of relevant passages and of the others."""
    if not found:
        return None
    relevant, others = sum(found["relevant"]), sum(found["others"])
    words = ("relevant", "others")
    return {
        "score": score,
        "told": f"{number(relevant)} relevant passages above, {number(others)} others below the line; a bar is a share "
        "of its kind",
        "chart": curves.two_kinds(
            found["relevant"], found["others"], found["begin"], found["width"], words=words,
            label=f"the {score} of {number(relevant)} relevant passages and of {number(others)} others",
        ),
    }  # fmt: skip


def moves_section(found: Sequence[Document] | None) -> dict[str, Any] | None:
    """How far passages moved."""
    if not found:
        return None
    whole = sum(one["up"] + one["down"] for one in found) or 1
    rows = []
    for one in found:
        count, first, last = one["up"] + one["down"], one["from"], one["to"]
        if not count:
            continue
        places = f"{first} place{'s' * (first > 1)}" if first == last else f"{first}\N{EN DASH}{last} places"
        if last == 0:
            places = "stayed"
        elif last is None:
            places = f"{first} places and more"
        told = f"{plural(count, 'passage')}, {percent(count / whole)}"
        rows.append((places, charts.meter(count / whole, "bar", label=told), percent(count / whole)))
    return {"rows": rows}
