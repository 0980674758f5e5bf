"""A verdict in words: one exact sentence for each, and three lines on top for people who never heard of p-values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

_DEPTHS = (5, 10, 20, 50, 100)


def shown_depths(use: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The rows of the depth curve that people are shown: a few round depths, and the last."""
    curve = use["depths"]
    return [one for one in curve if one["depth"] in (*_DEPTHS, curve[-1]["depth"])]


def sentence(name: str, facts: Mapping[str, Any], compared_with: str) -> str:
    """The verdict on one measure in a sentence: measure, difference, interval and test."""
    low, high = facts["low"], facts["high"]
    interval = "" if low is None else f" (95 % interval {low:+.4f} to {high:+.4f})"
    corrected = ""
    if facts["family"] > 1:
        corrected = f", {_p(facts['p_corrected'])} after Holm's correction for {facts['family']} verdicts"
    return (
        f"{label(facts)}: {name} changes {facts['metric']} from {facts['baseline']:.4f} ({compared_with}) to "
        f"{facts['value']:.4f}, by {facts['difference']:+.4f}{interval}; paired t-test {_p(facts['p_t'])}, "
        f"randomisation test {_p(facts['p_randomisation'])}{corrected}; {facts['queries']:,} queries"
    )


def label(facts: Mapping[str, Any]) -> str:
    """`ship`, `don't ship` or `undecided: 300 more judged queries`."""
    if facts["verdict"] != "undecided" or facts["more_queries"] is None:
        return str(facts["verdict"])
    return f"undecided: {facts['more_queries']:,} more judged queries"


def headline(systems: Sequence[Mapping[str, Any]], compared_with: str) -> list[str]:
    """Three lines: the verdict, what was seen, and what to do; of the best system, by the first measure."""
    found = [(one, one["measures"][0], None) for one in systems]
    found += [(one, one["use"]["verdict"], one["use"]) for one in systems if one["use"].get("verdict")]
    shipped = [one for one in found if one[1]["verdict"] == "ship"]
    undecided = [one for one in found if one[1]["verdict"] == "undecided"]
    system, facts, use = max(shipped or undecided or found, key=lambda one: one[1]["difference"])
    file = PurePath(system["file"]).name
    name = file if use is None else f"{file} with `{use['recommended']}`"
    seen = _seen(facts)
    match facts["verdict"]:
        case "ship":
            first = f"Ship it: {name} puts good passages higher up than {compared_with} does."
            todo = "use the new order" if use is None else f"rerank with `{use['recommended']}`"
            if use is None and (more := system["use"].get("verdict")) and more["verdict"] == "ship":
                todo += f"; still better with `{system['use']['recommended']}`"
        case "don't ship" if facts["too_small"]:
            first = f"Don't ship it: {name} makes no difference worth having against {compared_with}."
            todo = "stay with the order you have"
        case "don't ship":
            first = f"Don't ship it: {name} puts good passages further down than {compared_with} does."
            todo = "stay with the order you have"
        case _:
            first = f"Undecided: it cannot be told yet whether {name} is better or worse than {compared_with}."
            more = facts["more_queries"]
            judge = "judge more queries" if more is None else f"judge about {more:,} more queries"
            todo = f"{judge} and ask again; until then stay with the order you have"
    return [first, seen, f"What to do: {todo}."]


def _seen(facts: Mapping[str, Any]) -> str:
    scale = (
        f"On a scale from 0 (nothing found) to 1 (perfect), {facts['metric']} was {facts['baseline']:.3f} and is now"
    )
    count = facts["queries"]
    queries = "1 judged query" if count == 1 else f"{count:,} judged queries"
    if facts["low"] is None:
        return f"{scale} {facts['value']:.3f}, on {queries}: too few to say more."
    low, high = facts["low"], facts["high"]
    if low == high == 0:
        return f"{scale} {facts['value']:.3f}, on {queries}: nothing has changed in any of them."
    if low > 0:
        expect = f"a gain of {low:.3f} to {high:.3f}"
    elif high < 0:
        expect = f"a loss of {-high:.3f} to {-low:.3f}"
    else:
        expect = f"anything from a loss of {-low:.3f} to a gain of {high:.3f}"
    return f"{scale} {facts['value']:.3f}, on {queries}; on many more such queries expect {expect}."


def _p(value: float) -> str:
    return "p < 0.0001" if value < 0.0001 else f"p = {value:.4f}"
