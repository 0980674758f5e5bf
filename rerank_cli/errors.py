"""The failures a user can act on, each with the exit code that a shell script sees.

    RerankError                 1  unexpected (never raised as such)
    ├── EngineError             1  the processes that score end by themselves, whatever they are given
    ├── UsageError              2  options that contradict each other or the data
    ├── ProfileError            2  a profile file that is missing or says something impossible
    ├── InputError              4  input: missing, unreadable, not what it claims to be
    ├── OutputError             4  output: exists, cannot be written, disk full
    ├── ModelError              5  model: unknown, unsafe, incomplete
    ├── DoesNotFitError         6  the required precision or memory is not there
    ├── TooManyBadRowsError     7  stopped by --max-errors or --on-error fail
    ├── NothingScoredError     10  rows were read and not one could be scored
    ├── JobChangedError         8  the unfinished job on disk would have written other bytes
    ├── LockedError            11  another process works on this output
    └── StoppedError     9 130 143  a deadline or a signal; what is finished is kept

A bad row is not here: it is data (`records.RowError`) and goes to the errors file. Raise where most is known,
catch once, in `rerank_cli.cli.main`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any, ClassVar

EXIT_CODES: dict[int, str] = {
    0: "done (also: nothing left to do)",
    1: "unexpected fault of the program",
    2: "usage",
    3: "finished, and some rows are in the errors file",
    4: "input or output: missing, unreadable, empty or of another format, disk full; an older output was kept",
    5: "model: unknown, unsafe, incomplete",
    6: "does not fit, or the required profile is absent",
    7: "stopped by --max-errors",
    8: "the unfinished job on disk was started with another input, model or option",
    9: "deadline reached; run again to continue",
    10: "rows were read and not one could be scored; an older output was kept, the errors file is there",
    11: "another process works on this output",
    130: "SIGINT; run again to continue",
    141: "SIGPIPE: the reader of stdout went away",
    143: "SIGTERM; run again to continue",
}
"""What each exit code of the program means; docs/reference/exit-codes.md repeats the table, and a test compares."""


class RerankError(Exception):
    """A failure with a message for the user and, where one is known to help, a hint.

    message: `<where>: <what is wrong>: <the value>`, lower case, no full stop.
    hint: what to do about it.
    commands: options, each set of which would make the same command work; the command line prints it whole.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None, commands: Sequence[Sequence[str]] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.commands = commands

    def __reduce__(self) -> tuple[Any, ...]:
        """What a process tells another one of it; a subclass may ask for other arguments than it keeps."""
        return _error_again, (type(self), dict(vars(self)))


def _error_again(kind: type[RerankError], facts: dict[str, Any]) -> RerankError:
    error = kind.__new__(kind)
    vars(error).update(facts)
    error.args = (facts["message"],)
    return error


class EngineError(RerankError):
    """The processes that score end by themselves, whatever they are given."""


class UsageError(RerankError):
    """Options that contradict each other or the data."""

    exit_code = 2


class ProfileError(RerankError):
    """A profile file that is missing, is not TOML, or says something impossible."""

    exit_code = 2


class InputError(RerankError):
    """An input that is missing, unreadable, or not what it claims to be."""

    exit_code = 4


class OutputError(RerankError):
    """An output that exists already or cannot be written."""

    exit_code = 4


class ModelError(RerankError):
    """A model that is unknown, unsafe or incomplete."""

    exit_code = 5


class DoesNotFitError(RerankError):
    """A precision or an amount of memory that this machine does not have."""

    exit_code = 6


class TooManyBadRowsError(RerankError):
    """More rows failed than the user allows."""

    exit_code = 7


class NothingScoredError(RerankError):
    """Rows were read, and not one could be scored."""

    exit_code = 10


class JobChangedError(RerankError):
    """The unfinished job on disk was started with another input, model or option."""

    exit_code = 8


class LockedError(RerankError):
    """Another process works on this output."""

    exit_code = 11


class StoppedError(RerankError):
    """A run that was asked to stop. exit_code: 9 by its deadline, 128 + the number of a signal."""

    def __init__(self, message: str, *, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # of one instance, not of the class


def nothing_scored(rows: int, first: tuple[str, int, str] | None, errors: str | None) -> NothingScoredError:
    """The failure of a run of so many bad rows and no good one. first: the first, as file, row and message."""
    where, row, reason = first or ("the input", 1, "it cannot be scored")
    of_all = "the one row that was read" if rows == 1 else f"not one of {rows:,} rows"
    could = "could not be scored" if rows == 1 else "could be scored"
    return NothingScoredError(
        f"{where}:{row}: {reason}; {of_all} {could}",
        hint=f"the bad rows are in {errors}; an older output was kept" if errors else None,
    )


def printable(text: str) -> str:
    """`text` with control and bidirectional characters shown as escapes instead of acted on."""
    if text.isascii() and text.isprintable():
        return text
    hidden = ("Cc", "Cf", "Cs", "Co", "Cn")
    return "".join(
        char.encode("unicode_escape").decode("ascii") if unicodedata.category(char) in hidden else char for char in text
    )
