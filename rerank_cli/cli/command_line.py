"""The command line that would repeat a run, for its report and for hints."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import typer

from rerank_cli.job.options import Command

_READ = ("NIM_PRECISION", "NIM_ENGINE_PRECISION", "NIM_ENGINE_COUNT", "CUDA_VISIBLE_DEVICES")


def command_of(context: typer.Context) -> Command | None:
    """The command as it was typed, with the variables that the program reads; None if the arguments are not known."""
    arguments = context.find_root().obj
    if not isinstance(arguments, list):
        return None
    variables = {name: value for name, value in os.environ.items() if name.startswith("RERANK_") or name in _READ}
    words = [f"{name}={quoted(variables[name])}" for name in sorted(variables)]
    return Command(" ".join([*words, "rerank-cli", *map(quoted, arguments)]), str(Path.cwd()))


def with_options(arguments: Sequence[str], options: Sequence[str]) -> str:
    """The command with some options set. options: names and values in turn; they replace those in `arguments`."""
    names, kept = set(options[::2]), []
    words = iter(arguments)
    for word in words:
        if word in names:
            next(words, None)
        elif word.partition("=")[0] not in names:
            kept.append(word)
    end = kept.index("--") if "--" in kept else len(kept)
    return " ".join(["rerank-cli", *map(quoted, [*kept[:end], *options, *kept[end:]])])


def quoted(word: str) -> str:
    """`word` quoted for a shell; control characters and bytes that are not UTF-8 in the way of bash and zsh."""
    if word.isprintable() or not word:
        return shlex.quote(word)
    return "$'" + "".join(_character(char) for char in word) + "'"


def _character(char: str) -> str:
    if re.fullmatch(r"[\\']", char):
        return f"\\{char}"
    return char if char.isprintable() else "".join(f"\\x{byte:02x}" for byte in os.fsencode(char))
