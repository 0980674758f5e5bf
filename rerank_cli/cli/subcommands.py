"""The subcommands; each is loaded when it is asked for. `--version` and the program's `--help` load none.

The options of a command and the modules that they need take a tenth of a second to import. A night's run does not
notice that; a shell that completes, or a script that asks for the version, does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import NamedTuple, cast

import typer

from rerank_cli.cli.help import CommandWithHelp
from rerank_cli.cli.quick_command import QuickCommand


class Subcommand(NamedTuple):
    """Where a command is, and what it does."""

    function: str
    """Its name, in the module of the same name."""
    about: str
    """The first sentence of its docstring, so that help need not load it."""
    command: str | None = None
    """The name of its class in its module; None for `QuickCommand`."""


SUBCOMMANDS = {
    "score": Subcommand("score", "Add a logit to each pair, in input order, as a stream."),
    "rerank-file": Subcommand("rerank_file", "Put each query's passages in order of relevance."),
    "profile-select": Subcommand(
        "profile_select",
        "Say how a model would run on this machine, and why, before anything is loaded.",
        "ProfileSelectCommand",
    ),
    "mem-estimate": Subcommand(
        "mem_estimate", "Say how much memory a model needs, before anything is loaded.", "MemEstimateCommand"
    ),
    "evaluate": Subcommand(
        "evaluate", "Say whether new orders should ship, and how to use the scores. No model is loaded."
    ),
    "version": Subcommand("version", "Print the version, and on request what it runs with."),
}
"""By name, in the order of the help."""


class LoadedWhenAsked(Mapping[str, CommandWithHelp]):
    """The commands by name, each loaded when it is first looked up."""

    def __init__(self) -> None:
        self._loaded: dict[str, CommandWithHelp] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(SUBCOMMANDS)

    def __len__(self) -> int:
        return len(SUBCOMMANDS)

    def __getitem__(self, name: str) -> CommandWithHelp:
        if name not in self._loaded:
            one = SUBCOMMANDS[name]
            module = import_module(f"rerank_cli.cli.{one.function}")
            alone = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
            kind = getattr(module, one.command) if one.command else QuickCommand
            alone.command(name, cls=kind)(getattr(module, one.function))
            self._loaded[name] = cast("CommandWithHelp", typer.main.get_command(alone))
        return self._loaded[name]
