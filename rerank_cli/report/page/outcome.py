"""How a run went in one sentence, and the warnings to read before trusting its result."""

from __future__ import annotations

from collections.abc import Iterator

from rerank_cli.report.page import Document
from rerank_cli.report.page.wording import NARROW, duration, number, p_value, percent, plural, signed

_SIGNIFICANT = 0.05


def describe_outcome(document: Document) -> str:
    """For example `Done: 40 rows, 800 pairs in 8.1 s. nDCG@10 rose from 0.4595 to 0.6886 (+0.2291; ...)`."""
    counts = document.get("counts", {})
    bad, rows = counts.get("rows_error", 0), counts.get("rows_in", 0)
    done = f"Done with {number(bad)} bad {'row' if bad == 1 else 'rows'} of {number(rows)}" if bad else "Done"
    seconds = document.get("seconds", {}).get("wall")
    took = f" in {duration(seconds)}" if seconds is not None else ""
    work = plural(counts.get("pairs", 0), "pair")
    said = f"{done}: {work}{took}." if bad else f"{done}: {plural(rows, 'row')}, {work}{took}."
    if not rows:
        said = "Done: the input has no rows."
    evaluation = document.get("evaluation", {})
    measures = evaluation["metrics"][:1] if evaluation.get("queries") else []
    return " ".join([said, *map(_describe_measure, measures)])


def _describe_measure(row: Document) -> str:
    name, new, given = row["metric"], f"{row['reranked']:.4f}", row.get("given")
    if given is None:
        return f"{name} is {new}."
    change = row["difference"]
    if abs(change) < 0.00005:
        return f"{name} stayed at {new}."
    went = f"{name} {'rose' if change > 0 else 'fell'} from {given:.4f} to {new} ({signed(change)}"
    if not row.get("significance"):
        return f"{went})."
    value = row["significance"]["p_value"]
    shown = p_value(value) if value < 0.0001 else f"={NARROW}{p_value(value)}"
    judged = "significant" if value < _SIGNIFICANT else "not to be told from chance"
    return f"{went}; {judged}, p{NARROW}{shown})."


def fallen(document: Document) -> list[str]:
    """The measures that fell by more than chance explains."""
    evaluation = document.get("evaluation") or {}
    return [
        row["metric"]
        for row in (evaluation.get("metrics", ()) if evaluation.get("queries") else ())
        if (row.get("difference") or 0) < 0
        and row.get("significance")
        and row["significance"]["p_value"] < _SIGNIFICANT
    ]


def warnings(document: Document) -> Iterator[str]:
    """What can make the result worth less than it looks, most serious first."""
    counts, plan = document.get("counts", {}), document.get("plan", {})
    pairs = counts.get("pairs") or 1
    evaluation = document.get("evaluation")
    if evaluation and not evaluation["queries"]:
        yield "None of the queries has a judgement: is the query id the one of the qrels?"
    for name in fallen(document):
        yield f"{name} fell, and not by chance: the given order is better than this one on the judged queries."
    if cut := counts.get("truncated"):
        most = plan.get("max_tokens")
        limit = f" to {plural(most, 'token')}" if most else ""
        share = percent(cut / pairs)
        yield f"{plural(cut, 'pair')} ({share}) did not fit and had to be cut{limit}; `--truncate chunk` reads all."
    if retiled := counts.get("retiled"):
        yield f"{plural(retiled, 'image was', 'images were')} cut in fewer tiles, so that the pair fits."
    yield from (document.get("probability") or {}).get("warnings", ())
    if ties := counts.get("ties"):
        share = percent(ties / pairs)
        yield f"{plural(ties, 'passage')} ({share}) with the score of the one before, ranked in input order."
    for name, words in (
        ("empty_queries", ("query is", "queries are")),
        ("empty_passages", ("passage is", "passages are")),
    ):
        if count := counts.get(name):
            yield f"{plural(count, *words)} empty, and scored as such."
    if evaluation and (unjudged := evaluation.get("unjudged")):
        yield f"{plural(unjudged, 'query has', 'queries have')} no judgements: left out of the measures."
    if evaluation and (repeated := evaluation.get("repeated")):
        yield f"{plural(repeated, 'list is', 'lists are')} not measured: the query had one before."
    yield from _warnings_of_computing(document)


def _warnings_of_computing(document: Document) -> Iterator[str]:
    counts, plan = document.get("counts", {}), document.get("plan", {})
    if plan.get("kind") == "fallback":
        yield f"The fallback profile {plan.get('profile')} ran: none of the optimised ones is for this machine."
    if reruns := counts.get("fp32_reruns"):
        precision = plan.get("precision", "the plan's precision")
        yield f"{plural(reruns, 'result was', 'results were')} no number in {precision}: computed again in fp32."
    if splits := counts.get("out_of_memory_splits"):
        times = plural(splits, "time")
        yield f"Memory ran out {times} and batches were cut in halves: a lower `--token-budget` avoids it."
    yield from plan.get("warnings", ())
