"""Verdicts in words: an exact sentence for each, and three lines on top for people who never heard of p-values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

GIVEN_ORDER = "the given order"
"""What a system is compared with if there is no baseline."""
OLD_ORDER = "the order before reranking"
"""What the three lines call it: their readers do not know the term."""

_FROM_0_TO_1 = ("nDCG", "RR", "P", "AP", "R", "Success", "RBP", "ERR", "nERR", "Rprec", "Judged", "Bpref")
_DEPTHS = (5, 10, 20, 50, 100)


def shown_depths(use: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The rows of the depth curve that are shown: a few round depths, and the last."""
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
    """Three lines about the best system by the first measure: the verdict, what was seen, and what to do."""
    found = [(one, one["measures"][0], None) for one in systems]
    tuned = [(one, one["use"]["verdict"], one["use"]) for one in systems if one["use"].get("verdict")]
    # A setting is mentioned only if it ships: else readers would take its figures for the file's.
    shipped = [one for one in (*found, *tuned) if one[1]["verdict"] == "ship"]
    undecided = [one for one in found if one[1]["verdict"] == "undecided"]
    system, facts, use = max(shipped or undecided or found, key=lambda one: one[1]["difference"])
    old = OLD_ORDER if compared_with == GIVEN_ORDER else f"the order of {PurePath(compared_with).name}"
    file = PurePath(system["file"]).name
    name = file if use is None else f"{file} with `{use['recommended']}`"
    of_several = "" if len(systems) == 1 else f" (of {len(systems)} files, the one with the best figures)"
    match facts["verdict"]:
        case "ship":
            first = f"Ship it: on the whole {name} puts good passages higher up than {old} does{of_several}."
            todo = f"use the order of {file}" if use is None else f"rerank with `{use['recommended']}`"
            if use is None and (more := system["use"].get("verdict")) and more["verdict"] == "ship":
                todo += f"; still better with `{system['use']['recommended']}`"
        case "don't ship" if facts["too_small"]:
            first = f"Don't ship it: {name} is not better by enough to matter than {old}{of_several}."
            todo = f"keep {old}"
        case "don't ship":
            first = f"Don't ship it: on the whole {name} puts good passages further down than {old} does{of_several}."
            todo = f"keep {old}"
        case _:
            few = "1 judged query is" if facts["queries"] == 1 else f"{facts['queries']:,} judged queries are"
            first = f"Undecided: {few} too few to tell whether {name} is better or worse than {old}{of_several}."
            more = facts["more_queries"]
            count = "more queries" if more is None else f"about {more:,} more queries"
            todo = f"keep {old} for now; say of {count} which passages answer them, and run this again"
    return [first, _describe_seen(facts), f"What to do: {todo}."]


def headline_of_likeness(likeness: Sequence[Mapping[str, Any]]) -> list[str]:
    """The three lines without judgements: that there is no verdict, what was seen, and what to do."""
    one = likeness[0]
    names = [OLD_ORDER if name == GIVEN_ORDER else PurePath(name).name for name in (one["one"], one["other"])]
    queries = "1 query" if one["queries"] == 1 else f"{one['queries']:,} queries"
    different = f", or look at the lists that differ most: {', '.join(one['most_different'][:3])}"
    return [
        "No verdict: without judgements nobody can say which order is better, only how alike they are.",
        f"Of the ten best passages of a query, {names[0]} and {names[1]} share {one['overlap']:.0%}, in the mean of "
        f"{queries}.",
        f"What to do: say of some queries which passages answer them and name that file with `--qrels`"
        f"{different if one['most_different'] else ''}.",
    ]


def _describe_seen(facts: Mapping[str, Any]) -> str:
    name = facts["metric"]
    scale = f"{name} (0: nothing found, 1: perfect)" if name.partition("@")[0] in _FROM_0_TO_1 else name
    change = f"{scale} was {facts['baseline']:.3f} and is now {facts['value']:.3f}"
    count = facts["queries"]
    if count == 1:
        return f"{change}, on 1 judged query, which says nothing of others."
    seen = f"{change}, in the mean of {count:,} judged queries"
    low, high = facts["low"], facts["high"]
    if low is None or low == high:
        return f"{seen}; " + ("none of them has changed." if low == 0 else "all of them have changed alike.")
    if low > 0:
        expect = f"a gain of {low:.3f} to {high:.3f}"
    elif high < 0:
        expect = f"a loss of {-high:.3f} to {-low:.3f}"
    else:
        expect = f"anything from a loss of {-low:.3f} to a gain of {high:.3f}"
    return f"{seen}; in the mean of very many such queries, expect {expect} (right 19 times in 20)."


def _p(value: float) -> str:
    return "p < 0.0001" if value < 0.0001 else f"p = {value:.4f}"
