"""Prints for people: data to stdout; messages, commands and progress to stderr, wrapped, without control bytes.

Text from files (ids, names, rows) can hold control bytes that move a terminal's cursor or rename its window. So
everything that goes to stderr passes `printable`, and rich gets plain text objects only, so that it prints markup in
data as it stands.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

from rerank_cli.errors import RerankError, printable

if TYPE_CHECKING:
    from rerank_cli.job.progress import Progress
    from rerank_cli.records import RowError

_LINE_EVERY_SECONDS = 30.0
SHOWN_ERRORS = 20
_MOST_CHARACTERS = 5000  # of the beginning and of the end of a line


def say(*lines: str) -> None:
    """Write lines to stderr, made printable; a line break in one came from data and is escaped."""
    for line in lines:
        text = line
        if len(line) > 2 * _MOST_CHARACTERS:  # ids can be a megabyte long
            text = f"{line[:_MOST_CHARACTERS]} ... {line[-_MOST_CHARACTERS:]}"
        sys.stderr.write(wrapped(printable(text), sys.stderr) + "\n")
        sys.stderr.flush()


def write(text: str) -> None:
    """Write one line to stdout, made printable."""
    sys.stdout.write(wrapped(printable(text), sys.stdout) + "\n")


def wrapped(text: str, stream: TextIO, *, under: int | None = None) -> str:
    """`text` in lines that fit the terminal; unchanged in a file or a pipe. Words are not broken.

    under: how far the further lines are indented; None for as far as the first line.
    """
    if not stream.isatty():
        return text
    columns = shutil.get_terminal_size().columns
    indent = len(text) - len(text.lstrip(" ")) if under is None else under
    if len(text) <= columns or indent + max(map(len, text.split())) >= columns:  # a long path stays whole
        return text
    return "\n".join(wrap_words(text, max(40, columns - 1), under=indent))


def wrap_words(text: str, columns: int, *, head: str = "", under: int | None = None) -> list[str]:
    """`head` and `text` in lines of at most `columns`; a longer word has a line of its own. None for an empty text.

    under: how far the further lines are indented; None for as far as `head` reaches.
    """
    return textwrap.wrap(
        text, columns, initial_indent=head, subsequent_indent=" " * (len(head) if under is None else under),
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def command_to_paste(text: str, stream: TextIO, *, head: str) -> str:
    """A command to copy into a shell; if it is longer than the terminal, in lines that end in `\\`.

    head: stands before the first line; the further lines are indented as far.
    """
    columns = shutil.get_terminal_size().columns if stream.isatty() else 0
    quoted = any(quote in text for quote in "'\"")  # a blank in quotes is part of a word
    if not columns or quoted or len(head + text) <= columns:
        return printable(head + text)
    lines = wrap_words(printable(text), max(40, columns - len(head) - 2))
    return head + f" \\\n{' ' * len(head)}".join(lines)


def say_error(error: RerankError) -> None:
    """Say an error and its hint."""
    say(f"error: {error.message}")
    if error.hint:
        say(f"hint: {error.hint}")


def print_json(document: Any) -> None:
    """Print a JSON document on stdout; what is not printable stands in it as an escape of JSON."""
    import json

    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    sys.stdout.write(re.sub("[^\n -~]", lambda found: _escaped_in_json(found[0]), text) + "\n")


def _escaped_in_json(char: str) -> str:
    if char.isprintable():
        return char
    units = char.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[begin : begin + 4]}" for begin in range(0, len(units), 4))


def print_table(columns: list[str], rows: list[list[str]], *, title: str | None = None) -> None:
    """Print a table on stdout; the first column is aligned to the left, the others to the right."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, box=SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for place, column in enumerate(columns):
        table.add_column(Text(column), justify="right" if place else "left")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    Console(file=sys.stdout, highlight=False).print(table)


def forget_stdout() -> None:
    """Send the interpreter's last flush of stdout nowhere: its reader is gone, which needs no message."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class ErrorTeller:
    """Says bad rows on stderr, one by one up to a limit."""

    _told = 0

    def __call__(self, error: RowError) -> None:
        """Say a bad row, if the limit is not reached."""
        if self._told < SHOWN_ERRORS:
            say(f"{error.file}:{error.row}: {error.message} ({error.code})")
        self._told += 1


class ProgressDisplay:
    """Shows the progress of a run: a bar on a terminal, a plain line every 30 s elsewhere, nothing when quiet.

    Its own thread draws it, so that the clock goes on while a batch is computed.
    """

    def __init__(self, progress: Progress, *, quiet: bool) -> None:
        self._progress = progress
        self._quiet = quiet
        self._bar: Any = None
        self._ended = threading.Event()
        self._lines = threading.Thread(target=self._say_now_and_then, name="progress", daemon=True)

    def __enter__(self) -> Self:
        if self._quiet:
            return self
        if sys.stderr.isatty():
            self._bar = _bar_of(self._progress)
            self._bar.start()
        else:
            self._lines.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._bar is not None:
            self._bar.stop()

    def _say_now_and_then(self) -> None:
        while not self._ended.wait(_LINE_EVERY_SECONDS):
            if self._progress.pairs:
                say(progress_line(self._progress))


def progress_line(progress: Progress) -> str:
    """How far a run is: `1,200 pairs in 30 s (40.0 pairs/s), 12 %, about 4 min left`."""
    from rerank_cli.job.progress import about, whole_percent

    text = f"{progress.pairs:,} pairs in {progress.seconds:,.0f} s ({progress.pairs_per_second:,.1f} pairs/s)"
    if (share := progress.share_under_way) is not None:
        text += f", {whole_percent(share)}"
    left = progress.clock_left
    return text if left is None else f"{text}, {about(left)} left"


_SHOWN_PARTS = (
    ("pairs", "percent", "speed", "clock", "left"),
    ("percent", "speed", "clock", "left"),
    ("percent", "clock", "left"),
    ("percent", "left"),
    ("percent",),
)
"""What stands beside the bar, from a wide terminal to a narrow one."""
_BAR_COLUMNS = range(8, 21)  # a shorter bar is left out


def _bar_of(progress: Progress) -> Any:
    """One line that reads `progress` each time it is drawn; what does not fit the terminal is left out, not wrapped."""
    from datetime import timedelta

    from rich.console import Console, ConsoleOptions
    from rich.live import Live
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    from rerank_cli.job.progress import about, whole_percent

    class Line:
        def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
            share, seconds_left = progress.share_under_way, progress.clock_left
            parts = {
                "pairs": f"{progress.pairs:,} pairs",
                "percent": "" if share is None else whole_percent(share),
                "speed": f"{progress.pairs_per_second:,.1f} pairs/s",
                "clock": str(timedelta(seconds=int(progress.seconds))),
                "left": "" if seconds_left is None else f"{about(seconds_left)} left",
            }
            rows = ([parts[name] for name in names if parts[name]] for names in _SHOWN_PARTS)
            cells: list[Any] = next((row for row in rows if len(" ".join(row)) <= options.max_width), [])
            room = options.max_width - len(" ".join(cells)) - 1
            if room >= _BAR_COLUMNS[0]:
                bar = ProgressBar(None if share is None else 1.0, share or 0.0, width=min(room, _BAR_COLUMNS[-1]))
                cells.insert(cells.index(parts["pairs"]) + 1 if parts["pairs"] in cells else 0, bar)
            line = Table.grid(padding=(0, 1))
            for _ in cells:
                line.add_column(no_wrap=True)
            line.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in cells))
            yield line

    return Live(Line(), console=Console(file=sys.stderr), refresh_per_second=10, transient=True)
