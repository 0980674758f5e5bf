"""A disk that is full: exit code 4 and the file's name, the old output untouched, and with more room it goes on."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import TINY_CHECKPOINT, write_lines
from tests.torture.conftest import outputs
from tests.torture.runs import ROOT, Asked, Runs
from tests.torture.test_stop import program


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Rows whose output is 1.5 MB."""
    rows = ({"query": "two roads", "passage": f"wood {n}", "more": "x" * 2000} for n in range(750))
    return write_lines(tmp_path_factory.mktemp("wide") / "pairs.jsonl", rows)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet"])
def test_a_run_waits_in_its_folder_until_there_is_room(
    tmp_path: Path, runs: Runs, wide: str, small_disk: Path, name: str
) -> None:
    (tmp_path / "whole").mkdir()
    asked = Asked((wide,), str(small_disk / name), {"pairs": True, "overwrite": True})
    assert runs.run(asked, output=str(tmp_path / "whole" / name)).code == 0
    (small_disk / name).write_bytes(b"old")
    (small_disk / "ballast").write_bytes(bytes(2**20 - 12 * 2**12 if name.endswith(".parquet") else 2**18))
    full = runs.run(asked)
    assert full.code == 4
    assert f"{small_disk / name}: cannot be written: No space left on device" in full.said
    assert "run the same command again" in full.said
    assert (small_disk / name).read_bytes() == b"old"
    subprocess.run(["mount", "-o", "remount,size=8m", small_disk], check=True)
    again = runs.run(asked)
    assert again.code == 0
    assert "goes on after" in again.said
    (small_disk / "ballast").unlink()
    assert outputs(small_disk) == outputs(tmp_path / "whole")


def test_a_pipe_to_a_full_device_is_said(wide: str) -> None:
    with Path("/dev/full").open("wb") as full, program("score", wide, stdout=full, stderr=subprocess.PIPE) as process:
        _, said = process.communicate(timeout=300)
    assert process.returncode == 4
    assert b"No space left on device" in said
    assert b"Traceback" not in said


def test_a_full_device_is_no_output_file(wide: str) -> None:
    with program("score", wide, "-o", "/dev/full", "--out-format", "jsonl", stderr=subprocess.PIPE) as process:
        _, said = process.communicate(timeout=300)
    assert process.returncode == 4
    assert b"/dev/full: is no regular file" in said


@pytest.mark.parametrize("fault", ["EACCES", "EROFS"])
def test_a_folder_that_may_not_be_written_to_is_named(tmp_path: Path, runs: Runs, wide: str, fault: str) -> None:
    out = tmp_path / "out.jsonl"
    done = runs.run(Asked((wide,), str(out), {"pairs": True}), at=1, fault=fault)
    assert done.code == 4
    assert f"{out}: cannot be written: " in done.said
    assert list(tmp_path.iterdir()) == []


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
from rerank_cli.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_file_that_may_not_grow_is_a_full_disk(tmp_path: Path, wide: str) -> None:
    out = tmp_path / "out.jsonl"
    arguments = ["score", wide, "-o", str(out), "--model", str(TINY_CHECKPOINT), "--checkpoint-every", "0s"]
    done = subprocess.run([sys.executable, "-c", LIMITED, *arguments], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 4
    assert f"{out}: cannot be written: File too large".encode() in done.stderr
    assert not out.exists()
    with program(*arguments[:-4], stderr=subprocess.PIPE) as process:
        _, said = process.communicate(timeout=300)
    assert process.returncode == 0
    assert b"goes on after" in said
