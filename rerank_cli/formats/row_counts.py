"""How many rows an input has, where counting is cheap."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rerank_cli.formats import json_document
from rerank_cli.formats.compression import SUFFIXES, is_regular, open_input
from rerank_cli.formats.inputs import (
    STDIN,
    Input,
    ReadOptions,
    read_input,
    read_text_rows,
    slice_rows,
)
from rerank_cli.records import Gap
from rerank_cli.storage import is_url

_COUNTED_BYTES = 2**18
_COUNTED_FILE_BYTES = 2**26  # of a file whose lines are counted while a user waits: 0.1 s


def count_rows(inputs: Sequence[Input], options: ReadOptions) -> int | None:
    """How many rows `read_items` gives, without blank lines; None for a pipe, or where counting would take long."""
    rows = 0
    for item in inputs:
        if item.path == STDIN or not is_regular(item.path) or (is_url(item.path) and item.format != "parquet"):
            return None
        path = Path(item.path)
        if item.format == "parquet":
            rows += _lines_of(item)
            continue
        with open_input(item.path) as stream:
            is_lines = item.format in ("text", "trec") or (
                item.format == "jsonl" and not json_document.look_into(stream)[0]
            )
        is_plain = is_lines and not item.path.lower().endswith(tuple(SUFFIXES))
        if path.stat().st_size > (_COUNTED_FILE_BYTES if is_plain else _COUNTED_FILE_BYTES // 8):
            return None
        with open_input(item.path) as stream:
            if is_lines:
                rows += sum(1 for line in stream if not line.isspace())
            else:
                rows += sum(1 for row in read_text_rows(item, stream, options) if not isinstance(row, Gap))
    rows = max(0, rows - options.skip)
    return rows if options.limit is None else min(rows, options.limit)


def count_lines(inputs: Sequence[Input], options: ReadOptions) -> int:
    """About how many rows and blank lines `read_items` gives; text is read for it, Parquet says it in its footer."""
    lines = sum(_lines_of(item) for item in inputs) - options.skip
    return max(0, lines if options.limit is None else min(lines, options.limit))


def count_exactly(item: Input, options: ReadOptions) -> int:
    """How many rows `read_items` gives of a file, bad ones included; text is read up to the limit."""
    if item.format == "parquet":
        return count_lines([item], options)
    return sum(1 for row in slice_rows(read_input(item, None, options), options) if not isinstance(row, Gap))


def _lines_of(item: Input) -> int:
    if item.format == "parquet":
        from rerank_cli.formats import parquet_reader

        return parquet_reader.row_count(item.path)
    with open_input(item.path) as stream:
        is_document, begun = json_document.look_into(stream)
        if item.format == "jsonl" and is_document:
            return sum(1 for row in json_document.read_rows(begun, file=item.path) if not isinstance(row, Gap))
        return sum(chunk.count(b"\n") for chunk in iter(lambda: begun.read1(_COUNTED_BYTES), b"")) + 1
