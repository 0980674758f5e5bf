from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import backports.zstd
import pyarrow
import pytest

from rerank_cli.errors import InputError
from rerank_cli.formats.compression import open_input, open_output, text_suffix

ROWS = b"".join(b'{"query": "q%d", "passages": ["caf\xc3\xa9"]}\n' % n for n in range(5000))
GZIP_HEADER_BYTES = 10


def zstd(content: bytes) -> bytes:
    sink = io.BytesIO()
    with open_output(sink, "a.zst") as stream:
        stream.write(content)
    return sink.getvalue()


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress, "zstd": zstd,
}  # fmt: skip


@pytest.fixture(params=COMPRESSORS)
def compress(request: pytest.FixtureRequest) -> Callable[[bytes], bytes]:
    return COMPRESSORS[request.param]


def written(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return str(path)


def read(path: str) -> bytes:
    with open_input(path) as stream:
        return stream.read()


def read_until_fault(path: str) -> tuple[bytes, InputError]:
    content = b""
    with open_input(path) as stream:
        try:
            while chunk := stream.read1(64 * 1024):
                content += chunk
        except InputError as error:
            return content, error
    raise AssertionError(f"{path} was read to its end without an error")


class StandardInput:
    """Puts a pipe in the place of standard input."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reader, self.writer = os.pipe()
        self._stdin = io.TextIOWrapper(os.fdopen(self.reader, "rb"))
        monkeypatch.setattr(sys, "stdin", self._stdin)

    def write(self, content: bytes) -> None:
        os.write(self.writer, content)

    def close_writer(self) -> None:
        os.close(self.writer)
        self.writer = -1

    def close(self) -> None:
        if self.writer >= 0:
            os.close(self.writer)
        self._stdin.close()


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandardInput]:
    standard_input = StandardInput(monkeypatch)
    yield standard_input
    standard_input.close()


def test_a_plain_file_is_read_as_it_is(tmp_path: Path) -> None:
    assert read(written(tmp_path / "a.jsonl", ROWS)) == ROWS


def test_a_compressed_file_is_read_as_its_content(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    assert read(written(tmp_path / "a", compress(ROWS))) == ROWS


@pytest.mark.parametrize("name", ["a.jsonl", "a.gz", "a.zst"])
def test_the_content_wins_over_the_suffix(tmp_path: Path, name: str, compress: Callable[[bytes], bytes]) -> None:
    assert read(written(tmp_path / name, compress(ROWS))) == ROWS
    assert read(written(tmp_path / name, ROWS)) == ROWS


def test_members_and_frames_that_follow_each_other_are_read_whole(
    tmp_path: Path, compress: Callable[[bytes], bytes]
) -> None:
    content = compress(b"one\n") + compress(b"") + compress(ROWS) + compress(b"last")
    assert read(written(tmp_path / "a", content)) == b"one\n" + ROWS + b"last"


def test_skippable_zstd_frames_are_skipped(tmp_path: Path) -> None:
    content = b"\x5a\x2a\x4d\x18\x03\x00\x00\x00abc" + zstd(ROWS) + b"\x50\x2a\x4d\x18\x00\x00\x00\x00" + zstd(b"x")
    assert read(written(tmp_path / "a.zst", content)) == ROWS + b"x"


def test_zero_padding_after_gzip_is_ignored(tmp_path: Path) -> None:
    assert read(written(tmp_path / "a.gz", gzip.compress(ROWS) + bytes(1000))) == ROWS


@pytest.mark.parametrize("content", [b"", b"P", b"(", b"\x1f", b"(\xb5/", b"(\xb5\n", b"P*\n", b"\x1f\n", b"PPP"])
def test_a_short_file_that_only_starts_like_a_compressed_one_is_plain(tmp_path: Path, content: bytes) -> None:
    assert read(written(tmp_path / "a.txt", content)) == content


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.gz", b""),
        ("a.gz", b"\x1f"),
        ("A.ZST", b""),
        ("a.zst", b"(\xb5/"),
        ("a.zst", b"P*M"),
        ("a.bz2", b"BZ"),
        ("a.xz", b"\xfd7z"),
    ],
)
def test_a_file_named_compressed_that_ends_in_its_first_bytes_was_cut(
    tmp_path: Path, name: str, content: bytes
) -> None:
    path = written(tmp_path / name, content)
    with pytest.raises(InputError) as caught:
        open_input(path)
    assert caught.value.message.startswith(f"{path}: ")
    assert caught.value.message.endswith(f"is cut at byte {len(content)} of the file")


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
def test_a_cut_file_gives_its_start_and_then_an_error_with_the_place(
    tmp_path: Path, kept: float, compress: Callable[[bytes], bytes]
) -> None:
    random_rows = random.Random(7).randbytes(2_000_000)
    whole = compress(random_rows)
    path = written(tmp_path / "a", whole[: int(len(whole) * kept)])
    content, error = read_until_fault(path)
    assert random_rows.startswith(content)
    assert len(content) > kept * len(random_rows) - 400_000
    assert error.message.startswith(f"{path}: ")
    assert f" data is cut or corrupt at byte {len(content)} of its content: " in error.message
    assert error.exit_code == 4


@pytest.mark.parametrize("missing", [1, 4, 8])
def test_a_file_that_lacks_its_last_bytes_is_not_taken_for_whole(
    tmp_path: Path, missing: int, compress: Callable[[bytes], bytes]
) -> None:
    content, error = read_until_fault(written(tmp_path / "a", compress(ROWS)[:-missing]))
    assert ROWS.startswith(content)
    assert "data is cut or corrupt" in error.message


def test_rows_of_a_small_cut_gzip_file_come_out_before_the_error(tmp_path: Path) -> None:
    content, _ = read_until_fault(written(tmp_path / "a.gz", gzip.compress(ROWS[:500])[:-8]))
    assert content == ROWS[:500]


def test_a_changed_byte_in_gzip_is_an_error(tmp_path: Path) -> None:
    whole = bytearray(gzip.compress(ROWS))
    whole[-6] ^= 0xFF  # in the checksum
    content, error = read_until_fault(written(tmp_path / "a.gz", bytes(whole)))
    assert content == ROWS
    assert f"gzip data is cut or corrupt at byte {len(ROWS)} of its content: CRC check failed" in error.message


def test_a_broken_block_in_gzip_is_an_error(tmp_path: Path) -> None:
    whole = gzip.compress(ROWS)[:GZIP_HEADER_BYTES] + b"\xff" * 100
    content, error = read_until_fault(written(tmp_path / "a.gz", whole))
    assert content == b""
    assert "gzip data is cut or corrupt at byte 0 of its content: " in error.message


def test_garbage_after_the_end_is_an_error(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    content, error = read_until_fault(written(tmp_path / "a", compress(ROWS) + b"garbage"))
    assert ROWS.startswith(content)
    assert "data is cut or corrupt at byte" in error.message


def test_the_error_comes_again_when_reading_goes_on(tmp_path: Path) -> None:
    with open_input(written(tmp_path / "a.zst", zstd(b"x\n") + b"garbage" * 100)) as stream:
        assert stream.read1(100) == b"x\n"
        for _ in range(3):
            with pytest.raises(InputError, match="zstd data is cut or corrupt at byte"):
                stream.read1(100)


def test_a_missing_file_is_named_with_the_folder_it_was_looked_for_in(tmp_path: Path) -> None:
    with pytest.raises(InputError) as relative:
        open_input("no/such.jsonl")
    assert relative.value.message == "no/such.jsonl: no such file"
    assert relative.value.hint == f"the path is relative to `{Path.cwd()}`"
    with pytest.raises(InputError) as absolute:
        open_input(f"{tmp_path}/such.jsonl")
    assert absolute.value.message == f"{tmp_path}/such.jsonl: no such file"
    assert absolute.value.hint is None


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        open_input(str(tmp_path))
    assert caught.value.message == f"{tmp_path}: is a directory"
    assert caught.value.hint == "name the files in it"


def test_a_file_that_cannot_be_opened_is_refused_with_the_reason(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(InputError) as caught:
        open_input(str(loop))
    assert caught.value.message == f"{loop}: cannot be opened: too many levels of symbolic links"


def test_a_name_with_a_nul_byte_is_refused() -> None:
    with pytest.raises(InputError, match="cannot be opened: embedded null byte"):
        open_input("a\0b")


def test_a_file_that_opens_and_cannot_be_read_is_refused_with_the_reason() -> None:
    with pytest.raises(InputError) as caught:  # its first page is never mapped
        open_input("/proc/self/mem")
    assert caught.value.message == "/proc/self/mem: cannot be read at byte 0 of its content: input/output error"


@pytest.mark.parametrize(
    "start", [b"plain\n", gzip.compress(ROWS)[:20], zstd(ROWS)[:20]], ids=["plain", "gzip", "zstd"]
)
def test_a_fault_of_the_system_in_the_middle_is_not_called_corrupt_data(stdin: StandardInput, start: bytes) -> None:
    stdin.write(start)
    with open_input("-") as stream:
        folder = os.open("/", os.O_RDONLY)
        os.dup2(folder, stdin.reader)  # reading goes on in a directory, which no system allows
        os.close(folder)
        with pytest.raises(InputError, match=r"-: cannot be read at byte [0-9]+ of its content: is a directory"):
            stream.read()


def test_standard_input_is_read_and_left_open(stdin: StandardInput, compress: Callable[[bytes], bytes]) -> None:
    stdin.write(compress(ROWS[:500]))
    stdin.close_writer()
    assert read("-") == ROWS[:500]
    assert not sys.stdin.closed


def test_standard_input_that_cannot_be_read_at_all_is_refused(stdin: StandardInput) -> None:
    folder = os.open("/", os.O_RDONLY)
    os.dup2(folder, stdin.reader)
    os.close(folder)
    with pytest.raises(InputError, match="-: cannot be read at byte 0 of its content: is a directory"):
        open_input("-")


def test_a_closed_standard_input_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(InputError, match="-: standard input is closed"):
        open_input("-")


def test_standard_input_in_memory_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(ROWS)))
    assert read("-") == ROWS


def test_a_pipe_in_non_blocking_mode_does_not_end_at_a_pause(stdin: StandardInput) -> None:
    os.set_blocking(stdin.reader, False)
    stdin.write(b"one\n")
    with open_input("-") as stream:
        assert stream.readline() == b"one\n"
        later = threading.Timer(0.1, stdin.write, [b"two\n"])
        later.start()
        assert stream.readline() == b"two\n"
        later.join()


@pytest.mark.parametrize("line", [b'{"query": 1}\n', b"(\n", b"P\n", b"\x1f\n", b"\n"])
def test_a_line_of_a_live_pipe_comes_as_soon_as_it_was_written(stdin: StandardInput, line: bytes) -> None:
    stdin.write(line)  # and the writer stays: a reader that waits for more would hang
    with open_input("-") as stream:
        assert stream.readline() == line
        stdin.write(b"next\n")
        assert stream.readline() == b"next\n"


def test_a_magic_number_that_comes_byte_by_byte_is_recognised(
    tmp_path: Path, compress: Callable[[bytes], bytes]
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    content = compress(b"row\n") + compress(b"another\n")

    def write_slowly() -> None:
        with io.FileIO(str(fifo), "w") as pipe:
            for byte in content:
                pipe.write(bytes([byte]))

    writer = threading.Thread(target=write_slowly)
    writer.start()
    assert read(str(fifo)) == b"row\nanother\n"
    writer.join()


def test_a_plain_input_has_a_descriptor_to_wait_on_and_a_compressed_one_has_none(
    tmp_path: Path, compress: Callable[[bytes], bytes]
) -> None:
    with open_input(written(tmp_path / "plain", ROWS)) as plain:
        assert os.fstat(plain.fileno()).st_size == len(ROWS)
    with open_input(written(tmp_path / "compressed", compress(ROWS))) as compressed, pytest.raises(OSError):
        compressed.fileno()


def test_closing_an_input_closes_its_file(tmp_path: Path) -> None:
    stream = open_input(written(tmp_path / "a", ROWS))
    descriptor = stream.fileno()
    stream.close()
    with pytest.raises(OSError):
        os.fstat(descriptor)


def decompress_gzip(path: Path) -> bytes:
    return subprocess.run(["gzip", "-dc", str(path)], check=True, capture_output=True).stdout


def decompress_zstd(path: Path) -> bytes:
    with pyarrow.input_stream(str(path), compression="zstd") as stream:
        return bytes(stream.read())


@pytest.mark.parametrize(
    ("name", "decompress"),
    [
        ("a.jsonl.gz", decompress_gzip),
        ("a.ZST", decompress_zstd),
        ("a.bz2", lambda path: bz2.decompress(path.read_bytes())),
        ("a.xz", lambda path: lzma.decompress(path.read_bytes())),
    ],
)
def test_others_can_read_what_was_written(tmp_path: Path, name: str, decompress: Callable[[Path], bytes]) -> None:
    path = tmp_path / name
    with path.open("wb") as raw:
        with open_output(raw, name) as stream:
            assert stream.writable()
            for row in ROWS.splitlines(keepends=True):
                assert stream.write(row) == len(row)
        assert not raw.closed
    assert path.stat().st_size < len(ROWS) / 5
    assert decompress(path) == ROWS


def test_another_suffix_is_not_compressed() -> None:
    raw = io.BytesIO()
    assert open_output(raw, "out.jsonl") is raw
    assert open_output(raw, "-") is raw


@pytest.mark.parametrize("name", ["a.gz", "a.zst"])
def test_the_same_content_gives_the_same_bytes_whatever_the_name(tmp_path: Path, name: str) -> None:
    outputs = []
    for folder in ("one", "two"):
        path = tmp_path / folder / f"{folder}-{name}"
        path.parent.mkdir()
        with path.open("wb") as raw, open_output(raw, str(path)) as stream:
            stream.write(ROWS)
        outputs.append(path.read_bytes())
    assert outputs[0] == outputs[1]
    assert b"one" not in outputs[0]


def test_gzip_output_has_no_time_in_it() -> None:
    raw = io.BytesIO()
    open_output(raw, "a.gz").close()
    assert raw.getvalue()[4:8] == bytes(4)


@pytest.mark.parametrize("name", ["a.gz", "a.zst"])
def test_flush_brings_everything_to_the_disk(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    content = ROWS[: 64 * 1024]  # what is asked for, and no more: so the missing end is not reached
    with path.open("wb") as raw, open_output(raw, name) as stream:
        stream.write(content)
        stream.flush()
        with open_input(str(path)) as reader:
            found = b""
            while len(found) < len(content):
                found += reader.read1(len(content) - len(found))
            assert found == content


@pytest.mark.parametrize("name", ["a.gz", "a.zst"])
def test_an_output_can_be_closed_twice(name: str) -> None:
    raw = io.BytesIO()
    stream = open_output(raw, name)
    stream.write(b"x")
    stream.close()
    size = len(raw.getvalue())
    stream.close()
    assert len(raw.getvalue()) == size
    assert stream.closed
    with pytest.raises(ValueError):
        stream.write(b"y")


@pytest.mark.parametrize("name", ["a.gz", "a.zst"])
def test_a_full_disk_is_an_error_of_the_system(name: str) -> None:
    with io.FileIO("/dev/full", "w") as full, pytest.raises(OSError, match="No space left on device"):
        stream = open_output(io.BufferedWriter(full), name)
        stream.write(random.Random(1).randbytes(1_000_000))
        stream.flush()


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("a.jsonl.gz", ".jsonl"),
        ("dir.d/a.JSONL.ZST", ".jsonl"),
        ("a.parquet", ".parquet"),
        ("a.tar.xz", ".tar"),
        ("a.json.BZ2", ".json"),
        ("a.csv.lz4", ".lz4"),
        ("dir.jsonl/a.gz", ""),
        ("a", ""),
        ("-", ""),
    ],
)
def test_the_suffix_of_the_text_ignores_the_compression(name: str, suffix: str) -> None:
    assert text_suffix(name) == suffix


def test_zero_bytes_behind_xz_are_padding_in_multiples_of_four(tmp_path: Path) -> None:
    whole = lzma.compress(ROWS) + bytes(8) + lzma.compress(b"x") + bytes(70_000)
    assert read(written(tmp_path / "a.xz", whole)) == ROWS + b"x"
    content, error = read_until_fault(written(tmp_path / "b.xz", lzma.compress(ROWS) + bytes(3)))
    assert content == ROWS
    assert "xz data is cut or corrupt" in error.message


def test_zstd_with_a_window_of_two_gib_is_read(tmp_path: Path) -> None:
    level = {
        backports.zstd.CompressionParameter.window_log: 31,
        backports.zstd.CompressionParameter.compression_level: 1,
    }
    whole = backports.zstd.compress(ROWS, options=level)
    frame = backports.zstd.ZstdCompressor(options=level)
    streamed = frame.compress(ROWS) + frame.flush()  # the size of the content is not in it, so the window counts
    assert read(written(tmp_path / "a.zst", whole + streamed)) == ROWS * 2


def test_reading_imports_no_pyarrow(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    plain, packed = written(tmp_path / "a", ROWS), written(tmp_path / "b", compress(ROWS))
    program = (
        "import sys\n"
        "from rerank_cli.formats.compression import open_input\n"
        "for path in sys.argv[1:]:\n"
        "    open_input(path).read()\n"
        "assert 'pyarrow' not in sys.modules and 'torch' not in sys.modules\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", program, plain, packed], check=True, env=environment)
