"""The manual page, made of the help: `python -m rerank_cli.cli.man_page > rerank-cli.1`.

Written in the macros of man(7), which every man program knows. There is no date in it, so the same version gives the
same bytes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any, cast

import typer
import typer.main

from rerank_cli import __version__
from rerank_cli.cli import app
from rerank_cli.cli.help import VARIABLES, Command, Group, without_marks
from rerank_cli.errors import EXIT_CODES

_NAME = "rerank-cli"


def man_page() -> str:
    """The page of the program and all its commands, as roff."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    group = cast(Group, typer.main.get_command(app))
    context = typer.Context(cast(Any, group), info_name=_NAME)
    sentence = _paragraphs(group)[0]
    yield f'.TH {_NAME.upper()} 1 "" "{_NAME} {__version__}" "User Commands"'
    yield from (".SH NAME", f"{_NAME} \\- {_text(sentence.partition(':')[0].lower())}")
    yield from (".SH SYNOPSIS", f".B {_text(_NAME)}", r"\fICOMMAND\fR [\fIOPTIONS\fR] [\fIARGUMENTS\fR]")
    yield from (".SH DESCRIPTION", _text(sentence))
    yield ".SH COMMANDS"
    commands = {name: cast(Command, group.commands[name]) for name in group.list_commands(context)}
    for name, command in commands.items():
        yield from _command(name, command, context)
    yield ".SH OPTIONS"
    yield from _definitions(record for item in group.get_params(context) if (record := item.get_help_record(context)))
    yield from (".SH EXIT STATUS", *_definitions((str(code), meaning) for code, meaning in EXIT_CODES.items()))
    yield from (".SH ENVIRONMENT", _text(VARIABLES))


def _command(name: str, command: Command, parent: Any) -> Iterator[str]:
    context = typer.Context(cast(Any, command), info_name=name, parent=parent)
    yield from (
        f".SS {_text(name)}",
        f".B {_text(f'{_NAME} {name}')}",
        _text(" ".join(command.collect_usage_pieces(context))),
    )
    sentence, *examples = _paragraphs(command)
    yield from (".PP", _text(sentence))
    for example in examples:
        yield from (".PP", ".EX", *map(_text, example.splitlines()), ".EE")
    for title, records in command.option_groups(context).items():
        yield from (".PP", f".B {_text(title)}", *_definitions(records))


def _paragraphs(command: Command | Group) -> list[str]:
    """The help of a command: its sentence, and its examples line by line."""
    sentence, *examples = without_marks(command.help).strip().split("\n\n")
    return [" ".join(sentence.split()), *examples]


def _definitions(records: Iterable[tuple[str, str]]) -> Iterator[str]:
    for term, meaning in records:
        yield from (".TP", f".B {_text(term)}", _text(meaning))


def _text(text: str) -> str:
    """A line of text that roff takes for nothing else: no escapes, no requests, hyphens that can be copied."""
    found = text.replace("\\", r"\e").replace("-", r"\-").replace('"', r"\(dq").replace("`", r"\(ga")
    return rf"\&{found}" if found.startswith((".", "'")) else found


if __name__ == "__main__":
    sys.stdout.write(man_page())
