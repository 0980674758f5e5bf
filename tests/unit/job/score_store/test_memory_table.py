"""Without a store a pair that comes again is not computed again, and the bytes are the same."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from rerank_cli.job.options import JobOptions, Names
from rerank_cli.job.run import Outcome, run_job
from rerank_cli.job.score_store import run_store
from rerank_cli.job.score_store.database import KEY_BYTES
from rerank_cli.job.score_store.memory_table import VALUE_BYTES, MemoryTable
from rerank_cli.planning.choices import ProfileRequest
from tests.conftest import TINY_CHECKPOINT


def entries(seed: int, count: int) -> dict[bytes, bytes]:
    chance = np.random.default_rng(seed)
    return {chance.bytes(KEY_BYTES): chance.bytes(VALUE_BYTES) for _ in range(count)}


def test_what_was_added_is_found_and_nothing_else() -> None:
    table, mine, others = MemoryTable(), entries(1, 300), entries(2, 300)
    assert table.find(list(mine)) == {}
    table.add(mine)
    assert table.find([*others, *mine]) == mine
    table.add({key: value[::-1] for key, value in mine.items()})
    assert table.find(list(mine)) == {key: value[::-1] for key, value in mine.items()}


def test_the_table_is_bounded_and_the_last_one_stays() -> None:
    table, mine = MemoryTable(64), entries(3, 1000)
    for key, value in mine.items():
        table.add({key: value})
    found = table.find(list(mine))
    assert 0 < len(found) <= 64
    assert found.items() <= mine.items()
    last = list(mine)[-1]
    assert found[last] == mine[last]


def test_a_value_of_another_length_is_not_kept() -> None:
    table = MemoryTable()
    table.add({bytes(KEY_BYTES): b"of two chunks" * 3})
    assert table.find([bytes(KEY_BYTES)]) == {}


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_equal_pairs_of_other_windows_are_computed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    rows = [
        {"query": f"road {number % 90}", "passages": [f"wood {number % 90} {place}" for place in range(20)]}
        for number in range(180)  # the last one of a pair is done before it comes again: it is not only under way
    ]
    source = tmp_path / "in.jsonl"
    source.write_text("\n".join(map(json.dumps, rows)) + "\n")

    def run(name: str) -> Outcome:
        request = ProfileRequest(precision=precision)
        return run_job(
            JobOptions((str(source),), Names(str(tmp_path / name)), model=str(TINY_CHECKPOINT), request=request)
        )

    once = run("once.jsonl")
    # Two pairs may want one place of the table. An int8 model has no keys before its first window is computed: a window
    # that is looked up before that one is kept finds nothing of it.
    unknown = 520 if precision == "int8" else 0
    assert once.counts.pairs == 3600
    assert 1790 - unknown <= once.counts.pairs_repeated <= 1800
    assert once.report["speed"]["pairs_repeated"] == once.counts.pairs_repeated
    monkeypatch.setattr(run_store, "depends_on_batch", lambda *_: "not known")
    again = run("again.jsonl")
    assert again.counts.pairs_repeated == 0
    assert once.report["counts"] == again.report["counts"]
    assert (tmp_path / "once.jsonl").read_bytes() == (tmp_path / "again.jsonl").read_bytes()
