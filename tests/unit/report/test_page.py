"""The page of a report: what it says, that data stays data, and that less in a document is less on the page."""

from __future__ import annotations

import copy
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rerank_cli.errors import OutputError, printable
from rerank_cli.job.options import Command, JobOptions, Names
from rerank_cli.job.run import run_job
from rerank_cli.journal import Files
from rerank_cli.report.page import render_report
from rerank_cli.report.page.charts import ticks
from rerank_cli.report.page.outcome import describe_outcome, warnings
from rerank_cli.report.page.performance import limit
from rerank_cli.report.page.run_page import page_of
from rerank_cli.report.page.wording import duration, percent, short, size
from tests.conftest import TINY_CHECKPOINT, write_lines

SPACE = "\N{NO-BREAK SPACE}"
TEST = {"p_value": 0.00022, "permutations": 100000, "method": "sampled", "seed": 0}
DOCUMENT: dict[str, Any] = {
    "schema": "rerank-cli/report/1",
    "version": "9.8.7",
    "finished": "2026-11-21T18:36:21+00:00",
    "options": {"inputs": ["lists.jsonl"], "truncate": "end", "selection": {"top_n": 5, "threshold": None}},
    "model": {
        "name": "a-model", "path": "/models/a", "architecture": "BertForSequenceClassification",
        "parameters": 33360385, "sha256": "ab" * 32, "template": "[CLS]{query}[SEP]{passage}[SEP]",
    },
    "plan": {
        "profile": "cpu-fp32", "kind": "cpu", "device": "cpu", "precision": "fp32", "max_tokens": 512,
        "token_budget": 2048, "window_pairs": 640, "attention": "runs", "threads": 2, "kernels": "oneDNN",
        "reasons": ["CPU: no usable GPU", "see `--gpus all`"], "warnings": ["one engine runs"],
        "needed_bytes": 700 * 2**20,
    },
    "machine": {"platform": "Linux", "cpu": "a processor", "cores": 2, "python": "3.11.7",
                "gpus": [{"cuda_index": 1, "name": "NVIDIA H100", "total_bytes": 80 * 2**30}]},
    "counts": {
        "rows_in": 1043, "rows_out": 1041, "rows_error": 2, "lists": 1041, "pairs": 20820, "pairs_scored": 20817,
        "tokens": 2457713, "truncated": 17, "ties": 6, "empty_passages": 1,
        "fp32_reruns": 3, "out_of_memory_splits": 4,
    },
    "seconds": {
        "wall": 700.0, "load": 3.5, "wait": 10.25, "compute": 650.0, "write": 20.5, "read": 31.0, "tokenise": 77.0,
    },
    "speed": {
        "pairs_per_second": 32.03, "tokens_per_second": 3781.1, "padding_share": 0.0169, "gflops": 161.4,
        "computed_tokens": 2500000, "matrix_gflops": 230.6, "utilisation": 0.7,
    },
    "memory": {"device": "cpu", "estimated_bytes": 700 * 2**20, "measured_bytes": 560 * 2**20, "measured": "resident"},
    "lengths": {
        "pairs": 20817, "mean": 118.1, "p50": 91, "p90": 231, "p99": 479, "longest": 1523, "cut_pairs": 17,
        "cut_tokens": 4321,
        "histogram": [
            {"from": 90, "to": 91, "pairs": 20800, "cut": 0}, {"from": 1504, "to": 1535, "pairs": 17, "cut": 17},
        ],
    },
    "scores": {
        "score": "logit",
        "by_rank": [
            {"from": 1, "to": 1, "count": 1041, "min": -9.5, "p5": -7.25, "p25": -2.0, "p50": 0.125, "p75": 3.0,
             "p95": 6.75, "max": 9.0},
            {"from": 2, "to": 2, "count": 19779, "min": -11.5, "p5": -10.5, "p25": -10.0, "p50": -8.375, "p75": -5.0,
             "p95": 1.5, "max": 8.5},
        ],
        "histogram": {"width": 0.5, "begin": -11.5, "counts": [19000, 0, 1820]},
    },
    "timeline": {"step_seconds": 16.0, "pairs": [512.0, 500.0], "tokens": [61000.0, 59000.0], "continued_at": [16.5]},
    "errors": [
        {"code": "bad-json", "rows": 2, "examples": [
            {"file": "lists.jsonl", "row": 77, "id": "q77", "message": "not JSON: `{`"},
            {"file": "lists.jsonl", "row": 99, "id": None, "message": "not JSON"},
        ]},
    ],
    "errors_file": "out.jsonl.errors.jsonl",
    "continued": 1,
    "evaluation": {
        "metrics": [
            {"metric": "nDCG@10", "given": 0.4595, "reranked": 0.6886, "difference": 0.2291, "wins": 29, "losses": 8,
             "ties": 3, "undefined": 0,
             "significance": TEST},
        ],
        "queries": 40, "unjudged": 5, "repeated": 0, "given_order": "the order of the input",
    },
    "changes": {
        "metric": "nDCG@10", "queries": 40, "bars": [0.5, 0.25, 0.0, -0.125],
        "gained": [{"query": "q7", "change": 0.5, "text": "which way", "given": [
            {"id": "d1", "text": "a wrong road", "grade": None, "place": 4},
        ], "new": [{"id": "d9", "text": "the right road", "grade": 2, "place": 30}]}],
        "lost": [{"query": "q8", "change": -0.125, "text": None, "given": [
            {"id": "d2", "text": None, "grade": 1, "place": 3},
        ], "new": [{"id": "d3", "text": "another", "grade": 0, "place": 1}]}],
    },
    "scores_by_relevance": {"score": "logit", "begin": -4.0, "width": 2.0, "relevant": [0, 1, 3], "others": [12, 4, 0]},
    "moves": [{"from": 0, "to": 0, "up": 10, "down": 0}, {"from": 1, "to": 1, "up": 20, "down": 10}],
    "faster": "this CPU multiplies bf16: `--precision bf16` tries it",
    "command": {"line": "rerank-cli rerank-file lists.jsonl -o out.jsonl", "folder": "/srv/rerank"},
    "output": {"path": "out.jsonl", "sha256": "cd" * 32, "bytes": 401229, "modified_ns": 1},
    "job": {"files": {
        "model file `config.json`": {"path": "/models/a/config.json", "sha256": "ef" * 32, "bytes": 768},
        "input 1": {"path": "lists.jsonl", "sha256": "12" * 32, "bytes": 365304},
    }},
}  # fmt: skip


class Page(HTMLParser):
    """What a browser would make of a page: its elements in order, and its text."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.elements: list[tuple[str, tuple[str, ...]]] = []
        self.values: list[str] = []
        self.comments: list[str] = []
        self._text: list[str] = []
        self.feed(data.decode())
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "code":  # what stands between backticks, which a text may have
            self.elements.append((tag, tuple(name for name, _ in attrs)))
            self.values += [value or "" for _, value in attrs]
        if tag in ("div", "li", "p", "td", "th", "dt", "dd", "tr", "summary"):
            self._text.append(" ")

    def handle_data(self, data: str) -> None:
        if self.cdata_elem != "style":
            self._text.append(data)

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self._text)).replace(SPACE, " ").replace("\N{MINUS SIGN}", "-")


def page(document: dict[str, Any]) -> Page:
    return Page(render_report(document))


def changed(**parts: Any) -> dict[str, Any]:
    """DOCUMENT with some values replaced: `counts={...}` within a part, or a part as a whole where it is no object."""
    document = copy.deepcopy(DOCUMENT)
    for name, part in parts.items():
        document[name] = {**document.get(name, {}), **part} if isinstance(part, dict) else part
    return document


def without(*names: str) -> dict[str, Any]:
    return {name: part for name, part in DOCUMENT.items() if name not in names}


# What it says


@pytest.mark.parametrize(
    "text",
    [
        "Done with 2 bad rows of 1,043: 20,820 pairs in 11 min 40 s.",
        "nDCG@10 rose from 0.4595 to 0.6886 (+0.2291; significant, p = 0.0002).",
        "a-model fp32 on cpu 2026-11-21 18:36:21 UTC continued 1 time",
        "rows scored 1,041 of 1,043", "pairs 20,820", "time 11 min 40 s", "speed 32.0 pairs/s",
        "throughput 3,781 tokens/s", "padding 1.7 %", "utilisation 70 %", "peak memory 560.0 MiB",
        "29 better, 8 worse, 3 same", "Over 40 judged queries", "over 100,000 drawn choices of signs",
        "2 rows, 0.2 % of the input. All of them are in out.jsonl.errors.jsonl; by reason",
        "Queries that changed most, by nDCG@10", "+0.5000 q7 which way", "not judged · now 4 a wrong road",
        "grade 2 · ↑ 29 the right road", "-0.1250 q8", "grade 1 · now 3 d2", "grade 0 another",
        "Change of nDCG@10 by query 29 better, 8 worse, 3 the same. A bar is the mean of 10 queries.",
        "Logits of relevant passages and of others", "4 relevant passages above, 16 others below the line",
        "How far passages moved stayed 25 % 1 place 75 %",
        "What would be faster here This CPU multiplies bf16: --precision bf16 tries it.",
        "bad-json 2", "lists.jsonl:77 q77 not JSON: {",
        "1 0.125", "2 -8.38", "1,041 -9.50 -7.25 -2 0.125 3 6.75 9",
        "mean 118.1 tokens", "50 % have at most 91 tokens", "90 % have at most 231 tokens",
        "99 % have at most 479 tokens", "longest 1,523 tokens", "17 pairs, 4,321 tokens lost",
        "0 s to 16.0 s 3,812 tokens/s, 32.0 pairs/s",
        "Computing took 92.9 % of the time", "loading the model 3.5 s 0.5 %", "waiting for input 10.2 s 1.5 %",
        "computing 10 min 50 s 92.9 %", "writing 20.5 s 2.9 %", "ranking, measuring and the rest 15.8 s 2.2 %",
        "reading 31.0 s, tokenising 1 min 17 s", "arithmetic of the model 161 GFLOP/s",
        "70 % of the 231 GFLOP/s of a plain matrix product",
        "estimated 700.0 MiB", "measured 560.0 MiB", "The estimate is 25 % above what was measured.",
        "profile cpu-fp32", "max tokens 512", "token budget 2,048", "window pairs 640", "threads 2", "kernels oneDNN",
        "CPU: no usable GPU", "see --gpus all",
        "cd /srv/rerank rerank-cli rerank-file lists.jsonl -o out.jsonl",
        "distinct pairs, read once 20,817", "tokens 2,457,713", "tokens with padding 2,500,000",
        "parameters 33,360,385", "sha256 " + "ab" * 32, "cpu a processor", "cores 2", "python 3.11.7",
        "cuda:1 NVIDIA H100, 80.0 GiB",
        "output out.jsonl 391.8 KiB sha256 " + "cd" * 32, "input 1 lists.jsonl 356.7 KiB sha256 " + "12" * 32,
        "selection.top_n 5", "truncate end", "rerank-cli 9.8.7",
        "17 pairs (<0.1 %) did not fit and had to be cut to 512 tokens",
        "6 passages (<0.1 %) with the score of the one before", "1 passage is empty",
        "5 queries have no judgements: left out", "3 results were no number in fp32",
        "Memory ran out 4 times", "one engine runs",
    ],
)  # fmt: skip
def test_the_page_has_every_number_of_the_report(text: str) -> None:
    assert text.replace("<0.1", "< 0.1") in page(DOCUMENT).text


def test_what_two_orders_show_stands_in_its_order() -> None:
    text = page(DOCUMENT).text
    titles = [
        "Did it help?", "Queries that changed most", "Change of nDCG@10", "Logits of relevant",
        "How far passages moved", "What would be faster here", "Rows that could not be scored",
    ]  # fmt: skip
    places = [text.index(title) for title in titles]
    assert places == sorted(places)


def test_a_title_stands_in_place_of_the_name() -> None:
    assert "<title>Spring &lt;1&gt; " in render_report(DOCUMENT, "Spring <1>").decode()
    assert "<title>out.jsonl " in render_report(DOCUMENT).decode()


def test_the_same_report_is_the_same_page() -> None:
    assert render_report(DOCUMENT) == render_report(json.loads(json.dumps(DOCUMENT)))


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"counts": {"rows_error": 0}}, "Done: 1,043 rows, 20,820 pairs in 11 min 40 s. nDCG@10 rose"),
        ({"counts": {"rows_error": 1}}, "Done with 1 bad row of 1,043: 20,820 pairs in 11 min 40 s."),
        ({"counts": {"rows_in": 0, "rows_error": 0}, "evaluation": {"queries": 0}}, "Done: the input has no rows."),
        ({"counts": {"rows_in": 1, "rows_error": 0, "pairs": 1}}, "Done: 1 row, 1 pair in"),
        ({"seconds": {"wall": 0.0061}}, "Done with 2 bad rows of 1,043: 20,820 pairs in 0.006 s."),
    ],
)
def test_the_verdict_says_how_a_run_ended(parts: dict[str, Any], said: str) -> None:
    assert describe_outcome(changed(**parts)).replace(SPACE, " ").startswith(said)


@pytest.mark.parametrize(
    ("measure", "said"),
    [
        ({"difference": -0.1, "reranked": 0.3595}, "fell from 0.4595 to 0.3595 (-0.1000; significant, p = 0.0002)."),
        ({"significance": {**TEST, "p_value": 0.31}}, "(+0.2291; not to be told from chance, p = 0.3100)."),
        ({"significance": {**TEST, "p_value": 0.00001}}, "significant, p < 0.0001)."),
        ({"significance": None}, "rose from 0.4595 to 0.6886 (+0.2291)."),
        ({"difference": 0.00001}, "nDCG@10 stayed at 0.6886."),
        ({"given": None, "difference": None, "wins": None, "losses": None, "ties": None}, "nDCG@10 is 0.6886."),
    ],
)  # fmt: skip
def test_the_verdict_says_whether_it_helped(measure: dict[str, Any], said: str) -> None:
    evaluation = copy.deepcopy(DOCUMENT["evaluation"])
    evaluation["metrics"][0] |= measure
    assert said in page(changed(evaluation=evaluation)).text


@pytest.mark.parametrize(
    ("difference", "p", "is_flawed"), [(-0.1, 0.001, True), (-0.1, 0.3, False), (0.1, 0.001, False)]
)
def test_a_significant_fall_is_no_success_and_is_warned_about(difference: float, p: float, is_flawed: bool) -> None:
    evaluation = copy.deepcopy(DOCUMENT["evaluation"])
    for row in evaluation["metrics"]:
        row |= {"difference": difference, "significance": {**TEST, "p_value": p}}
    document = changed(evaluation=evaluation, counts={"rows_error": 0, "passages_error": 0})
    said = f"{evaluation['metrics'][0]['metric']} fell, and not by chance"
    assert any(said in text for text in warnings(document)) == is_flawed
    assert ('<h1 class="flawed">' in render_report(document).decode()) == is_flawed


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"plan": {"kind": "fallback", "profile": "any-fp16"}}, "The fallback profile any-fp16 ran"),
        ({"counts": {"retiled": 2}}, "2 images were cut in fewer tiles"),
        ({"counts": {"empty_queries": 2}}, "2 queries are empty"),
        ({"evaluation": {"queries": 0}}, "None of the queries has a judgement"),
        ({"evaluation": {"repeated": 1}}, "1 list is not measured: the query had one before"),
    ],
)
def test_what_makes_a_result_worth_less_is_told(parts: dict[str, Any], said: str) -> None:
    assert not any(said in text.replace(SPACE, " ") for text in warnings(DOCUMENT))
    assert any(said in text.replace(SPACE, " ") for text in warnings(changed(**parts)))


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        ({"load": 690.0, "compute": 1.0}, "Loading the model took 98.6 %"),
        ({"wait": 690.0, "compute": 1.0}, "The model waited for tokenising 98.6 %"),
        ({"wait": 690.0, "compute": 1.0, "read": 99.0}, "The model waited for reading 98.6 %"),
        ({"wait": 690.0, "compute": 1.0, "images": 99.0}, "The model waited for page images 98.6 %"),
        ({"write": 690.0, "compute": 1.0}, "Writing took 98.6 %"),
    ],
)
def test_what_limited_a_run_is_told(seconds: dict[str, float], said: str) -> None:
    found = limit(changed(seconds=seconds))
    assert found is not None
    assert found.replace(SPACE, " ").startswith(said)


def test_a_run_without_a_judged_query_was_not_measured() -> None:
    document = changed(evaluation={"queries": 0})
    del document["changes"]
    text = page(document).text
    assert "None of the queries has a judgement" in text
    assert "nDCG" not in text


# Less in the document


@pytest.mark.parametrize("name", [name for name in DOCUMENT if name != "schema"])
def test_a_part_that_a_report_has_not_is_left_out(name: str) -> None:
    found = page(without(name))
    assert "None" not in found.text.replace("None of the queries", "")
    sections = {"evaluation": "Did it help?", "scores": "by rank", "lengths": "Tokens of a pair", "memory": "estimated",
                "timeline": "Speed over time", "command": "The same again", "plan": "Profile, and why"}  # fmt: skip
    if name in sections:
        assert sections[name] in page(DOCUMENT).text
        assert sections[name] not in found.text


def test_an_empty_document_is_a_page() -> None:
    assert "Done" in page({"schema": "x"}).text


def test_a_report_of_a_version_that_said_less_is_a_page() -> None:
    older = without("scores", "lengths", "timeline", "errors", "command", "memory", "finished", "evaluation")
    older["seconds"] = {"wall": 8.1, "read": 0.1, "tokenise": 0.2, "compute": 7.0, "write": 0.1}
    older |= {"first_error": ["lists.jsonl", 77, "not JSON"], "peak_rss_bytes": 560 * 2**20}
    text = page(older).text
    for part in ("Done with 2 bad rows", "lists.jsonl:77 not JSON", "measured 560.0 MiB", "Computing took 86.4 %"):
        assert part in text


# Data stays data


def _with(text: str) -> dict[str, Any]:
    """DOCUMENT with `text` wherever a text of a file or of the machine may stand."""
    document = changed(
        model=dict.fromkeys(("name", "path", "architecture", "template", "sha256"), text),
        plan={"profile": text, "kernels": text, "reasons": [text], "warnings": [text], "kind": "fallback"},
        machine={"cpu": text},
        options={"inputs": [text], "query": text},
        command={"line": text, "folder": text},
        output={"path": text},
        job={"files": {f"input {text}": {"path": text, "sha256": text, "bytes": 1}}},
        memory={"device": text, "measured": text},
    )
    document |= {"version": text, "finished": text, "errors_file": text}
    document["errors"][0]["code"] = text
    document["errors"][0]["examples"] = [{"file": text, "row": 1, "id": text, "message": text}]
    document["evaluation"]["metrics"][0]["metric"] = text
    document["evaluation"]["given_order"] = text
    document["scores"]["score"] = text
    return document


HOSTILE = [
    "<script>alert(1)</script>", "</style><script>alert(1)</script>", "</title><img src=x onerror=alert(1)>",
    "\"><svg onload=alert(1)>", "' onmouseover='alert(1)", "<!--", "-->", "]]>", "&lt;b&gt;", "{{ 7*7 }}",
    "{% raw %}", "javascript:alert(1)", "a\x00b\x1b[2J\x07", "\u202egnp.exe", "\udcff", "x" * 5000, "`<b>`",
    "\n\r\t", "\ufeff\u2028",
]  # fmt: skip
PLAIN = page(_with("x")).elements


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_becomes_markup(text: str) -> None:
    _compare(text)


@settings(max_examples=60)
@given(st.text(st.characters(exclude_categories=()), min_size=1))
def test_no_text_whatever_becomes_markup(text: str) -> None:
    _compare(text)


def _compare(text: str) -> None:
    found = page(_with(text))
    assert found.elements == PLAIN
    assert found.comments == []
    shown = re.sub(r"\s+", " ", printable(text).replace("`", "")).replace(SPACE, " ")
    assert shown.strip() in found.text.replace("`", "")
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", found.text)


def test_the_page_refers_to_nothing_outside_itself() -> None:
    found = page(_with("https://example.org/x.png"))
    assert not {tag for tag, _ in found.elements} & {"script", "img", "iframe", "object", "embed", "a", "form", "base"}
    assert [tag for tag, names in found.elements if {"src", "href", "style", "xlink:href"} & set(names)] == ["link"]
    assert not any(name.startswith("on") for _, names in found.elements for name in names)
    style = render_report(DOCUMENT).decode().partition("<style>")[2].partition("</style>")[0]
    assert not re.search(r"url\(|@import|expression|<", style)


# Numbers


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (percent(0.0), "0 %"), (percent(0.00001), "< 0.1 %"), (percent(0.123), "12.3 %"), (percent(1.0), "100 %"),
        (percent(0.99999), "> 99.9 %"),
        (duration(0), "0 s"), (duration(0.0004), "< 0.001 s"), (duration(0.42), "0.42 s"), (duration(8.14), "8.1 s"),
        (duration(59.97), "1 min 0 s"), (duration(136.4), "2 min 16 s"), (duration(11100), "3 h 5 min"),
        (duration(180000), "2 d 2 h"),
        (size(0), "0 bytes"), (size(2047), "2.00 KiB"), (size(560 * 2**20), "560.0 MiB"), (size(2**35), "32.0 GiB"),
        (short(0), "0"), (short(-0.8333), "\N{MINUS SIGN}0.833"), (short(12.345), "12.3"), (short(1234.5), "1,234"),
        (short(3e38), "3.00e+38"),
    ],
)  # fmt: skip
def test_numbers_read_well(told: str, said: str) -> None:
    assert told.replace(SPACE, " ") == said


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9))
def test_an_axis_has_a_few_round_ticks_up_to_its_end(low: float, span: float) -> None:
    found = ticks(low, low + span)
    assert 3 <= len(found) <= 8 or span < 1e-6 * abs(low)
    assert found == sorted(found)
    assert found[-1] >= low + span - 1e-6 * max(abs(low), span)


def test_ticks_of_counts_are_whole() -> None:
    assert ticks(0, 3, least=1) == [0, 1, 2, 3]
    assert ticks(0, 1, least=1) == [0, 1]


# Of a run


def _report(rows: list[Any], folder: Path) -> dict[str, Any]:
    names = Names(str(folder / "out.jsonl"), report=str(folder / "run.html"))
    source, command = write_lines(folder / "in.jsonl", rows), Command("rerank-cli <b>", "/")
    return run_job(JobOptions((source,), names, model=str(TINY_CHECKPOINT), command=command)).report


def test_a_run_leaves_the_page_of_its_report(tmp_path: Path) -> None:
    rows = [
        {"query_id": "<q>", "query": "way", "passages": ["a road", "b " * 600, ""]},
        {"query_id": "<i>", "query": 5},
    ]
    report = _report(rows, tmp_path)
    written = json.loads((tmp_path / "out.jsonl.report.json").read_bytes())
    assert written == json.loads(json.dumps(report))
    assert (tmp_path / "run.html").read_bytes() == render_report(written)
    text = page(written).text
    for part in ("Done with 1 bad row of 2", "<i>", "out.jsonl", "1 pair (33.3 %) did not fit", "rerank-cli <b>"):
        assert part in text


class NoPage(Files):
    """A disk on which no page gets its name."""

    def place(self, old: Path, new: Path) -> None:
        if new.name == "run.html":
            raise OSError(5, "Input/output error")
        super().place(old, new)


def test_a_page_that_could_not_get_its_name_gets_it_from_the_next_run(tmp_path: Path) -> None:
    names = Names(str(tmp_path / "out.jsonl"), report=str(tmp_path / "run.html"))
    source = write_lines(tmp_path / "in.jsonl", [{"query": "way", "passages": ["a road"]}])
    options = JobOptions((source,), names, model=str(TINY_CHECKPOINT))
    with pytest.raises(OutputError, match=r"run\.html: cannot be written"):
        run_job(options, files=NoPage())
    assert not (tmp_path / "out.jsonl").exists()
    assert run_job(options).was_done
    written = json.loads((tmp_path / "out.jsonl.report.json").read_bytes())
    assert (tmp_path / "run.html").read_bytes() == render_report(written)


def test_a_run_of_nothing_leaves_a_page(tmp_path: Path) -> None:
    report = _report([], tmp_path)
    assert page_of(report)["throughput"] is None
    assert "the input has no rows" in page(report).text
