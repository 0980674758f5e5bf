"""The manual page says what the help says, in roff that a man program can show."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import typer.main

from rerank_cli import __version__
from rerank_cli.cli import app
from rerank_cli.cli.man_page import man_page
from rerank_cli.errors import EXIT_CODES

ROOT = Path(__file__).parents[2]
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def _plain() -> str:
    text = man_page()
    for escape, character in ((r"\-", "-"), (r"\(dq", '"'), (r"\(ga", "`"), (r"\&", ""), (r"\e", "\\")):
        text = text.replace(escape, character)
    return text


def test_every_option_of_every_command_is_in_the_page_with_its_help() -> None:
    sections = dict(re.findall(r"^\.SS (\S+)\n(.*?)(?=^\.S[SH])", _plain(), flags=re.DOTALL | re.MULTILINE))
    assert sections.keys() == COMMANDS.keys()
    for name, command in COMMANDS.items():
        for option in command.params:
            if option.param_type_name == "option":
                assert f"{option.opts[0]}" in sections[name]
                assert option.help in sections[name]


def test_the_page_has_name_version_examples_and_exit_codes() -> None:
    page = _plain()
    assert page.startswith(f'.TH RERANK-CLI 1 "" "rerank-cli {__version__}"')
    assert ".EX\nrerank-cli rerank-file samples/python-docs.jsonl -o out.jsonl\n" in page
    for code, meaning in EXIT_CODES.items():
        assert f".TP\n.B {code}\n{meaning}\n" in page


def test_no_line_of_text_is_a_request_of_roff() -> None:
    requests = {line.split()[0] for line in man_page().splitlines() if line.startswith((".", "'"))}
    assert requests <= {".TH", ".SH", ".SS", ".PP", ".TP", ".B", ".EX", ".EE"}


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not here")
def test_groff_shows_it_without_a_warning() -> None:
    command = ["groff", "-man", "-ww", "-Tutf8"]
    done = subprocess.run(command, input=man_page(), capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert "rerank-cli rerank-file samples/python-docs.jsonl -o out.jsonl\n" in done.stdout


def test_make_man_writes_the_page() -> None:
    done = subprocess.run(["make", "-n", "man"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "-m rerank_cli.cli.man_page > out/rerank-cli.1" in done.stdout
