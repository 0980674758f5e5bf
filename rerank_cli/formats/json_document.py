"""Rows from JSON that is not JSON lines: arrays of objects, and objects over several lines, one after another.

    [{"query": ...}, {"query": ...}]        one array, compact or pretty, or several of them
    {                                       what `jq .` and `json.dump(..., indent=2)` write
      "query": ...
    }

An element is found by its brackets, skipping strings, and then parsed like a JSON line (`jsonl.parse_row`): numbers
keep their digits, and a key that occurs twice is an error of this row. Its number is its place, from 1. Memory holds
one element, up to the longest line that is read; a longer one is skipped and is an error row.

After a fault a document has no line ends at which to start again. Where brackets or commas are wrong, or the end is
missing, the rows before have been handed out and `InputError` ends the run.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from typing import Any, cast

from rerank_cli.errors import InputError
from rerank_cli.formats import jsonl
from rerank_cli.formats.choices import MAX_LINE_BYTES
from rerank_cli.formats.jsonl import BYTE_ORDER_MARK, KEPT_BYTES
from rerank_cli.records import Gap, JsonRow, RowError

_SPACE = b" \t\r\n"
_LOOKED_AT_BYTES = 2**16  # at most, to tell a document from JSON lines
_QUOTE, _OPEN = ord('"'), b"[{"
# A string as far as it is there, its closing quote if it is, or a bracket.
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+("?)|[\[\]{}]', re.DOTALL)

# The first key of an object, and the byte behind it.
_KEY = re.compile(rb'"(?:[^"\\]++|\\.)*+"[ \t\r\n]*+(.?)', re.DOTALL)


def is_document(head: bytes, *, is_all: bool = True) -> bool | None:
    """Whether an input with this head is JSON that is not JSON lines.

    is_all: no more can be read. Otherwise the answer is None where more bytes would tell.
    """
    text = head.removeprefix(BYTE_ORDER_MARK).lstrip(_SPACE)
    first, newline, rest = text.partition(b"\n")
    rest = rest.lstrip(_SPACE)
    unknown = False if is_all else None
    if first.rstrip(_SPACE) == b"{":
        key = _KEY.match(rest)
        return key[1] == b":" if key and key[1] else unknown if rest[:1] in (b"", b'"') else False
    if not text.startswith(b"["):
        return False if text not in (b"", BYTE_ORDER_MARK[:1], BYTE_ORDER_MARK[:2]) else unknown
    inside = text[1:].lstrip(_SPACE)[:1]
    if newline and first.rstrip(_SPACE) == b"[" and inside in (b"/", b"#"):
        return True  # a comment, which the reader will refuse; no line of JSON lines is just a bracket
    if inside not in (b"{", b"]"):
        return False if inside else unknown
    # A whole array in one line, before lines that are objects, is a bad row of JSON lines.
    if newline and rest and jsonl.is_json(first):
        return not rest.startswith(b"{")
    return True if is_all or (newline and not jsonl.is_json(first)) else None


def look_into(stream: io.BufferedIOBase) -> tuple[bool, io.BufferedIOBase]:
    """Whether a stream is a document, and the stream to read in its place, which has all of its bytes."""
    head = b""
    while len(head) < _LOOKED_AT_BYTES and is_document(head, is_all=False) is None:
        more = stream.read1(_LOOKED_AT_BYTES)
        if not more:
            break
        head += more
    return bool(is_document(head)), cast("io.BufferedIOBase", _Begun(head, stream))


class _Begun:
    """A stream whose first bytes were read before and come again."""

    def __init__(self, head: bytes, stream: io.BufferedIOBase) -> None:
        self._head = head
        self._stream = stream

    def read1(self, size: int) -> bytes:
        """As much as is there, at most `size` bytes."""
        if not self._head:
            return self._stream.read1(size)
        head, self._head = self._head[:size], self._head[size:]
        return head

    def fileno(self) -> int:
        """The descriptor to wait on for more."""
        return self._stream.fileno()


def read_rows(
    stream: io.BufferedIOBase, *, file: str, max_line_bytes: int = MAX_LINE_BYTES, live: bool = False
) -> Iterator[JsonRow | RowError | Gap]:
    """The rows of a document; otherwise as `jsonl.read_rows`."""
    number = 0
    for element in _Document(file, max_line_bytes).elements(stream, live=live):
        if isinstance(element, Gap):
            yield element
            continue
        number += 1
        if isinstance(element, jsonl.LongLine):
            message = f"element of {element.size} bytes; at most {max_line_bytes} are read"
            yield RowError(file, number, None, "line-too-long", message, element.head)
        else:
            yield jsonl.parse_row(element, file=file, number=number)


class _Document:
    """The state of reading a document.

    held: bytes that are still needed; scanned: how many of them were searched for brackets. depth: how many brackets
    are open. begin: where in `held` the open element begins, or -1. gap: where the text between two elements begins.
    dropped, head: of an element that is too long, how many bytes were dropped, and its first ones.
    """

    def __init__(self, file: str, max_bytes: int) -> None:
        self._file = file
        self._max = max_bytes
        self._held = b""
        self._scanned = 0
        self._depth = 0
        self._in_array = False
        self._is_first = True
        self._begin = -1
        self._gap = 0
        self._dropped = 0
        self._head = b""
        self._before = 0  # bytes of the document before `held`

    def elements(self, stream: io.BufferedIOBase, *, live: bool) -> Iterator[bytes | jsonl.LongLine | Gap]:
        """The bytes of each element, in order."""
        wanted = 0
        more: list[bytes] = []
        for chunk in jsonl.chunks(stream, live=live):
            if isinstance(chunk, Gap):
                if self._begin < 0:
                    yield chunk
                continue
            more.append(chunk)
            if sum(map(len, more)) < wanted:
                continue  # an unfinished string is scanned from its start again: not before it has grown twofold
            self._held += b"".join(more)
            more = []
            yield from self._scan()
            self._trim()
            wanted = len(self._held) - self._scanned
            if wanted > self._max:
                raise self._fault("a text has no end", self._scanned)
        self._held += b"".join(more)
        yield from self._scan()
        if self._depth or self._scanned < len(self._held):
            raise self._fault("the document is cut short: it ends before its last bracket", len(self._held))
        for _ in self._read_between(len(self._held)):
            pass

    def _scan(self) -> Iterator[bytes | jsonl.LongLine]:
        held = self._held
        for token in _TOKEN.finditer(held, self._scanned):
            at, end = token.span()
            what = held[at]
            if what == _QUOTE:
                if not token[1]:
                    self._scanned = at
                    return
                continue
            if what in _OPEN and self._begin >= 0:
                self._depth += 1
            elif what in _OPEN:
                yield from self._read_between(at)
                self._depth += 1
                if what == ord("[") and not self._in_array:
                    self._in_array = self._is_first = True
                    self._gap = end
                else:
                    self._begin = at
            else:
                yield from self._on_close(at, end)
        self._scanned = len(held)

    def _on_close(self, at: int, end: int) -> Iterator[bytes | jsonl.LongLine]:
        self._depth -= 1
        if self._begin >= 0:
            if self._depth == int(self._in_array):
                size = self._dropped + end - self._begin
                if size <= self._max:
                    yield self._held[self._begin : end]
                else:
                    yield jsonl.LongLine(self._head or self._held[self._begin : self._begin + KEPT_BYTES], size)
                self._head, self._dropped = b"", 0
                self._begin, self._gap, self._is_first = -1, end, False
        elif self._in_array and self._held[at] == ord("]"):
            yield from self._read_between(at, is_last=True)
            self._in_array, self._gap = False, end
        else:
            raise self._fault(f"`{chr(self._held[at])}` closes nothing", at)

    def _read_between(self, end: int, *, is_last: bool = False) -> Iterator[bytes]:
        """Read what is between two elements: a comma, and values that are not objects, which are rows too."""
        text = self._held[self._gap : end].strip(_SPACE)
        if not self._in_array:
            if text not in (b"", BYTE_ORDER_MARK):
                raise self._fault(f"{_show_text(text)} stands between rows", self._gap)
            return
        if text == (b"" if self._is_first or is_last else b","):
            return
        before, after = b"" if self._is_first else b"0", b"" if is_last else b"0"
        try:
            number = jsonl.ExactFloat
            values: list[Any] = json.loads(b"[" + before + text + after + b"]", parse_int=number, parse_float=number)
        except (ValueError, RecursionError) as error:
            raise self._fault(f"{_show_text(text)} stands between rows", self._gap) from error
        for value in values[bool(before) : len(values) - bool(after)]:
            yield jsonl.dump_row({"": value})[len(b'{"": ') : -len(b"}\n")]

    def _trim(self) -> None:
        """Drop the bytes that are no longer needed, and those of an element that is too long."""
        if self._begin < 0:
            if self._scanned - self._gap > self._max:
                raise self._fault("no row follows", self._gap)
            keep = min(self._gap, self._scanned)
        elif self._dropped or len(self._held) - self._begin > self._max:
            self._head = self._head or self._held[self._begin : self._begin + KEPT_BYTES]
            self._dropped += self._scanned - self._begin
            self._begin = keep = self._scanned
        else:
            keep = self._begin
        self._before += keep
        self._held = self._held[keep:]
        self._scanned -= keep
        self._gap = max(0, self._gap - keep)
        if self._begin >= 0:
            self._begin -= keep

    def _fault(self, what: str, at: int) -> InputError:
        hint = None
        if what.startswith(("`//", "`/*", "`,//", "`,/*", "`#")):
            hint = "JSON has no comments: take them out"
        elif what.startswith("`,`"):
            hint = "JSON has no comma before a closing bracket: take it out"
        return InputError(f"{self._file}: no JSON document: byte {self._before + at + 1}: {what}", hint=hint)


def _show_text(text: bytes) -> str:
    start = text[:20].decode("utf-8", "replace")
    return "`" + "".join(char if char.isprintable() else "." for char in start) + "`"
