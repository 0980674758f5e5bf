"""The reference pages that are made of the code: `make docs`, or `python docs/make_reference.py`.

    reference/cli.md           every command with every option       from the rows that `takes` was given
    reference/exit-codes.md    its table                             from `errors.EXIT_CODES`
    reference/environment.md   every variable that is read           from the same rows, and `OTHER_VARIABLES`

A test compares the pages with what this makes, so a new option is in the reference or the tests fail.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import typer
import typer.main

from rerank_cli.cli import app
from rerank_cli.cli.declare import Option
from rerank_cli.cli.help import VARIABLES, CommandWithHelp, arguments, option_groups
from rerank_cli.errors import EXIT_CODES

FOLDER = Path(__file__).parent / "reference"
OTHER_VARIABLES = {
    "NIM_PRECISION": "As `--precision`, below `RERANK_PRECISION`.",
    "NIM_ENGINE_PRECISION": "The same: NVIDIA's pages disagree on the name. `NIM_PRECISION` comes first.",
    "NIM_ENGINE_COUNT": "As `--engines`, below `RERANK_ENGINES`.",
    "CUDA_VISIBLE_DEVICES": "The GPUs that CUDA shows; `--device cuda:0` is the first of them.",
    "HF_HUB_CACHE": "Folder of the Hugging Face cache, where models are looked up.",
    "HF_HOME": "Folder above it, where `HF_HUB_CACHE` is not set.",
    "RAY_ADDRESS": "The Ray cluster, where `--ray-address` is not given.",
    "COLUMNS": "Width of help and tables, where stdout is no terminal.",
    "NO_COLOR": "No colours in tables and in the progress bar.",
    "RERANK_AMX": "0: torch's kernels where our own would run in bf16 or int8 (AMX; `docs/concepts/precision.md`).",
}
"""Variables that are no option's."""
_BEGIN = "<!-- exit codes: begin (a test compares this table with rerank_cli/errors.py) -->"
_END = "<!-- exit codes: end -->"
_MADE = "<!-- Made by docs/make_reference.py of the code; a test compares them. -->"


def pages() -> dict[str, str]:
    """The text of each page by the name of its file."""
    made = {"cli.md": _cli(), "exit-codes.md": _exit_codes(), "environment.md": _environment()}
    return {name: "\n".join(lines).rstrip("\n") + "\n" for name, lines in made.items()}


def commands() -> dict[str, CommandWithHelp]:
    """The commands of the program."""
    group: Any = typer.main.get_command(app)
    return dict(group.commands)


def _cli() -> Iterator[str]:
    yield from ("# Commands and options", "", _MADE, "", VARIABLES, "")
    for name, command in commands().items():
        context = typer.Context(command, info_name=f"rerank-cli {name}")  # type: ignore[arg-type]  # typer hides its types
        callback: Any = command.callback
        taken = arguments(command, context)
        usage = " ".join(["rerank-cli", name, *(metavar for metavar, _ in taken), "[OPTIONS]"])
        yield from (f"## {name}", "", command.help or "", "", "```text", usage, "```", "")
        yield from ("Examples:", "", "```text", *callback.examples.strip("\n").splitlines(), "```", "")
        if taken:
            yield from _table(("argument", "meaning"), [(f"`{metavar}`", meaning) for metavar, meaning in taken])
        for title, records in option_groups(command, context).items():
            yield from (f"### {title}", "")
            yield from _table(("option", "meaning"), [(f"`{term}`", meaning) for term, meaning in records])


def _exit_codes() -> Iterator[str]:
    """The page as it is, with the table that the code says."""
    above, _, rest = (FOLDER / "exit-codes.md").read_text(encoding="utf-8").partition(_BEGIN)
    table = list(_table(("code", "meaning"), [(str(code), meaning) for code, meaning in EXIT_CODES.items()]))
    yield "\n".join([above + _BEGIN, *table[:-1], _END + rest.partition(_END)[2]])


def _environment() -> Iterator[str]:
    yield from ("# Environment variables", "", _MADE, "", VARIABLES, "")
    found: dict[str, tuple[Option, list[str]]] = {}
    for name, command in commands().items():
        for one in command.declared.values():
            if one.flag and not one.hidden:
                found.setdefault(one.variable, (one, []))[1].append(name)
    rows = [(f"`{name}`", f"`{one.flag}`", _named(having)) for name, (one, having) in sorted(found.items())]
    yield from _table(("variable", "option", "commands"), rows)
    yield from ("A flag is on with `1`, `true` or `yes`, and off with `0`, `false` or `no`.", "", "## Others", "")
    yield from _table(("variable", "meaning"), [(f"`{name}`", said) for name, said in OTHER_VARIABLES.items()])


def _named(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    for row in (head, ("---",) * len(head), *rows):
        yield "| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |"
    yield ""


def main() -> None:
    """Write the pages."""
    FOLDER.mkdir(exist_ok=True)
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
