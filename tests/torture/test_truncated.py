"""Files of a job that lost their tails, or a bit of them: the next run goes back as far as it must and no further.

Every byte of a whole journal is tried in `tests/unit/journal/test_commit.py`; here each byte of the last records, in
real runs.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.conftest import LONG
from tests.torture.conftest import outputs
from tests.torture.runs import Asked, Runs

STEP = 1 if LONG else 401


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, runs: Runs, pairs: str) -> Path:
    """`stopped` holds a run that was killed when it had committed four windows, `whole` one that was not killed."""
    made = tmp_path_factory.mktemp("jobs")
    (made / "whole").mkdir()
    asked = Asked((pairs,), str(made / "stopped" / "out.jsonl"), {"pairs": True})
    assert runs.run(asked, output=str(made / "whole" / "out.jsonl")).code == 3
    for at in range(30, 60):
        (made / "stopped").mkdir()
        assert runs.run(asked, at=at).code == -9
        if (made / "stopped" / "out.jsonl.job" / "journal").read_bytes().count(b"\n") == 5:  # a header before them
            return made
        shutil.rmtree(made / "stopped")
    raise AssertionError("no call of the run is behind four commits")


@pytest.mark.parametrize("damage", ["cut", "flipped"])
@pytest.mark.parametrize(("name", "lines"), [("journal", 1), ("rows", 3), ("errors", 1)])
def test_the_next_run_ends_right_whatever_is_lost(
    folder: Path, tmp_path: Path, runs: Runs, pairs: str, name: str, lines: int, damage: str
) -> None:
    work = (folder / "stopped" / "out.jsonl.job" / name).read_bytes()
    begin = len(work) - sum(map(len, work.splitlines(keepends=True)[-lines:]))
    for offset in range(begin, len(work), STEP):
        copy = tmp_path / str(offset)
        shutil.copytree(folder / "stopped", copy)
        flipped = bytes([work[offset] ^ 4]) + work[offset + 1 :] if damage == "flipped" else b""
        (copy / "out.jsonl.job" / name).write_bytes(work[:offset] + flipped)
        done = runs.run(Asked((pairs,), str(copy / "out.jsonl"), {"pairs": True}))
        assert done.code == 3, done.said
        assert "resumes after" in done.said
        assert outputs(copy) == outputs(folder / "whole"), f"{name} {damage} at {offset}"
        shutil.rmtree(copy)
