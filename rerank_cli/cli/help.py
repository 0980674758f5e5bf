"""Help as plain text: `--help` shows what most people need on one screen, `--help-all` shows everything in groups.

    a sentence · examples with a sentence each · arguments · options · exit codes

The short screen has the first sentence of an option's help, and its default if both fit a line of 80 columns. So the
help of an option begins with what most people need.

Typer's own help draws boxes, which break in narrow terminals and in pipes. Its wrapping cuts words, and cuts options at
their hyphens; here neither is cut.
"""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand, TyperGroup

from rerank_cli.cli.console import say, wrap_words
from rerank_cli.errors import EXIT_CODES, UsageError

if TYPE_CHECKING:
    from rerank_cli.cli.declare import Option

VARIABLES = (
    "Every option has an environment variable: RERANK_TOP_N for --top-n. A flag comes before its variable, a variable "
    "before the default."
)
_MOST_COLUMNS, _LEAST_COLUMNS = 100, 40
_COMPLETED = 60  # columns of an option's help in a shell's list; fish takes a second line for another option
_SCREEN = 80
_TERM = 26  # columns of the left side; a longer term has its own line

Record = tuple[str, str]


class CommandWithHelp(TyperCommand):
    """A subcommand that was declared with `takes`."""

    def format_help(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]  # typer hides its types
        """Write the help of one screen."""
        formatter.write("\n".join(_lines(self, ctx, everything=False)) + "\n")

    def full_help(self, ctx: typer.Context) -> str:
        """The help with all options, grouped, and the exit codes."""
        return "\n".join(_lines(self, ctx, everything=True))

    @property
    def declared(self) -> dict[str, Option]:
        """The rows of its options, by parameter name."""
        found: dict[str, Option] = getattr(self.callback, "declared", {})
        return found

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """What a shell offers: no aliases of options, and help that fits a line."""
        hidden = {alias for one in self.declared.values() for alias in one.aliases}
        found = [item for item in super().shell_complete(ctx, incomplete) if item.value not in hidden]
        for item in found:
            item.help = textwrap.shorten(item.help or "", _COMPLETED, placeholder=" ...")
        return found


class Group(TyperGroup):
    """The program with its subcommands. about: what each of them does, by name."""

    about: Mapping[str, str]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse `args`; without any, show the help and end with the exit code of wrong usage."""
        if not args and not ctx.resilient_parsing:
            say(*ctx.get_help().splitlines())
            raise typer.Exit(UsageError.exit_code)
        return super().parse_args(ctx, args)

    def format_help(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]  # typer hides its types
        """Write the help."""
        about = [(name, self.about[name]) for name in self.list_commands(ctx)]
        options = [record for item in self.get_params(ctx) if (record := item.get_help_record(ctx))]
        lines = [
            f"Usage: {ctx.command_path} COMMAND [OPTIONS] [ARGUMENTS]", "", *_paragraph(self.help or ""),
            *_section("Commands", about), *_section("Options", options), "",
            f"`{ctx.command_path} COMMAND --help` shows the options of a command.",
        ]  # fmt: skip
        formatter.write("\n".join(lines) + "\n")


def option_groups(command: CommandWithHelp, ctx: typer.Context) -> dict[str, list[Record]]:
    """All options with their help, by the title of their group; `--help` and its like come last."""
    from rerank_cli.cli.declare import GROUPS  # loaded with the command; the program's own help does not need it

    groups: dict[str, list[Record]] = {}
    for parameter in command.get_params(ctx):
        if parameter.param_type_name == "option":
            one = command.declared.get(parameter.name)
            if one is None or not one.hidden:
                groups.setdefault(one.group if one else "help", []).append(_record(parameter, one))
    order = [*GROUPS, "help"]
    return {title.capitalize(): groups[title] for title in sorted(groups, key=order.index)}


def arguments(command: CommandWithHelp, ctx: typer.Context) -> list[Record]:
    """The arguments with their help."""
    found: list[Any] = [one for one in command.get_params(ctx) if one.param_type_name == "argument"]
    return [(one.metavar, one.help) for one in found]


def _lines(command: CommandWithHelp, ctx: typer.Context, *, everything: bool) -> Iterator[str]:
    callback: Any = command.callback
    taken = arguments(command, ctx)
    yield " ".join(["Usage:", ctx.command_path, *(metavar for metavar, _ in taken), "[OPTIONS]"])
    yield from ("", *_paragraph(command.help or ""), "", *callback.examples.strip("\n").splitlines())
    if not everything:
        records = list(taken)
        for parameter in command.get_params(ctx):
            one = command.declared.get(parameter.name)
            if parameter.param_type_name == "option" and (one is None or one.basic):
                records.append(_record(parameter, one))
        records = [(term, _in_a_line(meaning)) for term, meaning in records]
        yield from _section("Arguments and options" if taken else "Options", records)
        return
    if taken:
        yield from _section("Arguments", taken)
    for title, records in option_groups(command, ctx).items():
        yield from _section(title, records)
    codes = [(str(code), meaning) for code, meaning in EXIT_CODES.items() if code in callback.exit_codes]
    yield from (*_section("Exit codes", codes), "", *_paragraph(VARIABLES))


def _record(parameter: Any, one: Option | None) -> Record:
    hidden = one.aliases if one else ()
    names = ", ".join(sorted((name for name in parameter.opts if name not in hidden), key=len))
    metavar = "" if parameter.is_flag else f" {parameter.metavar or parameter.name.upper()}"
    return names + metavar, parameter.help or ""


def _in_a_line(text: str) -> str:
    """The first sentence, and the default if there is room for it."""
    first = text.partition(". ")[0].removesuffix(".")
    found = re.search(r"\. (Default: [^.]*(?:\.\w[^.]*)*)\.$", text)
    both = f"{first}. {found[1]}" if found else first
    return both if len(both) + _TERM < _SCREEN else first


# Wrapping.


def _section(title: str, records: Iterable[Record]) -> Iterator[str]:
    yield from ("", f"{title}:")
    for term, meaning in records:
        head = f"  {term}"
        if len(head) >= _TERM:
            yield head
            head = ""
        yield from _wrap(head.ljust(_TERM), meaning) or [head]


def _paragraph(text: str) -> list[str]:
    return _wrap("", " ".join(text.split()))


def _wrap(head: str, text: str) -> list[str]:
    columns = max(_LEAST_COLUMNS, min(_MOST_COLUMNS, shutil.get_terminal_size().columns)) - 1
    return wrap_words(text, columns, head=head)
