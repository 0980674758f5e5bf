"""Runs whose output is an object: killed at any call of a store that fails, on machines that do not come back.

The long form can be run in pieces: of RERANK_KILLS kills, or as many as there are in RERANK_SECONDS; RERANK_SEED draws
others.

What must hold after the run that is done in the end: the bytes of an undisturbed one, no partial object at any time, no
upload that nobody completed, nothing beside the outputs.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import LONG
from tests.fault_proxy import FaultProxy, fault_proxy
from tests.stores import Bucket
from tests.torture.runs import Asked, Runs

SHARE = 0.05
KILLS = int(os.environ.get("RERANK_KILLS", "1000")) if LONG else 4
SECONDS = float(os.environ.get("RERANK_SECONDS", "inf"))
SEED = int(os.environ.get("RERANK_SEED", "0"))
PAIRS_OF_STARTS = int(os.environ.get("RERANK_STARTS", "100")) if LONG else 2
AGAIN = 0.7 if LONG else 0.3  # how often a run that goes on after a kill is killed too
LEASE = 1.0
LIVES = 20 if LONG else 1
LONG_LEASE = 4.0  # with a sign of life each second; more on a machine on which others wait for a CPU


@pytest.fixture
def proxy(bucket: Bucket) -> Iterator[FaultProxy]:
    with fault_proxy(bucket.endpoint, seed=7 + SEED) as made:
        yield made


def asked_of(bucket: Bucket, endpoint: str, pairs: str, name: str, machine: Path, **more: Any) -> Asked:
    """A run of `pairs` to an object, on the machine with this folder."""
    environment = {**bucket.variables, "AWS_ENDPOINT_URL": endpoint, "XDG_CACHE_HOME": str(machine)}
    options = {"pairs": True, "lock_wait": 300.0}
    how = {"environment": environment, "lease": LEASE, **more}
    return Asked((pairs,), bucket.url(name), options, machine=how)


def left_by(bucket: Bucket, folder: str) -> dict[str, bytes]:
    """What lies in a folder of a bucket; of the report nothing, as it tells times."""
    return {
        name.removeprefix(f"{folder}/"): b"" if name.endswith(".report.json") else bucket.get(name)
        for name in bucket.names()
        if name.startswith(f"{folder}/")
    }


@pytest.fixture
def calls(bucket: Bucket, runs: Runs, pairs: str, tmp_path: Path) -> tuple[int, dict[str, bytes]]:
    """How many calls an undisturbed run makes, and what it leaves."""
    count = tmp_path / "count"
    asked = asked_of(bucket, bucket.endpoint, pairs, "whole/out.jsonl", tmp_path / "whole", count_file=str(count))
    done = runs.run(asked)
    assert done.code == 3, done.said
    return int(count.read_text()), left_by(bucket, "whole")


def test_a_run_killed_at_any_call_is_finished_by_the_next_one(
    bucket: Bucket, proxy: FaultProxy, runs: Runs, pairs: str, tmp_path: Path, calls: tuple[int, dict[str, bytes]]
) -> None:
    most, wanted = calls
    assert sorted(wanted) == ["out.jsonl", "out.jsonl.errors.jsonl", "out.jsonl.report.json"]
    proxy.share = SHARE
    chance = random.Random(3 + SEED)
    killed = 0
    number = 0
    until = time.monotonic() + SECONDS
    while killed < KILLS and time.monotonic() < until:
        number += 1
        folder = str(number)
        end = None
        for attempt in range(1000):
            here = tmp_path / ("same" if chance.random() < 0.8 else f"{number}-{attempt}")
            at = chance.randint(1, most) if attempt == 0 or chance.random() < AGAIN else 0
            asked = asked_of(
                bucket, proxy.endpoint, pairs, f"{folder}/out.jsonl", here,
                kill_at=at, killed=chance.choice(["before", "after"]),
            )  # fmt: skip
            done = runs.run(asked)
            there = left_by(bucket, folder)
            assert there.get("out.jsonl") in (None, wanted["out.jsonl"]), f"{folder}: a part has the name"
            killed += done.code == -9
            if done.code != -9:
                end = done
                break
        assert end is not None
        assert end.code in (0, 3), f"{folder}: {end.said}"
        assert left_by(bucket, folder) == wanted, f"{folder}: {end.said}"
        assert not bucket.uploads()
        for name in left_by(bucket, folder):
            bucket.client.delete_object(Bucket=bucket.name, Key=f"{folder}/{name}")
        figures = f"{killed} kills, {sum(proxy.calls.values())} calls, {dict(proxy.faults)}"
        print(figures, flush=True)
    assert proxy.faults, "no call failed"


@pytest.mark.parametrize("skew", [0.0, 600.0])
def test_of_two_machines_on_one_output_one_works(
    bucket: Bucket, proxy: FaultProxy, runs: Runs, pairs: str, tmp_path: Path, skew: float
) -> None:
    proxy.share = SHARE if LONG else 0.0
    ends: list[tuple[int, int]] = []
    for number in range(PAIRS_OF_STARTS):
        both = []
        for machine in ("a", "b"):
            one = asked_of(
                bucket, proxy.endpoint, pairs, f"{number}/out.jsonl", tmp_path / machine,
                lease=60.0, skew=skew if machine == "b" else 0.0,
            )  # fmt: skip
            both.append(Asked(one.inputs, one.output, {**one.options, "lock_wait": 0.0}, machine=one.machine))
        first, second = runs.together(*both)
        ends.append((first.code, second.code))
        codes = sorted((first.code, second.code))
        assert codes in ([3, 11], [0, 3]), (number, first, second)
        assert sorted(left_by(bucket, str(number))) == ["out.jsonl", "out.jsonl.errors.jsonl", "out.jsonl.report.json"]
    assert ends


@pytest.mark.slow
@pytest.mark.parametrize("skew", [-600.0, 600.0])
def test_a_machine_that_lives_keeps_its_lock_whatever_a_clock_says(
    bucket: Bucket, proxy: FaultProxy, runs: Runs, pairs: str, tmp_path: Path, skew: float
) -> None:
    """One of two computes for longer than a lease and commits nothing; the other wants its lock all the time."""
    proxy.share = SHARE if LONG else 0.0
    lease = LONG_LEASE * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    for number in range(LIVES):
        both = [
            asked_of(
                bucket, proxy.endpoint, pairs, f"{number}/out.jsonl", tmp_path / machine,
                lease=lease, silent=2.5 * lease, skew=skew if machine == "b" else 0.0,
            )
            for machine in ("a", "b")
        ]  # fmt: skip
        worked, waited = sorted(runs.together(*both), key=lambda done: -done.code)
        assert (worked.code, waited.code) == (3, 0), (worked, waited)
        assert "nothing to do" in waited.said
        assert "resumes after" not in worked.said
        assert worked.seconds > 2.5 * lease


def test_a_machine_that_died_loses_its_lock_when_its_lease_is_over(
    bucket: Bucket, runs: Runs, pairs: str, tmp_path: Path, calls: tuple[int, dict[str, bytes]]
) -> None:
    """The holder is killed in the middle of its windows; one on another machine waits for the lease, and no longer."""
    most, wanted = calls
    dead = asked_of(bucket, bucket.endpoint, pairs, "far/out.jsonl", tmp_path / "dead", kill_at=most * 5 // 8)
    assert runs.run(dead).code == -9
    assert "out.jsonl" not in left_by(bucket, "far")
    assert len(left_by(bucket, "far")) > 2, "the lock and some windows"
    impatient = asked_of(bucket, bucket.endpoint, pairs, "far/out.jsonl", tmp_path / "other", lease=60.0)
    refused = runs.run(Asked(impatient.inputs, impatient.output, {"pairs": True}, machine=impatient.machine))
    assert refused.code == 11, refused.said
    done = runs.run(asked_of(bucket, bucket.endpoint, pairs, "far/out.jsonl", tmp_path / "other"))
    assert done.code == 3, done.said
    assert "resumes after" in done.said
    assert left_by(bucket, "far") == wanted
