"""The report of a run as its page shows it: texts, tables and charts, section by section.

A section without data is None, and the template leaves it out. What came from a file stays plain text here; the
template escapes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from rerank_cli.records import WORK
from rerank_cli.report.page import Document
from rerank_cli.report.page.outcome import describe_outcome, fallen, warnings
from rerank_cli.report.page.performance import memory_section, throughput_section, time_section
from rerank_cli.report.page.results import errors_section, evaluation_section, lengths_section, scores_section
from rerank_cli.report.page.two_orders import change_section, lists_section, moves_section, relevance_section
from rerank_cli.report.page.wording import duration, number, percent, plural, rate, size

_COUNTS = {
    "rows_in": "rows in", "rows_out": "rows scored", "rows_error": "rows in the errors file",
    "passages_error": "passages in the errors file", "blank": "blank lines",
    "output_rows": "rows written", "lists": "lists", "pairs": "pairs",
    "pairs_scored": "distinct pairs, read once", "tokens": "tokens",
    "truncated": "pairs cut to fit", "chunked": "passages in chunks", "dropped": "passages that were not selected",
    "lists_without_rows": "lists with too few negatives for a row",
    "empty_lists": "lists written without a passage",
    "ties": "neighbours with equal scores", "near_duplicates": "passages that nearly repeat one of their list",
    "empty_queries": "empty queries", "empty_passages": "empty passages",
    "images": "images", "tiles": "tiles of images", "image_tokens": "tokens of images",
    "retiled": "images in fewer tiles to fit", "out_of_memory_splits": "batches that did not fit in memory",
    "fp32_reruns": "results computed again in fp32",
    "computed_tokens": "tokens with padding", "pairs_repeated": "pairs that came again, not read again",
    "tokens_repeated": "tokens of these",
}  # fmt: skip
_MODEL = ("name", "architecture", "parameters", "path", "sha256", "template")
_PLAN = (
    "profile", "kind", "device", "precision", "max_tokens", "token_budget", "window_pairs", "attention", "threads",
    "lanes", "kernels",
)  # fmt: skip


def page_of(document: Document, title: str | None = None) -> dict[str, Any]:
    """The values for the template. title: in place of the output's name."""
    names = [found["path"] for kind in ("output", "embeddings", "per_query") if (found := document.get(kind))]
    plan, speed = document.get("plan"), document.get("speed", {})
    counts = {**document.get("counts", {}), **{name: speed[name] for name in WORK if name in speed}}
    return {
        "name": title or (PurePath(names[0]).name if names else "standard output"),
        "verdict": describe_outcome(document),
        "flawed": bool(fallen(document))
        or any(document.get("counts", {}).get(name) for name in ("rows_error", "passages_error")),
        "about": list(_about(document)),
        "warnings": list(warnings(document)),
        "figures": list(_figures(document)),
        "evaluation": evaluation_section(document),
        **_changed(document),
        "faster": document.get("faster"),
        "errors": errors_section(document),
        "scores": scores_section(document),
        "lengths": lengths_section(document),
        "throughput": throughput_section(document),
        "time": time_section(document),
        "memory": memory_section(document),
        "plan": {"facts": _facts(plan, _PLAN), "reasons": list(plan.get("reasons", ()))} if plan else None,
        "repeat": document.get("command"),
        "files": [
            {
                "kind": kind.replace("_", " "),
                "path": found["path"],
                "sha256": found["sha256"],
                "size": size(found["bytes"]),
            }
            for kind in ("output", "embeddings", "per_query")
            if (found := document.get(kind))
        ],
        "inputs": list(_inputs(document)),
        "model": _facts(document.get("model", {}), _MODEL),
        "machine": list(_machine(document)),
        "counts": [(_COUNTS.get(name, name), number(value)) for name, value in counts.items() if value],
        "options": list(_flatten_options(document.get("options", {}))),
        "version": document.get("version", ""),
    }


def _changed(document: Document) -> dict[str, Any]:
    """The sections about two orders; see `two_orders`."""
    found, measures = document.get("changes"), (document.get("evaluation") or {}).get("metrics", ())
    scores = document.get("scores_by_relevance")
    sections = {
        "relevance": relevance_section(scores, scores["score"] if scores else ""),
        "moves": moves_section(document.get("moves")),
    }
    row = next((one for one in measures if found and one["metric"] == found["metric"]), None)
    if not found or not row:
        return {**sections, "changes": None, "lists": None}
    metric = found["metric"]
    queries = (row["wins"] or 0, row["losses"] or 0, row["ties"] or 0)
    return {
        **sections,
        "changes": change_section(found, metric, queries),
        "lists": lists_section(metric, found["gained"], found["lost"]),
    }


def _about(document: Document) -> Iterator[str]:
    model, plan = document.get("model", {}), document.get("plan", {})
    if "name" in model:
        yield model["name"]
    if "precision" in plan:
        yield f"{plan['precision']} on {plan['device']}"
    if "finished" in document:
        yield document["finished"].replace("T", " ").replace("+00:00", " UTC")
    if times := document.get("continued"):
        yield f"continued {plural(times, 'time')}"


def _figures(document: Document) -> Iterator[tuple[str, str]]:
    counts, seconds, speed = (document.get(name, {}) for name in ("counts", "seconds", "speed"))
    memory = document.get("memory", {})
    if "rows_in" in counts:
        yield "rows scored", f"{number(counts['rows_out'])} of {number(counts['rows_in'])}"
        yield "pairs", number(counts["pairs"])
    if "wall" in seconds:
        yield "time", duration(seconds["wall"])
    if speed.get("pairs_per_second"):
        yield "speed", rate(speed["pairs_per_second"], "pairs")
        yield "throughput", rate(speed["tokens_per_second"], "tokens")
    if "padding_share" in speed:
        yield "padding", percent(speed["padding_share"])
    if "utilisation" in speed:
        yield "utilisation", percent(speed["utilisation"])
    if peak := memory.get("measured_bytes", document.get("peak_rss_bytes")):
        yield "peak memory", size(peak)


def _facts(found: Mapping[str, Any], names: Sequence[str]) -> list[tuple[str, str]]:
    """Those of `names` that have a value, as words, each with its value."""
    return [
        (name.replace("_", " "), number(found[name]) if isinstance(found[name], int) else str(found[name]))
        for name in names
        if found.get(name) is not None
    ]


def _inputs(document: Document) -> Iterator[dict[str, str]]:
    files: Mapping[str, Any] = document.get("job", {}).get("files", {})
    told = [(name, found) for name, found in files.items() if not name.startswith("model file")]
    for name, found in told:
        yield {"kind": name, "path": found["path"], "sha256": found.get("sha256") or "", "size": size(found["bytes"])}
    if not told:
        for path in document.get("options", {}).get("inputs", ()):
            yield {"kind": "input", "path": "standard input" if path == "-" else path, "sha256": "", "size": ""}


def _machine(document: Document) -> Iterator[tuple[str, str]]:
    for name, value in document.get("machine", {}).items():
        if name != "gpus" and value is not None:
            yield name, str(value)
    for gpu in document.get("machine", {}).get("gpus", ()):
        total = f", {size(gpu['total_bytes'])}" if gpu.get("total_bytes") else ""
        yield f"cuda:{gpu['cuda_index']}", f"{gpu['name']}{total}"


def _flatten_options(options: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """The options that have a value, under dotted names."""
    for name, value in options.items():
        if isinstance(value, Mapping):
            yield from _flatten_options(value, f"{before}{name}.")
        elif value is not None and value not in ("", [], ()):
            yield f"{before}{name}", ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
