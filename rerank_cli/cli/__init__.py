"""The command line: parse, call one function, print. Errors become messages and exit codes here and nowhere else."""

from __future__ import annotations

import atexit
import errno
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from rerank_cli import __version__
from rerank_cli.cli.console import command_to_paste, forget_stdout, say, say_error
from rerank_cli.cli.quick_command import QuickGroup
from rerank_cli.cli.subcommands import SUBCOMMANDS, LoadedWhenAsked
from rerank_cli.errors import OutputError, RerankError, StoppedError, UsageError
from rerank_cli.machine.libraries import explaining_missing_libraries
from rerank_cli.machine.signal_watchdog import start_signal_watchdog


class _Program(QuickGroup):
    """The program; each command is loaded when it is asked for."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.about = {name: one.about for name, one in SUBCOMMANDS.items()}
        self.commands = LoadedWhenAsked()  # type: ignore[assignment]  # typer wants to change it, and never does

    def list_commands(self, ctx: Any) -> list[str]:
        """The names of the commands."""
        return list(self.commands)


app = typer.Typer(
    cls=_Program,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class _Terminated(BaseException):
    """SIGTERM; unwinds the stack like Ctrl-C, so that nothing half-written stays."""


def _show_version(asked: bool) -> None:
    if asked:
        sys.stdout.write(f"rerank-cli {__version__}\n")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool, typer.Option("--version", "-V", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Rerank candidate passages with a cross-encoder: files in, files out, offline, unattended."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    if given[:1] == ["help"]:
        given = [*given[1:], "--help"]
    try:
        # obj: a copy of the arguments, for the report; parsing empties the list it gets.
        with explaining_missing_libraries():
            result = app(args=list(given), prog_name="rerank-cli", standalone_mode=False, obj=given)
        sys.stdout.flush()
    except BaseException as error:  # noqa: BLE001 (the one place where every failure becomes an exit code)
        return _report_failure(error, given)
    return result if isinstance(result, int) else 0


def _report_failure(error: BaseException, given: Sequence[str]) -> int:
    """Say what went wrong; returns the exit code for it."""
    match error:
        case StoppedError():
            say(error.message, *getattr(error, "__notes__", ()))
            code = error.exit_code
        case RerankError():
            say_error(error)
            _say_commands(error, given)
            say(*(f"note: {note}" for note in getattr(error, "__notes__", ())))
            code = error.exit_code
        case typer.TyperException():
            from rerank_cli.cli.usage import usage_error

            say_error(usage_error(error))
            code = UsageError.exit_code
        case KeyboardInterrupt() | typer.Abort():
            code = 130
        case _Terminated():
            code = 143
        case BrokenPipeError():
            forget_stdout()
            code = 141
        case OSError():
            say_error(_named(error))
            code = OutputError.exit_code
        case Exception():
            say("error: unexpected fault of the program")
            say(*"".join(traceback.format_exception(error)).splitlines())
            say("please report it with the lines above and with what `rerank-cli version --verbose` prints")
            code = 1
        case _:
            raise error
    return code


def _named(error: OSError) -> OutputError:
    """The failure with the name of what it is about."""
    from rerank_cli.journal.room import FULL  # here: most runs need not load it

    name, reason = error.filename, error.strerror or str(error)
    if not name and error.errno in (*FULL, errno.EFBIG, errno.EBADF):  # only standard output is written without a name
        forget_stdout()
        name = "standard output"
    if not name:
        try:
            Path.cwd()
        except FileNotFoundError:
            return OutputError("the current folder does not exist any more", hint="cd to one that does")
    return OutputError(f"{name}: {reason}" if name else reason)


def _say_commands(error: RerankError, given: Sequence[str]) -> None:
    """Say the commands that would work, each whole and on its own line."""
    if not error.commands:
        return
    from rerank_cli.cli.command_line import with_options

    say("try:" if len(error.commands) == 1 else "try one of:")
    for options in error.commands:
        sys.stderr.write(command_to_paste(with_options(given, options), sys.stderr, head="    ") + "\n")


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    raise _Terminated


def entry_point() -> None:
    """The console script."""
    _open_closed_streams()
    # Registered before anything else: what is registered first is called last.
    ending = _Ending()
    atexit.register(ending)
    signal.signal(signal.SIGTERM, _on_sigterm)
    start_signal_watchdog()
    ending.code = main()
    sys.exit(ending.code)


def _open_closed_streams() -> None:
    """Give stdout and stderr a descriptor if the program was started without (`>&-`).

    Otherwise a file that is opened later takes the number, and what a library prints goes into that file. Writing to
    such a stdout fails; what goes to such a stderr is lost.
    """
    for name, number, mode in (("stdout", 1, os.O_RDONLY), ("stderr", 2, os.O_WRONLY)):
        if getattr(sys, name) is None:
            found = os.open(os.devnull, mode)
            if found != number:
                os.dup2(found, number)
                os.close(found)
            setattr(sys, name, os.fdopen(number, "w"))


class _Ending:
    """Ends the process at once when everything else is done: it is called last, with threads joined and files closed.

    Otherwise the interpreter would take torch's modules apart, which costs 0.4 s (torch 2.13), a fifth of a short run.
    """

    code: int | None = None  # until `main` returns one, the interpreter ends as usual

    def __call__(self) -> None:
        """End the process if its exit code is known."""
        if self.code is None:
            return
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except (OSError, ValueError):
            return  # the interpreter flushes again, and its exit code shows the failure
        os._exit(self.code)
