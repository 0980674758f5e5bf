"""What is said of a file system that is full."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from rerank_cli.errors import OutputError
from rerank_cli.journal import files, naming, room
from rerank_cli.storage import UrlPath


def file_system(monkeypatch: pytest.MonkeyPatch, *, left: int, files: int = 1000, files_left: int = 1) -> None:
    found = os.statvfs_result((4096, 4096, 1000, left, left, files, files_left, files_left, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _: found)


def test_what_is_left_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file_system(monkeypatch, left=0)
    assert str(room.room_left(tmp_path / "no" / "file")).startswith("0 bytes are left on the file system at /")
    file_system(monkeypatch, left=3)
    assert "12 KB are left on the file system at " in str(room.room_left(tmp_path))
    file_system(monkeypatch, left=3_000_000, files_left=0)
    assert "has no inode left: it holds the most files it can, 1,000" in str(room.room_left(tmp_path))


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (0, "0 bytes are left"), (1, "1 bytes are left"), (999, "999 bytes are left"), (1000, "1.0 KB are left"),
        (9_940, "9.9 KB are left"), (10_000, "10 KB are left"), (1_000_000, "1.0 MB are left"),
        (2_500_000_000, "2.5 GB are left"), (10**12, "1.0 TB are left"), (25 * 10**15, "25000 TB are left"),
    ],
)  # fmt: skip
def test_sizes_are_said_in_the_largest_unit_that_they_reach(
    monkeypatch: pytest.MonkeyPatch, size: int, said: str
) -> None:
    found = os.statvfs_result((4096, 1, size, size, size, 1000, 1, 1, 0, 255))
    monkeypatch.setattr(os, "statvfs", {Path("/"): found}.__getitem__)
    assert room.room_left(Path("/")) == f"{said} on the file system at /{', too little' if size else ''}"


def test_a_device_has_no_room_to_speak_of(monkeypatch: pytest.MonkeyPatch) -> None:
    file_system(monkeypatch, left=0)
    assert room.room_left(Path("/dev/null")) is None


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_cache_is_said_of_an_object_whose_work_lies_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked: list[Path] = []

    def room_left(path: Path) -> str:
        asked.append(path)
        return "no room"

    monkeypatch.setattr(files, "room_left", room_left)
    out = UrlPath("s3://bucket/out.jsonl")
    for path, error in (
        (out, OSError(number, "full")),
        (tmp_path / "out", OSError(number, "full")),
        (tmp_path / "out", OSError(number, "full", "/elsewhere")),
        (tmp_path / "out", OSError(errno.EIO, "full")),
    ):
        with pytest.raises(OutputError) as caught, naming(path):
            raise error
        room_said = "" if error.errno == errno.EIO else ": no room"
        assert caught.value.message == f"{path}: cannot be written: full{room_said}"
    assert asked == [tmp_path / "rerank-cli", tmp_path / "out", Path("/elsewhere")]
