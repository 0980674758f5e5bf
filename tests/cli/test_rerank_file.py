"""`rerank-cli rerank-file` as a user meets it: real files, real processes, a tiny real model."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rerank_cli.cli import main
from rerank_cli.job import run as job_run
from tests.conftest import read_lines, write_lines

ROOT = Path(__file__).parents[2]


def _rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _process(*arguments: str, **settings: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "rerank_cli", *arguments], **settings)


def _default_sigint() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    path = tmp_path / "lists.jsonl"
    with path.open("w", encoding="utf-8") as out:
        for number in range(50):
            passages = [f"passage {place} of {number}" for place in range(1000)]
            out.write(json.dumps({"query": f"number {number}", "passages": passages}) + "\n")
    return path


def test_the_samples_come_back_as_the_expected_output(tmp_path: Path) -> None:
    out = tmp_path / "top3.jsonl"
    arguments = ["--limit", "8", "--top-n", "3", "-q"]
    assert main(["rerank-file", str(ROOT / "samples/python-docs.jsonl"), "-o", str(out), *arguments]) == 0
    expected = _rows(ROOT / "samples/expected/python-docs.top3.jsonl")[:8]
    for row, wanted in zip(_rows(out), expected, strict=True):
        assert row["query_id"] == wanted["query_id"]
        assert [(p["id"], p["rank"], p["index"]) for p in row["passages"]] == [
            (p["id"], p["rank"], p["index"]) for p in wanted["passages"]
        ]
        for passage, good in zip(row["passages"], wanted["passages"], strict=True):
            assert passage["logit"] == pytest.approx(good["logit"], abs=1e-3)
            assert passage["text"] == good["text"]


def test_unknown_fields_keep_their_place_and_every_digit(tmp_path: Path, tiny_model: str) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"z": 1.10, "query": "a", "n": 12345678901234567890123, "passages": ["b"], "é": [1e5, null]}\n')
    out = tmp_path / "out.jsonl"
    assert main(["rerank-file", str(source), "-o", str(out), "--model", tiny_model, "-q"]) == 0
    line = out.read_text(encoding="utf-8")
    assert line.startswith(
        '{"z": 1.10, "query": "a", "n": 12345678901234567890123, "passages": [{"text": "b", "rank": 1, '
    )
    assert line.endswith('], "é": [1e5, null]}\n')


def test_a_reader_that_leaves_a_pipe_ends_the_run_quietly(lists: Path, tiny_model: str) -> None:
    arguments = ["rerank-file", "-", "-o", "-", "--model", tiny_model, "-q"]
    with (
        lists.open("rb") as rows,
        _process(*arguments, stdin=rows, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run,
    ):
        assert run.stdout is not None
        assert run.stderr is not None
        first = [run.stdout.readline() for _ in range(3)]
        run.stdout.close()
        assert run.wait(timeout=300) == 141
        assert run.stderr.read() == b""
    assert [len(json.loads(line)["passages"]) for line in first] == [1000] * 3


def test_a_stop_before_anything_is_scored_says_that_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load = job_run.prepare_inputs

    def load_and_be_stopped(*given: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return load(*given)

    monkeypatch.setattr(job_run, "prepare_inputs", load_and_be_stopped)
    given = ["rerank-file", str(ROOT / "samples" / "python-docs.jsonl"), "-o", str(tmp_path / "out.jsonl"), "-q"]
    assert main(given) == 143
    assert capsys.readouterr().err.splitlines() == [
        "stopped by SIGTERM",
        "stopped: nothing was scored yet; what an earlier run has kept stays; run the same command again",
    ]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_run_and_the_next_one_goes_on(
    number: signal.Signals, code: int, lists: Path, tiny_model: str
) -> None:
    out = lists.with_name("out.jsonl")
    arguments = ["rerank-file", str(lists), "-o", str(out), "--model", tiny_model, "--limit", "12"]
    # A test run in the background of a shell inherits an ignored SIGINT; the program is to meet the usual one.
    with _process(*arguments, stderr=subprocess.PIPE, preexec_fn=_default_sigint) as run:
        journal = lists.with_name("out.jsonl.job") / "journal"
        while not (journal.exists() and journal.stat().st_size):
            assert run.poll() is None
            time.sleep(0.02)
        run.send_signal(number)
        assert run.wait(timeout=300) == code
        assert run.stderr is not None
        said = run.stderr.read().decode().splitlines()
        assert said[-2] == f"stopped by {number.name}"
        assert re.fullmatch(
            r"stopped: \d+ of 12 rows \(\d+ %\) are kept; (about|less than) \d+ \w+ is left; "
            "run the same command again",
            said[-1],
        )
    assert sorted(path.name for path in lists.parent.iterdir()) == ["lists.jsonl", "out.jsonl.job"]
    assert main([*arguments, "-q"]) == 0
    assert len(_rows(out)) == 12
    assert json.loads(Path(f"{out}.report.json").read_text())["continued"] == 1


def test_bad_rows_are_collected_and_the_others_scored(
    tmp_path: Path, tiny_model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(
        b'{"query": "a", "passages": ["b"]}\nnot json\n\n{"query": "a", "docs": [1]}\n{"query": "c", "passages": []}\n'
    )
    out = tmp_path / "out.jsonl"
    assert main(["rerank-file", str(source), "-o", str(out), "--model", tiny_model]) == 3
    assert [row["query"] for row in _rows(out)] == ["a", "c"]
    errors = _rows(tmp_path / "out.jsonl.errors.jsonl")
    assert [(row["row"], row["error"]["code"]) for row in errors] == [(2, "bad-json"), (4, "wrong-type")]
    assert errors[0]["raw"] == "not json"
    said = capsys.readouterr().err
    assert "2 of 4 rows could not be scored" in said
    assert "in.jsonl:2:" in said
    report = json.loads((tmp_path / "out.jsonl.report.json").read_text())
    counts = report["counts"]
    assert (counts["rows_in"], counts["rows_out"], counts["rows_error"], counts["blank"]) == (4, 2, 2, 1)


@pytest.mark.parametrize(("limit", "code"), [("0", 7), ("1", 7), ("2", 3), ("10%", 7), ("60%", 3)])
def test_too_many_bad_rows_stop_the_run_without_output(limit: str, code: int, tmp_path: Path, tiny_model: str) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"query": "a", "passages": ["b"]}\nbad\n{"query": "a", "passages": ["b"]}\nworse\n')
    out = tmp_path / "out.jsonl"
    assert main(["rerank-file", str(source), "-o", str(out), "--model", tiny_model, "--max-errors", limit]) == code
    assert out.exists() == (code == 3)
    assert main(["rerank-file", str(source), "-o", str(tmp_path / "x.jsonl"), "--on-error", "fail"]) == 7


def test_a_dry_run_counts_and_loads_no_weights(
    tmp_path: Path, tiny_model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    weights = model / "model.safetensors"
    header = weights.read_bytes()
    # The header stays, the data becomes NaN: whoever scored with it would fail.
    length = 8 + int.from_bytes(header[:8], "little")
    weights.write_bytes(header[:length] + b"\xff" * (len(header) - length))
    source = tmp_path / "in.jsonl"
    source.write_text('{"query": "a", "passages": ["b", "b", "' + "c d " * 600 + '"]}\n{"query": 1}\n')
    arguments = ["rerank-file", str(source), "-o", str(tmp_path / "out.jsonl"), "--model", str(model), "--dry-run"]
    assert main([*arguments, "--format", "json"]) == 3  # as the run would
    result = json.loads(capsys.readouterr().out)
    assert result["schema"] == "rerank-cli/dry-run/1"
    counts = result["counts"]
    assert (counts["rows_in"], counts["rows_error"], counts["pairs"], counts["pairs_scored"]) == (2, 1, 3, 2)
    assert result["truncated"] == 1
    assert result["tokens"]["p100"] > 512
    assert not (tmp_path / "out.jsonl").exists()
    assert main([*arguments, "--format", "text"]) == 3
    assert "pairs that would be truncated" in capsys.readouterr().out
    without = [one for one in arguments if one not in ("-o", str(tmp_path / "out.jsonl"))]
    assert main([*without, "--format", "json"]) == 3  # nothing is written, so nothing need be named
    assert json.loads(capsys.readouterr().out)["counts"] == counts


def test_the_evaluation_is_json_in_a_pipe_and_a_table_when_asked(
    tmp_path: Path, tiny_model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "rerank-file",
        str(ROOT / "samples/python-docs-flat.jsonl"),
        "-o",
        str(tmp_path / "out.jsonl"),
        "--limit",
        "40",
    ]
    arguments += ["--model", tiny_model, "--qrels", str(ROOT / "samples/qrels.txt"), "-q", "--overwrite"]
    assert main(arguments) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["queries"] == 2
    assert result["metrics"][0]["metric"] == "nDCG@10"
    assert main([*arguments, "--format", "text", "--metric", "RR@10"]) == 0
    table = capsys.readouterr().out
    assert "reranked" in table
    assert "RR@10" in table


def test_verbose_tells_model_and_plan(tmp_path: Path, tiny_model: str, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"query": "a", "passages": ["b"]}\n')
    assert main(["rerank-file", str(source), "-o", "-", "--model", tiny_model, "-v"]) == 0
    captured = capsys.readouterr()
    assert "BertForSequenceClassification" in captured.err
    assert "plan: precision fp32" in captured.err
    assert json.loads(captured.out)["passages"][0]["rank"] == 1


@pytest.mark.slow
def test_memory_stays_flat_when_the_file_grows(tmp_path: Path, tiny_model: str) -> None:
    """Peak RSS of 20,000 pairs against 2,000 (the benchmark module does 100,000 against 5,000)."""
    peaks = {}
    for queries in (40, 400):
        source, out = tmp_path / f"{queries}.jsonl", tmp_path / f"{queries}.out.jsonl"
        with source.open("w") as rows:
            for number in range(queries):
                passages = ["word " * (1 + (number * 7 + place * 13) % 90) for place in range(50)]
                rows.write(json.dumps({"query": f"query {number}", "passages": passages}) + "\n")
        run = _process("rerank-file", str(source), "-o", str(out), "--model", tiny_model, "-q", env={**os.environ})
        assert run.wait(timeout=300) == 0
        peaks[queries] = json.loads(Path(f"{out}.report.json").read_text())["peak_rss_bytes"]
    assert peaks[400] - peaks[40] < 50 * 2**20


@pytest.mark.parametrize(
    ("options", "told"), [((), ""), (("--threshold", "100"), ", or none that reaches --threshold")]
)
def test_lists_that_are_written_empty_are_told(
    options: Sequence[str], told: str, tmp_path: Path, tiny_model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_lines(tmp_path / "in.jsonl", [{"query": "a", "passages": ["b"]}, {"query": "a", "passages": []}])
    out = tmp_path / "out.jsonl"
    assert main(["rerank-file", source, "-o", str(out), "--model", tiny_model, *options]) == 0
    empty = 2 if options else 1
    assert f"note: {empty} of 2 lists are empty in the output: they have no passage{told}\n" in capsys.readouterr().err
    assert json.loads(Path(f"{out}.report.json").read_text())["counts"]["empty_lists"] == empty
    assert [len(row["passages"]) for row in read_lines(out)] == [2 - empty, 0]
