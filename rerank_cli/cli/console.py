"""What people see: stdout is data, stderr is talk.

Text from files (ids, names, rows) can hold control bytes that move a terminal's cursor or rename its window. Everything
that goes to stderr passes `printable`, and rich is only ever given plain text objects, so markup in data prints as it
stands.
"""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rerank_cli.errors import RerankError, printable

if TYPE_CHECKING:
    from rerank_cli.records import Counts

_LINE_EVERY_SECONDS = 30.0


def say(text: str) -> None:
    """One line to stderr, made printable: a line break in it is one of a file's name or of data."""
    sys.stderr.write(printable(text) + "\n")
    sys.stderr.flush()


def say_error(error: RerankError) -> None:
    """An error and its hint."""
    say(f"error: {error.message}")
    if error.hint:
        say(f"hint: {error.hint}")


def print_json(document: Any) -> None:
    """A JSON document on stdout."""
    import json

    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def print_table(columns: list[str], rows: list[list[str]], *, title: str | None = None) -> None:
    """A table on stdout; the first column to the left, the others to the right."""
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
    """Let the interpreter's last flush of stdout go nowhere: its reader is gone, and that is not worth a message."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Progress:
    """How far a run is: a bar on a terminal, a plain line every 30 s elsewhere, nothing when quiet."""

    def __init__(self, *, quiet: bool) -> None:
        self._bar: Any = None
        self._task: Any = None
        self._quiet = quiet
        self._began = self._said = time.monotonic()
        self._pairs = 0
        self._share: float | None = None

    def __enter__(self) -> Self:
        if not self._quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("{task.fields[pairs]:,} pairs"),
                BarColumn(),
                TextColumn("{task.fields[speed]:,.1f} pairs/s"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=Console(file=sys.stderr),
                transient=True,
            )
            self._task = self._bar.add_task("", total=None, pairs=0, speed=0.0)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def on_batch(self, pairs: int, tokens: int) -> None:
        """A batch was handed to the device."""
        self._pairs += pairs
        now = time.monotonic()
        speed = self._pairs / max(now - self._began, 1e-9)
        if self._bar is not None:
            self._bar.update(self._task, pairs=self._pairs, speed=speed)
        elif not self._quiet and now - self._said >= _LINE_EVERY_SECONDS:
            self._said = now
            share = "" if self._share is None else f", {100 * self._share:.0f} % of the input read"
            say(f"{self._pairs:,} pairs, {speed:,.1f} pairs/s{share}")

    def on_progress(self, counts: Counts, share: float | None) -> None:
        """A window is finished."""
        self._share = share
        if self._bar is not None and share:
            self._bar.update(self._task, total=1.0, completed=share)
