"""What is said of a file system that is full."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from rerank_cli.errors import OutputError
from rerank_cli.journal import naming, room
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


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_cache_is_said_of_an_object_whose_work_lies_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    file_system(monkeypatch, left=0)
    said = r"cannot be written: .*: 0 bytes are left on the file system at /"
    with pytest.raises(OutputError, match=said), naming(UrlPath("s3://bucket/out.jsonl")):
        raise OSError(number, os.strerror(number))
