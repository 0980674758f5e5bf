from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rerank_cli.encoding.encoder import EncodingProblem
from rerank_cli.encoding.pairs import EncodedWindow
from rerank_cli.errors import StoppedError
from rerank_cli.job.options import JobOptions, Names
from rerank_cli.job.run import Watcher, run_job
from rerank_cli.job.stop import Stop
from rerank_cli.records import CandidateList, EncodedPair, RowError, Window
from rerank_cli.report.observations import Observations
from tests.conftest import TINY_CHECKPOINT, json_row, ranked_of, write_lines

EMPTY = Window(number=0, lists=(), errors=(), rows=0, blank=0)
NO_PAIRS = EncodedWindow(EMPTY, [], [])
HOSTILE = ["<script>alert(1)</script>", "a\x00\x1b[2J\u202e", "\udcff", "'\"&", {"a": [1]}, 10**30, 1.5, True, None, ""]


def pair(kept: int, tokens: int | None = None) -> EncodedPair:
    return EncodedPair(np.zeros(kept, dtype=np.int32), kept, tokens or kept)


def ranked(*logits: float) -> Any:
    passages = tuple("p" * (place + 1) for place in range(len(logits)))
    return ranked_of(CandidateList("q", passages, (json_row({}),)), *logits)


def bad(code: str, id: object = None, message: str = "no") -> RowError:
    return RowError("in.jsonl", 3, id, code, message, b"{")


def as_read(state: Any) -> Any:
    return json.loads(json.dumps(state, allow_nan=False))


def test_lengths_are_of_distinct_pairs_and_chunks_before_anything_is_cut() -> None:
    seen = Observations()
    problem = EncodingProblem("too-long", "it is")
    seen.add(EncodedWindow(EMPTY, [(pair(10),), (pair(20), pair(7)), problem, (pair(64, 100),)], []), [])
    found = seen.document("logit")["lengths"]
    assert (found["pairs"], found["mean"], found["longest"]) == (4, 34.2, 100)
    assert (found["cut_pairs"], found["cut_tokens"]) == (1, 36)
    assert [(one["from"], one["pairs"], one["cut"]) for one in found["histogram"]] == [
        (7, 1, 0), (10, 1, 0), (20, 1, 0), (100, 1, 1),
    ]  # fmt: skip
    assert (found["p50"], found["p99"]) == (10, 100)
    assert seen.squares == 10**2 + 20**2 + 7**2 + 64**2


def test_scores_are_told_by_groups_of_ranks() -> None:
    seen = Observations()
    seen.add(NO_PAIRS, [ranked(5.0, 4.0, 3.0, 2.0, 1.0, 0.0), ranked(7.0)])
    seen.add(NO_PAIRS, [ranked(*range(120))])
    found = seen.document("cosine")["scores"]
    assert found["score"] == "cosine"
    groups = {(one["from"], one["to"]): one["count"] for one in found["by_rank"]}
    assert groups == {
        (1, 1): 3, (2, 2): 2, (3, 3): 2, (4, 5): 4, (6, 10): 6, (11, 20): 10, (21, 50): 30, (51, 100): 50,
        (101, None): 20,
    }  # fmt: skip
    assert (found["by_rank"][0]["min"], found["by_rank"][0]["max"]) == (5.0, 119.0)
    assert sum(found["histogram"]["counts"]) == 127


def test_moves_are_counted_by_how_far_they_went() -> None:
    seen = Observations()
    seen.add(NO_PAIRS, [ranked(0.0, 2.0, 1.0), ranked(7.0)])  # 1, 2, 0: up 1, up 1, down 2
    found = {(one["from"], one["to"]): (one["up"], one["down"]) for one in seen.document("logit")["moves"]}
    assert found == {(0, 0): (1, 0), (1, 1): (2, 0), (2, 2): (0, 1), **dict.fromkeys(list(found)[3:], (0, 0))}
    pairs = Observations()
    pairs.add(NO_PAIRS, [ranked(7.0), ranked(1.0)])
    assert "moves" not in pairs.document("logit")  # pairs have no order


def test_scores_of_relevant_passages_and_of_others_have_the_same_bins() -> None:
    seen = Observations()
    seen.add_relevance([3.0, 2.5], [0.25, -1.0])
    seen = Observations(as_read(seen.state))
    seen.add_relevance([], [0.25])
    found = seen.document("logit")["scores_by_relevance"]
    bins = {kind: found[kind] for kind in ("relevant", "others")}
    assert len(bins["relevant"]) == len(bins["others"])
    at = {
        kind: [found["begin"] + found["width"] * n for n, count in enumerate(bins[kind]) for _ in range(count)]
        for kind in bins
    }
    assert at["others"] == pytest.approx([-1.0, 0.25, 0.25], abs=found["width"])
    assert at["relevant"] == pytest.approx([2.5, 3.0], abs=found["width"])
    seen = Observations()
    seen.add_relevance([1.0], [])
    assert "scores_by_relevance" not in seen.document("logit")


def test_bad_rows_are_counted_by_code_with_a_few_examples() -> None:
    seen = Observations()
    for number in range(5):
        seen.add_error(bad("bad-json", f"row {number}"))
    seen.add_error(bad("too-long", message="x" * 1000))
    first, second = seen.document("logit")["errors"]
    assert (first["code"], first["rows"], [one["id"] for one in first["examples"]]) == (
        "bad-json", 5, ["row 0", "row 1", "row 2"],
    )  # fmt: skip
    assert (second["rows"], len(second["examples"][0]["message"])) == (1, 200)


@pytest.mark.parametrize("id", HOSTILE)
def test_an_id_is_kept_as_data_whatever_it_is(id: object) -> None:
    seen = Observations()
    seen.add_error(bad("bad-json", id, message=str(id)))
    (found,) = Observations(as_read(seen.state)).document("logit")["errors"]
    kept = found["examples"][0]["id"]
    if isinstance(id, (dict, int)) and not isinstance(id, bool):
        assert kept == json.dumps(id)
    else:
        assert kept == id
    assert found["examples"][0]["message"] == str(id)


def test_codes_without_end_are_counted_together() -> None:
    seen = Observations()
    for number in range(100):
        seen.add_error(bad(f"code-{number}"))
    found = seen.document("logit")["errors"]
    assert len(found) == 33
    assert found[0]["code"] == "other"
    assert sum(one["rows"] for one in found) == 100


def test_a_state_is_small_and_goes_on_as_it_was() -> None:
    draw = np.random.default_rng(0)
    whole, resumed = Observations(), Observations()
    for window in range(40):
        if window == 20:
            resumed = Observations(as_read(resumed.state))
            resumed.timeline.at = window * 10.0
        lengths = draw.integers(8, 600, 512)
        logits = [draw.normal(size=100) * 5 for _ in range(5)]
        for seen in (whole, resumed):
            pairs = [(pair(min(512, int(n)), int(n)),) for n in lengths]
            seen.add(EncodedWindow(EMPTY, pairs, []), [ranked(*found.tolist()) for found in logits])
            seen.timeline.add(window * 10.0 + 10, (512, 60_000))
    assert as_read(resumed.state) == as_read(whole.state)
    assert len(json.dumps(whole.state)) < 6000


def test_a_run_without_rows_has_nothing_to_tell() -> None:
    assert Observations().document("logit") == {}


def test_time_begins_with_scoring_and_goes_on_after_a_stop() -> None:
    seen = Observations()
    seen.timeline.at = 1.0
    seen.timeline.add(2.0, (8, 800))
    again = Observations(as_read(seen.state))
    again.add_continued(2.0)
    again.timeline.at = 3.0
    again.timeline.add(4.0, (8, 800))
    found = again.document("logit")["timeline"]
    assert found["continued_at"] == [2.0]
    assert found["step_seconds"] == 0.125
    assert found["tokens"][:32] == [0.0] * 8 + [100.0] * 8 + [0.0] * 8 + [100.0] * 8
    assert sum(found["pairs"]) == 16


# In a run

ROWS = [
    {"query_id": f"q{n}", "query": "which way", "passages": [f"{'a ' * k} road {n}" for k in range(1 + n % 7)]}
    for n in range(300)
]


def run(source: str, out: Path, *, stop_after: int | None = None) -> dict[str, Any]:
    stop, windows = Stop(), []

    def on_progress(*told: object) -> None:
        windows.append(told)
        if len(windows) == stop_after:
            stop.request(StoppedError("enough", exit_code=9))

    options = JobOptions((source,), Names(str(out)), model=str(TINY_CHECKPOINT), checkpoint_every=0.0)
    return run_job(options, Watcher(on_progress=on_progress), stop=stop).report


def test_a_resumed_run_has_seen_what_an_undisturbed_one_has(tmp_path: Path) -> None:
    lines = [*ROWS[:100], {"query_id": "<b>", "query": 5, "passages": []}, *ROWS[100:], b"{"]
    source = write_lines(tmp_path / "in.jsonl", lines)
    whole = run(source, tmp_path / "whole.jsonl")
    with pytest.raises(StoppedError):
        run(source, tmp_path / "resumed.jsonl", stop_after=1)
    resumed = run(source, tmp_path / "resumed.jsonl")
    for part in ("lengths", "scores", "errors"):
        assert resumed[part] == whole[part]
    assert len(whole["timeline"]["continued_at"]) == 0
    assert len(resumed["timeline"]["continued_at"]) == 1
    for name in ("pairs", "tokens"):
        told = (whole["timeline"][name], resumed["timeline"][name])
        assert [round(sum(found)) for found in told] == pytest.approx([whole["counts"][name]] * 2, rel=0.01)


def test_the_report_of_a_run_agrees_with_its_counts(tmp_path: Path) -> None:
    report = run(write_lines(tmp_path / "in.jsonl", [*ROWS, b"{"]), tmp_path / "out.jsonl")
    counts, seconds = report["counts"], report["seconds"]
    assert report["lengths"]["pairs"] == counts["pairs_scored"]
    assert sum(one["count"] for one in report["scores"]["by_rank"]) == counts["pairs"]
    assert [(one["code"], one["rows"]) for one in report["errors"]] == [("bad-json", 1)]
    computed = report["speed"]["computed_tokens"]
    assert computed >= counts["tokens"] > 0
    assert report["speed"]["padding_share"] == round(1 - counts["tokens"] / computed, 4)
    assert report["speed"]["gflops"] > 0
    assert sum(seconds[name] for name in ("load", "wait", "compute", "write")) <= seconds["wall"] + 0.01
    assert report["memory"]["measured_bytes"] == report["peak_rss_bytes"]
    assert report["memory"]["estimated_bytes"] == report["plan"]["needed_bytes"]
    assert "command" not in report
