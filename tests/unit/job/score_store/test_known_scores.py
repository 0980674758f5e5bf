"""A run with a store writes the bytes of a run without one, and computes nothing that the store knows."""

from __future__ import annotations

import fcntl
import json
import random
import shutil
import sqlite3
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rerank_cli.encoding.choices import ImageLimits
from rerank_cli.errors import UsageError
from rerank_cli.formats.shapes import FieldNames
from rerank_cli.job.options import JobOptions, Names
from rerank_cli.job.run import Outcome, Watcher, run_job
from rerank_cli.job.score_store import ScoreStore
from rerank_cli.job.score_store.folder import DATABASE
from rerank_cli.job.score_store.known_scores import _key_of_list, _pack_list, _pack_pair, _unpack_list
from rerank_cli.planning.choices import ProfileRequest
from rerank_cli.records import CandidateList, ImagePassage, Limits
from tests.conftest import TINY_CHECKPOINT

WORDS = [f"{one}{two}" for one in ("al", "be", "ga", "de") for two in ("pha", "ta", "mma", "lta")]
CHECKPOINTS = TINY_CHECKPOINT.parents[1]


def passage(chance: random.Random) -> str:
    return " ".join(chance.choices(WORDS, k=chance.choice((1, 3, 8, 20, 70))))


def lists(path: Path, *, count: int = 40, seed: int = 1, changed: float = 0.0) -> str:
    """Lists of eight passages, with repeated ones, empty ones and bad rows. changed: the share that is another."""
    chance, other = random.Random(seed), random.Random(99)
    rows = []
    for number in range(count):
        passages = [passage(chance) for _ in range(8)]
        passages = [passage(other) if other.random() < changed else one for one in passages]
        passages[5] = passages[2]
        row = {"query": " ".join(chance.choices(WORDS, k=3)), "passages": passages}
        rows.append(json.dumps(row) if number % 20 != 7 else "{broken")
    path.write_text("\n".join([*rows, rows[0]]) + "\n")
    return str(path)


def changed_copies(model: str | Path, folder: Path) -> Iterator[tuple[str, str]]:
    """Copies of a checkpoint, each with a byte of one file changed: the file's name, and the copy."""
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        copy = Path(shutil.copytree(model, folder / name))
        data = bytearray((copy / name).read_bytes())
        if name == "model.safetensors":
            data[-3] ^= 1
        else:
            data += b"\n"
        (copy / name).write_bytes(data)
        yield name, str(copy)


def run(source: str, output: Path, **options: Any) -> Outcome:
    output.parent.mkdir(parents=True, exist_ok=True)
    fields = {"model": str(TINY_CHECKPOINT), "checkpoint_every": 0.0, **options}
    watcher = Watcher(on_note=fields.pop("on_note", None))
    return run_job(JobOptions((source,), Names(str(output)), restart=True, overwrite=True, **fields), watcher)


def written(output: Path) -> tuple[bytes, bytes]:
    return output.read_bytes(), Path(f"{output}.errors.jsonl").read_bytes()


def stored(outcome: Outcome) -> tuple[int, int, int]:
    return tuple(outcome.report["store"][name] for name in ("asked", "found", "computed"))


def test_a_list_that_has_not_changed_is_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = lists(tmp_path / "in.jsonl")
    run(source, tmp_path / "cold.jsonl", store=str(tmp_path / "s"))
    find, asked = ScoreStore.find, []

    def noted(store: ScoreStore, keys: Any, **how: Any) -> Any:
        found = find(store, keys, **how)
        asked.append((len(keys), len(found), how))
        return found

    monkeypatch.setattr(ScoreStore, "find", noted)
    warm = run(source, tmp_path / "warm.jsonl", store=str(tmp_path / "s"))
    assert asked == [(38, 38, {"of_lists": True})], "one of 40 lists is broken, and one comes twice"
    assert stored(warm)[2] == 0
    assert written(tmp_path / "warm.jsonl") == written(tmp_path / "cold.jsonl")
    asked.clear()
    turned = [json.loads(line) for line in Path(source).read_text().splitlines() if line != "{broken"]
    for row in turned:
        row["passages"].reverse()
    Path(source).write_text("".join(json.dumps(row) + "\n" for row in turned))
    other = run(source, tmp_path / "turned.jsonl", store=str(tmp_path / "s"))
    assert asked[0][1] == 0
    assert stored(other)[2] == 0, "its pairs are known, in whatever order"


def test_a_list_entry_that_was_edited_is_none(tmp_path: Path) -> None:
    source = lists(tmp_path / "in.jsonl")
    run(source, tmp_path / "cold.jsonl", store=str(tmp_path / "s"))
    with sqlite3.connect(tmp_path / "s" / DATABASE) as hand:
        rows = hand.execute("SELECT key, value FROM scores WHERE length(value) > 30").fetchall()
        edited = [(value[:20] + bytes([value[20] ^ 1]) + value[21:], key) for key, value in rows]
        hand.executemany("UPDATE scores SET value = ? WHERE key = ?", edited)
    assert len(edited) == 38
    warm = run(source, tmp_path / "warm.jsonl", store=str(tmp_path / "s"))
    assert warm.report["store"]["damaged"] == 38
    assert stored(warm)[2] == 0
    assert written(tmp_path / "warm.jsonl") == written(tmp_path / "cold.jsonl")
    again = run(source, tmp_path / "again.jsonl", store=str(tmp_path / "s"))
    assert again.report["store"]["damaged"] == 0, "it was put anew"


@pytest.mark.parametrize("step", [1, 300, 0], ids=["short", "long", "equal"])
def test_a_packed_list_is_what_it_was_or_none(step: int) -> None:
    values = [
        struct.pack("<fIIIHBB", number / 7, 40 + number % 9 * step, 40, number * step % 3, 5, 0, 0)
        for number in range(50)
    ]
    packed = _pack_list(values)
    assert len(packed) < len(b"".join(values)) / 2
    unpacked = _unpack_list(packed, 50)
    assert unpacked is not None
    entries, logits = unpacked
    pairs = zip(entries, logits.tolist(), strict=True)
    assert [_pack_pair(entry, logit, None) for entry, logit in pairs] == values
    for data, count in ((packed, 49), (packed, 51), (packed[:-9], 50), (b"", 50), (packed[:200], 50), (b"x" * 900, 50)):
        assert _unpack_list(data, count) is None


def test_lists_with_the_same_letters_have_other_keys() -> None:
    def key(query: str, *passages: Any, **more: Any) -> bytes | None:
        return _key_of_list(CandidateList(query, passages, (), **more), b"basis")

    keys = [
        key("q", "ab", "c"), key("q", "a", "bc"), key("qa", "b", "c"), key("q", "c", "ab"), key("q", "abc"),
        key("q", "ab", "c", limits=Limits(whole=True)), key("q", "ab", "c", limits=Limits(passage_tokens=3)),
    ]  # fmt: skip
    assert len(set(keys)) == len(keys)
    assert key("q", "ab", "c", queries=("q", "r")) is None
    assert key("q", "ab", ImagePassage("", "page.png")) is None


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"truncate": "chunk", "pool": "mean", "request": ProfileRequest(max_tokens=48)},
        {"request": ProfileRequest(precision="int8")},
        {"request": ProfileRequest(precision="int8"), "check_precision": 50},
    ],
    ids=["plain", "chunks", "int8", "compared"],
)
def test_cold_warm_and_half_warm_runs_write_the_same_bytes(tmp_path: Path, options: dict[str, Any]) -> None:
    source = lists(tmp_path / "in.jsonl", count=100)
    plain = run(source, tmp_path / "plain.jsonl", **options)
    cold = run(source, tmp_path / "cold.jsonl", store=str(tmp_path / "s"), **options)
    warm = run(source, tmp_path / "warm.jsonl", store=str(tmp_path / "s"), **options)
    half = run(
        lists(tmp_path / "in2.jsonl", count=100, changed=0.5),
        tmp_path / "h.jsonl",
        **options,
        store=str(tmp_path / "s"),
    )
    without = run(lists(tmp_path / "in2.jsonl", count=100, changed=0.5), tmp_path / "h2.jsonl", **options)
    for name in ("cold", "warm"):
        assert written(tmp_path / f"{name}.jsonl") == written(tmp_path / "plain.jsonl")
    of_int8 = options.get("request", ProfileRequest()).precision == "int8"
    if not of_int8:  # whose calibration is that of the first run with the store
        assert written(tmp_path / "h.jsonl") == written(tmp_path / "h2.jsonl")
    asked, found, computed = stored(cold)
    assert asked == found + computed
    assert found <= 8  # the list that comes twice
    asked, found, computed = stored(warm)
    assert computed == 0
    assert found == asked > 150
    assert without.counts.pairs == half.counts.pairs
    for report in (cold.report, warm.report):
        for name in ("lengths", "scores", "unknown_tokens", "precision_check"):
            assert report.get(name) == plain.report.get(name), name
    for name in ("rows_out", "pairs", "truncated", "chunked", "ties"):
        assert getattr(warm.counts, name) == getattr(plain.counts, name)
    assert half.report["store"]["found"] > 200
    assert half.report["store"]["seconds_saved"] > 0


def test_an_int8_model_is_calibrated_once_in_the_life_of_a_store(tmp_path: Path) -> None:
    int8, store = {"request": ProfileRequest(precision="int8")}, str(tmp_path / "s")
    source = lists(tmp_path / "in.jsonl", count=30)
    first = run(source, tmp_path / "first.jsonl", store=store, **int8)
    assert first.report["store"]["notes"] == []
    other = lists(tmp_path / "other.jsonl", count=30, seed=7)
    Path(other).write_text(Path(other).read_text() + Path(source).read_text())
    said: list[str] = []
    second = run(other, tmp_path / "second.jsonl", store=store, on_note=said.append, **int8)
    assert stored(second)[1] >= stored(first)[2]
    assert any("the model has the calibration of an earlier run" in one for one in said)
    known = {row["query"]: row for row in map(json.loads, (tmp_path / "first.jsonl").read_text().splitlines())}
    rows = [json.loads(row) for row in (tmp_path / "second.jsonl").read_text().splitlines()]
    both = [row for row in rows if row["query"] in known]
    assert len(both) >= len(known) > 20
    assert all(row == known[row["query"]] for row in both)
    assert stored(run(other, tmp_path / "third.jsonl", store=store, limit=3, **int8))[2] == 0


def test_a_night_computes_what_has_changed_and_writes_the_bytes_of_a_run_without_a_store(tmp_path: Path) -> None:
    chance = random.Random(6)
    rows = [
        {"query": f"{number} {passage(chance)}", "passages": [f"{place} {passage(chance)}" for place in range(50)]}
        for number in range(24)
    ]
    first = tmp_path / "first.jsonl"
    first.write_text("\n".join(map(json.dumps, rows)) + "\n")
    assert stored(run(str(first), tmp_path / "filled.jsonl", store=str(tmp_path / "s")))[2] == 1200
    for place in chance.sample(range(1200), 12):  # 1 %
        rows[place // 50]["passages"][place % 50] = f"new {place}"
    second = tmp_path / "second.jsonl"
    second.write_text("\n".join(map(json.dumps, rows)) + "\n")
    run(str(second), tmp_path / "plain.jsonl")
    variants: list[list[dict[str, Any]]] = [
        [{}], [{"shard": (place, 3)} for place in (1, 2, 3)], [{"request": ProfileRequest(token_budget=300)}],
    ]  # fmt: skip
    for number, parts in enumerate(variants):
        store = str(shutil.copytree(tmp_path / "s", tmp_path / f"s{number}"))
        names = [tmp_path / f"{number} {part}.jsonl" for part in range(len(parts))]
        done = [run(str(second), name, store=store, **part) for name, part in zip(names, parts, strict=True)]
        assert sum(stored(one)[2] for one in done) == 12
        assert sum(stored(one)[0] for one in done) == 1200
        assert b"".join(name.read_bytes() for name in names) == (tmp_path / "plain.jsonl").read_bytes()


def test_what_does_not_decide_a_logit_is_no_part_of_its_key(tmp_path: Path) -> None:
    source, store = lists(tmp_path / "in.jsonl"), str(tmp_path / "s")
    run(source, tmp_path / "a.jsonl", store=store)
    shutil.copytree(TINY_CHECKPOINT, tmp_path / "moved")
    (tmp_path / "moved" / "README.md").write_text("a model")
    rows = [row for row in Path(source).read_text().splitlines() if row != "{broken"]
    random.Random(5).shuffle(rows)
    shuffled = tmp_path / "other.jsonl"
    shuffled.write_text("\n".join(rows) + "\n")
    for number, options in enumerate(
        [
            {"model": str(tmp_path / "moved")}, {"shard": (1, 2)}, {"limit": 10, "skip": 5}, {"depth": 3},
            {"request": ProfileRequest(token_budget=600)}, {"request": ProfileRequest(engine_count=2)},
            {"chunk_overlap": 3, "pool": "first", "images": ImageLimits(max_pixels=5)},
        ]
    ):  # fmt: skip
        done = run(str(shuffled), tmp_path / f"{number}.jsonl", store=store, **options)
        assert stored(done)[0] > 0
        assert stored(done)[2] == 0, options


def test_what_decides_a_logit_is_part_of_its_key(tmp_path: Path, monkeypatch) -> None:
    source, store = lists(tmp_path / "in.jsonl", count=10), str(tmp_path / "s")
    run(source, tmp_path / "a.jsonl", store=store)

    def found(**options: Any) -> int:
        return stored(run(source, tmp_path / "b.jsonl", store=store, **options))[1]

    for options in (
        {"request": ProfileRequest(max_tokens=60)}, {"request": ProfileRequest(precision="int8")},
        {"truncate": "reference"}, {"truncate": "chunk"}, {"special_tokens": "allow"}, {"max_unknown": 0.9},
    ):  # fmt: skip
        assert found(**options) == 0, options
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert found() == 0
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "7")
    assert found() > 50
    monkeypatch.setattr("rerank_cli.__version__", "9.9.9")
    assert found() == 0
    monkeypatch.undo()
    assert found() > 50
    for name, copy in changed_copies(TINY_CHECKPOINT, tmp_path):
        assert found(model=copy) == 0, name


def test_a_damaged_store_costs_its_scores_and_nothing_else(tmp_path: Path) -> None:
    source, store = lists(tmp_path / "in.jsonl"), tmp_path / "s"
    run(source, tmp_path / "a.jsonl", store=str(store))
    data = bytearray((store / DATABASE).read_bytes())
    chance = random.Random(4)
    for place in (chance.randrange(100, len(data)) for _ in range(40)):
        data[place] ^= 1 << chance.randrange(8)
    (store / DATABASE).write_bytes(data)
    told: list[str] = []
    run(source, tmp_path / "b.jsonl", store=str(store), on_note=told.append)
    assert written(tmp_path / "a.jsonl") == written(tmp_path / "b.jsonl")
    (store / DATABASE).write_bytes(b"no database at all" * 100)
    done = run(source, tmp_path / "c.jsonl", store=str(store), on_note=told.append)
    assert written(tmp_path / "a.jsonl") == written(tmp_path / "c.jsonl")
    assert "damaged" in told[-1]
    assert done.report["store"]["notes"] == told[-1:]
    assert stored(run(source, tmp_path / "d.jsonl", store=str(store)))[2] == 0


def test_where_no_store_can_be_a_run_says_so_and_goes_on(tmp_path: Path, monkeypatch) -> None:
    source = lists(tmp_path / "in.jsonl", count=5)
    monkeypatch.setattr("rerank_cli.job.score_store.folder.file_system", lambda folder: (False, False))
    told: list[str] = []
    done = run(source, tmp_path / "a.jsonl", store=str(tmp_path / "s"), on_note=told.append)
    assert "does not lock" in told[0]
    assert "continues without it" in told[0]
    assert stored(done)[1] == 0
    assert done.report["store"]["notes"] == told


def test_a_folder_that_cannot_be_seen_ends_no_run(tmp_path: Path) -> None:
    source = lists(tmp_path / "in.jsonl", count=5)
    told: list[str] = []
    done = run(source, tmp_path / "a.jsonl", store=str(tmp_path / ("s" * 300) / "x"), on_note=told.append)
    assert stored(done)[1] == 0
    assert "File name too long; this run continues without it" in told[0]


def test_a_lock_of_another_program_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = lists(tmp_path / "in.jsonl", count=5)
    monkeypatch.setattr("rerank_cli.job.score_store.folder._LOCK_SECONDS", 0.1)
    (tmp_path / "s").mkdir()
    told: list[str] = []
    with (tmp_path / "s" / "lock").open("w") as mine:
        fcntl.flock(mine, fcntl.LOCK_EX)
        done = run(source, tmp_path / "a.jsonl", store=str(tmp_path / "s"), on_note=told.append)
    assert stored(done)[1] == 0
    assert "another program holds its file `lock`; this run continues without it" in told[0]


def test_the_work_folder_of_the_run_is_no_store(tmp_path: Path) -> None:
    source = lists(tmp_path / "in.jsonl", count=5)
    with pytest.raises(UsageError, match="the work folder of this run"):
        run(source, tmp_path / "a.jsonl", store=str(tmp_path / "a.jsonl.job"))


def test_an_image_is_known_by_its_bytes(tmp_path: Path) -> None:
    from tests.unit.images import encoded, picture

    folder = tmp_path / "pages"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.png").write_bytes(encoded(picture(40 + number, 30)))
    source = tmp_path / "in.jsonl"
    source.write_text(
        "".join(
            json.dumps({"query": f"q {row}", "passages": [{"text": "t", "image": f"{n}.png"} for n in range(6)]}) + "\n"
            for row in range(2)
        )
    )
    options: dict[str, Any] = {
        "model": str(CHECKPOINTS / "nemotron-vl-rerank-open" / "checkpoint"), "store": str(tmp_path / "s"),
        "fields": FieldNames(image_root=str(folder)),
    }  # fmt: skip
    cold = run(str(source), tmp_path / "a.jsonl", **options)
    assert stored(cold) == (12, 0, 12)
    shutil.copytree(folder, tmp_path / "moved")
    (tmp_path / "moved" / "3.png").write_bytes(encoded(picture(41, 99)))
    options["fields"] = replace(options["fields"], image_root=str(tmp_path / "moved"))
    warm = run(str(source), tmp_path / "b.jsonl", **options)
    assert stored(warm) == (12, 10, 2)
    assert warm.counts.images == 1
    again = run(str(source), tmp_path / "c.jsonl", **options)
    assert stored(again) == (12, 12, 0)
    assert (tmp_path / "b.jsonl").read_bytes() == (tmp_path / "c.jsonl").read_bytes()


def test_pairs_that_cannot_be_scored_are_not_kept(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text(('{"query": "alpha", "passages": ["beta", "gamma ' + "delta " * 600 + '"]}\n') * 3)
    options: dict[str, Any] = {"store": str(tmp_path / "s"), "truncate": "error"}
    for _ in range(2):
        done = run(str(source), tmp_path / "a.jsonl", **options)
        assert done.counts.passages_error == 3
        assert stored(done)[0] == 2
    source.write_text('{"query": "alpha", "passages": ["beta", "gamma"]}\n')
    assert stored(run(str(source), tmp_path / "b.jsonl", **options)) == (2, 1, 1)
