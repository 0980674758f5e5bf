"""The inputs of a run as one stream of rows, whatever each file's format.

An input is a file, a folder or a pattern (`input_folders.py`), on a disk or at a URL (`storage/`). `--in-format` says
its format, or else its suffix (`.jsonl .ndjson .json`, `.csv`, `.tsv`, `.parquet`, `.trec .run`, each text format also
compressed). Without a known suffix the content tells (`first_bytes.py`), and it overrules a suffix that is certainly
wrong: Parquet is read as Parquet under any name, and a file of a format that is not read is refused before anything is
done. The row shape is that of the first rows that have one (`shapes.recognise`); a TREC run is a format and a shape in
one.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

from rerank_cli.errors import InputError, UsageError
from rerank_cli.formats import delimited, json_document, jsonl
from rerank_cli.formats.choices import MAX_LINE_BYTES
from rerank_cli.formats.compression import is_regular, open_input, text_suffix
from rerank_cli.formats.first_bytes import (
    HEAD_BYTES,
    PARQUET_MAGIC,
    is_top1000,
    recognise_separated,
    refuse_foreign_format,
)
from rerank_cli.formats.first_look import look_at, look_later, no_rows_error
from rerank_cli.formats.input_folders import FoundFile, Partition, list_input_files, refuse_mixed_formats
from rerank_cli.formats.position import Position
from rerank_cli.formats.shapes import (
    FIRST_ROWS,
    NO_TEXTS,
    RUN_LINE,
    SHAPES,
    FieldNames,
    FlatShape,
    Item,
    Kind,
    ReadsColumns,
    Shape,
    Texts,
    detect_shape,
    good_rows,
    kind_of,
    no_shape_error,
    recognise,
    settle_shape,
    with_titles_of_table,
)
from rerank_cli.records import Gap, JsonRow, RowError
from rerank_cli.storage import is_object, is_url

Format = Literal["jsonl", "parquet", "text", "trec", "csv", "tsv", "tsv-plain", "tsv-quoted", "top1000"]

FORMATS: dict[str, Format] = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".parquet": "parquet", ".trec": "trec", ".run": "trec",
    ".csv": "csv", ".tsv": "tsv",
}  # fmt: skip
"""Formats by suffix; `text` is plain lines and never guessed."""

IN_FORMATS: tuple[Format, ...] = ("jsonl", "parquet", "trec", "csv", "tsv", "tsv-plain", "tsv-quoted", "top1000")
"""The values of `--in-format`, besides `auto`."""

SEPARATED = ("csv", "tsv", "tsv-plain", "tsv-quoted", "top1000")
"""Formats of `delimited.py`."""

STDIN = "-"
_TABLE_SAMPLE = 20  # rows of a table that are looked at for its shape
_SPACE = b" \t\r\n"


@dataclass(frozen=True, slots=True)
class Input:
    """One file of a run. path: as the user gave it, `-` for stdin.

    folder: the folder that the user named, if it was found there; partition: the fields that its path adds to each row.
    """

    path: str
    format: Format
    folder: str | None = None
    partition: Partition = ()


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """Which rows are read, and how.

    max_line_bytes: the longest line. live: a pause of a pipe gives `Gap.IDLE`. skip, limit: how many rows are left out
    at the start, and how many are read from there; bad rows count, blank lines do not. position: is told how far
    reading is.
    """

    max_line_bytes: int = MAX_LINE_BYTES
    live: bool = False
    skip: int = 0
    limit: int | None = None
    position: Position | None = None

    @property
    def stop(self) -> int | None:
        """The row, counted from 0, before which reading ends; None where all are read."""
        return None if self.limit is None else self.skip + self.limit


def resolve_inputs(paths: Sequence[str], in_format: str = "auto", shape: str = "auto") -> list[Input]:
    """The inputs with their formats; `InputError` for a file that does not exist. shape: the value of `--shape`."""
    if shape == "trec" and in_format == "auto":
        in_format = "trec"
    inputs: list[Input] = []
    for path in paths:
        files = [FoundFile(STDIN)]
        if path != STDIN:
            files = list_input_files(path, lambda name: text_suffix(name) in FORMATS)
        found = [Input(file.path, _format_of(file.path, in_format), file.folder, file.partition) for file in files]
        if files[0].folder is not None:
            refuse_mixed_formats(path, (item.format for item in found))
        inputs += found
    if sum(1 for item in inputs if item.path == STDIN) > 1:
        raise UsageError("stdin (`-`) can be given once")
    for item in inputs:
        if item.path == STDIN and item.format == "parquet":
            raise InputError("-: Parquet cannot be read from a pipe", hint="give the name of a file")
        if item.path != STDIN and not (is_object(item.path) if is_url(item.path) else Path(item.path).exists()):
            open_input(item.path).close()  # raises, with the reason in words
    return inputs


def _format_of(path: str, in_format: str) -> Format:
    head = None
    if path != STDIN and is_regular(path):  # a look at a pipe such as `<(...)` would take its first bytes
        with suppress(InputError), open_input(path) as stream:  # the reader will say why it cannot be read
            head = stream.read(HEAD_BYTES)
    if in_format != "auto":
        known: dict[str, Format] = {name: name for name in ("text", *IN_FORMATS)}
        if in_format not in known:
            hint = "known are auto, " + ", ".join(IN_FORMATS)
            if in_format in SHAPES:
                hint = f"`--shape {in_format}` says what the rows are"
            raise UsageError(f"--in-format {in_format}: not known", hint=hint)
        if head and known[in_format] != "text":
            refuse_foreign_format(head, path)
        return known[in_format]
    by_suffix = FORMATS.get(text_suffix(path))
    if not head:
        return by_suffix or "jsonl"
    refuse_foreign_format(head, path)
    return _format_of_content(head, by_suffix)


def _format_of_content(head: bytes, by_suffix: Format | None) -> Format:
    """The format by the first bytes, where the suffix tells nothing or is certainly wrong; else by the suffix."""
    if head.startswith(PARQUET_MAGIC):
        return "parquet"
    text = head.removeprefix(jsonl.BYTE_ORDER_MARK).lstrip(_SPACE)
    first = text.partition(b"\n")[0]
    if by_suffix in ("csv", "tsv", "trec"):
        is_row = isinstance(jsonl.parse_row(first.rstrip(b"\r"), file="", number=1), JsonRow)
        if is_row or json_document.is_document(head):
            return "jsonl"
    if by_suffix in (None, "tsv") and is_top1000(head):
        return "top1000"
    if by_suffix is not None:
        return by_suffix
    return "trec" if RUN_LINE.match(first.decode(errors="replace")) else recognise_separated(head) or "jsonl"


def can_be_reread(inputs: Iterable[Input]) -> bool:
    """Whether all inputs are files; a pipe gives its rows once."""
    return all(item.path != STDIN and is_regular(item.path) for item in inputs)


def read_items(inputs: Sequence[Input], shape: ReadsColumns, options: ReadOptions) -> Iterator[Item]:
    """The rows of all inputs, one after another."""
    return slice_rows(chain.from_iterable(read_input(item, shape, options) for item in inputs), options)


def slice_rows(items: Iterator[Item], options: ReadOptions) -> Iterator[Item]:
    """The rows between `skip` and `limit`; nothing is read, or waited for, after the last of them."""
    number, stop = 0, options.stop
    while stop is None or number < stop:
        item = next(items, None)
        if item is None:
            return
        number += not isinstance(item, Gap)
        if isinstance(item, Gap) or number > options.skip:
            yield item
        elif options.position:
            options.position.skip(item)


def read_input(item: Input, shape: ReadsColumns | None, options: ReadOptions) -> Iterator[Item]:
    """All rows of one input; `skip` and `limit` of `options` do not count. shape: needed for Parquet alone."""
    if item.format == "parquet":
        # Imported here: pyarrow costs 0.2 s that JSONL need not pay.
        from rerank_cli.formats import parquet_reader

        assert shape is not None, "the shape of a table is known from its columns"
        if columns := parquet_reader.column_names(item.path, item.partition):
            if options.position:
                options.position.begin_table(item.path, parquet_reader.row_count(item.path))
            yield from parquet_reader.read_rows(item.path, shape.columns(columns), item.partition)
        return
    with open_input(item.path) as stream:
        rows: Iterator[Item] = read_text_rows(item, stream, options)
        rows = _with_fields(rows, dict(item.partition)) if item.partition else rows
        yield from options.position.follow_text(item.path, stream, rows) if options.position else rows


def read_text_rows(item: Input, stream: io.BufferedReader, options: ReadOptions) -> Iterator[JsonRow | RowError | Gap]:
    """The rows of an open text: lines, records of a CSV, or the objects of a JSON document."""
    how: dict[str, Any] = {"file": item.path, "max_line_bytes": options.max_line_bytes}
    how["live"] = options.live and item.path == STDIN
    if item.format in SEPARATED:
        return delimited.read_rows(stream, kind=item.format, **how)
    if item.format != "jsonl":
        return jsonl.read_rows(stream, **how, plain=True)
    is_document, begun = json_document.look_into(stream)
    return (json_document.read_rows if is_document else jsonl.read_rows)(begun, **how)


def _with_fields(rows: Iterator[Item], fields: dict[str, Any]) -> Iterator[Item]:
    """The rows with the fields that their file's path adds, where they have none of that name."""
    for row in rows:
        if isinstance(row, JsonRow):
            whole = {**row.fields, **{name: value for name, value in fields.items() if name not in row.fields}}
            yield JsonRow(row.file, row.number, whole, jsonl.dump_row(whole).rstrip(b"\n"))
        else:
            yield row


def open_pairs(inputs: Sequence[Input], shape: Shape, options: ReadOptions) -> Iterator[Item]:
    """The rows of all inputs for `score`, after a look at the first ones; a pipe is looked at when it is read."""
    items = read_items(inputs, shape, options)
    return look_at(items, shape) if can_be_reread(inputs) else look_later(items, shape)


def open_lists(
    inputs: Sequence[Input], names: FieldNames, options: ReadOptions, shape: str, texts: Texts = NO_TEXTS
) -> tuple[Shape, Iterator[Item]]:
    """The shape of the first rows that have one (or the one that `shape` names) and the rows of all inputs.

    texts: the files with the texts of a TREC run.
    """
    runs = [item.path for item in inputs if item.format == "trec"]
    if runs and len(runs) < len(inputs):
        raise InputError(f"{runs[0]}: a TREC run among files of other formats", hint="give each an own run")
    if runs and shape == "auto":
        shape = "trec"
    if shape == "auto":
        return _open_by_first_rows(inputs, names, options, texts)
    kind = kind_of(shape, "--shape")
    if bool(runs) != (kind.name == "trec"):
        raise UsageError(f"--shape {shape}: {inputs[0].path} is read as {inputs[0].format}")
    named = _open_shape(kind, inputs, names, texts)
    if inputs and inputs[0].format == "parquet":
        named = settle_shape(named, _first_rows_of_table(inputs[0]))
        named = with_titles_of_table(named, partial(_fields_of_table, inputs[0]))
        return named, look_at(read_items(inputs, named, options), named)
    items = read_items(inputs, named, options)
    first = list(islice(items, FIRST_ROWS))
    named = settle_shape(named, good_rows(first))
    return named, look_at(chain(first, items), named)


def _open_by_first_rows(
    inputs: Sequence[Input], names: FieldNames, options: ReadOptions, texts: Texts
) -> tuple[Shape, Iterator[Item]]:
    """`open_lists` without `--shape`."""
    seen: list[Item] = []
    rows: Iterator[Item] = iter(())
    found: Kind | None = None
    later: Sequence[Input] = ()
    seen_of_table: list[JsonRow] = []
    for place, item in enumerate(inputs):
        if item.format == "parquet":
            later = inputs[place:]
            seen_of_table = _first_rows_of_table(item)
            found = _shape_of_table(item, seen_of_table, names)
        else:
            later = inputs[place + 1 :]
            rows = chain(rows, read_input(item, None, options))
            found = recognise(rows, seen, names, stop=options.stop)
        if found or len(seen) >= FIRST_ROWS:
            break
    good = next((row for row in seen if isinstance(row, JsonRow)), None)
    if found is None and good is not None:
        header = any(item.path == good.file and item.format in SEPARATED for item in inputs)
        raise no_shape_error(f"{good.file}:{good.number}", good.fields, names, header=header)
    bad = [row for row in seen if isinstance(row, RowError)]
    if found is None and bad:
        raise no_rows_error(bad[0], len(bad))
    decided = _open_shape(found or SHAPES["list"], inputs, names, texts)
    decided = settle_shape(decided, good_rows(seen) or seen_of_table)
    for table in [item for item in inputs if item.format == "parquet"][:_TABLE_SAMPLE]:
        decided = with_titles_of_table(decided, partial(_fields_of_table, table))
    if isinstance(decided, FlatShape) and (found_in := next((one for one in inputs if one.format == "top1000"), None)):
        note = f"{found_in.path} has no header and is read as top1000: query id, passage id, query, passage"
        decided = replace(decided, told=(note, *decided.told))
    more = chain.from_iterable(read_input(item, decided, options) for item in later)
    return decided, look_at(slice_rows(chain(seen, rows, more), options), decided)


def _open_shape(kind: Kind, inputs: Sequence[Input], names: FieldNames, texts: Texts) -> Shape:
    if texts != NO_TEXTS and not kind.texts and kind.name != "trec":
        raise UsageError(
            "--queries, --corpus: the texts of rows that hold ids, and the input has its texts itself",
            hint="`--shape trec`, `--shape mteb` and `--shape beir` are rows of ids",
        )
    table = next((item.path for item in inputs if item.format == "parquet"), None)
    if table is not None and not kind.tables:
        raise InputError(f"{table}: rows of the shape {kind.name} are JSON lines, this is Parquet")
    return kind.open(names, texts)


def _shape_of_table(item: Input, rows: Sequence[JsonRow], names: FieldNames) -> Kind | None:
    """The shape of a table, by its first rows or else its columns; None for one without columns."""
    from rerank_cli.formats import parquet_reader

    columns = parquet_reader.column_names(item.path, item.partition)
    found = recognise(iter(rows), [], names)
    kind = found if found is not None and found.tables else detect_shape(columns, names)
    if kind is None and columns:
        raise no_shape_error(item.path, rows[0].fields if rows else dict.fromkeys(columns, ...), names)
    return kind


def _fields_of_table(item: Input) -> set[str]:
    from rerank_cli.formats import parquet_reader

    return parquet_reader.fields_with_values(item.path)


def _first_rows_of_table(item: Input) -> list[JsonRow]:
    """The first rows, with the columns whose names occur once."""
    from rerank_cli.formats import parquet_reader

    columns = parquet_reader.column_names(item.path, item.partition)
    once = [name for name in columns if columns.count(name) == 1]
    wanted = dict.fromkeys(once)
    rows = islice(parquet_reader.read_rows(item.path, wanted, item.partition), _TABLE_SAMPLE) if columns else iter(())
    return [JsonRow(row.file, row.number, row.fields, b"") for row in rows if not isinstance(row, RowError)]
