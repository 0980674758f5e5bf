"""What `profile-select` prints is what `score` and `rerank-file` do, whichever way it is asked for."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from rerank_cli.cli import main

FIELDS = ("profile", "kind", "precision", "max_tokens", "token_budget", "attention", "device")
COMMANDS = {
    "score": ({"query": "a", "passage": "b"},),
    "rerank-file": ({"query": "a", "passages": ["b", "c"]},),
}


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(("RERANK_", "NIM_")):
            monkeypatch.delenv(name)


def selected(capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    assert main(["profile-select", *options, "--format", "json"]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def ran(command: str, folder: Path, *options: str) -> dict[str, Any]:
    """The report of a run."""
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in COMMANDS[command]))
    assert main([command, str(rows), "-o", str(folder / "out.jsonl"), *options]) == 0
    report: dict[str, Any] = json.loads((folder / "out.jsonl.report.json").read_text())
    return report


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("options", "variables"),
    [
        ((), {}),
        (("--max-tokens", "64", "--token-budget", "256"), {}),
        (("--profile", "cpu-fp32", "--device", "cpu"), {}),
        (("--precision", "fp8"), {}),
        ((), {"RERANK_PRECISION": "fp32", "RERANK_PROFILE": "cpu-fp32", "RERANK_ENGINES": "1"}),
        ((), {"NIM_PRECISION": "fp8", "NIM_ENGINE_COUNT": "2"}),
        (("--precision", "fp32"), {"NIM_PRECISION": "fp8"}),
    ],
)
def test_one_request_has_one_plan(
    command: str,
    options: tuple[str, ...],
    variables: dict[str, str],
    tiny_model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    shown = selected(capsys, "--model", tiny_model, *options)
    plan = ran(command, tmp_path, "--model", tiny_model, *options)["plan"]
    assert {name: plan[name] for name in FIELDS} == {name: shown["plan"][name] for name in FIELDS}
    of_rows = ("template ", "rows of the shape ", "read: ")
    assert [reason for reason in plan["reasons"] if not reason.startswith(of_rows)] == shown["reasons"]
    assert plan["warnings"][: len(shown["warnings"])] == shown["warnings"]
    assert plan["needed_bytes"] > 0


def test_the_plan_travels_as_variables(
    tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["profile-select", "--model", tiny_model, "--max-tokens", "64", "--env"]) == 0
    for line in capsys.readouterr().out.splitlines():
        name, _, value = line.removeprefix("export ").partition("=")
        monkeypatch.setenv(name, value)
    report = ran("rerank-file", tmp_path)
    assert report["model"]["path"] == tiny_model
    assert report["plan"]["max_tokens"] == 64
    assert "max tokens 64: RERANK_MAX_TOKENS (the profile says 512)" in report["plan"]["reasons"]


def test_what_a_run_cannot_do_is_said_on_stderr_unless_quiet(
    tiny_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran("rerank-file", tmp_path, "--model", tiny_model, "--precision", "fp8")
    assert (
        "warning: --precision fp8: this CPU does not multiply it in hardware; fp32 is used" in capsys.readouterr().err
    )
    ran("rerank-file", tmp_path, "--model", tiny_model, "--precision", "fp8", "--overwrite", "-q")
    assert capsys.readouterr().err == ""
