"""kill -9 and failing calls at every write, fsync and rename: the next run ends as an undisturbed one does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import LONG
from tests.torture.conftest import EMBEDDER, TEXT, outputs
from tests.torture.runs import Asked, Runs

WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "jsonl": ("out.jsonl", {}),
    "gzip": ("out.jsonl.gz", {}),
    "parquet": ("out.parquet", {}),
    "csv": ("out.csv", {}),
    "tsv": ("out.tsv.gz", {"selection": {"prob": True}}),
    "best": ("out.jsonl", {"selection": {"top_n": 7}}),
    "vectors": ("out.jsonl", {"model": str(EMBEDDER), "names": {"embeddings": "vectors.parquet"}}),
    "values": (
        "out.jsonl",
        {
            "pairs": False,
            "fields": {"group_by": "query"},
            "qrels": "".join(f"{word} 0 {n} 1\n" for word in TEXT.split()[:7] for n in range(0, 300, 3)),
            "names": {"per_query": "values.tsv"},
        },
    ),
}
FAULTS = ("before", "half", "after", "ENOSPC", "EIO", "EINTR")
CASES = [(way, fault) for way in WAYS for fault in FAULTS if LONG or way == "jsonl" or fault in ("half", "EIO")]
OLD = b"what an earlier run has left"


def asked_in(folder: Path, pairs: str, way: str, *, old: bool) -> Asked:
    """A run in a folder. old: the output is there already, and may be replaced."""
    name, options = WAYS[way]
    folder.mkdir()
    if old:
        (folder / name).write_bytes(OLD)
    options = {"pairs": True, **options, "overwrite": old}
    if judgements := options.get("qrels"):
        (folder / "qrels").write_text(judgements)
        options["qrels"] = str(folder / "qrels")
    if names := options.get("names"):
        options["names"] = {kind: str(folder / path) for kind, path in names.items()}
    return Asked((pairs,), str(folder / name), options)


@pytest.mark.parametrize(("way", "fault"), CASES)
def test_a_run_hindered_at_any_call_is_finished_by_the_next_one(
    tmp_path: Path, runs: Runs, pairs: str, way: str, fault: str
) -> None:
    name = WAYS[way][0]
    count = tmp_path / "count"
    whole = asked_in(tmp_path / "whole", pairs, way, old=False)
    assert runs.run(whole, at=10**9, count_file=str(count)).code == 3
    wanted = outputs(tmp_path / "whole")
    calls = int(count.read_text())
    step = 1 if LONG else calls // 3
    for at in range(1 + 7 * CASES.index((way, fault)) % step, calls + 1, step):
        folder = tmp_path / str(at)
        asked = asked_in(folder, pairs, way, old=at % 2 == 0)
        first = runs.run(asked, at=at, fault=fault)
        assert first.code in ((0, 3, 4) if fault.isupper() else (-9,)), first.said
        if (folder / name).exists():
            assert (folder / name).read_bytes() in (wanted[name], OLD)
        again = runs.run(asked)
        assert again.code in (0, 3), again.said
        assert outputs(folder) == wanted, f"{fault} at call {at}"


@pytest.mark.parametrize("way", WAYS if LONG else ["gzip"])
@pytest.mark.parametrize("at", [25, 31, 40] if LONG else [31])
def test_a_run_that_is_killed_each_time_is_done_in_the_end(
    tmp_path: Path, runs: Runs, pairs: str, way: str, at: int
) -> None:
    whole = asked_in(tmp_path / "whole", pairs, way, old=False)
    assert runs.run(whole).code == 3
    asked = asked_in(tmp_path / "killed", pairs, way, old=False)
    ends = []
    while not ends or ends[-1] == -9:
        assert len(ends) < 20
        ends.append(runs.run(asked, at=at, fault="half").code)
    assert len(ends) > 2
    assert ends[-1] in (0, 3)
    assert outputs(tmp_path / "killed") == outputs(tmp_path / "whole")


def test_the_same_run_gives_the_same_bytes_again(tmp_path: Path, runs: Runs, pairs: str) -> None:
    found = set()
    for number in range(20 if LONG else 3):
        asked = asked_in(tmp_path / str(number), pairs, "gzip", old=False)
        assert runs.run(asked).code == 3
        found.add(tuple(sorted(outputs(tmp_path / str(number)).items())))
    assert len(found) == 1
