"""A disk that is full: exit code 4 and the file's name, the old output untouched, and with more room it goes on."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import TINY_CHECKPOINT, write_lines
from tests.torture.conftest import EMBEDDER, outputs
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
    assert f" left on the file system at {small_disk}" in full.said
    assert "run the same command again" in full.said
    assert (small_disk / name).read_bytes() == b"old"
    subprocess.run(["mount", "-o", "remount,size=8m", small_disk], check=True)
    again = runs.run(asked)
    assert again.code == 0
    assert "resumes after" in again.said
    (small_disk / "ballast").unlink()
    assert outputs(small_disk) == outputs(tmp_path / "whole")


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with lists, bad rows between them, and judgements."""
    folder = tmp_path_factory.mktemp("lists")
    rows: list[object] = []
    for number in range(60):
        passages = [{"id": f"d{number}-{place}", "text": "wood " + "z" * 400} for place in range(4)]
        rows += [{"id": f"q{number}", "query": f"two roads {number}", "passages": passages}, b"{" + b"y" * 300]
    write_lines(folder / "lists.jsonl", rows)
    (folder / "qrels").write_text(
        "".join(f"q{number} 0 d{number}-{place} 1\n" for number in range(60) for place in (1, 3))
    )
    return folder


# What is written on the disk that is full, under which name, and the options that it needs.
WRITERS: dict[str, tuple[str, dict[str, object]]] = {
    "output of lists": ("output", {}),
    "compressed output": ("output", {}),
    "table of cells": ("output", {}),
    "run": ("output", {}),
    "errors": ("errors", {}),
    "report": ("report", {}),
    "page": ("report", {}),
    "values of each query": ("per_query", {"qrels": "qrels"}),
    "vectors": ("embeddings", {"pairs": True, "model": str(EMBEDDER)}),
}
SUFFIXES = {
    "compressed output": ".jsonl.gz", "table of cells": ".csv", "run": ".trec", "report": ".json", "page": ".html",
    "vectors": ".parquet",
}  # fmt: skip


@pytest.mark.parametrize("writer", WRITERS)
def test_whatever_is_written_names_the_full_disk_and_is_whole_when_there_is_room(
    tmp_path: Path, runs: Runs, wide: str, lists: Path, small_disk: Path, writer: str
) -> None:
    kind, options = WRITERS[writer]
    given = {**options, "overwrite": True} | ({"qrels": str(lists / "qrels")} if "qrels" in options else {})
    source = wide if "pairs" in options else str(lists / "lists.jsonl")
    name = f"written{SUFFIXES.get(writer, '.jsonl')}"

    def asked(disk: Path, folder: Path) -> Asked:
        folder.mkdir(exist_ok=True)
        if kind == "output":
            return Asked((source,), str(disk / name), given)
        return Asked((source,), str(folder / "out.jsonl"), {**given, "names": {kind: str(disk / name)}})

    whole, here = asked(tmp_path / "whole", tmp_path / "whole"), asked(small_disk, tmp_path / "run")
    code = runs.run(whole).code
    assert code in (0, 3)
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(2**20 - 2**12))
    full = runs.run(here)
    assert full.code == 4, full.said
    assert f"{small_disk / name}: cannot be written: No space left on device: " in full.said
    assert f" left on the file system at {small_disk}" in full.said
    assert not (small_disk / name).exists()
    ballast.unlink()
    again = runs.run(here)
    assert again.code in (0, code), again.said
    found, wanted = {**outputs(small_disk), **outputs(tmp_path / "run")}, outputs(tmp_path / "whole")
    assert found.keys() == wanted.keys()
    for path, data in found.items():
        assert data == wanted[path] or (kind == "report" and path == name), path  # a report tells times


def test_a_pipe_to_a_full_device_is_said(wide: str) -> None:
    with Path("/dev/full").open("wb") as full, program("score", wide, stdout=full, stderr=subprocess.PIPE) as process:
        _, said = process.communicate(timeout=300)
    assert process.returncode == 4
    assert b"standard output: No space left on device" in said
    assert b"Traceback" not in said


def test_a_full_device_is_no_output_file(wide: str) -> None:
    with program("score", wide, "-o", "/dev/full", "--out-format", "jsonl", stderr=subprocess.PIPE) as process:
        _, said = process.communicate(timeout=300)
    assert process.returncode == 4
    assert b"/dev/full: is not a regular file" in said


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
    command = [sys.executable, "-B", "-c", LIMITED, *arguments]  # -B: no module is cached, cut off at the limit
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 4
    assert f"{out}: cannot be written: File too large".encode() in done.stderr
    assert not out.exists()
    with program(*arguments[:-4], stderr=subprocess.PIPE) as process:
        _, said = process.communicate(timeout=300)
    assert process.returncode == 0
    assert b"resumes after" in said
