"""Help as plain text: one sentence, examples that run, options in groups, exit codes last.

Typer's own help draws boxes, which break in narrow terminals, in pipes and in man pages.
"""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from rerank_cli.errors import EXIT_CODES

VARIABLES = "Every option has an environment variable RERANK_<OPTION>; order: flag, environment, default."


class Command(TyperCommand):
    """A subcommand: its docstring is the sentence and the examples, `rich_help_panel` names an option's group."""

    def format_help(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]  # typer hides its types
        """Write the help."""
        self.format_usage(ctx, formatter)
        formatter.write_paragraph()
        formatter.write(without_marks(self.help))
        for name, records in self.option_groups(ctx).items():
            with formatter.section(name):
                formatter.write_dl(records)
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(code), meaning) for code, meaning in EXIT_CODES.items()])
        formatter.write_paragraph()
        formatter.write(f"{VARIABLES}\n")

    def option_groups(self, ctx: typer.Context) -> dict[str, list[tuple[str, str]]]:
        """The options with their help, by the title of their group; those without a group come last."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                groups.setdefault(getattr(parameter, "rich_help_panel", None) or "other", []).append(record)
        return {name.capitalize(): groups[name] for name in sorted(groups, key=lambda name: name == "other")}


class Group(TyperGroup):
    """The program: its sentence and its subcommands."""

    def format_help(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]  # typer hides its types
        """Write the help."""
        self.format_usage(ctx, formatter)
        formatter.write_paragraph()
        formatter.write(without_marks(self.help))
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.get_short_help_str(90)) for name, command in commands if command])
        with formatter.section("Options"):
            records = [parameter.get_help_record(ctx) for parameter in self.get_params(ctx)]
            formatter.write_dl([record for record in records if record])


def without_marks(text: str | None) -> str:
    r"""Help text without click's `\b`, which marks lines that must not be rewrapped; nothing is rewrapped here."""
    return (text or "").replace("\b\n", "").strip() + "\n"
