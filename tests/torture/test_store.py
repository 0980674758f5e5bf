"""Runs with a store are killed, started twice and cut in shards: the bytes stay those of a run without one.

With a cross-encoder the store keeps logits, with an embedder the vectors of texts too."""

from __future__ import annotations

import json
import os
import random
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from rerank_cli.job.score_store.folder import DATABASE
from tests.conftest import LONG
from tests.torture.conftest import EMBEDDER, outputs
from tests.torture.runs import Asked, Runs, serving

STATES = ("cold", "half warm", "warm")
KILLS = int(os.environ.get("RERANK_KILLS", "1000")) if LONG else 2


@pytest.fixture(scope="module")
def runs() -> Iterator[Runs]:
    with serving() as server:
        yield server


@pytest.fixture(scope="module", params=["logits", "vectors"])
def model(request: pytest.FixtureRequest) -> dict[str, str]:
    return {"model": str(EMBEDDER)} if request.param == "vectors" else {}


@pytest.fixture(scope="module")
def asked(model: dict[str, str]) -> Callable[..., Asked]:
    def made(folder: Path, pairs: str, store: Path | None, **options: object) -> Asked:
        folder.mkdir(parents=True, exist_ok=True)
        more = {} if store is None else {"store": str(store)}
        return Asked((pairs,), str(folder / "out.jsonl"), {"pairs": True, **model, **more, **options})

    return made


def filled(folder: Path, pairs: str, runs: Runs, state: str, asked: Callable[..., Asked]) -> Path:
    """A store that knows nothing, some or all of the pairs."""
    store = folder / f"store {state}"
    if state != "cold":
        limit = {"limit": 150} if state == "half warm" else {}
        assert runs.run(asked(folder / f"fill {state}", pairs, store, **limit)).code == 3
    return store


def found_in(folder: Path) -> dict[str, int]:
    return json.loads((folder / "out.jsonl.report.json").read_text())["store"]


@pytest.fixture(scope="module")
def wanted(
    tmp_path_factory: pytest.TempPathFactory, pairs: str, runs: Runs, asked: Callable[..., Asked]
) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    assert runs.run(asked(folder, pairs, None)).code == 3
    return outputs(folder)


@pytest.mark.parametrize("state", STATES)
def test_a_run_that_is_killed_is_finished_by_the_next_one(
    tmp_path: Path, runs: Runs, pairs: str, wanted: dict[str, bytes], state: str, asked: Callable[..., Asked]
) -> None:
    store = filled(tmp_path, pairs, runs, state, asked)
    for at in range(9, 60, 1 if LONG else 30):
        one = asked(tmp_path / str(at), pairs, store)
        assert runs.run(one, at=at, fault="half").code in (-9, 3)
        again = runs.run(one)
        assert again.code in (0, 3), again.said
        assert outputs(tmp_path / str(at)) == wanted, at


@pytest.mark.parametrize("state", STATES if LONG else STATES[1:])
def test_shards_share_a_store(
    tmp_path: Path, runs: Runs, pairs: str, wanted: dict[str, bytes], state: str, asked: Callable[..., Asked]
) -> None:
    store = filled(tmp_path, pairs, runs, state, asked)
    for shards in range(1, 9) if LONG else (3,):
        folders = [tmp_path / f"{shards} {shard}" for shard in range(1, shards + 1)]
        parts = [asked(folder, pairs, store, shard=[place, shards]) for place, folder in enumerate(folders, 1)]
        ends = runs.together(*parts)
        assert all(end.code in (0, 3) for end in ends), [end.said for end in ends]
        assert b"".join((folder / "out.jsonl").read_bytes() for folder in folders) == wanted["out.jsonl"]
        if state == "warm":
            assert sum(found_in(folder)["computed"] for folder in folders) == 0


def test_the_same_run_started_twice_has_one_output_and_one_store(
    tmp_path: Path, runs: Runs, pairs: str, wanted: dict[str, bytes], asked: Callable[..., Asked]
) -> None:
    one = asked(tmp_path / "twice", pairs, tmp_path / "store")
    ends = runs.together(one, one)
    assert sorted(end.code for end in ends) in ([3, 11], [0, 3])
    assert outputs(tmp_path / "twice") == wanted


@pytest.mark.timeout(20_000)
def test_two_processes_that_are_killed_again_and_again_leave_no_wrong_entry(
    tmp_path: Path, runs: Runs, pairs: str, wanted: dict[str, bytes], asked: Callable[..., Asked]
) -> None:
    chance = random.Random(19)
    usual = runs.run(asked(tmp_path / "timed", pairs, None, limit=120)).seconds
    store, killed, rounds = tmp_path / "store", 0, 0
    while killed < KILLS:
        rounds += 1
        names = [tmp_path / f"{side}" for side in ("a", "b")]
        both = [
            replace(
                asked(folder, pairs, store, restart=True, overwrite=True, skip=50 * chance.randrange(4), limit=120),
                after=chance.uniform(0.1, 1.0) * usual,
            )
            for folder in names
        ]
        ends = runs.together(*both)
        assert all(end.code in (-9, 0, 3) for end in ends), [end.said for end in ends]
        assert not any("store" in end.said and "warning" in end.said for end in ends), [end.said for end in ends]
        killed += sum(end.code == -9 for end in ends)
        if rounds % 50 == 0:
            with closing(sqlite3.connect(store / DATABASE)) as hand:
                assert hand.execute("PRAGMA integrity_check").fetchone() == ("ok",)
                hand.execute("DELETE FROM scores WHERE substr(key, 5, 1) < x'80'")  # else all is known soon
                hand.execute("DELETE FROM days")
                hand.commit()
    with closing(sqlite3.connect(store / DATABASE)) as hand:
        assert hand.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert not list(store.glob("*damaged*"))
    for name in ("filled", "warm"):  # whatever the killed ones have left is right
        assert runs.run(asked(tmp_path / name, pairs, store)).code == 3
        assert outputs(tmp_path / name) == wanted
    assert found_in(tmp_path / "warm")["computed"] == 0
    assert found_in(tmp_path / "warm")["damaged"] == 0
