"""Whether a file is one whole Parquet file, by its first and last bytes and what its footer accounts for."""

from __future__ import annotations

import shlex
from pathlib import PurePath

import pyarrow as pa
import pyarrow.parquet as pq

from rerank_cli.errors import InputError
from rerank_cli.formats.compression import SUFFIXES, compression_of

_MAGIC, _ENCRYPTED_MAGIC = b"PAR1", b"PARE"
_SEARCHED_BYTES = 2**20  # at once


def check_magic(source: pa.NativeFile, path: str) -> None:
    """`InputError` for a file that neither begins nor ends as a Parquet file does."""
    size = source.size()
    head = source.read_at(4, 0) if size >= 12 else b""
    tail = source.read_at(4, size - 4) if size >= 12 else b""
    if _ENCRYPTED_MAGIC in (head, tail):
        raise InputError(f"{path}: is encrypted", hint="decrypt it first: this program takes no keys")
    if head != _MAGIC:
        if packed := compression_of(source.read_at(8, 0)):
            plain = PurePath(path).with_suffix("" if PurePath(path).suffix in SUFFIXES else ".unpacked.parquet")
            raise InputError(
                f"{path}: is compressed with {packed}; a table is read from its end and must be a plain file",
                hint=f"`{packed} -dc < {shlex.quote(path)} > {shlex.quote(str(plain))}`",
            )
        raise InputError(f"{path}: is not a Parquet file", hint="pass `--in-format` if it has another format")
    if tail != _MAGIC:
        raise InputError(f"{path}: is cut short: it does not end with the footer of a Parquet file")


def refuse_joined(source: pa.NativeFile, metadata: pq.FileMetaData, path: str) -> None:
    """`InputError` for files that were put together: a footer counts from the first byte of its own file.

    Whoever follows the last footer would read other rows in its place, or only some. What a footer does not account for
    is what writers put before it (indexes, Bloom filters), or the whole of another file.
    """
    size, end = source.size(), len(_MAGIC)
    if metadata.num_row_groups:
        group = metadata.row_group(metadata.num_row_groups - 1)
        chunks = [group.column(place) for place in range(group.num_columns)]
        end = max([end, *map(_end_of, chunks)])
    left = size - 2 * len(_MAGIC) - metadata.serialized_size - end
    at, before = 0, b""
    while at < left:
        chunk = before + source.read_at(min(_SEARCHED_BYTES, left + len(_MAGIC) - at), at)
        place = chunk.find(_MAGIC + _MAGIC)
        if place >= 0:
            cut = at - len(before) + place + len(_MAGIC)
            raise InputError(
                f"{path}: is several Parquet files put together: the second begins at byte {cut + 1}",
                hint="give each file its own name: a folder or a pattern in quotes stands for all files in it",
            )
        at += len(chunk) - len(before)
        before = chunk[1 - 2 * len(_MAGIC) :]
        if not chunk:
            return


def _end_of(chunk: pq.ColumnChunkMetaData) -> int:
    """The byte behind a column chunk."""
    start = (chunk.dictionary_page_offset if chunk.has_dictionary_page else None) or chunk.data_page_offset
    return int(start + chunk.total_compressed_size)
