"""Machines that are small, strict or strange: memory that is taken away, clocks that jump, mounts that refuse."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import TINY_CHECKPOINT
from tests.torture.conftest import outputs
from tests.torture.runs import ROOT, Asked, Runs

CGROUPS = Path("/sys/fs/cgroup")
LIMIT = 2**30  # of what a run may take beyond what it shares with the server that it was forked from
DAY = 86400.0


@pytest.fixture
def memory_group() -> Iterator[str]:
    """A control group that kills what takes more than `LIMIT`; the file that a process joins it by."""
    second = (CGROUPS / "cgroup.controllers").exists()
    group = (CGROUPS if second else CGROUPS / "memory") / f"rerank-cli-torture-{os.getpid()}"
    try:
        group.mkdir()
        (group / ("memory.max" if second else "memory.limit_in_bytes")).write_text(str(LIMIT))
    except OSError as error:
        with suppress(OSError):
            group.rmdir()
        pytest.skip(f"no control group of its own here: {error}")
    for swap in ("memory.swap.max", "memory.memsw.limit_in_bytes"):
        with suppress(OSError):
            (group / swap).write_text("0" if second else str(LIMIT))
    yield str(group / "cgroup.procs")
    group.rmdir()


@pytest.mark.parametrize("where", ["in a window", "in a commit"])
def test_a_run_whose_memory_is_taken_away_is_finished_by_the_next_one(
    tmp_path: Path, runs: Runs, pairs: str, memory_group: str, where: str
) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "run").mkdir()
    asked = Asked((pairs,), str(tmp_path / "run" / "out.jsonl"), {"pairs": True})
    assert runs.run(asked, output=str(tmp_path / "whole" / "out.jsonl")).code == 3
    greedy = {"fault": "memory", "at": 25} if where == "in a commit" else {"greedy_after": 130}
    first = runs.run(asked, group=memory_group, **greedy)
    assert first.code == -9, first.said
    assert (tmp_path / "run" / "out.jsonl.job" / "journal").stat().st_size > 0
    again = runs.run(asked, group=memory_group)
    assert again.code == 3, again.said
    assert "resumes after" in again.said
    assert outputs(tmp_path / "run") == outputs(tmp_path / "whole")


@pytest.mark.parametrize("jump", [DAY, -DAY])
def test_a_clock_that_jumps_changes_no_byte(tmp_path: Path, runs: Runs, pairs: str, jump: float) -> None:
    for name in ("whole", "jump", "killed"):
        (tmp_path / name).mkdir()
    asked = Asked((pairs,), str(tmp_path / "whole" / "out.jsonl"), {"pairs": True})
    assert runs.run(asked).code == 3
    jumped = runs.run(asked, output=str(tmp_path / "jump" / "out.jsonl"), jump=jump)
    assert jumped.code == 3, jumped.said
    report = json.loads((tmp_path / "jump" / "out.jsonl.report.json").read_bytes())
    assert all(0 <= seconds < DAY / 2 for seconds in report["seconds"].values())
    assert runs.run(asked, output=str(tmp_path / "killed" / "out.jsonl"), at=30).code == -9
    again = runs.run(asked, output=str(tmp_path / "killed" / "out.jsonl"), jump=jump)
    assert again.code == 3, again.said
    assert "resumes after" in again.said
    assert outputs(tmp_path / "jump") == outputs(tmp_path / "killed") == outputs(tmp_path / "whole")


def mounted(options: str, folder: str, *command: object, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a command where a tmpfs is mounted for it alone."""
    script = f'mount -t tmpfs -o {options} none "$1" && shift && exec "$@"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", folder, *map(str, command)],
        capture_output=True, text=True, cwd=ROOT, check=False, env={**os.environ, **settings},
    )  # fmt: skip
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"no mounts of its own here: {done.stderr.strip()}")
    return done


@pytest.mark.skipif(shutil.which("unshare") is None, reason="no unshare")
@pytest.mark.parametrize("where", ["noexec TMPDIR", "a TMPDIR without room", "a tiny /dev/shm"])
def test_a_strict_mount_changes_no_byte(tmp_path: Path, runs: Runs, pairs: str, where: str) -> None:
    asked = Asked((pairs,), str(tmp_path / "whole.jsonl"), {"pairs": True})
    assert runs.run(asked).code == 3
    (tmp_path / "tmp").mkdir()
    out = tmp_path / "out.jsonl"
    command = [sys.executable, "-m", "rerank_cli", "score", pairs, "-o", out, "--model", TINY_CHECKPOINT]
    if where == "a tiny /dev/shm":
        done = mounted("size=64k", "/dev/shm", *command, "--engines", 2)
    else:
        options = "noexec" if where.startswith("noexec") else "size=4k"
        done = mounted(options, str(tmp_path / "tmp"), *command, TMPDIR=str(tmp_path / "tmp"))
    assert done.returncode == 3, done.stderr
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


@pytest.fixture
def blind_to_case(tmp_path: Path) -> Iterator[Path]:
    """A folder of a file system for which `OUT` is `out`: ext4's, where the kernel has it, else NTFS as a program."""
    disk, folder = tmp_path / "disk", tmp_path / "blind"
    folder.mkdir()
    with disk.open("wb") as file:
        file.truncate(64 * 2**20)
    attempts = (
        f"mkfs.ext4 -q -F -O casefold -E encoding=utf8 {disk} && mount -o loop {disk} {folder} && mkdir {folder}/there "
        f"&& chattr +F {folder}/there",
        f"mkntfs -q -F -Q {disk} && lowntfs-3g -o ignore_case {disk} {folder} && mkdir {folder}/there",
    )
    said = ""
    for attempt in attempts:
        done = subprocess.run(attempt, shell=True, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            break
        said += done.stderr
    else:
        pytest.skip(f"no file system without case here: {said[-200:]}")
    yield folder / "there"
    subprocess.run(["umount", folder], check=True)


def test_names_that_a_file_system_takes_for_one_are_one(
    tmp_path: Path, runs: Runs, pairs: str, blind_to_case: Path
) -> None:
    there = blind_to_case
    shutil.copy(pairs, there / "in.jsonl")
    asked = Asked((str(there / "in.jsonl"),), str(there / "out.jsonl"), {"pairs": True})
    for names in ({"errors": "OUT.jsonl"}, {"report": "Out.JSONL"}):
        refused = runs.run(asked, options={"pairs": True, "names": {k: str(there / name) for k, name in names.items()}})
        assert refused.code == 2, refused.said
        assert "two outputs in one file" in refused.said
    over_its_input = runs.run(asked, output=str(there / "IN.jsonl"), options={"pairs": True, "overwrite": True})
    assert over_its_input.code == 2, over_its_input.said
    assert [path.name for path in there.iterdir()] == ["in.jsonl"]
    assert runs.run(asked, at=30).code == -9
    done = runs.run(asked, output=str(there / "OUT.jsonl"))
    assert done.code == 3, done.said
    assert "resumes after" in done.said
    elsewhere = runs.run(asked, output=str(tmp_path / "out.jsonl"))
    assert elsewhere.code == 3
    assert (there / "out.jsonl").read_bytes() == (tmp_path / "out.jsonl").read_bytes()
    names = {"errors": str(tmp_path / "A.jsonl"), "report": str(tmp_path / "a.jsonl")}
    assert runs.run(asked, output=str(tmp_path / "B.jsonl"), options={"pairs": True, "names": names}).code == 3
