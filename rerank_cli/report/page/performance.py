"""Sections about the time and memory of a run; a section without data is None and is left out."""

from __future__ import annotations

from typing import Any

from rerank_cli.report.page import Document, charts
from rerank_cli.report.page.charts import Bar, Line
from rerank_cli.report.page.wording import duration, number, percent, rate, size

_STAGES = {
    "load": "loading the model", "wait": "waiting for input", "compute": "computing", "write": "writing",
    "rest": "ranking, measuring and the rest",
}  # fmt: skip


def throughput_section(document: Document) -> dict[str, Any] | None:
    """Tokens a second over the time of the run."""
    found = document.get("timeline")
    if not found or sum(found["tokens"]) <= 0:
        return None
    step, end = found["step_seconds"], document.get("seconds", {}).get("wall", 0.0)
    series = []
    for place, (tokens, pairs) in enumerate(zip(found["tokens"], found["pairs"], strict=True)):
        begin = place * step
        # The last step may be cut short by the end of the run.
        until = min(begin + step, max(end, begin + step / 8)) if place == len(found["tokens"]) - 1 else begin + step
        speed = [rate(amount / (until - begin), unit) for amount, unit in ((tokens, "tokens"), (pairs, "pairs"))]
        told = f"{duration(begin)} to {duration(until)}: {', '.join(speed)}"
        series.append(Bar(begin, until, tokens / (until - begin), told))
    # Only the first line has its word: several would overlap.
    lines = [Line(at, "" if place else "continued") for place, at in enumerate(found.get("continued_at", ()))]
    return {
        "chart": charts.bars(
            series, label="tokens a second over the time of the run", unit="tokens/s", lines=lines, seconds=True
        ),
        "rows": [bar.title.partition(": ") for bar in series],
    }


def time_section(document: Document) -> dict[str, Any] | None:
    """How the wall time divides into stages."""
    seconds = document.get("seconds", {})
    parts = stages(seconds)
    whole = sum(parts.values())
    if not whole:
        return None
    shares = {name: value / whole for name, value in parts.items()}
    told = ", ".join(f"{_STAGES[name]} {percent(share)}" for name, share in shares.items())
    speed = document.get("speed", {})
    facts = []
    if "gflops" in speed:
        facts.append(("arithmetic of the model", f"{number(speed['gflops'])} GFLOP/s"))
    if "matrix_gflops" in speed:
        reached = (
            f"{percent(speed['utilisation'])} of the {number(speed['matrix_gflops'])} GFLOP/s of a plain matrix product"
        )
        facts.append(("utilisation", reached))
    if "padding_share" in speed:
        facts.append(("padding", f"{percent(speed['padding_share'])} of the tokens that were computed"))
    return {
        "limit": limit(document),
        "chart": charts.stack([(f"stage {name}", share) for name, share in shares.items()], label=told),
        "rows": [(name, _STAGES[name], duration(parts[name]), percent(shares[name])) for name in parts],
        "beside": [
            (words, duration(seconds[name]))
            for name, words in (("read", "reading"), ("images", "reading page images"), ("tokenise", "tokenising"))
            if name in seconds and (seconds[name] or name != "images")
        ],
        "facts": facts,
    }


def limit(document: Document) -> str | None:
    """What limits the speed of the run."""
    seconds = document.get("seconds", {})
    parts = {name: share for name, share in stages(seconds).items() if name != "rest"}
    if not parts or not seconds.get("wall"):
        return None
    name = max(parts, key=lambda name: parts[name])
    share = percent(parts[name] / seconds["wall"])
    before = {"tokenise": "tokenising", "images": "page images", "read": "reading"}
    slower = before[max(before, key=lambda stage: seconds.get(stage, 0))]
    return {
        "load": f"Loading the model took {share} of the time; a longer input pays it only once.",
        "wait": f"The model waited for {slower} {share} of the time.",
        "compute": f"Computing took {share} of the time: the model on this device is the limit.",
        "write": f"Writing took {share} of the time: the disk or the reader of the output is the limit.",
    }[name]


def stages(seconds: Document) -> dict[str, float]:
    """How the wall time divides: seconds by what the main thread did or waited for, and the rest."""
    parts = {name: seconds[name] for name in ("load", "wait", "compute", "write") if name in seconds}
    if not parts:
        return {}
    return {**parts, "rest": max(0.0, seconds.get("wall", 0.0) - sum(parts.values()))}


def memory_section(document: Document) -> dict[str, Any] | None:
    """The estimated and the measured memory."""
    found = document.get("memory")
    if not found and document.get("peak_rss_bytes"):  # reports of older versions
        found = {
            "estimated_bytes": document.get("plan", {}).get("needed_bytes"),
            "measured_bytes": document["peak_rss_bytes"],
        }
    known = {name: (found or {}).get(f"{name}_bytes") for name in ("estimated", "measured")}
    values = {name: value for name, value in known.items() if value}
    if not found or not values:
        return None
    most = max(values.values())
    rows = [
        (name, size(value), charts.meter(value / most, f"bar {name}", label=size(value)))
        for name, value in values.items()
    ]
    device = found.get("device", "cpu")
    title = "Memory" if device == "cpu" else f"Memory of {device}"
    ratio = None
    if len(values) == 2:
        off = values["estimated"] / values["measured"] - 1
        ratio = f"The estimate is {percent(abs(off))} {'above' if off >= 0 else 'below'} what was measured."
    return {"rows": rows, "ratio": ratio, "by": found.get("measured"), "title": title}
