"""Two processes on one output: one works, the other one waits or goes."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from rerank_cli.errors import LockedError
from rerank_cli.journal import Files
from rerank_cli.journal.lock import take_lock
from tests.conftest import LONG
from tests.torture.conftest import outputs
from tests.torture.runs import Asked, Runs


@pytest.mark.parametrize("number", range(100 if LONG else 5))
def test_of_two_that_start_together_one_wins(tmp_path: Path, runs: Runs, pairs: str, number: int) -> None:
    asked = Asked((pairs,), str(tmp_path / "out.jsonl"), {"pairs": True})
    ends = Counter(done.code for done in runs.together(asked, asked))
    # 0: it came when the other one was through, and had nothing to do.
    assert ends in (Counter([3, 11]), Counter([3, 0]))
    assert sorted(outputs(tmp_path)) == ["out.jsonl", "out.jsonl.errors.jsonl", "out.jsonl.report.json"]
    assert len((tmp_path / "out.jsonl").read_bytes().splitlines()) == 300


def test_the_second_process_names_the_first_one(tmp_path: Path, runs: Runs, pairs: str) -> None:
    out = tmp_path / "out.jsonl"
    holder = take_lock(tmp_path / "out.jsonl.job" / "lock", out=out, wait=0, files=Files())
    who = json.loads((tmp_path / "out.jsonl.job" / "lock").read_bytes())
    done = runs.run(Asked((pairs,), str(out), {"pairs": True}))
    holder.release()
    assert done.code == 11
    assert f"another process works on this output: process {who['pid']} on {who['host']}" in done.said
    assert "--lock-wait" in done.said


def test_one_that_waits_finds_the_work_done(tmp_path: Path, runs: Runs, pairs: str) -> None:
    asked = Asked((pairs,), str(tmp_path / "out.jsonl"), {"pairs": True, "lock_wait": 60.0})
    done = runs.together(asked, asked, asked)
    assert sorted(one.code for one in done) == [0, 0, 3]
    assert sum("nothing to do" in one.said for one in done) == 2


def test_waiting_has_an_end(tmp_path: Path) -> None:
    out, times = tmp_path / "out", iter(range(100))
    (tmp_path / "out.job").mkdir()
    holder = take_lock(tmp_path / "out.job" / "lock", out=out, wait=0, files=Files())
    with pytest.raises(LockedError):
        take_lock(tmp_path / "out.job" / "lock", out=out, wait=3, files=Files(), clock=lambda: next(times))
    assert next(times) == 4  # it has begun at 0 and looked at 1, 2 and 3
    holder.release()
