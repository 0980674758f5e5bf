"""Whether a file is one whole Parquet file, by its first and last bytes and by where its footer says that data end.

`cat a.parquet b.parquet` makes a file that every reader takes for a single one: the last footer counts from the first
byte of its own file, so it finds wrong rows, or half of all rows. Here the footer tells where its data end. Between
them and the footer are indexes and Bloom filters, or else the bytes of another file.

We read the footer ourselves (Thrift's compact protocol, skipping all but a few fields), because pyarrow 26 ends the
process when it is asked for the columns of an encrypted file.
"""

from __future__ import annotations

import shlex
from functools import lru_cache
from pathlib import PurePath

import pyarrow as pa

from rerank_cli.errors import InputError
from rerank_cli.storage import local_name, shell_name

_MAGIC, _ENCRYPTED_MAGIC = b"PAR1", b"PARE"
_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_SEARCHED_BYTES = 2**20  # at once
_LARGEST_FOOTER = 16 * 2**20  # that is read: it takes 5 s; one of 100,000 column chunks is as large

# Types of the compact protocol, and the fields of parquet.thrift that lead to a column chunk's place.
_BYTE, _BINARY, _STRUCT = 3, 8, 12
_VARINTS, _LISTS, _TRUTHS = (4, 5, 6), (9, 10), (1, 2)
_FIXED = {_BYTE: 1, 7: 8, **dict.fromkeys(_TRUTHS, 0)}  # how many bytes; a truth value is in its field's head
_ROW_GROUPS, _COLUMNS, _META_DATA, _SIZE, _DATA_PAGE, _DICTIONARY_PAGE = 4, 1, 3, 7, 9, 11


def check_magic(source: pa.NativeFile, path: str) -> None:
    """`InputError` for a file that does not begin and end as a Parquet file does."""
    size = source.size()
    head = source.read_at(4, 0) if size >= 12 else b""
    tail = source.read_at(4, size - 4) if size >= 12 else b""
    if _ENCRYPTED_MAGIC in (head, tail):
        raise InputError(f"{path}: is encrypted", hint="decrypt it first: this program takes no keys")
    if head != _MAGIC:
        if packed := next((name for magic, name in _PACKED.items() if source.read_at(8, 0).startswith(magic)), None):
            is_named = PurePath(path).suffix != ".parquet"
            plain = PurePath(local_name(path)).with_suffix("" if is_named else ".unpacked.parquet")
            raise InputError(
                f"{path}: is compressed with {packed}; a table is read from its end and must be a plain file",
                hint=f"`{packed} -dc < {shell_name(path)} > {shlex.quote(str(plain))}`",
            )
        raise InputError(f"{path}: is not a Parquet file", hint="pass `--in-format` if it has another format")
    if tail != _MAGIC:
        raise InputError(f"{path}: is cut short: it does not end with the footer of a Parquet file")


def refuse_joined(source: pa.NativeFile, path: str) -> None:
    """`InputError` for several files that were joined. Call `check_magic` before."""
    size = source.size()
    length = int.from_bytes(source.read_at(4, size - 8), "little")
    footer_at = size - 8 - length
    if footer_at < len(_MAGIC) or length > _LARGEST_FOOTER:
        return
    end = _data_end(source.read_at(length, footer_at))
    if end is not None and (cut := _second_file(source, footer_at - end)):
        raise InputError(
            f"{path}: is several Parquet files put together: the second begins at byte {cut + 1}",
            hint="give each file its own name: a folder or a pattern in quotes stands for all files in it",
        )


def _second_file(source: pa.NativeFile, size: int) -> int:
    """Where a second file begins, if the first takes at most `size` bytes; 0 where there is none."""
    at, before = 0, b""
    while at < size:
        chunk = source.read_at(min(_SEARCHED_BYTES, size + len(_MAGIC) - at), at)
        if not chunk:
            return 0
        place = int((before + chunk).find(_MAGIC + _MAGIC))
        if place >= 0:
            return at - len(before) + place + len(_MAGIC)
        at += len(chunk)
        before = chunk[1 - 2 * len(_MAGIC) :]
    return 0


@lru_cache(maxsize=16)
def _data_end(footer: bytes) -> int | None:
    """The byte behind the last column chunk; None for a footer that cannot be read."""
    found = _Footer(footer)
    try:
        found.read_struct((_ROW_GROUPS, _COLUMNS, _META_DATA))
    except (IndexError, RecursionError, ValueError):
        return None  # it is damaged, and the reader will say so
    return found.data_end


class _Footer:
    """A cursor through a footer. data_end: the byte behind the last column chunk that was read."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0
        self.data_end = len(_MAGIC)

    def read_struct(self, way: tuple[int, ...]) -> None:
        """Read a struct. way: the fields that lead from here to the metadata of column chunks; empty in them."""
        field = 0
        found: dict[int, int] = {}
        while head := self._byte():
            field = field + (head >> 4) if head >> 4 else self._signed()
            kind = head & 15
            if way and field == way[0] and kind == _STRUCT:
                self.read_struct(way[1:])
            elif way and field == way[0] and kind in _LISTS:
                count, inner = self._list_head()
                for _ in range(count):
                    if inner != _STRUCT:
                        raise ValueError("no list of structs")
                    self.read_struct(way[1:])
            elif not way and kind in _VARINTS:
                found[field] = self._signed()
            else:
                self._skip(kind)
        if not way and _DATA_PAGE in found:
            start = found.get(_DICTIONARY_PAGE) or found[_DATA_PAGE]
            self.data_end = max(self.data_end, start + found.get(_SIZE, 0))

    def _skip(self, kind: int) -> None:
        if kind in _VARINTS:
            self._varint()
        elif kind == _BINARY:
            size = self._varint()
            self._at += size
        elif kind == _STRUCT:
            while head := self._byte():
                if not head >> 4:
                    self._varint()
                self._skip(head & 15)
        elif kind in _LISTS:
            count, inner = self._list_head()
            for _ in range(count):
                self._skip(_BYTE if inner in _TRUTHS else inner)
        elif kind in _FIXED:
            self._at += _FIXED[kind]
        else:
            raise ValueError("no type of parquet.thrift")

    def _list_head(self) -> tuple[int, int]:
        head = self._byte()
        return (self._varint() if head >> 4 == 15 else head >> 4), head & 15

    def _byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1]

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7

    def _signed(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
