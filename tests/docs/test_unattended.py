"""The recipes for cron and systemd: their options exist, and each exit code ends as they say."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from configparser import RawConfigParser
from pathlib import Path

import pytest
import typer.main

from rerank_cli.cli import app
from rerank_cli.errors import EXIT_CODES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "guides" / "pipes-and-cron.md").read_text(encoding="utf-8")
NO_FAILURES = {0, 3, 9, 11}


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)


def _script() -> str:
    (script,) = [block for block in _blocks("sh") if "case $? in" in block]
    return script


def _unit(name: str) -> RawConfigParser:
    (text,) = [block for block in _blocks("ini") if block.startswith(f"# {name}\n")]
    unit = RawConfigParser(delimiters="=", comment_prefixes="#")
    unit.optionxform = str  # systemd's keys have capitals
    unit.read_string(text)
    return unit


@pytest.mark.parametrize("command", [_script(), _unit("rerank.service")["Service"]["ExecStart"]])
def test_the_recipes_use_options_that_there_are(command: str) -> None:
    group = typer.main.get_command(app)
    known = {name for option in group.commands["rerank-file"].params for name in option.opts}
    used = re.findall(r"(?<= )--?[a-z][a-z-]*", command.partition("rerank-cli rerank-file")[2])
    assert {"--deadline", "-q", "-o"} <= set(used) <= known


@pytest.mark.parametrize("code", EXIT_CODES)
def test_a_night_fails_by_the_codes_that_are_failures(code: int, tmp_path: Path) -> None:
    program = tmp_path / "rerank-cli"
    program.write_text(f"#!/bin/sh\nexit {code}\n")
    program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    (tmp_path / "samples").symlink_to(ROOT / "samples")
    command = ["sh", "-eu", "-c", _script()]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == (0 if code in NO_FAILURES else 1)
    assert bool(done.stdout) == (code != 0)


def test_the_crontab_has_five_fields_and_the_script() -> None:
    (table,) = _blocks("crontab")
    *settings, line = table.splitlines()
    assert all(re.fullmatch(r"\w+=\S+", setting) for setting in settings)
    assert re.fullmatch(r"(?:[\d*/,-]+ ){5} ?cd /\S+ && \./rerank-nightly", line)


def test_systemd_takes_the_codes_as_the_script_does_and_waits_for_sigterm() -> None:
    service = _unit("rerank.service")["Service"]
    fine = {int(code) for code in service["SuccessExitStatus"].split()}
    again = {int(code) for code in service["RestartForceExitStatus"].split()}
    assert fine == {3, 9, 143}
    assert again == {11}
    assert fine | again <= EXIT_CODES.keys()
    assert service["KillSignal"] == "SIGTERM"
    assert "SIGKILL" not in service.values()
    assert _unit("rerank.timer")["Timer"]["Persistent"] == "true"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here")
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    paths = []
    for name in ("rerank.service", "rerank.timer"):
        (text,) = [block for block in _blocks("ini") if block.startswith(f"# {name}\n")]
        path = tmp_path / name
        path.write_text(text.replace("/usr/local/bin/rerank-cli", "/bin/true").replace("/srv/rerank", "/"))
        paths.append(str(path))
    command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *paths]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "rerank" not in done.stderr, done.stderr
