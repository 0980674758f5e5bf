"""kill -9 and failing calls at every write, fsync and rename: the next run ends as an undisturbed one does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.torture.conftest import LONG, outputs
from tests.torture.runs import Asked, Runs

WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "jsonl": ("out.jsonl", {"pairs": True}),
    "gzip": ("out.jsonl.gz", {"pairs": True}),
    "parquet": ("out.parquet", {"pairs": True}),
    "best": ("out.jsonl", {"pairs": True, "selection": {"top_n": 7}}),
}
STEP = 1 if LONG else 17  # every how many calls one meets the fault


@pytest.mark.parametrize("fault", ["before", "half", "ENOSPC"])
@pytest.mark.parametrize("way", WAYS)
def test_a_run_hindered_at_any_call_is_finished_by_the_next_one(
    tmp_path: Path, runs: Runs, pairs: str, way: str, fault: str
) -> None:
    name, options = WAYS[way]
    (tmp_path / "whole").mkdir()
    count = tmp_path / "count"
    whole = Asked((pairs,), str(tmp_path / "whole" / name), options, at=10**9, count_file=str(count))
    assert runs.run(whole).code == 3
    wanted = outputs(tmp_path / "whole")
    for at in range(1 + len(fault) % STEP, int(count.read_text()) + 1, STEP):
        folder = tmp_path / str(at)
        folder.mkdir()
        asked = Asked((pairs,), str(folder / name), options)
        first = runs.run(asked, at=at, fault=fault)
        assert first.code in ((0, 3, 4) if fault == "ENOSPC" else (-9,)), first.said
        if (folder / name).exists():
            assert (folder / name).read_bytes() == wanted[name]
        again = runs.run(asked)
        assert again.code in (0, 3), again.said
        assert outputs(folder) == wanted, f"{fault} at call {at}"
