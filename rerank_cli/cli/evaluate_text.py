"""Prints what `rerank-cli evaluate` found, for people."""

from __future__ import annotations

import shlex
import sys
from typing import Any

from rerank_cli.cli.console import print_table, write
from rerank_cli.errors import printable
from rerank_cli.evaluation.verdict_words import shown_depths

_SHOWN_QUERIES = 5


def notes_of(document: dict[str, Any]) -> list[str]:
    """Notes on queries, lists and passages that were left out."""
    notes = []
    if missing := document.get("queries_in_no_file"):
        notes.append(f"{missing:,} judged queries are in no file and are left out")
    for system in document.get("systems", ()):
        for key, text in (
            ("missing_queries", "judged queries are missing, and count as nothing found"),
            ("unjudged_queries", "queries have no judgement and are left out"),
            ("lists_cut", "lists have fewer passages than were reranked; both orders are measured on what is left"),
            ("repeated_lists", "lists of a query that had one before are left out"),
            ("repeated_passages", "passages have an id that stands before them in their list; the first one counts"),
        ):
            if system[key]:
                notes.append(f"{system['file']}: {system[key]:,} {text}")
    return notes


def write_command(command: str) -> None:
    """Write a command on one line, however long, so that it can be copied."""
    sys.stdout.write(printable(f"    {command}") + "\n")


def print_answer(document: dict[str, Any]) -> None:
    """Print the verdicts and what they rest on."""
    for line in document.get("headline", ()):
        write(line)
    systems = document.get("systems", ())
    if systems:
        write("")
        write("Verdicts")
    for system in systems:
        for facts in system["measures"]:
            write(f"  {facts['sentence']}.")
        if facts := system["use"].get("verdict"):
            write(f"  {facts['sentence']}; setting chosen by cross-fitting.")
    for system in systems:
        _print_use(system)
        _print_limits(system)
        _print_probabilities(system)
    if joined := document.get("together"):
        write("")
        write(
            f"Together ({joined['how']}): {joined['measure']} {joined['value']:.4f}; the best alone has "
            f"{joined['best_alone']:.4f}"
        )
    if document["likeness"]:
        rows = [
            [
                f"{one['one']} / {one['other']}", f"{one['queries']:,}", f"{one['overlap']:.3f}", f"{one['rbo']:.3f}",
                "" if one["kendall_tau"] is None else f"{one['kendall_tau']:.3f}", " ".join(one["most_different"][:3]),
            ]
            for one in document["likeness"]
        ]  # fmt: skip
        print_table(["how alike", "queries", "overlap@10", "RBO .9", "Kendall's tau", "differ most"], rows)


def _print_use(system: dict[str, Any]) -> None:
    use = system["use"]
    write("")
    write(f"How to use the scores of {system['file']}")
    if reason := use.get("reason"):
        write(f"  not looked at: {reason}")
        return
    if use["recommended"]:
        write(
            f"  {use['recommended']} brings {use['gain_of_choosing']:+.4f} over the scores alone, on queries that were "
            "not used to choose it:"
        )
        write_command(use["command"])
    else:
        write(
            f"  as they are: choosing a depth or a blend would bring {use['gain_of_choosing']:+.4f} "
            f"(standard error {use['standard_error']:.4f}), which is not clearly more than nothing"
        )
    print_table(
        ["depth", "candidates read", use["measure"], "of the gain"],
        [
            [
                str(one["depth"]), f"{one['read']:.0%}", f"{one['value']:.4f}",
                "" if one["of_gain"] is None else f"{one['of_gain']:.0%}",
            ]
            for one in shown_depths(use)
        ],
    )  # fmt: skip


def _print_limits(system: dict[str, Any]) -> None:
    limits, metric = system["limits"], system["measures"][0]["metric"]
    write(f"What limits {system['file']}")
    write(f"  a perfect order of the same candidates has {metric} {limits['perfect_order']:.4f}")
    if count := limits["without_relevant_candidate"]:
        examples = ", ".join(limits["examples_without"])
        have = "query has" if count == 1 else "queries have"
        write(f"  {count:,} {have} no relevant candidate, which no reranker can mend: {examples}")
    if limits["judged_in_top_10"] is not None:
        write(f"  {limits['judged_in_top_10']:.0%} of the ten best passages are judged")
    if kept := limits["condensed"]:
        given = "" if kept["given"] is None else f"{kept['given']:.4f} given, "
        write(f"  without unjudged passages {metric} is {given}{kept['value']:.4f} now")
    for kind in ("worst", "best"):
        if limits[kind]:
            shown = limits[kind][:_SHOWN_QUERIES]
            queries = ", ".join(f"{one['query']} ({one['change']:+.3f})" for one in shown)
            write(f"  {kind} queries: {queries}")


def _print_probabilities(system: dict[str, Any]) -> None:
    """Print how well scores predict relevance, and the threshold that was asked for."""
    found = system["probabilities"]
    if "reason" not in found:
        write(f"How probable relevance is by the score, in {system['file']}")
        errors = ", ".join(f"{kind} {one['ece']:.3f}" for kind, one in found["checked"].items())
        write(f"  expected calibration error on queries that were not seen: {errors}")
    threshold = system.get("threshold")
    if threshold is None:
        return
    if reason := threshold.get("reason"):
        write(f"  no threshold: {reason}")
        return
    share = "none" if threshold["precision"] is None else f"{threshold['precision']:.0%}"
    interval = ""
    if threshold["low"] is not None:
        interval = f" (95 % interval {threshold['low']:.0%} to {threshold['high']:.0%})"
    write(
        f"  --threshold {threshold['threshold']!r} keeps {threshold['kept']:.1%} of the passages; on queries that it "
        f"was not chosen on {share} of them are relevant{interval}, and "
        f"{threshold['recall']:.0%} of the relevant ones are kept"
    )
    if nothing := threshold["queries_with_nothing"]:
        write(f"  {nothing:,} of {threshold['queries']:,} queries are left with nothing")


def print_calibration(path: str, calibration: dict[str, Any]) -> None:
    """Print where the calibration is, and how to use it."""
    facts = calibration["fitted_on"]
    write("")
    write(
        f"{path}: {calibration['kind']}, fitted on {facts['passages']:,} passages of {facts['queries']:,} queries, "
        f"{facts['relevant']:,} of them relevant; of {calibration['model']['name']} alone"
    )
    write_command(f"rerank-cli rerank-file IN -o OUT --calibration {shlex.quote(path)}")
