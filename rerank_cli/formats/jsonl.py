r"""Rows from JSON lines or plain text lines, and rows to JSON lines.

A bad line never ends a run: it becomes a `RowError` with its number and bytes, and the next line is read. So that no
row is silently lost, changed or written unreadably, the reader is stricter than `json.loads`:

* Lines end at `\n` only. `str.splitlines` would also cut at U+2028 and other characters that JSON strings may hold. A
  `\r` before the `\n`, and a byte order mark at the start of the file, are not part of a line. A mark before an object
  is dropped on every line, as files that begin with one may have been joined.
* A key that occurs twice in an object is an error, at any depth: otherwise the last one would win silently.
* Numbers stay as they were written. Where Python would write one differently (`1.10`, `1e5`, `-0`, more digits than a
  float or an int can hold), the value is an `ExactFloat`, which keeps its text.
* `NaN` and `Infinity` are not JSON. A surrogate escape without its other half (`"\ud800"`) can be read but has no UTF-8
  form, so it would fail at write time, after scoring.
* Nesting is limited to `MAX_NESTING`, so that what was read here can always be written, from any depth of the stack.
  Python's own limit depends on that depth and on its version.
* A line has at most `MAX_VALUES` values, so that a line of the largest size takes hundreds of MB and not gigabytes.
* A line is kept up to `max_line_bytes`; the rest of a longer one is skipped.

Live input: where an input has nothing more right now (a pipe whose writer pauses), the reader gives `Gap.IDLE` before
it waits, so that the consumer can score what it has. It polls the descriptor after each chunk to find a pause. Regular
files always have more, and decompressed streams and memory have no descriptor, so these give none.
"""

from __future__ import annotations

import base64
import json
import re
import select
from collections import Counter
from contextlib import suppress
from json.encoder import encode_basestring
from types import NoneType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from rerank_cli.formats.choices import MAX_LINE_BYTES, MAX_VALUES
from rerank_cli.records import Gap, JsonRow, RowError

if TYPE_CHECKING:
    import io
    from collections.abc import Iterable, Iterator, Mapping

MAX_NESTING = 200
"""How deep objects and arrays may be nested."""

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
"""What some programs write before text in UTF-8; it is no part of the text."""

KEPT_BYTES = 1024
"""How much of a line that is too long is kept for the errors file."""

_READ_BYTES = 64 * 1024
_PAUSE_MILLISECONDS = 20  # longer than a busy writer needs between two writes, shorter than anyone notices
_EXCERPT_CHARACTERS = 20
_JSON_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"')
_BEFORE_VALUES = (b",", b"[", b"{")
_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")


class ExactFloat(float):
    """A number that Python would write differently, with its text from the input."""

    __slots__ = ("text",)
    text: str

    def __new__(cls, text: str) -> Self:
        """The float nearest to the JSON number `text`; it may be infinite."""
        number = super().__new__(cls, text)
        number.text = text
        return number


def read_rows(
    stream: io.BufferedIOBase,
    *,
    file: str,
    max_line_bytes: int = MAX_LINE_BYTES,
    live: bool = False,
    plain: bool = False,
) -> Iterator[JsonRow | RowError | Gap]:
    """The rows of JSON lines, in order; every line is a row, an error or a blank, and counts in the row numbers.

    live: also yield `Gap.IDLE`, once a pause, where the input has nothing more right now.
    plain: the lines are plain text and become rows with the one field `passage`.
    Error codes: `bad-utf8`, `bad-json`, `not-an-object`, `too-deep`, `lone-surrogate`, `duplicate-key`,
    `too-many-values`, `line-too-long` (of that line only the first 1024 bytes are kept).
    """
    number = 0
    for line in split_lines(stream, max_line_bytes=max_line_bytes, live=live):
        if isinstance(line, Gap):
            yield line
            continue
        number += 1
        if isinstance(line, LongLine):
            message = f"line of {line.size} bytes; at most {max_line_bytes} are read"
            yield RowError(file, number, None, "line-too-long", message, line.head)
            continue
        marked = line.startswith(BYTE_ORDER_MARK) and (number == 1 or not plain)
        raw = (line.removeprefix(BYTE_ORDER_MARK) if marked else line).removesuffix(b"\r")
        if not raw or raw.isspace():
            yield Gap.BLANK
            continue
        yield parse_row(raw, file=file, number=number, plain=plain)


def parse_row(raw: bytes, *, file: str, number: int, plain: bool = False) -> JsonRow | RowError:
    """The row of one line without its newline, as `read_rows` would give it."""
    try:
        return JsonRow(file, number, {"passage": _decode(raw)} if plain else _parse_object(raw), raw)
    except _LineError as error:
        return RowError(file, number, None, error.code, error.message, raw)


def dump_row(fields: Mapping[str, Any]) -> bytes:
    """One JSON line, keys in their order, text as UTF-8, numbers as they were read.

    Raises ValueError, naming the field, for NaN, infinity, a lone surrogate, or nesting that Python cannot encode.
    """
    dumped = []
    for name, value in fields.items():
        try:
            dumped.append(f"{encode_basestring(name)}: {dump_value(value)}".encode())
        except UnicodeEncodeError as error:
            reason = _surrogate_message(error)
            raise ValueError(f"field {_excerpt(name)} cannot be written as JSON: {reason}") from error
        except (ValueError, RecursionError) as error:
            raise ValueError(f"field {_excerpt(name)} cannot be written as JSON: {error}") from error
    return b"{" + b", ".join(dumped) + b"}\n"


def dump_value(value: Any) -> str:
    """A value as JSON text, by the C encoder unless it has an `ExactFloat`, which that would write differently.

    Raises ValueError or RecursionError where it cannot be written.
    """
    return _encode_exact(value) if _has_exact((value,)) else _ENCODER.encode(value)


def parse_value(text: str) -> Any:
    """The value of a JSON text in a field, numbers as they were written; `ValueError` where it is not JSON."""
    try:
        return _DECODER.decode(text)
    except (json.JSONDecodeError, RecursionError, _LineError) as error:
        raise ValueError(str(error)) from error


def is_json(text: bytes) -> bool:
    """Whether Python can read bytes as JSON, less strictly than `parse_row`."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def error_row(error: RowError) -> bytes:
    """The line of the errors file for a bad row."""
    return dump_row(error_fields(error))


def error_fields(error: RowError) -> dict[str, Any]:
    """The fields of a row in the errors file: `raw` as text, or `raw_base64` where it is not UTF-8."""
    raw: dict[str, str]
    try:
        raw = {"raw": error.raw.decode()}
    except UnicodeDecodeError:
        raw = {"raw_base64": base64.b64encode(error.raw).decode()}
    return {
        "file": _escape_surrogates(error.file),
        "row": error.row,
        "id": error.id,
        **({} if error.passage is None else {"index": error.passage, "passage_id": error.passage_id}),
        "error": {"code": error.code, "message": _escape_surrogates(error.message)},
        **raw,
    }


class _LineError(Exception):
    """A line that is not a row."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class LongLine(NamedTuple):
    """A line over the limit: its first bytes, and its size."""

    head: bytes
    size: int


class UnendedLine(bytes):
    """The last line of an input that does not end with a newline."""


def split_lines(stream: io.BufferedIOBase, *, max_line_bytes: int, live: bool) -> Iterator[bytes | LongLine | Gap]:
    """The lines without their newline; memory holds a chunk and an unfinished line of up to `max_line_bytes`."""
    held = bytearray()  # a list of parts would cost 40 bytes for each write of a slow pipe
    size = 0  # of the unfinished line; `held` is its start or all of it
    for chunk in chunks(stream, live=live):
        if isinstance(chunk, Gap):
            yield chunk
            continue
        *ended, begun = chunk.split(b"\n")
        for part in ended:
            line = part
            if size:
                held += part
                line = bytes(held)
                held.clear()
            size += len(part)
            yield line if size <= max_line_bytes else LongLine(line[:KEPT_BYTES], size)
            size = 0
        held += begun
        size += len(begun)
        if size > max_line_bytes:
            del held[KEPT_BYTES:]
    if size:
        yield UnendedLine(held) if size <= max_line_bytes else LongLine(bytes(held), size)


def chunks(stream: io.BufferedIOBase, *, live: bool) -> Iterator[bytes | Gap]:
    """What each read gives. live: also `Gap.IDLE` before a read that would wait, if a line ended since the last."""
    poll = None
    if live:
        with suppress(OSError):  # io.UnsupportedOperation: the stream has no descriptor
            descriptor = stream.fileno()
            poll = select.poll()  # not select.select, which refuses descriptors over 1023
            poll.register(descriptor, select.POLLIN)
    ended = False
    while chunk := stream.read1(_READ_BYTES):
        yield chunk
        ended = ended or b"\n" in chunk
        if poll is not None and ended and not poll.poll(_PAUSE_MILLISECONDS):
            yield Gap.IDLE
            ended = False


def _parse_object(line: bytes) -> dict[str, Any]:
    if len(line) > MAX_VALUES:
        # The most that it can have: one before each comma and one in each bracket.
        values = sum(map(line.count, _BEFORE_VALUES))
        if values > MAX_VALUES:
            values = sum(map(_JSON_STRING.sub(b"", line).count, _BEFORE_VALUES))
        if values > MAX_VALUES:
            raise _LineError("too-many-values", f"the row has {values} values; at most {MAX_VALUES} are read")
    try:
        fields = _DECODER.decode(_decode(line))
    except json.JSONDecodeError as error:
        what = error.msg.rstrip(": ").removesuffix(" at").removesuffix(" starting")
        found = _excerpt(error.doc[error.pos :]) if error.pos < len(error.doc) else "the end of the line"
        message = f"not JSON: column {error.pos + 1}: {what[0].lower()}{what[1:]}, found {found}"
        raise _LineError("bad-json", message) from error
    except RecursionError as error:
        raise _LineError("too-deep", _TOO_DEEP) from error
    if not isinstance(fields, dict):
        raise _LineError("not-an-object", f"the row is {_JSON_NAMES.get(type(fields), 'a number')}, not an object")
    # The number of brackets is cheap and no less than the depth, so few rows have to be walked.
    if line.count(b"[") + line.count(b"{") > MAX_NESTING and _is_deeper_than(fields, MAX_NESTING):
        raise _LineError("too-deep", _TOO_DEEP)
    if b"\\" in line and _SURROGATE_ESCAPE.search(line):
        try:
            json.dumps(fields, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise _LineError("lone-surrogate", _surrogate_message(error)) from error
    return fields


def _decode(line: bytes) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        message = f"not UTF-8: byte 0x{line[error.start]:02x} at offset {error.start} of the line"
        raise _LineError("bad-utf8", message) from error


def _build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        ((name, count),) = Counter(name for name, _ in pairs).most_common(1)
        raise _LineError("duplicate-key", f"key {_excerpt(name)} stands {count} times in one object")
    return fields


def _exact_float(text: str) -> float:
    number = float(text)
    return number if repr(number) == text else ExactFloat(text)


def _exact_int(text: str) -> int | ExactFloat:
    try:
        number = int(text)
    except ValueError:  # over 4300 digits, unless the user set another limit
        return ExactFloat(text)
    return number if number or text == "0" else ExactFloat(text)  # -0


def _refuse_constant(name: str) -> None:
    raise _LineError("bad-json", f"not JSON: `{name}` is not a number of JSON")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_build_object, parse_float=_exact_float, parse_int=_exact_int, parse_constant=_refuse_constant
)
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, check_circular=False)
_LEAVES = frozenset({str, int, float, bool, NoneType})
_JSON_NAMES = {list: "an array", str: "a string", bool: "a boolean", NoneType: "null"}
_TOO_DEEP = f"objects and arrays stand more than {MAX_NESTING} deep in each other"


def _excerpt(text: str) -> str:
    """The start of `text` for a message, without characters that control a terminal."""
    start = text[:_EXCERPT_CHARACTERS]
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in start)
    return f"`{shown}`" if start == text else f"`{shown}`..."


def _is_deeper_than(value: object, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        level = [item for container in level for item in _items(container) if isinstance(item, (dict, list))]
        if not level:
            return False
    return True


def _items(container: Any) -> Iterable[Any]:
    return container.values() if isinstance(container, dict) else container


def _surrogate_message(error: UnicodeEncodeError) -> str:
    return f"lone surrogate {_excerpt(error.object[error.start])}, which no UTF-8 text can hold"


def _has_exact(values: Iterable[Any]) -> bool:
    if _LEAVES.issuperset(map(type, values)):
        return False
    return any(
        isinstance(value, ExactFloat) or (isinstance(value, (dict, list, tuple)) and _has_exact(_items(value)))
        for value in values
    )


def _encode_exact(value: Any) -> str:
    if isinstance(value, str):
        return encode_basestring(value)
    if isinstance(value, ExactFloat):
        return value.text
    if isinstance(value, dict):
        return "{" + ", ".join([f"{encode_basestring(k)}: {_encode_exact(item)}" for k, item in value.items()]) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join([_encode_exact(item) for item in value]) + "]"
    return _ENCODER.encode(value)


def _escape_surrogates(text: str) -> str:
    """`text` with bytes of a file name that are not UTF-8 written like `\\udcff`."""
    return text.encode("utf-8", "backslashreplace").decode()


def dump_document(document: Mapping[str, Any]) -> bytes:
    """A document with indented lines; bytes of a file name that are not UTF-8 are written like `\\udcff`."""
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode("utf-8", "backslashreplace")
