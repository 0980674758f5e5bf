"""`rerank-cli score` as a user meets it."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rerank_cli.cli import main

ROOT = Path(__file__).parents[2]


def test_the_sample_pairs_get_the_expected_logits(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", str(ROOT / "samples/pairs.jsonl"), "-q"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    rows = [json.loads(line) for line in captured.out.splitlines()]
    expected = [
        json.loads(line) for line in (ROOT / "samples/expected/pairs.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert [row["passage"] for row in rows] == [row["passage"] for row in expected]
    assert [row["logit"] for row in rows] == pytest.approx([row["logit"] for row in expected], abs=1e-3)
    right, wrong = rows[::2], rows[1::2]
    assert all(good["logit"] > bad["logit"] for good, bad in zip(right, wrong, strict=True))


def _live(tiny_model: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "rerank_cli", "score", "--model", tiny_model, "-q", *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ})


def test_a_live_pipe_gets_its_answer_before_it_ends(tiny_model: str) -> None:
    with _live(tiny_model) as run:
        assert run.stdin is not None
        assert run.stdout is not None
        for number in range(3):
            run.stdin.write(json.dumps({"query": "a", "passage": f"b {number}"}) + "\n")
            run.stdin.flush()
            assert json.loads(run.stdout.readline())["passage"] == f"b {number}"
        run.stdin.close()
        assert run.wait(timeout=300) == 0


def test_plain_lines_are_ranked_for_one_query(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = tmp_path / "lines.txt"
    lines.write_text("def open_door():\n\ndef close_file(handle):\n\x1b[31mdef paint():\n")
    assert main(["score", str(lines), "--lines", "--query", "close a file", "--top-n", "2", "-q"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 2
    assert rows[0]["passage"] == "def close_file(handle):"
    assert rows[0]["logit"] > rows[1]["logit"]
    assert list(rows[0]) == ["passage", "logit"]


def test_prob_is_the_sigmoid_and_threshold_drops(
    tmp_path: Path, tiny_model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"id": i, "query": "a", "text": "word " * i}) + "\n" for i in range(1, 9)))
    assert main(["score", str(rows), "--model", tiny_model, "--prob", "-q"]) == 0
    everything = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["id"] for row in everything] == list(range(1, 9))
    for row in everything:
        assert row["prob"] == pytest.approx(1 / (1 + math.exp(-row["logit"])), abs=1e-12)
    middle = sorted(row["logit"] for row in everything)[4]
    assert main(["score", str(rows), "--model", tiny_model, "--threshold", str(middle), "-q"]) == 0
    kept = [json.loads(line)["id"] for line in capsys.readouterr().out.splitlines()]
    assert kept == [row["id"] for row in everything if row["logit"] >= middle]


def test_bad_rows_of_a_pipe_are_told_one_by_one(
    tiny_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"query": "a", "passage": "b"}\n{"query": "a"}\n' + "x\n" * 30)
    assert main(["score", str(rows), "--model", tiny_model, "-q"]) == 3
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 1
    assert "rows.jsonl:2: field `passage` is missing; the row has `query`" in captured.err
    assert "31 of 32 rows could not be scored; 11 not shown" in captured.err


def test_an_empty_query_and_an_empty_passage_are_scored_and_told(
    tiny_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"query": "", "passage": "b"}\n{"query": "a", "passage": ""}\n')
    assert main(["score", str(rows), "--model", tiny_model]) == 0
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 2
    assert "1 query is empty" in captured.err
    assert "1 passage is empty" in captured.err
