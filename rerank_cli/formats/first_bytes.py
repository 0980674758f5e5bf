"""What the first bytes of a file tell: its format, and for one that is not read the command that converts it.

`recognise_foreign` knows the magic bytes of formats, and texts that tell what they are (an error page, a pointer of Git
LFS). It answers only where it is certain. `describe` also says what a file without rows looks like.
"""

from __future__ import annotations

import codecs
import json
import re
from dataclasses import dataclass
from typing import Literal

from rerank_cli.errors import InputError
from rerank_cli.formats.jsonl import BYTE_ORDER_MARK, is_json
from rerank_cli.formats.shapes.fields import ALIASES
from rerank_cli.storage import local_name, shell_name

HEAD_BYTES = 4096
"""How many bytes of a file are looked at."""

PARQUET_MAGIC = b"PAR1"
_TO_PARQUET = (
    "python -c \"import pyarrow.{module} as f, pyarrow.parquet as p; p.write_table({read}, '{{name}}.parquet')\""
)
_ARROW_FILE = _TO_PARQUET.format(module="feather", read="f.read_table('{name}')")
_ARROW_STREAM = _TO_PARQUET.format(module="ipc", read="f.open_stream('{name}').read_all()")
_ORC = _TO_PARQUET.format(module="orc", read="f.read_table('{name}')")
_MAGICS: tuple[tuple[bytes, str, str | None], ...] = (
    (b"version https://git-lfs.github.com/spec/", "a pointer of Git LFS, which stands for the file", "git lfs pull"),
    (b"ARROW1\x00\x00", "an Arrow file (feather)", _ARROW_FILE),
    (b"FEA1", "an Arrow file (feather)", _ARROW_FILE),
    (b"\xff\xff\xff\xff", "an Arrow stream", _ARROW_STREAM),
    (b"ORC", "an ORC file", _ORC),
    (b"Obj\x01", "an Avro file", "python -m fastavro {file} > {file}.jsonl"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "7z x {file}"),
    (b"Rar!\x1a\x07", "a RAR archive", "unrar x {file}"),
    (b"\x04\x22\x4d\x18", "lz4 data", "lz4 -d {file}"),
    (b"\x5d\x00\x00", "lzma data", "xz --format=lzma -dc {file} > {file}.jsonl"),
    (b"LZIP\x01", "lzip data", "lzip -d {file}"),
    (b"\x1f\x9d", "data of compress(1)", "uncompress {file}"),
    (b"\xff\x06\x00\x00sNaPpY", "snappy data", "snzip -d {file}"),
    (b"SQLite format 3\x00", "an SQLite database", "sqlite3 -json {file} 'SELECT ...' > rows.json"),
    (b"\x89HDF\r\n", "an HDF5 file", None),
    (b"\x93NUMPY", "a NumPy file", None),
    (b"%PDF-", "a PDF document", None),
    (b"\x89PNG", "a PNG image", None),
    (b"\xff\xd8\xff", "a JPEG image", None),
    (b"\xd0\xcf\x11\xe0", "an Office document (.xls)", "save it as CSV"),
    (b"{\\rtf", "an RTF document", None),
    (b"\x80\x02", "a pickle, which is never opened", None),
    (b"\x80\x03", "a pickle, which is never opened", None),
    (b"\x80\x04", "a pickle, which is never opened", None),
    (b"\x80\x05", "a pickle, which is never opened", None),
)
_PACKED = (b"\x1f\x8b", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd", b"BZh9")
_WIDE = (
    (b"\xff\xfe\x00\x00", "UTF-32LE"), (b"\x00\x00\xfe\xff", "UTF-32BE"),
    (b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16"),
)  # fmt: skip
_PICKLE = 0x80
_TAR_MAGIC_AT = 257
KNOWN_FIELDS = frozenset(name for names in ALIASES.values() for name in names) | {
    "title", "contents", "content", "segment", "body", "question", "score", "rank", "label", "query-id", "corpus-id",
}  # fmt: skip
"""Names of columns: a line that has one is a header."""

_TOP1000_COLUMNS = 4


@dataclass(frozen=True, slots=True)
class Description:
    """What a file is, in words, and the command that helps, if there is one."""

    words: str
    hint: str | None = None


def recognise_foreign(head: bytes, path: str) -> Description | None:
    """The format of a file with this head, if it is certainly not one that is read. path: for the command."""
    file = shell_name(path)
    for magic, words, command in _MAGICS:
        if head.startswith(magic) and _is_meant(magic, head):
            made = command.format(file=file, name=local_name(path)) if command else None
            return Description(words, f"`{made}`" if made and " " in made and "save" not in made else made)
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        if b"[Content_Types].xml" in head or b"xl/" in head:
            return Description("an Office document (.xlsx)", "save it as CSV")
        return Description("a zip archive", f"`unzip {file}`, and name the file in it")
    if head[_TAR_MAGIC_AT : _TAR_MAGIC_AT + 5] == b"ustar":
        return Description("a tar archive", f"`tar -xf {file}`, and name the files in it")
    if head.startswith(_PACKED):
        return Description("compressed twice", f"unpack {file} once")
    return _recognise_wide_text(head, file) or _recognise_markup(head)


def _recognise_wide_text(head: bytes, file: str) -> Description | None:
    """Text in an encoding in which every character takes two or four bytes."""
    found = next((name for mark, name in _WIDE if head.startswith(mark)), None)
    is_table = head.startswith(PARQUET_MAGIC)  # its numbers may have a zero at every other byte too
    if found is None and not is_table and len(head) >= 8 and b"\x00" in head[:64]:
        odd, even = head[1:64:2].count(0), head[0:64:2].count(0)
        half = len(head[:64]) // 4
        found = "UTF-16LE" if odd > half >= even else "UTF-16BE" if even > half >= odd else None
    if found is None:
        return None
    return Description(f"text in {found[:6]}", f"`iconv -f {found} -t UTF-8 {file} > {file}.utf8`")


def _recognise_markup(head: bytes) -> Description | None:
    whole = head.removeprefix(BYTE_ORDER_MARK).lstrip()
    text = whole.lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        title = re.search(rb"(?i)<title[^>]*>([^<]{1,80})", whole)
        called = f", titled {_excerpt(title[1].strip())}" if title else ""
        return Description(
            f"an HTML page{called}", "a server has answered with a page in place of the file; fetch it again"
        )
    if text.startswith((b"<?xml", b"<error", b"<rss", b"<svg")):
        return Description("XML", "a server may have answered with an error; look into it, and fetch the file again")
    return None


def _is_meant(magic: bytes, head: bytes) -> bool:
    """Whether the bytes after a short magic number fit its format too."""
    if magic == b"ORC":
        return not head[3:4].isalnum() and not head[3:4].isspace() and len(head) > len(magic)
    return magic[0] != _PICKLE or head[2:3] in (b"\x95", b"}", b"]", b"c", b"(", b"K", b"X")


def refuse_foreign_format(head: bytes, path: str) -> None:
    """`InputError` for a file whose format is certainly not one that is read."""
    if (found := recognise_foreign(head, path)) is not None:
        raise InputError(f"{path}: is {found.words}", hint=found.hint)


def describe(head: bytes, path: str) -> Description:
    """What a file without a row looks like. head: the first bytes of its content, unpacked."""
    if (found := recognise_foreign(head, path)) is not None:
        return found
    if head.startswith(PARQUET_MAGIC):
        return Description("Parquet", "give the name of the file itself, ending in .parquet")
    text = head.removeprefix(BYTE_ORDER_MARK).lstrip()
    first = text.partition(b"\n")[0].rstrip(b"\r")
    file = shell_name(path)
    if _is_text(first) and not _is_utf8(head):
        return Description(
            "text that is not UTF-8",
            f"`iconv -f WINDOWS-1252 -t UTF-8 {file} > {file}.utf8` if it is Western European; else name its encoding",
        )
    return _describe_json(first, file) if text.startswith((b"{", b"[")) else _describe_lines(text, first, file)


def _describe_lines(text: bytes, first: bytes, file: str) -> Description:
    """What text looks like that does not begin with a bracket. first: its first line."""
    if (at := first.find(b"{")) > 0 and is_json(first[at:]):
        words = f"JSON lines with {_excerpt(first[:at])} before each"
        return Description(words, f"`sed 's/^[^{{]*//' {file} > {file}.jsonl`")
    if (kind := recognise_separated(text)) is not None:
        return Description(f"{kind.upper()} with a header", f"`--in-format {kind}`")
    if is_top1000(text):
        return Description("TSV without a header: two ids, query, passage", "`--in-format top1000`")
    return Description(f"text that begins with {_excerpt(first)}" if _is_text(first) else "binary data")


def _describe_json(first: bytes, file: str) -> Description:
    """What text looks like that begins with a bracket. first: its first line."""
    if first.startswith(b"[") and not first[1:].lstrip().startswith(b"{"):
        return Description("a JSON array of values that are no objects")
    if is_json(first) or len(first) > HEAD_BYTES // 2:  # a line that long may go on behind what was looked at
        return Description("JSON lines")
    if first.endswith(b"}") and b"'" in first:
        return Description("objects of Python, not of JSON", "write them with json.dumps")
    if is_json(first.rstrip(b", \t")):
        return Description("JSON lines with a comma behind each", f"`sed 's/,[[:space:]]*$//' {file} > {file}.jsonl`")
    if _is_begun(first):
        return Description("JSON, and its first line is no whole object", f"`jq -c . {file} > {file}.jsonl`")
    return Description("JSON with a fault in its first line")


def _is_begun(line: bytes) -> bool:
    """Whether a line begins an object, or holds several: `jq` would put each on a line of its own."""
    text = line.decode(errors="replace")
    try:
        _, end = json.JSONDecoder().raw_decode(text)
    except json.JSONDecodeError as error:
        return not text[error.pos :].strip()
    except RecursionError:
        return False
    return text[end:].lstrip().startswith("{")


def recognise_separated(head: bytes) -> Literal["csv", "tsv"] | None:
    """`csv` or `tsv` for text whose first line is a header with names that rows have; else None."""
    line = head.removeprefix(BYTE_ORDER_MARK).partition(b"\n")[0].decode(errors="replace").strip()
    kinds: tuple[tuple[Literal["csv", "tsv"], str], ...] = (("tsv", "\t"), ("csv", ",;|"))
    for kind, marks in kinds:
        for mark in marks:
            cells = [cell.strip().strip('"').lower() for cell in line.split(mark)]
            if len(cells) > 1 and KNOWN_FIELDS.intersection(cells) and all(len(cell) < 64 for cell in cells):
                return kind
    return None


def is_top1000(head: bytes) -> bool:
    """Whether text is TSV without a header, as MS MARCO's candidates: query id, passage id, query, passage."""
    lines = head.removeprefix(BYTE_ORDER_MARK).decode(errors="replace").split("\n")[:-1] or [
        head.decode(errors="replace")
    ]
    rows = [line.rstrip("\r").split("\t") for line in lines if line.strip()]
    if not rows or any(len(cells) != _TOP1000_COLUMNS for cells in rows):
        return False
    if KNOWN_FIELDS.intersection(cell.lower() for cell in rows[0]):
        return False
    ids = all(cell and not any(map(str.isspace, cell)) for cells in rows for cell in cells[:2])
    queries: dict[str, set[str]] = {}
    for query, _, text, _ in rows:
        queries.setdefault(query, set()).add(text)
    return ids and all(len(texts) == 1 for texts in queries.values())


def _is_utf8(head: bytes) -> bool:
    """Whether bytes are UTF-8; the last character may be cut."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return True


def _is_text(line: bytes) -> bool:
    shown = line[:256].decode(errors="replace")
    odd = sum(1 for char in shown if (not char.isprintable() and char != "\t") or char == "\ufffd")
    return odd * 4 <= len(shown)


def _excerpt(text: bytes, limit: int = 40) -> str:
    start = text[: 4 * limit].decode(errors="replace")
    shown = "".join(
        char if char.isprintable() else " " if char.isspace() else ascii(char)[1:-1] for char in start[:limit]
    )
    return f"`{shown}`" + ("..." if len(start) > limit else "")
