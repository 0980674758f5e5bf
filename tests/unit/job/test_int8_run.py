"""Runs in int8: one calibration, on the first window of the whole input, whoever does which part of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from rerank_cli.errors import StoppedError
from rerank_cli.job.options import JobOptions, Names
from rerank_cli.job.run import Outcome, Watcher, run_job
from rerank_cli.job.stop import Stop
from rerank_cli.models.int8_linear import int8_hindrance
from rerank_cli.planning.choices import ProfileRequest
from rerank_cli.reranker import Reranker
from tests.conftest import TINY_CHECKPOINT, write_lines

needs_int8 = pytest.mark.skipif(int8_hindrance() is not None, reason="this torch has no int8 layers of oneDNN")
WORDS = ["two", "roads", "diverged", "in", "a", "yellow", "wood", "and", "sorry", "i", "could", "not", "travel", "both"]
# Four windows of `score`; those after the first have longer passages, so each would calibrate otherwise.
PAIRS = [
    {"id": n, "query": WORDS[n % 13], "passage": " ".join(WORDS[n % 7 : 7 + n % 6]) + " wood" * (n // 40)}
    for n in range(220)
]


@pytest.fixture
def source(tmp_path: Path) -> str:
    return write_lines(tmp_path / "pairs.jsonl", PAIRS)


def run(
    source: str, out: Path, *, precision: str = "int8", stop_after: int = 0, said: list[str] | None = None, **more: Any
) -> Outcome:
    """`score` in int8; stopped when `stop_after` windows are done."""
    stop, windows = Stop(), []

    def on_progress(counts: Any, share: Any) -> None:
        windows.append(share)
        if len(windows) == stop_after:
            stop.request(StoppedError("enough", exit_code=9))

    request = ProfileRequest(device="cpu", precision=precision)
    options = JobOptions(
        (source,),
        Names(str(out)),
        pairs=True,
        checkpoint_every=0.0,
        model=str(TINY_CHECKPOINT),
        request=request,
        **more,
    )
    watcher = Watcher(on_progress=on_progress, on_note=said.append if said is not None else None)
    return run_job(options, watcher, stop=stop)


def logits(path: Path) -> np.ndarray:
    return np.array([json.loads(line)["logit"] for line in path.read_text().splitlines()])


@needs_int8
def test_a_run_in_int8_says_so_and_is_near_fp32(tmp_path, source):
    outcome = run(source, tmp_path / "int8.jsonl")
    run(source, tmp_path / "fp32.jsonl", precision="fp32")
    assert outcome.report["plan"]["precision"] == "int8"
    assert "oneDNN, int8" in outcome.report["plan"]["kernels"]
    assert "calibrated on 64 pairs" in outcome.report["plan"]["kernels"]
    found, exact = logits(tmp_path / "int8.jsonl"), logits(tmp_path / "fp32.jsonl")
    assert 0 < np.abs(found - exact).mean() < 0.1 * exact.std()


@needs_int8
def test_a_run_that_is_continued_has_the_bytes_of_one_that_was_not(tmp_path, source):
    run(source, tmp_path / "whole.jsonl")
    with pytest.raises(StoppedError):
        run(source, tmp_path / "resumed.jsonl", stop_after=2)
    journal = tmp_path / "resumed.jsonl.job"
    assert journal.exists()
    outcome = run(source, tmp_path / "resumed.jsonl")
    assert outcome.report["continued"] == 1
    assert (tmp_path / "whole.jsonl").read_bytes() == (tmp_path / "resumed.jsonl").read_bytes()


@needs_int8
def test_a_continued_run_has_its_calibration_from_the_journal(tmp_path, source):
    with pytest.raises(StoppedError):
        run(source, tmp_path / "out.jsonl", stop_after=1)
    text = b"".join(path.read_bytes() for path in sorted((tmp_path / "out.jsonl.job").iterdir()) if path.is_file())
    assert text.count(b'"calibration":{') == 1
    said: list[str] = []
    run(source, tmp_path / "out.jsonl", said=said)
    assert not any("calibrated" in text for text in said)


@needs_int8
def test_shards_put_together_are_the_run(tmp_path, source):
    run(source, tmp_path / "whole.jsonl")
    for shard in (1, 2, 3):
        run(source, tmp_path / f"{shard}.jsonl", shard=(shard, 3))
    parts = [(tmp_path / f"{shard}.jsonl").read_bytes() for shard in (1, 2, 3)]
    assert all(parts)
    assert b"".join(parts) == (tmp_path / "whole.jsonl").read_bytes()


@needs_int8
def test_a_shard_that_is_continued_has_the_same_bytes_too(tmp_path, source):
    run(source, tmp_path / "whole.jsonl", shard=(2, 2))
    with pytest.raises(StoppedError):
        run(source, tmp_path / "resumed.jsonl", shard=(2, 2), stop_after=1)
    run(source, tmp_path / "resumed.jsonl", shard=(2, 2))
    assert (tmp_path / "whole.jsonl").read_bytes() == (tmp_path / "resumed.jsonl").read_bytes()


@needs_int8
def test_few_pairs_to_calibrate_on_are_warned_about(tmp_path):
    source = write_lines(tmp_path / "few.jsonl", PAIRS[:3])
    said: list[str] = []
    run(source, tmp_path / "out.jsonl", said=said)
    assert [text for text in said if text.startswith("warning: int8 is calibrated on only 3 pairs")]


@needs_int8
def test_a_first_window_without_pairs_that_can_be_scored_leaves_it_to_the_next(tmp_path):
    bad = [{"id": n, "query": "two roads", "passage": {"no": "text"}} for n in range(70)]
    outcome = run(write_lines(tmp_path / "in.jsonl", [*bad, *PAIRS]), tmp_path / "out.jsonl")
    assert outcome.counts.rows_out == len(PAIRS)
    assert outcome.counts.rows_error == 70


@needs_int8
@pytest.mark.parametrize("stop_after", [0, 1])
def test_the_agreement_with_fp32_is_in_the_report_also_of_a_continued_run(tmp_path, source, stop_after):
    whole = run(source, tmp_path / "whole.jsonl", check_precision=150).report["precision_check"]
    out = tmp_path / "out.jsonl"
    if stop_after:
        with pytest.raises(StoppedError):
            run(source, out, check_precision=150, stop_after=stop_after)
    found = run(source, out, check_precision=150).report["precision_check"]
    assert found == whole
    assert found["pairs"] >= 150
    assert found["lists"] == 3  # rows of one pair are compared a window at a time
    run(source, tmp_path / "fp32.jsonl", precision="fp32")
    apart = np.abs(logits(out) - logits(tmp_path / "fp32.jsonl"))[: found["pairs"]].max()
    assert found["max_logit_difference"] == pytest.approx(apart, abs=1e-5)
    assert 0.5 < found["kendall_tau"] < 1
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_fp32_is_not_compared_with_itself_and_that_is_said(tmp_path, source):
    said: list[str] = []
    report = run(source, tmp_path / "out.jsonl", precision="fp32", check_precision=10, said=said).report
    assert "precision_check" not in report
    assert "--check-precision: nothing to compare, the run is in fp32" in said


@needs_int8
def test_a_reranker_is_calibrated_by_its_first_call_and_stays_so():
    frame = pd.DataFrame({"query": ["wood"] * 30, "passage": [row["passage"] for row in PAIRS[:30]]})
    with Reranker(TINY_CHECKPOINT, device="cpu", precision="int8") as reranker:
        first, again = reranker.rerank(frame), reranker.rerank(frame)
        some = reranker.rerank(frame[:5])
    assert first.equals(again)
    both = first.merge(some, on=["query", "passage"], suffixes=("", "_some"))
    assert np.allclose(both["logit"], both["logit_some"], atol=1e-5)
