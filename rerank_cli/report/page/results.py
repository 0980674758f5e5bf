"""Sections about the results of a run; a section without data is None and is left out."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from rerank_cli.report.page import Document, charts
from rerank_cli.report.page.charts import Bar, Line
from rerank_cli.report.page.wording import number, p_value, percent, plural, short, signed

_EXACT = 64  # each shorter length has its own bin in a report
_SHARES = ("p5", "p25", "p50", "p75", "p95")
_PARTS = (("50 %", "p50"), ("90 %", "p90"), ("99 %", "p99"))


def evaluation_section(document: Document) -> dict[str, Any] | None:
    """Each measure for the given and the new order."""
    found = document.get("evaluation")
    if not found or not found["queries"]:
        return None
    queries = plural(found["queries"], "judged query", "judged queries")
    tests = [row["significance"] for row in found["metrics"] if row.get("significance")]
    drawn = {"all" if test["method"] == "exact" else f"{number(test['permutations'])} drawn" for test in tests}
    how = " or ".join(f"{one} choices of signs" for one in sorted(drawn))
    return {
        "rows": [_measure(row) for row in found["metrics"]],
        "queries": queries,
        "given_order": found.get("given_order"),
        "test": f"p: two-sided paired randomisation test, over {how}" if how else None,
    }


def _measure(row: Document) -> dict[str, Any]:
    given, new = row.get("given"), row["reranked"]
    measure: dict[str, Any] = {"metric": row["metric"], "reranked": f"{new:.4f}"}
    if given is None:
        return measure
    counts = [(name, row[key]) for name, key in (("better", "wins"), ("worse", "losses"), ("same", "ties"))]
    queries = sum(count for _, count in counts) or 1
    told = ", ".join(f"{number(count)} {name}" for name, count in counts)
    return measure | {
        "given": f"{given:.4f}",
        "change": signed(row["difference"]),
        "rose": row["difference"] >= 0,
        "p": p_value(row["significance"]["p_value"]) if row.get("significance") else "",
        "chart": charts.change(given, new),
        "told": told,
        "stack": charts.stack([(f"part {name}", count / queries) for name, count in counts], label=f"queries: {told}"),
        "undefined": row.get("undefined") or 0,
    }


def errors_section(document: Document) -> dict[str, Any] | None:
    """Bad rows by reason, with examples."""
    bad = document.get("counts", {}).get("rows_error", 0)
    codes = document.get("errors", [])
    if not bad:
        return None
    if not codes and document.get("first_error"):  # reports of older versions
        file, row, message = document["first_error"]
        codes = [{"code": "first", "rows": 1, "examples": [{"file": file, "row": row, "id": None, "message": message}]}]
    rows = document["counts"]["rows_in"] or 1
    return {
        "total": plural(bad, "row"),
        "share": percent(bad / rows),
        "file": document.get("errors_file"),
        "codes": [
            {
                "code": found["code"],
                "rows": number(found["rows"]),
                "chart": charts.meter(
                    found["rows"] / rows, "bar marked", label=f"{plural(found['rows'], 'row')} of {number(rows)}"
                ),
                "examples": [{**one, "id": "" if one["id"] is None else str(one["id"])} for one in found["examples"]],
            }
            for found in codes
        ],
    }


def scores_section(document: Document) -> dict[str, Any] | None:
    """The distribution of the scores at each rank, and of all scores."""
    found = document.get("scores")
    if not found:
        return None
    name, groups = found["score"], found["by_rank"]
    low, high = min(group["p5"] for group in groups), max(group["p95"] for group in groups)
    rows = [
        {
            "ranks": _ranks(group),
            "passages": number(group["count"]),
            "chart": charts.spread(
                [group[share] for share in _SHARES],
                low,
                high,
                label=f"ranks {_ranks(group)}: median {short(group['p50'])}",
            ),
            "values": [short(group[key]) for key in ("min", *_SHARES, "max")],
        }
        for group in groups
    ]
    shape = found["histogram"]
    begin, width, counts = shape["begin"], shape["width"], shape["counts"]
    edges = [begin + width * place for place in range(len(counts) + 1)]
    histogram = charts.bars(
        [
            Bar(a, b, count, f"{short(a)} to {short(b)}: {plural(count, 'passage')}")
            for (a, b), count in zip(pairwise(edges), counts, strict=True)
        ],
        label=f"distribution of the {name} of {plural(sum(counts), 'passage')}",
        unit="passages",
    )
    return {
        "title": f"{name.capitalize()} by rank" if len(rows) > 1 else f"{name.capitalize()}s",
        "rows": rows if len(rows) > 1 else [],
        "axis": (short(low), short(high)),
        "histogram": histogram,
        "all": rows,
    }


def _ranks(group: Document) -> str:
    begin, end = group["from"], group["to"]
    if end is None:
        return f"{number(begin)} and behind"
    return number(begin) if begin == end else f"{number(begin)}\N{EN DASH}{number(end)}"


def lengths_section(document: Document) -> dict[str, Any] | None:
    """How long pairs were, and how many were cut."""
    found = document.get("lengths")
    if not found:
        return None
    most = document.get("plan", {}).get("max_tokens", found["longest"])
    bars = [
        Bar(begin, end, count, f"{number(begin)} to {number(end - 1)} tokens: {plural(count, 'pair')}", marked)
        for begin, end, count, marked in _merge_bins(found, most)
    ]
    edge = bars[-1].end
    lines = [Line(most, f"limit {number(most)}")] if found["cut_pairs"] and edge >= most else []
    facts = [
        ("mean", f"{number(found['mean'], digits=1)} tokens"),
        *((f"{share} have at most", plural(found[key], "token")) for share, key in _PARTS),
        ("longest", plural(found["longest"], "token")),
    ]
    if found["cut_pairs"]:
        facts.append(("cut", f"{plural(found['cut_pairs'], 'pair')}, {plural(found['cut_tokens'], 'token')} lost"))
    label = f"lengths of {plural(found['pairs'], 'pair')} before anything is cut"
    return {
        "chart": charts.bars(bars, label=label, unit="pairs", lines=lines),
        "facts": facts,
        "cut": found["cut_pairs"],
        "begin_of_last": number(bars[-1].begin) if edge <= found["longest"] else None,
        "rows": [
            (f"{number(bar.begin)}\N{EN DASH}{number(bar.end - 1)}", number(bar.value), number(bar.marked))
            for bar in bars
            if bar.value
        ],
    }


def _merge_bins(found: Document, most: int) -> list[tuple[int, int, int, int]]:
    """(begin, end, pairs, of these cut) of each bar. most: the limit of the run.

    The last bar holds all longer pairs too: lengths far beyond the limit would leave no room for the others.
    """
    end = min(found["longest"] + 1, 2 * most)
    # A power of two, which the report's own bins have at the end of the axis.
    width = max(1, 1 << ((end - 1).bit_length() - 6)) if end > _EXACT else 1
    count = -(-end // width)
    sums = [[0, 0] for _ in range(count)]
    for one in found["histogram"]:
        place = min(count - 1, one["from"] // width)
        sums[place][0] += one["pairs"]
        sums[place][1] += one["cut"]
    return [(place * width, (place + 1) * width, pairs, cut) for place, (pairs, cut) in enumerate(sums)]
