"""A text is embedded once in the life of a store, and the bytes are those of a run without one."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rerank_cli.cli import main
from rerank_cli.formats.shapes import FieldNames
from rerank_cli.job.options import JobOptions, Names
from rerank_cli.job.run import Outcome, run_job
from rerank_cli.job.score_store import open_store
from rerank_cli.job.score_store.database import ScoreStore
from rerank_cli.job.score_store.folder import DATABASE
from rerank_cli.job.score_store.known_vectors import StoredVectors
from rerank_cli.machine.cpu import detect_cpu
from rerank_cli.planning.choices import ProfileRequest
from tests.unit.job.score_store.test_known_scores import CHECKPOINTS, changed_copies, lists, passage, stored, written

MODEL = CHECKPOINTS / "nemotron-vl-embed-open" / "checkpoint"
VECTOR_BYTES = 64 * 4 + 4  # and its checksum


def run(source: str, output: Path, *, vectors: bool = False, **options: Any) -> Outcome:
    output.parent.mkdir(parents=True, exist_ok=True)
    fields = {"model": str(MODEL), "checkpoint_every": 0.0, **options}
    names = Names(str(output), embeddings=f"{output}.parquet" if vectors else None)
    return run_job(JobOptions((source,), names, restart=True, overwrite=True, **fields))


def texts(outcome: Outcome) -> tuple[int, int, int]:
    return tuple(outcome.report["store"]["texts"][name] for name in ("asked", "found", "embedded"))


def written_all(output: Path) -> list[bytes]:
    vectors = Path(f"{output}.parquet")
    return [*written(output), vectors.read_bytes() if vectors.exists() else b""]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("vectors", [False, True], ids=["scores", "embeddings"])
def test_cold_warm_and_half_warm_runs_write_the_same_bytes(tmp_path: Path, vectors: bool) -> None:
    source, store = lists(tmp_path / "in.jsonl", count=60), str(tmp_path / "s")
    other = lists(tmp_path / "in2.jsonl", count=60, changed=0.5)
    plain = run(source, tmp_path / "plain.jsonl", vectors=vectors)
    cold = run(source, tmp_path / "cold.jsonl", vectors=vectors, store=store)
    warm = run(source, tmp_path / "warm.jsonl", vectors=vectors, store=store)
    half = run(other, tmp_path / "h.jsonl", vectors=vectors, store=store)
    without = run(other, tmp_path / "h2.jsonl", vectors=vectors)
    for name in ("cold", "warm"):
        assert written_all(tmp_path / f"{name}.jsonl") == written_all(tmp_path / "plain.jsonl")
    assert written_all(tmp_path / "h.jsonl") == written_all(tmp_path / "h2.jsonl")
    every = plain.report["embedded"]["texts"]
    assert texts(cold) == (every, 0, every)
    assert texts(warm) == ((every, every, 0) if vectors else (0, 0, 0)), "a pair that is known asks for no vector"
    assert stored(warm)[2] == (warm.counts.pairs_scored if vectors else 0)
    asked, found, embedded = texts(half)
    assert found + embedded == asked
    assert 0 < embedded < without.report["embedded"]["texts"] * 0.6
    assert warm.counts.tokens == 0
    assert half.report["store"]["seconds_saved"] > 0
    assert half.report["store"]["damaged"] == 0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_pairs_that_nobody_has_scored_are_scored_by_the_vectors_of_their_texts(tmp_path: Path, precision: str) -> None:
    chance, store = random.Random(3), str(tmp_path / "s")
    queries, passages = ([f"{n} {passage(chance)}" for n in range(count)] for count in (12, 30))
    rows = [{"query": one, "passages": passages[n : n + 5]} for n, one in enumerate(queries)]
    crossed = [{"query": one, "passages": passages[:16]} for one in reversed(queries)]
    request = {"request": ProfileRequest(precision=precision)}
    run(write_rows(tmp_path / "a.jsonl", rows), tmp_path / "a.out.jsonl", store=store, **request)
    again = write_rows(tmp_path / "b.jsonl", crossed)
    done = run(again, tmp_path / "b.out.jsonl", store=store, **request)
    assert texts(done) == (28, 28, 0)
    assert done.counts.tokens == 0
    assert stored(done)[2] > 120
    if precision == "fp32":
        run(again, tmp_path / "plain.jsonl", **request)
        assert (tmp_path / "b.out.jsonl").read_bytes() == (tmp_path / "plain.jsonl").read_bytes()


def test_what_does_not_decide_a_vector_is_no_part_of_its_key(tmp_path: Path) -> None:
    rows = [{"query": "alpha beta", "passages": ["gamma", "delta"]}]
    source, store = write_rows(tmp_path / "in.jsonl", rows), str(tmp_path / "s")
    run(source, tmp_path / "a.jsonl", store=store)
    shutil.copytree(MODEL, tmp_path / "moved")
    turned = write_rows(tmp_path / "other.jsonl", [{"query": "alpha beta", "passages": ["delta", "gamma", "gamma"]}])
    for options in (
        {"model": str(tmp_path / "moved")}, {"truncate": "error"}, {"max_unknown": 0.9},
        {"request": ProfileRequest(max_tokens=100)}, {"request": ProfileRequest(token_budget=300)},
        {"request": ProfileRequest(engine_count=2)},
    ):  # fmt: skip
        done = run(turned, tmp_path / "b.jsonl", vectors=True, store=store, **options)
        assert texts(done) == (3, 3, 0), options


def test_what_decides_a_vector_is_part_of_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, store = lists(tmp_path / "in.jsonl", count=4), str(tmp_path / "s")
    run(source, tmp_path / "a.jsonl", store=store)

    def found(source: str = source, **options: Any) -> int:
        done = run(source, tmp_path / "b.jsonl", vectors=True, store=store, **options)
        assert texts(done)[0] == texts(done)[1] + texts(done)[2]
        return texts(done)[1]

    assert found() > 10
    rows = [json.loads(line) for line in Path(source).read_text().splitlines() if line != "{broken"]
    swapped = [{"query": one, "passages": [row["query"]]} for row in rows for one in row["passages"] if one]
    assert found(write_rows(tmp_path / "swapped.jsonl", swapped)) == 0, "a query is another text as a passage"
    for precision in ("bf16", "fp16"):
        if detect_cpu().has(precision):
            assert found(request=ProfileRequest(precision=precision)) == 0
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert found() == 0
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    monkeypatch.setattr("rerank_cli.__version__", "9.9.9")
    assert found() == 0
    monkeypatch.undo()
    for name, copy in changed_copies(MODEL, tmp_path):
        assert found(model=copy) == 0, name


def test_a_vector_that_was_edited_is_computed_again(tmp_path: Path) -> None:
    source, store = lists(tmp_path / "in.jsonl"), tmp_path / "s"
    cold = run(source, tmp_path / "cold.jsonl", vectors=True, store=str(store))
    which = f"FROM scores WHERE length(value) = {VECTOR_BYTES}"
    with closing(sqlite3.connect(store / DATABASE)) as hand, hand:
        rows = hand.execute(f"SELECT key, value {which}").fetchall()
        edited = [(value[:99] + bytes([value[99] ^ 1]) + value[100:], key) for key, value in rows[::2]]
        hand.executemany("UPDATE scores SET value = ? WHERE key = ?", edited)
        # The whole vector of another text is a foreign one here.
        hand.execute("UPDATE scores SET value = ? WHERE key = ?", (rows[1][1], rows[3][0]))
    assert len(rows) == texts(cold)[2]
    warm = run(source, tmp_path / "warm.jsonl", vectors=True, store=str(store))
    wrong = len(edited) + 1
    assert warm.report["store"]["damaged"] == texts(warm)[2] == wrong
    assert written_all(tmp_path / "warm.jsonl") == written_all(tmp_path / "cold.jsonl")
    assert texts(run(source, tmp_path / "again.jsonl", vectors=True, store=str(store)))[2] == 0, "they were put anew"


def test_an_image_is_known_by_its_bytes(tmp_path: Path) -> None:
    from tests.unit.images import encoded, picture

    folder, moved = tmp_path / "pages", tmp_path / "moved"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.png").write_bytes(encoded(picture(40 + number, 30)))

    def asking(query: str) -> str:
        passages = [{"text": "t", "image": f"{number}.png"} for number in range(4)]
        return write_rows(tmp_path / f"{query}.jsonl", [{"query": query, "passages": passages}])

    store = str(tmp_path / "s")
    run(asking("one"), tmp_path / "a.jsonl", store=store, fields=FieldNames(image_root=str(folder)))
    shutil.copytree(folder, moved)
    (moved / "3.png").write_bytes(encoded(picture(41, 99)))
    there = FieldNames(image_root=str(moved))
    warm = run(asking("two"), tmp_path / "b.jsonl", store=store, fields=there)
    assert texts(warm) == (5, 3, 2), "the query and the page that has changed are new"
    assert warm.counts.images == 1
    run(asking("two"), tmp_path / "plain.jsonl", fields=there)
    assert (tmp_path / "b.jsonl").read_bytes() == (tmp_path / "plain.jsonl").read_bytes()


def test_shards_embed_no_text_that_another_has_embedded(tmp_path: Path) -> None:
    chance, store = random.Random(8), str(tmp_path / "s")
    passages = [f"{n} {passage(chance)}" for n in range(40)]
    rows = [{"query": f"{n} {passage(chance)}", "passages": passages} for n in range(45)]
    source = write_rows(tmp_path / "in.jsonl", rows)
    done = [run(source, tmp_path / f"{n}.jsonl", store=store, shard=(n, 3)) for n in (1, 2, 3)]
    assert sum(texts(one)[2] for one in done) == 85
    assert [texts(one)[1] for one in done] == [0, 40, 40]
    run(source, tmp_path / "plain.jsonl")
    parts = b"".join((tmp_path / f"{n}.jsonl").read_bytes() for n in (1, 2, 3))
    assert parts == (tmp_path / "plain.jsonl").read_bytes()


def test_vectors_count_towards_the_limit_of_a_store(tmp_path: Path) -> None:
    limit, store = 4_000_000, tmp_path / "s"
    opened = open_store(store, limit_bytes=limit)
    assert isinstance(opened, ScoreStore)
    vectors, chance = StoredVectors(opened, b"basis", 2048), np.random.default_rng(1)
    for begin in range(0, 1500, 100):
        some = {b"%016d" % n: chance.standard_normal(2048, dtype=np.float32) for n in range(begin, begin + 100)}
        vectors.add(some, tokens=100, seconds=1.0)
        opened.add({bytes([n, begin % 256]) * 8: b"a logit" for n in range(100)})
    found = vectors.find(list(some))
    assert found.keys() <= some.keys()
    assert all(np.array_equal(found[key], some[key]) for key in found)
    assert vectors.seconds_saved(50) == 0.5
    opened.close()
    assert limit / 3 < (store / DATABASE).stat().st_size <= 1.1 * limit


def test_no_vector_of_another_length_and_none_that_is_not_finite_is_found(tmp_path: Path) -> None:
    opened = open_store(tmp_path)
    assert isinstance(opened, ScoreStore)
    vectors = StoredVectors(opened, b"basis", 3)
    made = {b"a" * 16: np.array([1, 2, 3], np.float32), b"b" * 16: np.array([1, np.nan, 3], np.float32)}
    vectors.add(made, tokens=2, seconds=1.0)
    assert list(vectors.find(list(made))) == [b"a" * 16]
    assert not StoredVectors(opened, b"basis", 4).find(list(made))
    assert not StoredVectors(opened, b"other", 3).find(list(made))
    opened.close()


def test_the_last_line_tells_of_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"query": "alpha", "passages": ["beta", "gamma"]}]
    source, store = write_rows(tmp_path / "in.jsonl", rows), str(tmp_path / "s")
    given = ["rerank-file", source, "--model", str(MODEL), "--store", store, "-o"]
    assert main([*given, str(tmp_path / "a.jsonl")]) == 0
    assert "2 pairs asked, 0 found, 2 computed; 3 texts asked, 0 found, 3 embedded" in capsys.readouterr().err
    write_rows(tmp_path / "in.jsonl", [{"query": "alpha", "passages": ["beta", "delta"]}])
    assert main([*given, str(tmp_path / "b.jsonl")]) == 0
    assert "2 pairs asked, 1 found, 1 computed; 2 texts asked, 1 found, 1 embedded" in capsys.readouterr().err
