"""Separated values: CSV and TSV, a header with the names of the columns, then a row a record.

    csv           commas (or semicolons, tabs or bars, if these alone split the header); quoted as in RFC 4180
    tsv-quoted    tabs, quoted in the same way: pandas, Python's csv.writer, Excel
    tsv-plain     tabs; a quote is a character like any other: MS MARCO and most files of information retrieval
    tsv           one of the two, by the first cells that begin with a quote
    top1000       tsv without a header: query id, passage id, query, passage, as in MS MARCO's `top1000.*.tsv`

Python's csv module reads quoted records in its strict mode; a cell may hold the separator, quotes and newlines, and
comes back exactly as it was written. All cells are text. Rows become JSON objects, and so the output and the errors
file hold them; the number of a row is that of its first line.

Nothing is guessed. A TSV file that can be read in both ways is refused with both commands. A file that contradicts
itself (a quote where none may be, a second header with other columns) ends the run at that place. A row with other
columns, a repeated header (files that were joined) and a line of JSON are bad rows, and so is a last record without a
line end: nobody can tell whether its last cell was cut.

Over 400 lines: one reader, and whether quotes quote matters at each of its steps.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from rerank_cli.errors import InputError
from rerank_cli.formats import jsonl
from rerank_cli.formats.choices import MAX_LINE_BYTES, MAX_VALUES
from rerank_cli.formats.first_bytes import KNOWN_FIELDS
from rerank_cli.records import Gap, JsonRow, RowError
from rerank_cli.storage import shell_name

TOP1000 = ("query_id", "passage_id", "query", "passage")
"""The columns of MS MARCO's candidate files, which have no header."""

_RUN_COLUMNS = ("query id", "passage id", "rank")  # of MS MARCO's run files
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?")
_MARK = jsonl.BYTE_ORDER_MARK.decode()
_LOOKED_AT_LINES = 200  # to tell whether quotes quote
_LOOKED_AT_BYTES = 2**18
_QUOTED_CELL = re.compile(rb'(?:^|\t)"')
_DOUBLED = re.compile(r'"(?:[^"]|"")*""(?:[^"]|"")*"')
_APOSTROPHES = "a cell is quoted by apostrophes"
_IN_APOSTROPHES = re.compile(r"'(?:[^']|'')*''(?:[^']|'')*'", re.DOTALL)
_SEPARATORS = ",;\t|"
_SAID = re.compile(r"sep=(.)")  # the first line of a file for Excel, which says what separates


def read_rows(
    stream: io.BufferedIOBase,
    *,
    file: str,
    kind: str = "csv",
    max_line_bytes: int = MAX_LINE_BYTES,
    live: bool = False,
) -> Iterator[JsonRow | RowError | Gap]:
    """The rows below the header; `InputError` for a header that names no columns. Otherwise as `jsonl.read_rows`.

    kind: one of the names in the module's text.
    """
    # For the whole process, because the module has no other way; a cell that is longer than a line may be is refused.
    csv.field_size_limit(max(csv.field_size_limit(), max_line_bytes))
    lines = _Lines(stream, max_line_bytes=max_line_bytes, live=live)
    yield from _Reader(file, lines, kind, max_line_bytes).rows()


class _Line(NamedTuple):
    """A line of the file, without its end. end: `\\n` or `\\r\\n`; empty if the file ends first. too_long: its size."""

    number: int
    raw: bytes
    end: bytes
    too_long: int = 0

    @property
    def text(self) -> str:
        return self.raw.decode("utf-8", "surrogateescape")


class _Lines:
    """The lines of an input; some can be looked at before they are taken."""

    def __init__(self, stream: io.BufferedIOBase, *, max_line_bytes: int, live: bool) -> None:
        self._lines = jsonl.split_lines(stream, max_line_bytes=max_line_bytes, live=live)
        self._ahead: deque[_Line | Gap] = deque()
        self._number = 0

    def peek(self) -> _Line | Gap | None:
        """The next line; None at the end."""
        if not self._ahead and (line := self._read()) is not None:
            self._ahead.append(line)
        return self._ahead[0] if self._ahead else None

    def take(self) -> _Line | Gap | None:
        """The next line, which is removed; None at the end."""
        return self._ahead.popleft() if self._ahead else self._read()

    def look(self, lines: int, size: int) -> tuple[list[_Line], bool]:
        """The next lines, up to a pause of a live input and without removing them; and whether these are all."""
        is_all = False
        while len(self._ahead) < lines and size > 0 and not (self._ahead and isinstance(self._ahead[-1], Gap)):
            line = self._read()
            if line is None:
                is_all = True
                break
            self._ahead.append(line)
            size -= 0 if isinstance(line, Gap) else len(line.raw)
        return [line for line in self._ahead if isinstance(line, _Line)], is_all

    def _read(self) -> _Line | Gap | None:
        line = next(self._lines, None)
        if line is None or isinstance(line, Gap):
            return line
        self._number += 1
        if isinstance(line, jsonl.LongLine):
            return _Line(self._number, line.head, b"\n", too_long=line.size)
        if self._number == 1:
            line = type(line)(line.removeprefix(jsonl.BYTE_ORDER_MARK))
        raw = bytes(line).removesuffix(b"\r")
        end = b"" if isinstance(line, jsonl.UnendedLine) else b"\r\n" if len(raw) < len(line) else b"\n"
        return _Line(self._number, raw, end)


@dataclass(slots=True)
class _Record:
    """A record: its lines as they were read, and its cells. number: of its first line."""

    number: int
    raw: bytes
    cells: list[str]
    ended: bool


@dataclass(slots=True)
class _Reader:
    """One pass over a file.

    quoted: whether quotes quote; None while that is unknown. said: the separator that the file names itself.
    opened: whether an earlier record with a cell that begins with an apostrophe, and does not end with one, was a row.
    """

    file: str
    lines: _Lines
    kind: str
    max_bytes: int
    separator: str = "\t"
    quoted: bool | None = None
    columns: list[str] = field(default_factory=list)
    said: str | None = None
    opened: Literal["", "row", "no row"] = ""

    def rows(self) -> Iterator[JsonRow | RowError | Gap]:
        self.quoted = {"csv": True, "tsv-quoted": True, "tsv-plain": False}.get(self.kind)
        if self.kind == "top1000":
            self.columns = list(TOP1000)
        for record in self._records():
            if not isinstance(record, _Record):
                if isinstance(record, RowError) and not self.columns:
                    raise InputError(f"{self.file}:{record.row}: the header cannot be read: {record.message}")
                yield record
            elif not self.columns:
                self.columns = self._header(record)
            elif (fault := self._find_fault(record)) is not None:
                yield RowError(self.file, record.number, None, *fault, record.raw)
            else:
                fields = dict(zip(self.columns, record.cells, strict=True))
                yield JsonRow(self.file, record.number, fields, jsonl.dump_row(fields).rstrip(b"\n"))

    def _records(self) -> Iterator[_Record | RowError | Gap]:
        while (line := self.lines.peek()) is not None:
            if isinstance(line, Gap):
                self.lines.take()
                yield line
            elif not line.raw.strip():
                self.lines.take()
                yield Gap.BLANK
            elif not self.columns and line.number == 1 and self.kind == "csv" and (said := _SAID.fullmatch(line.text)):
                self.lines.take()
                self.said = said[1]
            elif line.too_long:
                self.lines.take()
                message = f"line of {line.too_long} bytes; at most {self.max_bytes} are read"
                yield RowError(self.file, line.number, None, "line-too-long", message, line.raw)
            elif (
                len(line.raw) > MAX_VALUES
                and (cells := 1 + max(map(line.raw.count, _SEPARATORS.encode()))) > MAX_VALUES
            ):
                self.lines.take()
                message = f"the line has {cells} cells; at most {MAX_VALUES} are read"
                yield RowError(self.file, line.number, None, "too-many-values", message, line.raw)
            else:
                if not self.columns:
                    self._begin(line)
                if self.quoted is None and _QUOTED_CELL.search(line.raw):
                    self.quoted = self._decide_quoting()
                record = self._quoted_record() if self.quoted else self._plain_record(line)
                broken = ""
                try:
                    record.raw.decode()
                except UnicodeDecodeError as error:
                    byte = record.raw[error.start]
                    broken = f"not UTF-8: byte 0x{byte:02x} at offset {error.start} of the record"
                yield RowError(self.file, record.number, None, "bad-utf8", broken, record.raw) if broken else record

    def _begin(self, header: _Line) -> None:
        """Find the separator, by the header."""
        usual = "," if self.kind == "csv" else "\t"
        splits = [mark for mark in _SEPARATORS if len(_cells(header.text, mark) or ()) > 1]
        self.separator = self.said or (usual if usual in splits or len(splits) != 1 else splits[0])
        if self.separator != "\t":
            self.quoted = True

    def _plain_record(self, line: _Line) -> _Record:
        self.lines.take()
        cells = line.text.removeprefix(_MARK).split(self.separator)
        if self.kind != "tsv-plain" and (found := _find_quoting(cells)):
            raise self._contradiction(line.number, found)
        return _Record(line.number, line.raw, cells, bool(line.end))

    def _quoted_record(self) -> _Record:
        taken: list[_Line] = []

        def feed() -> Iterator[str]:
            size = 0
            while (line := self.lines.take()) is not None:
                if isinstance(line, Gap):
                    continue
                taken.append(line)
                size += len(line.raw)
                if line.too_long or size > self.max_bytes:
                    raise self._contradiction(taken[0].number, f"a record has more than {self.max_bytes} bytes")
                text = line.text + line.end.decode()
                yield text if len(taken) > 1 else text.removeprefix(_MARK)

        try:
            cells = next(csv.reader(feed(), delimiter=self.separator, strict=True))
        except csv.Error as error:
            raise self._contradiction(taken[0].number, _explain_csv_error(error)) from error
        last = taken[-1]
        raw = b"".join(part for line in taken for part in (line.raw, line.end)).removesuffix(last.end)
        text = raw.decode("utf-8", "surrogateescape")
        if any('"' in cell and _quote(cell) not in text for cell in cells):
            raise self._contradiction(taken[0].number, "a quote stands in a cell that is not quoted")
        if any(_IN_APOSTROPHES.fullmatch(cell) and _quote(cell) not in text for cell in cells):
            raise self._contradiction(taken[0].number, _APOSTROPHES)
        return _Record(taken[0].number, raw, cells, bool(last.end))

    def _decide_quoting(self) -> bool:
        """Whether quotes quote, by the next lines; `InputError` where both readings fit."""
        lines, is_all = self.lines.look(_LOOKED_AT_LINES, _LOOKED_AT_BYTES)
        texts = [line.text for line in lines if line.raw.strip()]
        width = len(self.columns) or len(texts[0].split("\t"))
        plain = sum(1 for text in texts if len(text.split("\t")) != width)
        quoted = _count_faults_when_quoted(texts, width, is_all=is_all)
        cells = [cell for text in texts for cell in text.split("\t") if cell.startswith('"')]
        doubled = any(_DOUBLED.fullmatch(cell) for cell in cells)
        place = next(line.number for line in lines if _QUOTED_CELL.search(line.raw))
        if quoted is None and (plain or doubled or not lines[-1].end):
            raise self._contradiction(place, "quotes stand around cells, and not around all that begin with one")
        if quoted is None or plain < quoted:
            return False
        if quoted < plain or not self.columns or doubled:
            return True
        raise InputError(
            f"{self.file}:{place}: {cells[0][:40]}: the quotes can be part of the text, or stand around it",
            hint="say which: `--in-format tsv-plain` (part of the text) or `--in-format tsv-quoted` (around it)",
        )

    def _header(self, record: _Record) -> list[str]:
        where, cells = f"{self.file}:{record.number}", record.cells
        twice = next((name for name, times in Counter(cells).items() if times > 1), None)
        if twice is not None and not all(_NUMBER.fullmatch(cell) for cell in cells):
            raise InputError(f"{where}: the header names `{twice}` twice")
        if not cells[0] and len(cells) > 1:
            cells = ["Unnamed: 0", *cells[1:]]  # the index of a data frame; pandas reads it under this name
        if not all(cells):
            place = next(n for n, cell in enumerate(cells, 1) if not cell)
            raise InputError(f"{where}: the header has no name for column {place} of {len(cells)}")
        if all(map(_NUMBER.fullmatch, cells)) and cells != list(map(str, range(len(cells)))):  # of pandas without names
            file = shell_name(self.file)
            if len(cells) == len(_RUN_COLUMNS) and self.separator == "\t":
                program = '{ print $1, "Q0", $2, $3, -$3, "run" }'
                raise InputError(
                    f"{where}: numbers and no header: it looks like a run of MS MARCO ({', '.join(_RUN_COLUMNS)})",
                    hint=f"`awk '{program}' {file} > {file}.trec` makes it a TREC run, "
                    "which needs --queries and --corpus",
                )
            message = f"{where}: the header names `{cells[0]}`: the first line seems to be a row"
            raise InputError(message, hint="put the names of the columns before it, such as `query`, `passage`")
        if odd := next((cell for cell in cells if cell.strip() != cell and cell.strip() in KNOWN_FIELDS), None):
            hint = "the cells may have blanks too, which would be part of the texts; write the file without them"
            raise InputError(f"{where}: the header names `{odd}`, with a blank before or behind it", hint=hint)
        return cells

    def _find_fault(self, record: _Record) -> tuple[str, str] | None:
        """Why a record is no row, as (code, message)."""
        cells = record.cells
        if record.raw.startswith(b"{") and jsonl.is_json(record.raw):
            return "wrong-columns", "the line is JSON, among separated values"
        if cells == self.columns:
            return "repeated-header", "the header stands here again: files were put together"
        if set(cells) == set(self.columns):
            raise self._contradiction(record.number, "a header with other columns stands here")
        if len(cells) != len(self.columns):
            if self.kind != "tsv-plain" and any(cell.endswith("\\") for cell in cells):
                raise self._contradiction(record.number, "a backslash stands before a separator or a line end")
            self._refuse_apostrophes(record, is_row=False)
            return "wrong-columns", f"{len(cells)} cells, and the header names {len(self.columns)} columns"
        self._refuse_apostrophes(record, is_row=True)
        if not record.ended:
            return "no-line-end", "the file ends in this record without a line end, so its last cell may be cut"
        return None

    def _refuse_apostrophes(self, record: _Record, *, is_row: bool) -> None:
        """End the run at a cell that is quoted by apostrophes over several lines: parts of it may look like rows."""
        closes = any(cell.endswith("'") and not cell.startswith("'") for cell in record.cells)
        if closes and (self.opened == "no row" or (self.opened == "row" and not is_row)):
            raise self._contradiction(record.number, f"{_APOSTROPHES}, over several lines")
        looked_at = record.cells[-1:] if is_row else record.cells
        if any(cell.startswith("'") and not cell.endswith("'") for cell in looked_at):
            self.opened = "row" if is_row else "no row"
        elif is_row:
            self.opened = ""

    def _contradiction(self, number: int, what: str) -> InputError:
        hints = {"csv": 'in a cell within quotes a quote is written twice: `"say ""yes"""`', "tsv-plain": None}
        hint = hints.get(self.kind, "`--in-format tsv-plain` takes quotes as text")
        return InputError(f"{self.file}:{number}: the file contradicts itself: {what}", hint=hint)


def _cells(text: str, separator: str) -> Sequence[str] | None:
    """The cells of a line; None where it is no whole record."""
    try:
        return next(csv.reader([text], delimiter=separator, strict=True), None)
    except csv.Error:
        return None


def _count_faults_when_quoted(texts: Sequence[str], width: int, *, is_all: bool) -> int | None:
    """How many records have not `width` cells if quotes quote; None where they cannot. is_all: the file ends here."""
    wrong = 0
    reader = csv.reader((f"{text}\n" for text in texts), delimiter="\t", strict=True)
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            return wrong if "unexpected end" in str(error) and not is_all else None
        if cells is None:
            return wrong
        wrong += len(cells) != width


def _quote(cell: str) -> str:
    return '"' + cell.replace('"', '""') + '"'


def _find_quoting(cells: Sequence[str]) -> str | None:
    """The sign that quotes do quote, in a file that is read as if they did not."""
    for cell in cells:
        if _DOUBLED.fullmatch(cell):
            return "a cell is quoted, and quotes in cells before it do not quote"
        if '\\"' in cell:
            return "a quote is escaped by a backslash"
        if _IN_APOSTROPHES.fullmatch(cell):
            return _APOSTROPHES
    return None


def _explain_csv_error(error: csv.Error) -> str:
    text = str(error)
    if "unexpected end" in text:
        return "a quoted cell that begins here has no end"
    if "new-line character" in text:
        return "a carriage return stands in a cell without quotes (`tr '\\r' '\\n'` mends line ends of old Macs)"
    return "a quoted cell goes on behind its closing quote" if "expected after" in text else text
