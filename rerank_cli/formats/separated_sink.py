"""Rows to CSV or TSV: collected as JSON lines, and written as a table when all are there.

The header names the columns of every row, so nothing can be written before the last row is known. Columns are in the
order in which rows first have them: the user's own, then ours. A cell is empty where the row lacks it or has null, and
holds JSON for a list or an object. Cells are quoted as in RFC 4180, with tabs or commas between them, and each line
ends in a newline, so that pandas, DuckDB and this program read back what was written.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from rerank_cli.formats import jsonl
from rerank_cli.formats.compression import compress
from rerank_cli.formats.sinks import JsonlSink

SEPARATORS = {"csv": ",", "tsv": "\t"}
"""The separator of each output format."""

_END = "\r\n"
_ROWS = 1000  # that are written at once


class SeparatedSink(JsonlSink):
    """Writes JSON lines to a stream; `finish` makes the table of all of them."""

    def finish(self, file: BinaryIO, rows: Path, name: str, kind: str, check: Callable[[], None]) -> None:
        """Write the table.

        Args:
            file: where the table goes.
            rows: the file with the JSON lines.
            name: of the output; its suffix may ask for compression.
            kind: `csv` or `tsv`.
            check: called before each thousand rows.
        """
        columns: dict[str, None] = {}
        for row in _rows(rows):
            columns |= dict.fromkeys(row)
        if not columns:
            file.write(compress(b"", name))
            return
        file.write(compress(_lines([columns], kind), name))
        found = _rows(rows)
        while many := list(islice(found, _ROWS)):
            check()
            file.write(compress(_lines(([_cell(row.get(one)) for one in columns] for row in many), kind), name))


def _rows(path: Path) -> Iterator[Mapping[str, Any]]:
    with path.open("rb") as stream:
        for line in stream:
            yield jsonl.parse_value(line.decode())


def _lines(cells: Iterable[Iterable[str]], kind: str) -> bytes:
    lines = []
    for row in cells:
        line = io.StringIO(newline="")
        # The module quotes a lone carriage return only where it ends lines.
        csv.writer(line, delimiter=SEPARATORS[kind], lineterminator=_END).writerow(row)
        lines.append(line.getvalue().removesuffix(_END) + "\n")
    return "".join(lines).encode()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else jsonl.dump_value(value)
