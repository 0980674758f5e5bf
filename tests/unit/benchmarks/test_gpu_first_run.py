"""The first run on a card: a step that fails or hangs is told, and the next one begins."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from benchmarks import gpu_first_run
from benchmarks.gpu_first_run import Step, run, steps

LONG = (
    "import subprocess,sys,time; subprocess.Popen([sys.executable,'-c','import time;time.sleep(99)']); time.sleep(99)"
)


def test_a_step_says_what_it_was_and_how_it_ended(tmp_path: Path) -> None:
    found = run(
        Step("a", [[sys.executable, "-c", "import os; print(os.environ['RUN'])"]], 20, {"RUN": "said"}), tmp_path
    )
    assert (found["ok"], found["why"], found["exit_codes"]) == (True, None, [0])
    assert found["end_of_log"].endswith("said\n")
    assert (tmp_path / found["log"]).read_text() == found["end_of_log"]


@pytest.mark.parametrize(
    ("command", "why"),
    [([sys.executable, "-c", "raise SystemExit(3)"], "exit codes [3]"), (["/nowhere/at-all"], "exit codes [127]")],
)
def test_a_step_that_fails_is_told(tmp_path: Path, command: list[str], why: str) -> None:
    found = run(Step("a", [command], 20), tmp_path)
    assert (found["ok"], found["why"]) == (False, why)


def test_a_step_ends_at_its_limit_with_all_that_it_has_started(tmp_path: Path) -> None:
    began = time.monotonic()
    found = run(Step("a", [[sys.executable, "-c", LONG], [sys.executable, "-c", "pass"]], 1.0), tmp_path)
    assert time.monotonic() - began < 50
    assert found["why"] == "past its limit of 1 s"
    assert found["exit_codes"] == [None, 0]


def test_every_step_runs_whatever_became_of_those_before(tmp_path, monkeypatch, capsys) -> None:
    made = [
        Step("first", [[sys.executable, "-c", "raise SystemExit(1)"]], 20),
        Step("second", [[sys.executable, "-c", "print(7)"]], 20),
    ]
    monkeypatch.setattr(gpu_first_run, "steps", lambda options, material: made)
    monkeypatch.setattr(sys, "argv", ["gpu_first_run", "--device", "cpu", "--small", "--out", str(tmp_path / "out")])
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert gpu_first_run.main() == 1
    finally:
        signal.signal(signal.SIGTERM, before)
    told = json.loads((tmp_path / "out" / "first-run.json").read_text())
    assert [one["ok"] for one in told["steps"]] == [False, True]
    assert "first: FAILED (exit codes [1])" in capsys.readouterr().out


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_each_module_that_a_step_names_is_there(tmp_path: Path, device: str) -> None:
    options = argparse.Namespace(device=device, small=True, only=[], out=tmp_path, environments=tmp_path)
    found = steps(options, gpu_first_run._Material(tmp_path))
    assert len({step.name for step in found}) == len(found)
    outputs = [command[command.index("-o") + 1] for step in found for command in step.commands if "-o" in command]
    assert len(set(outputs)) == len(outputs)  # two shards at once would write one file
    for command in (command for step in found for command in step.commands if "-m" in command):
        name = command[command.index("-m") + 1].replace(".", os.sep)
        root = gpu_first_run.ROOT / name
        assert name == "pytest" or root.with_suffix(".py").exists() or (root / "__main__.py").exists(), name
