"""Tab-separated values: a header line with the names of the columns, then a row a line.

As most files of the field have it: no quotes and no escapes, so a cell holds neither tab nor newline. All cells are
text. Rows go on as JSON objects, which is what the output and the errors file hold of them.
"""

from __future__ import annotations

import io
from collections.abc import Iterator

from rerank_cli.errors import InputError
from rerank_cli.formats import jsonl
from rerank_cli.formats.choices import MAX_LINE_BYTES
from rerank_cli.records import Gap, JsonRow, RowError


def read_rows(
    stream: io.BufferedIOBase, *, file: str, max_line_bytes: int = MAX_LINE_BYTES, live: bool = False
) -> Iterator[JsonRow | RowError | Gap]:
    """The rows below the header; `InputError` for a header that names no columns. Otherwise as `jsonl.read_rows`."""
    columns: list[str] | None = None
    for line in jsonl.read_text_lines(stream, file=file, max_line_bytes=max_line_bytes, live=live):
        if not isinstance(line, JsonRow):
            if columns is None and isinstance(line, RowError):
                raise InputError(f"{file}:{line.row}: the header cannot be read: {line.message}")
            yield line
            continue
        cells = line.fields["passage"].split("\t")
        if columns is None:
            columns = _header(cells, f"{file}:{line.number}")
            continue
        if len(cells) != len(columns):
            message = f"{len(cells)} cells, and the header names {len(columns)} columns"
            yield RowError(file, line.number, None, "wrong-columns", message, line.raw)
            continue
        fields = dict(zip(columns, cells, strict=True))
        yield JsonRow(file, line.number, fields, jsonl.dump_row(fields).rstrip(b"\n"))


def _header(cells: list[str], where: str) -> list[str]:
    twice = next((name for name in cells if cells.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{where}: the header names `{twice}` twice")
    if not all(cells):
        raise InputError(f"{where}: the header has a column without a name")
    return cells
