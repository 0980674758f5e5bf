"""Declares each option once, as a row of a table, for every command that has it.

    option("--top-n", int, group=SELECTION, into="selection.top_n", metavar="N", min=1, help="Keep the N best.")

A row says what the option is called, what its values are, what it means, and which field of `JobOptions` it sets
(`into`). Its default is that of the field: no command and no row repeats it, and the help shows it. A command names its
table, `@takes(OPTIONS)`, and gets the values by name. The environment variable follows from the option's name.

Values are checked here, not in the bodies of commands: by `Literal` types, and by `parse` functions, which raise
`ValueError` with the error and, as a second argument, a hint. So every wrong value ends in the same way, before a
command begins, and shells can complete values.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, dataclass
from typing import Annotated, Any

import typer

from rerank_cli.job import options as job
from rerank_cli.job.options import STDOUT, JobOptions
from rerank_cli.planning.choices import MemoryRequest
from rerank_cli.storage import refuse_url

GROUPS = (
    "output", "model", "rows and fields", "selection", "long passages", "evaluation", "bad rows", "run", "scale",
    "choice", "machine", "point", "room", "beside the estimate", "messages",
)  # fmt: skip
"""Titles in the help, in the order in which every command shows them."""

OUTPUT, MODEL, ROWS, SELECTION, LONG, EVALUATION, BAD, RUN, SCALE, CHOICE, MACHINE, POINT, ROOM, BESIDE, SAY = GROUPS


@dataclass(frozen=True, slots=True)
class Option:
    """A row of a table of options. typed: its annotation for Typer."""

    name: str
    """The parameter's name: `top_n`."""
    flag: str
    typed: Any
    default: Any
    group: str
    into: str | None
    """The path of the field that it sets: `selection.top_n`."""
    basic: bool
    """Whether `--help` shows it; the others are in `--help-all` only."""
    aliases: tuple[str, ...]
    """Other names, which are accepted but shown nowhere."""
    hidden: bool = False
    """Whether it is accepted but shown nowhere."""
    names_file: bool = False
    """Whether its value is the name of a file or a folder."""
    variable: str = ""
    """Its environment variable, `RERANK_TOP_N` of `--top-n`; an argument has none."""


def option(
    flag: str,
    kind: Any,
    *,
    group: str,
    help: str,
    name: str | None = None,
    short: str | None = None,
    aliases: Sequence[str] = (),
    into: str | None = None,
    default: Any = None,
    basic: bool = False,
    hidden: bool = False,
    parse: Callable[[str], Any] | None = None,
    complete: Callable[[], Iterable[str]] | None = None,
    **settings: Any,
) -> Option:
    """A row for `flag`.

    Args:
        flag: Its name on the command line.
        kind: The type of its values.
        group: One of `GROUPS`.
        help: What it does; the default is added.
        name: The parameter's name, if it is not that of the flag.
        short: Its name of one letter.
        aliases: Other names, which the help does not show.
        into: The path of the field of `JobOptions` that it sets; the default is the field's.
        default: The default of an option that sets no field.
        basic: Whether `--help` shows it.
        hidden: Whether help, reference and shells leave it out.
        parse: Makes the value from the text; raises `ValueError`.
        complete: The values that a shell offers, if the type does not tell them.
        settings: Further settings of `typer.Option`: metavar, min, max.
    """
    if into and default is None:
        default = default_of(into)
    elif kind is bool:
        default = False
    shown = (
        "" if default in (None, False, 0, (), STDOUT) else f" Default: {_as_typed(default, settings.get('metavar'))}."
    )
    variables = ["RERANK_" + one.lstrip("-").upper().replace("-", "_") for one in (flag, *aliases)]
    info = typer.Option(
        *([short] if short else []), flag, *aliases, help=help + shown, rich_help_panel=group, show_envvar=False,
        show_default=False, hidden=hidden, envvar=variables if aliases else variables[0],
        parser=None if parse is None else _parse_texts_only(parse),
        autocompletion=None if complete is None else _completer(complete), **settings,
    )  # fmt: skip
    optional = kind if default is not None else kind | None
    return Option(
        name or flag.lstrip("-").replace("-", "_"), flag, Annotated[optional, info], default, group, into, basic,
        tuple(aliases), hidden, "FILE" in settings.get("metavar", "") or "DIR" in settings.get("metavar", ""),
        variables[0],
    )  # fmt: skip


def argument(name: str, kind: Any, *, help: str, metavar: str, default: Any = inspect.Parameter.empty) -> Option:
    """A row for an argument, which stands on the command line without a name."""
    info = typer.Argument(metavar=metavar, help=help, show_default=False)
    return Option(name, "", Annotated[kind, info], default, "", None, True, ())


def default_of(path: str) -> Any:
    """The default of a field of `JobOptions`, or of a dataclass in it."""
    above, _, last = path.rpartition(".")
    field = (_part_of_options(above) if above else JobOptions).__dataclass_fields__[last]
    if field.default is not MISSING:
        return field.default
    return None if field.default_factory is MISSING else field.default_factory()


def _part_of_options(name: str) -> Any:
    """The dataclass of a field of `JobOptions`, by its annotation: `get_type_hints` would slow down every start."""
    return MemoryRequest if name == "memory" else getattr(job, JobOptions.__annotations__[name])


_OPENS_URLS = {
    "--model", "--queries", "--corpus", "--qrels", "--output", "--errors", "--report", "--per-query", "--baseline",
    "--embeddings",
}  # fmt: skip
"""Options that take a file and may be given a URL."""


def takes(
    options: Sequence[Option], *, examples: str = "", exit_codes: Iterable[int] = ()
) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Make a command of a function that takes its context and the values by name.

    Args:
        options: Its arguments and options, arguments first.
        examples: Lines for the beginning of its help.
        exit_codes: The exit codes that it can have.
    """
    ordered = sorted(options, key=lambda one: GROUPS.index(one.group) if one.group else -1)

    def make(function: Callable[..., int]) -> Callable[..., int]:
        def command(context: typer.Context, **given: Any) -> int:
            given.pop("help_all", None)
            for one in ordered:
                if one.names_file and one.flag not in _OPENS_URLS:
                    refuse_url(one.flag, given.get(one.name))
            return function(context, **given)

        parameters = [inspect.Parameter("context", _KEYWORD, annotation=typer.Context)]
        parameters += [
            inspect.Parameter(one.name, _KEYWORD, annotation=one.typed, default=one.default) for one in ordered
        ]
        parameters.append(inspect.Parameter("help_all", _KEYWORD, annotation=_HELP_ALL, default=False))
        command.__name__, command.__doc__ = function.__name__, function.__doc__
        # Typer reads the signature and the help reads the rest; mypy does not know these attributes of a function.
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.declared = {one.name: one for one in ordered}  # type: ignore[attr-defined]
        command.examples, command.exit_codes = examples, tuple(exit_codes)  # type: ignore[attr-defined]
        return command

    return make


def declared_options(context: typer.Context) -> dict[str, Option]:
    """The rows of the command that runs, by parameter name."""
    found: dict[str, Option] = getattr(context.command.callback, "declared", {})
    return found


def values_into(context: typer.Context, part: str = "") -> dict[str, Any]:
    """The values of the command line, by the name of the field that they set.

    Args:
        context: Of the command that runs.
        part: The field of `JobOptions` whose own fields are wanted; empty for the fields of `JobOptions`.
    """
    paths = {one.into: context.params[one.name] for one in declared_options(context).values() if one.into}
    return {last: value for path, value in paths.items() for above, _, last in [path.rpartition(".")] if above == part}


def fields_of(context: typer.Context) -> dict[str, Any]:
    """The fields of `JobOptions` that the command line sets, with the dataclasses in it, but without the request."""
    paths = [one.into for one in declared_options(context).values() if one.into]
    parts = {path.rpartition(".")[0] for path in paths} - {"", "request", "memory"}
    return values_into(context) | {part: _part_of_options(part)(**values_into(context, part)) for part in parts}


def decided_by(context: typer.Context, name: str) -> str | None:
    """The flag or the variable that set a parameter; None for a default."""
    source = context.get_parameter_source(name)
    one = declared_options(context)[name]
    if source is None or source.name not in ("COMMANDLINE", "ENVIRONMENT"):
        return None
    return one.flag if source.name == "COMMANDLINE" else one.variable


def typed_options(context: typer.Context) -> dict[str, str]:
    """The flags on the command line, by the name of the parameter; not what the environment says."""
    found = declared_options(context).items()
    return {name: one.flag for name, one in found if decided_by(context, name) == one.flag}


def _show_all(context: typer.Context, asked: bool) -> None:
    if asked and not context.resilient_parsing:
        command: Any = context.command
        typer.echo(command.full_help(context))
        raise typer.Exit


_KEYWORD = inspect.Parameter.KEYWORD_ONLY
_HELP_ALL = Annotated[
    bool,
    typer.Option(
        "--help-all",
        is_eager=True,
        expose_value=False,
        callback=_show_all,
        help="All options, in groups, and exit codes.",
    ),
]


def _as_typed(value: Any, metavar: str | None) -> str:
    """A default as a user would type it, with the unit of seconds and bytes."""
    if metavar == "SIZE":
        return f"{value / 10**9:g}GB"
    if isinstance(value, float):
        return f"{value:g}s" if metavar == "TIME" else f"{value:g}"
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _parse_texts_only(parse: Callable[[str], Any]) -> Callable[[Any], Any]:
    """`parse` for texts; other values, such as a default, are parsed already."""

    def parsed(value: Any) -> Any:
        return parse(value) if isinstance(value, str) else value

    parsed.__name__ = parse.__name__
    return parsed


def _completer(complete: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    def completions(incomplete: str) -> list[str]:
        return [value for value in complete() if value.startswith(incomplete)]

    return completions
