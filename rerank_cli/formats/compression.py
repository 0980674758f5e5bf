"""Inputs and outputs that may be compressed with gzip, bzip2, xz or zstd.

An input is recognised by its first bytes, so a wrong or missing suffix does no harm. The suffix decides only where the
content cannot: a file named `.gz` or `.zst` that ends within those first bytes was cut, and is not an empty input.

gzip, bzip2 and xz are read by the standard library. zstd is read by `backports.zstd`, the module that Python 3.14 has
in its standard library. It takes windows of up to 2 GiB (`zstd --ultra --long=31`), where pyarrow stops at 128 MiB; a
stream needs as much memory as its window. Members, streams and frames (skippable ones too) that follow each other are
read as one. If one is cut, or bytes follow the last one, that is a fault. Reading raises `InputError` when it reaches
a fault; the content before it has been handed out by then, except for what was decompressed in the same step (at most
64 KiB).

Input that is not compressed is never read ahead: one read asks the operating system once, so a line is handed out as
soon as it is written. Decompression waits for blocks.

Over 400 lines: five forms behind one reader and one writer.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import os
import stat
import sys
import zlib
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, cast

from rerank_cli.errors import InputError
from rerank_cli.storage import is_object, is_url

if TYPE_CHECKING:
    from collections.abc import Callable

SUFFIXES = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"}
"""The compression that a suffix means: for an output it decides, for an input it is a hint."""

_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
# RFC 8878, 3.1.2: a skippable frame starts with any of 16 numbers; pzstd writes one before each frame.
_ZSTD_SKIPPABLE_MAGICS = tuple(bytes([0x50 | low, 0x2A, 0x4D, 0x18]) for low in range(16))
_BZIP2_MAGICS = tuple(b"BZh%d" % level for level in range(1, 10))
_XZ_MAGIC = b"\xfd7zXZ\x00"
_MAGICS = (
    {_GZIP_MAGIC: "gzip", _XZ_MAGIC: "xz", _ZSTD_MAGIC: "zstd"}
    | dict.fromkeys(_BZIP2_MAGICS, "bzip2")
    | dict.fromkeys(_ZSTD_SKIPPABLE_MAGICS, "zstd")
)
_LARGEST_WINDOW_LOG = 31  # of zstd: 2 GiB, the most that the format's own tool writes
_XZ_PADDING = 4  # zero bytes may follow an xz stream, in multiples of this

_READ_BYTES = 64 * 1024
_STEPS, _LEAST_STEP_BYTES = 1024, 512  # of a file
_GZIP_LEVEL = 6  # the default of gzip(1); the standard library's 9 costs several times as much for a few per cent


def open_input(path: str) -> io.BufferedReader:
    """The content of the file at `path`, decompressed; `-` is standard input, which `close` leaves open.

    Waits until a pipe has its first bytes, because they tell how it is compressed. This and every later read raise
    `InputError` where the input cannot be read or decompressed.
    """
    source = _Source(_open_stdin() if path == "-" else _open_file(path), keep_open=path == "-")
    try:
        head = source.read_head()
    except OSError as error:
        source.close()
        raise _input_error(path, "file", 0, error) from error
    suffix = PurePath(path.lower()).suffix
    expected = SUFFIXES.get(suffix)
    if head not in _MAGICS and any(kind == expected and magic.startswith(head) for magic, kind in _MAGICS.items()):
        source.close()
        raise InputError(f"{path}: {expected} data, as `{suffix}` says, is cut at byte {len(head)} of the file")
    return io.BufferedReader(Content(path, source, _MAGICS.get(head)), _READ_BYTES)


def is_regular(path: str) -> bool:
    """Whether a path names a file, or a URL an object."""
    return is_object(path) if is_url(path) else Path(path).is_file()


def open_output(raw: BinaryIO, name: str) -> BinaryIO:
    """A stream that compresses into `raw` as the suffix of `name` says; `raw` itself for any other suffix.

    `close` ends the compressed data and leaves `raw` open. `flush` brings all that was written into `raw` and flushes
    it; bzip2 and xz cannot do that before the end. The same content gives the same bytes: there is no time and no file
    name in them.

    raw: a buffered writer (what `open(..., "wb")` gives); an unbuffered one may write less than it was given.
    """
    match SUFFIXES.get(PurePath(name.lower()).suffix):
        case "gzip":
            compressed = gzip.GzipFile(filename="", mode="wb", compresslevel=_GZIP_LEVEL, fileobj=raw, mtime=0)
            return cast("BinaryIO", compressed)
        case "bzip2":
            return cast("BinaryIO", bz2.BZ2File(raw, "wb"))
        case "xz":
            return cast("BinaryIO", lzma.LZMAFile(raw, "wb"))
        case "zstd":
            return cast("BinaryIO", _ZstdOutput(raw))
        case _:
            return raw


def compress(data: bytes, name: str) -> bytes:
    """`data` as one member (gzip) or frame (zstd), as the suffix of `name` says; members can follow each other."""
    raw = io.BytesIO()
    stream = open_output(raw, name)
    stream.write(data)
    if stream is not raw:
        stream.close()
    return raw.getvalue()


def text_suffix(name: str) -> str:
    """The suffix that tells the format, in lower case and without that of the compression: `.jsonl` of `a.JSONL.gz`."""
    path = PurePath(name.lower())
    return PurePath(path.stem).suffix if path.suffix in SUFFIXES else path.suffix


def _open_stdin() -> io.BufferedIOBase:
    if sys.stdin is None:  # a daemon or `<&-` may start a program without one
        raise InputError("-: standard input is closed")
    stream = cast("io.BufferedIOBase", sys.stdin.buffer)
    # A pipe in non-blocking mode (a property it shares with the process that set it) would seem to end at each pause.
    with contextlib.suppress(OSError):
        os.set_blocking(stream.fileno(), True)
    return stream


def _open_file(path: str) -> io.BufferedIOBase:
    if is_url(path):
        from rerank_cli.storage.reading import ObjectReader

        try:
            return io.BufferedReader(ObjectReader(path), _READ_BYTES)
        except FileNotFoundError as error:
            raise InputError(f"{path}: no such object") from error
        except OSError as error:
            raise InputError(f"{path}: cannot be opened: {_reason_of(error)}") from error
    try:
        return io.BufferedReader(io.FileIO(path))
    except FileNotFoundError as error:
        hint = None if PurePath(path).is_absolute() else f"the path is relative to `{Path.cwd()}`"
        raise InputError(f"{path}: no such file", hint=hint) from error
    except IsADirectoryError as error:
        raise InputError(f"{path}: is a directory", hint="name the files in it") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be opened: {_reason_of(error)}") from error
    except ValueError as error:  # a NUL byte in the name
        raise InputError(f"{path}: cannot be opened: {error}") from error


def _reason_of(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return text[:1].lower() + text[1:] if text[1:2].islower() else text


def _input_error(path: str, kind: str, position: int, error: BaseException) -> InputError:
    """A failure to read or to decompress as an `InputError`.

    An error with a number comes from the operating system, whatever was being decompressed.
    """
    if kind == "file" or getattr(error, "errno", None):
        return InputError(f"{path}: cannot be read at byte {position} of its content: {_reason_of(error)}")
    return InputError(f"{path}: {kind} data is cut or corrupt at byte {position} of its content: {_reason_of(error)}")


class _Source(io.RawIOBase):
    """The raw bytes of a stream; those that were read to recognise it come again."""

    def __init__(self, stream: io.BufferedIOBase, *, keep_open: bool) -> None:
        self._stream = stream
        self._head = b""
        self._keep_open = keep_open
        self._step: int | None = None
        self.taken = 0
        """Bytes that were read so far."""

    def read_in_steps(self) -> int | None:
        """Hand out a file in many pieces, so that `taken` tells how far its reader is.

        Returns how many bytes of content to ask for at a time, for the same reason; None where there is no limit.
        """
        try:
            found = os.fstat(self.fileno())
        except OSError:  # a stream of memory has no descriptor
            return None
        if not stat.S_ISREG(found.st_mode):
            return None
        self._step = max(_LEAST_STEP_BYTES, found.st_size // _STEPS)
        return self._step

    def read_head(self) -> bytes:
        """The few bytes that tell the compression; they are read again. No more, as a live line may be that short."""
        while any(len(self._head) < len(magic) and magic.startswith(self._head) for magic in _MAGICS):
            more = self._stream.read1(1)
            if not more:
                break
            self._head += more
        return self._head

    def readable(self) -> bool:
        """Always."""
        return True

    def fileno(self) -> int:
        """The descriptor to wait on for more."""
        return self._stream.fileno()

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` with what one read of the operating system gives."""
        if self._head:
            count = min(len(buffer), len(self._head))
            buffer[:count] = self._head[:count]
            self._head = self._head[count:]
        else:
            count = self._stream.readinto1(memoryview(buffer)[: self._step])
        self.taken += count
        return count

    def close(self) -> None:
        """Close the stream too, unless it is standard input."""
        if not self._keep_open:
            self._stream.close()
        super().close()


class Content(io.RawIOBase):
    """The content of a source; every failure to read it is an `InputError` with the place.

    source: its bytes on disk. is_compressed: they differ from the content. done: bytes of content read so far.
    """

    def __init__(self, path: str, source: _Source, compression: str | None) -> None:
        self._path = path
        self.source = source
        self._kind = compression or "file"
        self._fill, self._faults = _content_reader(source, compression)
        self._fault: InputError | None = None
        self._most = source.read_in_steps()
        self.is_compressed = compression is not None
        self.done = 0

    def readable(self) -> bool:
        """Always."""
        return True

    def fileno(self) -> int:
        """The descriptor to wait on; a compressed input has none, as its content comes at other times."""
        return super().fileno() if self.is_compressed else self.source.fileno()

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` from one step of reading or decompressing."""
        if self._fault is not None:  # after a fault zstd would go on with meaningless bytes
            raise self._fault
        try:
            count = self._fill(memoryview(buffer)[: self._most])
        except self._faults as error:
            self._fault = _input_error(self._path, self._kind, self.done, error)
            raise self._fault from error
        self.done += count
        return count

    def close(self) -> None:
        """Close the file."""
        self.source.close()
        super().close()


_Faults = tuple[type[BaseException], ...]


def _content_reader(source: _Source, compression: str | None) -> tuple[Callable[[Any], int], _Faults]:
    """A function that fills a buffer with content and returns its bytes (0 at the end), and the errors it may raise."""
    match compression:
        case "gzip":
            return gzip.GzipFile(fileobj=source, mode="rb").readinto1, (OSError, EOFError, zlib.error)
        case "bzip2":
            return _Streams(source, bz2.BZ2Decompressor).readinto, (OSError, EOFError)
        case "xz":
            streams = _Streams(source, lzma.LZMADecompressor, padding=_XZ_PADDING)
            return streams.readinto, (OSError, EOFError, lzma.LZMAError)
        case "zstd":
            # Imported here: few inputs need it.
            if sys.version_info >= (3, 14):
                from compression import zstd
            else:
                from backports import zstd

            largest = {int(zstd.DecompressionParameter.window_log_max): _LARGEST_WINDOW_LOG}
            frames = _Streams(source, lambda: zstd.ZstdDecompressor(options=largest))
            return frames.readinto, (OSError, EOFError, zstd.ZstdError)
        case _:
            return source.readinto, (OSError,)


class _Decompressor(Protocol):
    """What the standard library's decompressors have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Streams:
    """Compressed streams that follow each other, as one content.

    The file objects of the standard library ignore bytes behind a stream that they cannot read; here these are a fault.
    padding: zero bytes may follow a stream in multiples of this; 0 where none may.
    """

    def __init__(self, source: _Source, begin: Callable[[], _Decompressor], *, padding: int = 0) -> None:
        self._source = source
        self._begin = begin
        self._padding = padding
        self._stream: _Decompressor | None = None
        self._left = b""

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` from one step; 0 is the end."""
        while True:
            if self._stream is None:
                self._left = self._behind_padding(self._left or self._source.read(_READ_BYTES) or b"")
                if not self._left:
                    return 0
                self._stream = self._begin()
            data = self._left
            if not data and self._stream.needs_input:
                data = self._source.read(_READ_BYTES) or b""
                if not data:
                    raise EOFError("the file ends before its last stream does")
            self._left = b""
            content = self._stream.decompress(data, len(buffer))
            if self._stream.eof:
                self._left, self._stream = self._stream.unused_data, None
            if content:
                buffer[: len(content)] = content
                return len(content)

    def _behind_padding(self, data: bytes) -> bytes:
        """What follows the padding, read on from `data`."""
        if not self._padding:
            return data
        zeros = 0
        while data and not data.strip(b"\x00"):
            zeros += len(data)
            data = self._source.read(_READ_BYTES) or b""
        rest = data.lstrip(b"\x00")
        zeros += len(data) - len(rest)
        if zeros % self._padding:
            raise EOFError(f"{zeros} zero bytes stand behind a stream, which is no padding")
        return rest


class _ZstdOutput(io.BufferedIOBase):
    """Compresses with zstd into a stream that stays open."""

    def __init__(self, raw: BinaryIO) -> None:
        import pyarrow

        self._raw = raw
        self._compressed = pyarrow.CompressedOutputStream(pyarrow.PythonFile(_KeptOpen(raw), mode="w"), "zstd")

    def writable(self) -> bool:
        """Always."""
        return True

    def write(self, data: Any) -> int:
        """Compress `data`; it reaches the raw stream with the next full block, flush or close."""
        self._compressed.write(data)
        return len(data)

    def flush(self) -> None:
        """Pass all that was written on to the raw stream, and flush that."""
        if not self._compressed.closed:
            self._compressed.flush()
        self._raw.flush()

    def close(self) -> None:
        """End the frame."""
        self._compressed.close()
        super().close()


class _KeptOpen(io.RawIOBase):
    """A file that stays open when pyarrow closes it."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw

    def writable(self) -> bool:
        """Always."""
        return True

    def write(self, data: Any) -> int:
        """Write `data` to the raw stream."""
        return self._raw.write(data)
