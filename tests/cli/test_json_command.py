"""Errors of usage of the commands that answer with JSON: exit code 2, and a document where JSON is wanted."""

from __future__ import annotations

import json

import pytest

from rerank_cli.cli import main

COMMANDS = ("profile-select", "mem-estimate")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--precison", "fp16"], "--precison"),
        (["--precison", "fp16", "--format", "json"], "--precison"),
        (["--format=json", "--online=maybe"], "--online"),
        (["--revision"], "--revision"),
        (["surplus"], "surplus"),
        (["--format", "yaml"], "--format yaml"),
    ],
)
def test_a_mistyped_option_is_a_document_too(
    command: str, arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, *arguments]) == 2
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document["schema"] == f"rerank-cli/{command}/1"
    assert document["error"]["exit_code"] == 2
    assert told in document["error"]["message"]
    assert captured.err.startswith("error: ")
    assert told in captured.err


@pytest.mark.parametrize("command", COMMANDS)
def test_in_text_it_is_on_stderr_alone(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([command, "--format", "text", "--precison", "fp16"]) == 2
    monkeypatch.setenv("RERANK_FORMAT", "text")
    assert main([command, "--precison", "fp16"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("--precison") == 2


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_not_an_error(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"Usage: rerank-cli {command}")
