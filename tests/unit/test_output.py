from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rerank_cli.errors import OutputError
from rerank_cli.formats.output import ErrorFile, JobFolder, move_file, remove_file
from rerank_cli.records import RowError

ROOT = Path(__file__).parents[2]
BAD = RowError("in.jsonl", 3, "q1", "bad-json", "not JSON", b'{"a"')


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A folder on another file system than `tmp_path`."""
    shm = Path("/dev/shm")
    if not os.access(shm, os.W_OK) or shm.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("/dev/shm is not a second file system that can be written to")
    folder = shm / f"rerank-cli-test-{os.getpid()}"
    folder.mkdir()
    yield folder
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_files_appear_with_the_commit_and_the_folder_goes(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with JobFolder(out, overwrite=False) as job:
        job.path("output").write_text("rows")
        job.path("report").write_text("report")
        assert names(tmp_path) == ["out.jsonl.job"]
        job.commit({"report": tmp_path / "r.json", "output": out})
        assert (out.read_text(), (tmp_path / "r.json").read_text()) == ("rows", "report")
    assert names(tmp_path) == ["out.jsonl", "r.json"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, None])
def test_without_a_commit_nothing_of_the_run_stays(tmp_path: Path, error: type[BaseException] | None) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("older")
    with pytest.raises(error or SystemExit), JobFolder(out, overwrite=True) as job:
        job.path("output").write_text("half")
        raise error or SystemExit
    assert names(tmp_path) == ["out.jsonl"]
    assert out.read_text() == "older"


def test_the_folder_of_a_killed_run_is_cleared(tmp_path: Path) -> None:
    (tmp_path / "out.jsonl.job").mkdir()
    (tmp_path / "out.jsonl.job" / "output").write_text("of the killed run")
    with JobFolder(tmp_path / "out.jsonl", overwrite=False) as job:
        assert not job.path("output").exists()


def test_an_existing_output_is_replaced_only_on_request(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("older")
    with pytest.raises(OutputError, match=r"out\.jsonl: exists") as caught:
        JobFolder(out, overwrite=False)
    assert "--overwrite" in str(caught.value.hint)
    with JobFolder(out, overwrite=True) as job:
        job.path("output").write_text("newer")
        assert out.read_text() == "older"
        job.commit({"output": out})
    assert out.read_text() == "newer"


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_folder_and_a_device_are_no_output(tmp_path: Path, overwrite: bool) -> None:
    with pytest.raises(OutputError, match="is a folder"):
        JobFolder(tmp_path, overwrite=overwrite)
    with pytest.raises(OutputError, match="/dev/null: is no regular file"):
        JobFolder(Path("/dev/null"), overwrite=overwrite)


def test_a_missing_folder_is_named_with_the_output(tmp_path: Path) -> None:
    out = tmp_path / "no" / "out.jsonl"
    with (
        pytest.raises(OutputError, match=r"/no/out\.jsonl: cannot be written: No such file or directory") as caught,
        JobFolder(out, overwrite=False),
    ):
        pass
    assert caught.value.hint == f"make the folder `{tmp_path}/no` first"
    assert caught.value.exit_code == 4


def test_a_file_in_the_place_of_the_job_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "out.jsonl.job").write_text("mine")
    with (
        pytest.raises(OutputError, match=r"out\.jsonl: cannot be written"),
        JobFolder(tmp_path / "out.jsonl", overwrite=False),
    ):
        pass
    assert (tmp_path / "out.jsonl.job").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into any folder")
def test_a_folder_without_permission_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OutputError, match="Permission denied"), JobFolder(tmp_path / "out", overwrite=False):
            pass
    finally:
        tmp_path.chmod(0o700)


def test_a_commit_that_fails_names_the_file_and_leaves_older_ones(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("older")
    stale = tmp_path / "stale"
    stale.write_text("older too")
    with (
        pytest.raises(OutputError, match=r"/no/report\.json: cannot be written"),
        JobFolder(out, overwrite=True) as job,
    ):
        job.path("output").write_text("newer")
        job.path("report").write_text("report")
        job.commit({"report": tmp_path / "no" / "report.json", "output": out})
    assert out.read_text() == "older"
    with pytest.raises(OutputError), JobFolder(out, overwrite=True) as job:
        job.commit({"missing": out}, outdated=[stale])
    assert stale.read_text() == "older too"
    assert names(tmp_path) == ["out.jsonl", "stale"]


def test_outdated_files_go_with_the_commit(tmp_path: Path) -> None:
    stale = tmp_path / "stale"
    stale.write_text("of an earlier run")
    with JobFolder(tmp_path / "out", overwrite=False) as job:
        job.path("output").write_text("rows")
        job.commit({"output": tmp_path / "out"}, outdated=[stale, tmp_path / "never-there"])
    assert names(tmp_path) == ["out"]


def test_a_file_moves_to_another_file_system(tmp_path: Path, elsewhere: Path) -> None:
    work = tmp_path / "work"
    work.write_text("bad rows")
    (elsewhere / "errors").write_text("older")
    move_file(work, elsewhere / "errors")
    assert (elsewhere / "errors").read_text() == "bad rows"
    assert names(elsewhere) == ["errors"]


def test_a_move_to_another_file_system_that_fails_leaves_no_part(tmp_path: Path, elsewhere: Path) -> None:
    (tmp_path / "work").write_bytes(b"x" * 5000)
    (elsewhere / "errors").write_text("older")
    program = (
        "import resource, signal, sys; from pathlib import Path; from rerank_cli.formats.output import move_file\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))\n"
        "move_file(Path(sys.argv[1]), Path(sys.argv[2]))"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "work"), str(elsewhere / "errors")]
    done = subprocess.run(command, stderr=subprocess.PIPE, cwd=ROOT, check=False)
    assert b"OSError: [Errno 27] File too large" in done.stderr
    assert names(elsewhere) == ["errors"]
    assert (elsewhere / "errors").read_text() == "older"


def test_a_device_takes_the_content_and_stays(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.write_text("bad rows")
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    move_file(work, tmp_path / "pipe")
    assert os.read(reader, 100) == b"bad rows"
    os.close(reader)
    assert (tmp_path / "pipe").is_fifo()
    remove_file(tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()


def test_bad_rows_make_a_file_and_no_bad_rows_make_none(tmp_path: Path) -> None:
    errors = ErrorFile(tmp_path / "errors")
    assert (errors.close(), errors.first, names(tmp_path)) == (False, None, [])
    errors.write(BAD)
    errors.write(RowError("in.jsonl", 4, None, "bad-utf8", "not UTF-8", b"\xff"))
    assert errors.close()
    assert errors.close()
    assert errors.first == BAD
    first, second = map(json.loads, (tmp_path / "errors").read_bytes().splitlines())
    assert first == {
        "file": "in.jsonl", "row": 3, "id": "q1", "error": {"code": "bad-json", "message": "not JSON"}, "raw": '{"a"',
    }  # fmt: skip
    assert second["raw_base64"] == "/w=="
