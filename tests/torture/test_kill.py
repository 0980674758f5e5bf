"""kill -9 and failing calls at every write, fsync and rename: the next run ends as an undisturbed one does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rerank_cli.checkpoint import read_checkpoint
from rerank_cli.evaluation.calibration_file import BOUND, SCHEMA
from rerank_cli.job.options import JobOptions, Names
from tests.conftest import LONG, TINY_CHECKPOINT, write_lines
from tests.torture.conftest import EMBEDDER, TEXT, outputs
from tests.torture.runs import Asked, Runs

_TRAINED = ("triplet", "n-tuple", "labeled-list", "flagembedding")
_LISTS = {*_TRAINED, "probability"}
"""What is made of lists, in windows of its own."""
_JUDGED = {"pairs": False, "qrels": "".join(f"{n} 0 p{n % 14} 1\n" for n in range(0, 45, 2))}
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
    **{
        name: ("out.jsonl", {**_JUDGED, "teacher": {"relative_margin": 0.0}, "names": {"out_format": name}})
        for name in _TRAINED
    },
    "probability": ("out.jsonl", {"pairs": False, "calibration": True}),
}
FAULTS = ("before", "half", "after", "ENOSPC", "EIO", "EINTR")
SHORT = {"triplet": ("half",), "n-tuple": (), "labeled-list": (), "flagembedding": (), "probability": ("half",)}
CASES = [
    (way, fault)
    for way in WAYS
    for fault in FAULTS
    if LONG or way == "jsonl" or fault in SHORT.get(way, ("half", "EIO"))
]
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
    if "calibration" in options:
        options["calibration"] = write_calibration(folder / "calibration.json")
    if names := options.get("names"):
        options["names"] = {kind: path if kind == "out_format" else str(folder / path) for kind, path in names.items()}
    return Asked((pairs,), str(folder / name), options)


def write_calibration(path: Path) -> str:
    """One of the model that scores."""
    model = read_checkpoint(TINY_CHECKPOINT)
    document = {
        "schema": SCHEMA, "kind": "platt", "slope": 1.5, "intercept": -0.5, "score": "logit", "seen": {},
        "model": {"name": model.name, "sha256": model.sha256},
        "asked": {name: getattr(JobOptions((), Names("-")), name) for name in BOUND},
    }  # fmt: skip
    path.write_text(json.dumps(document))
    return str(path)


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Lists for two windows of `rerank-file`, with bad rows between them."""
    words = TEXT.split()
    rows: list[Any] = [
        {
            "query_id": n, "query": words[n % 7],
            "passages": [{"id": f"p{k}", "text": f"{words[(n + k) % 13]} {n} {words[k % 11]} {k}"} for k in range(14)],
        } if n % 20 != 15 else b"{"
        for n in range(45)
    ]  # fmt: skip
    return write_lines(tmp_path_factory.mktemp("lists") / "lists.jsonl", rows)


@pytest.mark.parametrize(("way", "fault"), CASES)
def test_a_run_hindered_at_any_call_is_finished_by_the_next_one(
    tmp_path: Path, runs: Runs, pairs: str, lists: str, way: str, fault: str
) -> None:
    name, pairs = WAYS[way][0], lists if way in _LISTS else pairs
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


@pytest.mark.parametrize("way", set(WAYS) - _LISTS if LONG else ["gzip"])
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
