"""The document of `rerank-cli evaluate` as a page shows it: the verdict first, then its reasons, system by system."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

import rerank_cli
from rerank_cli.evaluation.verdict_words import shown_depths
from rerank_cli.report.page import Document, charts, curves
from rerank_cli.report.page.two_orders import (
    change_section,
    lists_of_query,
    lists_section,
    moves_section,
    relevance_section,
)
from rerank_cli.report.page.wording import number, p_value, percent, plural, short, signed

_LISTS = 10


def evaluation_page_of(document: Document, title: str | None = None) -> dict[str, Any]:
    """The values for the template. title: in place of the names of the files."""
    systems = document.get("systems", ())
    head = document["headline"]
    names = [PurePath(path).name for path in document["inputs"]]
    rows = []
    for system in systems:
        name = PurePath(system["file"]).name
        rows += [_row(name, one) for one in system["measures"]]
        if found := system["use"].get("verdict"):
            rows.append(_row(f"{name} with {system['use']['recommended']}", found))
    about = [plural(len(document["inputs"]), "file")]
    if document.get("qrels"):
        about += [f"judgements: {document['qrels']}", plural(document["queries"], "judged query", "judged queries")]
    about.append(f"held against {document['baseline']}")
    if document["rows_error"]:
        about.append(f"{plural(document['rows_error'], 'row')} could not be read")
    together = ""
    if found := document.get("together"):
        together = (
            f"All systems together ({found['how']}) have {found['measure']} {found['value']:.4f}; the best alone has "
            f"{found['best_alone']:.4f}."
        )
    return {
        "name": title or ", ".join(names[:1]) + (f" and {len(names) - 1} more" if len(names) > 1 else ""),
        "verdict": head[0],
        "flawed": not head[0].startswith("Ship"),
        "lines": head[1:],
        "about": about,
        "rows": rows,
        "baseline": document["baseline"],
        "ship_at": short(document["ship_at"]),
        "systems": [_system(system, document, alone=len(systems) == 1) for system in systems],
        "likeness": [_likeness(one, document) for one in document["likeness"]],
        "together": together,
        "version": rerank_cli.__version__,
    }


def _row(name: str, one: Document) -> dict[str, Any]:
    old, new = one["baseline"], one["value"]
    interval = "" if one["low"] is None else f"{signed(one['low'])} to {signed(one['high'])}"
    return {
        "name": name,
        "metric": one["metric"],
        "verdict": one["verdict"],
        "kind": {"ship": "good", "don't ship": "bad"}.get(one["verdict"], ""),
        "more": "" if one["more_queries"] is None else f"{number(one['more_queries'])} more judged queries",
        "given": f"{old:.4f}",
        "value": f"{new:.4f}",
        "change": signed(one["difference"]),
        "rose": one["difference"] >= 0,
        "interval": interval,
        "p": p_value(one["p_corrected"]),
        "chart": charts.change(old, new),
    }


def _system(system: Document, document: Document, *, alone: bool) -> dict[str, Any]:
    first = system["measures"][0]
    metric = first["metric"]
    lists = {**document["lists"].get(system["file"], {})}
    limits = system["limits"]
    changed = {kind: [one for one in limits[kind] if one["query"] in lists][:_LISTS] for kind in ("best", "worst")}
    shown = {
        kind: [{**lists[one["query"]], "query": one["query"], "change": one["change"]} for one in found]
        for kind, found in changed.items()
    }
    facts = []
    if limits["perfect_order"] is not None:
        facts.append((f"{metric} of a perfect order of the same candidates", f"{limits['perfect_order']:.4f}"))
    facts.append(("queries without a relevant candidate", number(limits["without_relevant_candidate"])))
    if limits["judged_in_top_10"] is not None:
        facts.append(("judged, of the ten best passages", percent(limits["judged_in_top_10"])))
    if kept := limits["condensed"]:
        given = "" if kept["given"] is None else f"{kept['given']:.4f} given, "
        facts.append((f"{metric} without unjudged passages", f"{given}{kept['value']:.4f} now"))
    return {
        "name": "" if alone else system["file"],
        "changes": change_section(system["changes"], metric, (first["better"], first["worse"], first["same"])),
        "lists": lists_section(metric, shown["best"], shown["worst"]),
        "relevance": relevance_section(system["scores_by_relevance"]),
        "moves": moves_section(system["moves"]),
        "depth": _depth(system["use"]),
        "reliability": _reliability(system["probabilities"], system.get("threshold")),
        "limits": facts,
    }


def _depth(use: Document) -> dict[str, Any] | None:
    if use.get("reason") or len(use.get("depths", ())) < 2:
        return None if not use.get("reason") else {"reason": use["reason"]}
    points = [(0.0, use["given"]), *((one["depth"], one["value"]) for one in use["depths"])]
    return {
        "measure": use["measure"],
        "chart": curves.curve(
            points, unit="candidates", levels=[(use["given"], "given order")],
            label=f"{use['measure']} by the depth that is reranked",
        ),
        "rows": [
            (
                number(one["depth"]), percent(one["read"]), f"{one['value']:.4f}",
                "" if one["of_gain"] is None else percent(one["of_gain"]),
            )
            for one in shown_depths(use)
        ],
        "recommended": use["recommended"],
        "command": use.get("command", ""),
        "gain": signed(use["gain_of_choosing"]),
        "error": f"{use['standard_error']:.4f}",
    }  # fmt: skip


def _reliability(found: Document, threshold: Document | None) -> dict[str, Any] | None:
    section: dict[str, Any] = {"threshold": _threshold(threshold)}
    if "reason" in found:
        return {**section, "reason": found["reason"]} if threshold else None
    names = {"isotonic": "isotonic", "platt": "Platt", "sigmoid": "sigmoid as it is (`--prob`)"}
    points, other = (
        [(one["probability"], one["relevant"], one["passages"]) for one in found.get(name, ())]
        for name in ("reliability", "reliability_of_sigmoid")
    )
    return section | {
        "kind": names[found["kind"]],
        "chart": curves.reliability(points, other=other, label="probability that was said and share that was relevant"),
        "has_sigmoid": bool(other),
        "rows": [(names[kind], f"{one['ece']:.4f}", f"{one['brier']:.4f}") for kind, one in found["checked"].items()],
        "passages": plural(found["passages"], "passage"),
        "judged": percent(found["judged"]),
    }


def _threshold(found: Document | None) -> str:
    if not found:
        return ""
    if reason := found.get("reason"):
        return f"No threshold: {reason}."
    precision = "none" if found["precision"] is None else percent(found["precision"])
    interval = "" if found["low"] is None else f" ({percent(found['low'])} to {percent(found['high'])})"
    return (
        f"`--threshold {found['threshold']!r}` keeps {percent(found['kept'])} of the passages; {precision}{interval} "
        f"of them are relevant on queries that it was not chosen on, and {percent(found['recall'])} of the relevant "
        f"ones are kept; {number(found['queries_with_nothing'])} of {plural(found['queries'], 'query', 'queries')} "
        "are left with nothing."
    )


def _likeness(one: Document, document: Document) -> dict[str, Any]:
    tau, lists, differing = one["kendall_tau"], document["lists"], []
    for query in one["most_different"]:
        first, second = (lists.get(one[which], {}).get(query) for which in ("one", "other"))
        if first is not None:
            other = first["given"] if second is None else second["new"]
            columns = (one["one"], first["new"]), (one["other"], other)
            differing.append(lists_of_query({"query": query, "text": first.get("text")}, columns))
    return {
        "one": one["one"],
        "other": one["other"],
        "queries": number(one["queries"]),
        "overlap": percent(one["overlap"]),
        "rbo": f"{one['rbo']:.3f}",
        "tau": "" if tau is None else f"{tau:.3f}",
        "lists": differing,
    }
