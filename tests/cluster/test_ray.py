"""Runs on a real Ray cluster of this machine: what they write, and what is lost when processes are killed. Nothing."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rerank_cli.cli import main
from tests.conftest import LONG, TINY_CHECKPOINT, read_lines, write_lines, write_table
from tests.processes import Started, wait_until
from tests.torture.conftest import TEXT

pytest.importorskip("ray", reason="Ray is not installed")

MOMENTS = 20 if LONG else 1
ONE_CORE = {min(os.sched_getaffinity(0))}


def start(*arguments: str, **settings: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "rerank_cli", "rerank-file", *arguments, "--model", str(TINY_CHECKPOINT)]
    return Started(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, **settings)


def run(*arguments: str, code: int = 0, **settings: Any) -> str:
    process = start(*arguments, **settings)
    _, said = process.communicate(timeout=400)
    assert process.returncode == code, said.decode()
    return said.decode()


def on(address: str, *more: str, engines: int = 2) -> list[str]:
    """Engines of one CPU on the cluster."""
    where = ["--engine", "ray", "--ray-address", address]
    return [*where, "--device", "cpu", "--cpus-per-engine", "1", "--engines", str(engines), *more]


def joined(folder: Path, stem: str) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.glob(f"{stem}*.jsonl")))


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder: 240 lists in a large file, 60 in a small one, some of them bad."""
    words = TEXT.split()
    folder = tmp_path_factory.mktemp("lists")
    for name, count in (("large", 240), ("small", 60)):
        rows: list[Any] = [
            {"id": n, "query": words[n % 9], "passages": [" ".join(words[k % 5 : 6 + (n * k) % 8]) for k in range(30)]}
            for n in range(count)
        ]
        rows[7] = {"id": 7, "query": 7}
        write_lines(folder / f"{name}.jsonl", rows)
    return folder


@pytest.fixture(scope="module")
def whole(lists: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one engine with one thread writes."""
    folder = tmp_path_factory.mktemp("here")
    made = {}
    for name in ("large", "small"):
        out = folder / f"{name}.jsonl"
        with one_core():
            more = ["-q", "--model", str(TINY_CHECKPOINT)]
            assert main(["rerank-file", str(lists / f"{name}.jsonl"), "-o", str(out), *more]) == 3
        made[name] = out.read_bytes()
    return made


def assert_whole(folder: Path, whole: dict[str, bytes]) -> dict[str, Any]:
    for name, data in whole.items():
        assert joined(folder, name) == data
    assert not list(folder.glob("*.job"))
    manifest: dict[str, Any] = json.loads((folder / "_manifest.json").read_text())
    assert manifest["counts"]["rows_in"] == 300
    assert manifest["counts"]["rows_error"] == 2
    assert manifest["first_error"][1] == 8
    assert sum(part["rows_out"] for part in manifest["parts"]) == 298
    assert {part["name"] for part in manifest["parts"]} == {path.name for path in folder.glob("*.jsonl")}
    return manifest


def test_known_shapes_and_tables_on_shares_of_a_gpu_are_the_same_bytes_as_here(address: str, tmp_path: Path) -> None:
    def found(n: int) -> list[dict[str, Any]]:
        return [
            {"id": f"d{k}", "title": f"Road {k}", "text": f"wood {n} {k * n % 7}", "score": "1.5"} for k in range(9)
        ]

    rows = [{"id": f"q{n}", "question": f"two roads {n}", "answers": ["x"], "ctxs": found(n)} for n in range(40)]
    (tmp_path / "dpr").mkdir()
    write_lines(tmp_path / "dpr" / "a.jsonl", rows[:25])
    (tmp_path / "dpr" / "b.json").write_text(json.dumps(rows[25:], indent=1))
    write_table(tmp_path / "dpr" / "c.parquet", rows[5:20])
    (tmp_path / "csv").mkdir()
    for name, cut in (("a", rows[:25]), ("b", rows[25:])):
        lines = [
            f'{row["id"]},{row["question"]},{one["id"]},"{one["title"]}","{one["text"]}, ""so""\nand on"\n'
            for row in cut
            for one in row["ctxs"]
        ]
        (tmp_path / "csv" / f"{name}.csv").write_text("query_id,query,doc_id,title,text\n" + "".join(lines))
    table = ("--out-format", "csv")
    shares = ["--engine", "ray", "--ray-address", address, "--gpus-per-engine", "0.5", "--engines", "2"]
    tries: list[tuple[str, list[str], tuple[str, ...]]] = [("dpr", shares, table)]
    if LONG:
        tries += [("dpr", on(address), ()), ("csv", on(address), table)]
    for kind, where, options in tries:
        more = ["--text-field", "title,text", "--model", str(TINY_CHECKPOINT), "-q", *options]
        out = tmp_path / f"{kind} of ray {len(options)}"
        run(str(tmp_path / kind), "-o", str(out), *where, "--text-field", "title,text", "-q", *options)
        manifest = json.loads((out / "_manifest.json").read_text())
        assert manifest["cluster"] == {"engines": 2, "cpus": 1, "gpus": 0.5 if where is shares else 0.0}
        assert manifest["plan"]["device"] == "cpu"  # the actor has looked: Ray's GPU is logical
        for source in sorted((tmp_path / kind).iterdir()):
            parts = sorted(out.glob(f"{source.name[0]}*"))
            alone = tmp_path / f"alone {len(options)} {source.name}{parts[0].suffix}"
            with one_core():
                assert main(["rerank-file", str(source), "-o", str(alone), *more]) == 0
            if alone.suffix != ".parquet":
                assert _put_together(parts, is_table=bool(options)) == alone.read_bytes()


def _put_together(parts: list[Path], *, is_table: bool) -> bytes:
    """The bytes of parts of one file; of tables with one header."""
    whole = [part.read_bytes() for part in parts]
    assert whole
    return whole[0] + b"".join(data.partition(b"\n")[2] if is_table else data for data in whole[1:])


@contextmanager
def one_core() -> Iterator[None]:
    """The plan of one thread in this process."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, ONE_CORE)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def actors() -> list[int]:
    """Ray's processes that have our actor."""
    found = subprocess.run(["pgrep", "-f", "^ray::Scorer"], capture_output=True, text=True, check=False)
    return [int(pid) for pid in found.stdout.split()]


def until(process: subprocess.Popen[bytes], folder: Path, pattern: str) -> bool:
    """Wait until the folder has such a file; False if the process ended before."""
    deadline = time.monotonic() + 200
    while not list(folder.glob(pattern)):
        if process.poll() is not None:
            return False
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return True


def refused_as_another_run(lists: Path, out: Path) -> str:
    """A finished folder and other options; no cluster is asked."""
    return run(str(lists), "-o", str(out), *on("127.0.0.1:9", "--top-n", "3"), code=4)


def test_a_folder_becomes_a_folder_of_the_same_bytes_once_though_an_actor_is_killed(
    address: str, lists: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    moment = random.Random("actor")
    for place in range(MOMENTS):
        out = tmp_path / f"{place}"
        process = start(str(lists), "-o", str(out), *on(address, "--checkpoint-every", "0s"))
        if until(process, out, "*.job"):
            time.sleep(moment.uniform(0, 3.0))
            killed = actors()
            for pid in moment.sample(killed, min(1, len(killed))):
                os.kill(pid, signal.SIGKILL)
        said = process.communicate(timeout=400)[1].decode()
        assert process.returncode == 3, said
        assert "2 of 300 rows could not be scored and are in" in said
        manifest = assert_whole(out, whole)
    assert manifest["cluster"] == {"engines": 2, "cpus": 1, "gpus": 0.0}
    assert manifest["plan"]["threads"] == 1
    errors = [row for path in sorted((out / "_rerank").glob("*.errors.jsonl")) for row in read_lines(path)]
    assert [(row["row"], row["error"]["code"]) for row in errors] == [(8, "wrong-type")] * 2
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.json*")}
    assert "nothing to do" in run(str(lists), "-o", str(out), *on("127.0.0.1:9"))  # nobody is asked
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.json*")} == before
    assert "holds the output of another run" in refused_as_another_run(lists, out)
    facts = json.loads((out / "_manifest.json").read_text())
    (out / "_manifest.json").write_text(json.dumps({**facts, "counts": {"rows": 7}}))
    assert "_manifest.json: was not written by this version of the program" in run(
        str(lists), "-o", str(out), *on("127.0.0.1:9"), code=4
    )


def test_of_two_drivers_one_works_and_a_killed_one_is_continued_but_not_over_what_another_hand_made(
    address: str, lists: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    moment = random.Random("driver")
    for place in range(MOMENTS):
        out = tmp_path / f"{place}"
        there = [str(lists), "-o", str(out)]
        process = start(*there, *on(address, "--checkpoint-every", "0s"))
        assert until(process, out, "*.job")
        began = time.monotonic()
        assert "another process works on this output" in run(*there, *on(address), code=11)
        time.sleep(max(0.0, moment.uniform(0, 3.0) + began - time.monotonic()))
        process.kill()
        process.communicate(timeout=100)
        if (out / "_manifest.json").exists():
            continue
        # The actors of the killed one still have their parts for a moment.
        tasks = json.loads((out / "_rerank" / "tasks.json").read_text())["tasks"]
        parts = [out / task["name"] for task in tasks]
        whole_parts = (part for part in parts if part.exists() and not Path(f"{part}.job").exists())
        poisoned = next(whole_parts, parts[-1])
        before = poisoned.read_bytes() if poisoned.exists() else None
        with poisoned.open("xb" if before is None else "wb") as file:  # never into a file that an actor is placing
            file.write(b"by another hand\n")
        said = run(*there, *on(address), code=4)
        assert f"error: {poisoned}: " in said
        assert not (out / "_manifest.json").exists()
        assert poisoned.read_bytes() == b"by another hand\n"
        poisoned.unlink() if before is None else poisoned.write_bytes(before)
        run(*there, *on(address, engines=1), code=3)
        assert_whole(out, whole)


def test_a_begun_run_is_only_replaced_when_that_is_asked_for(address: str, tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    for name in ("a", "b"):
        rows: list[Any] = [{"id": n, "query": "two roads", "passages": [f"wood {n}", "yellow"]} for n in range(20)]
        write_lines(tmp_path / "lists" / f"{name}.jsonl", [*rows, {"id": 7, "query": 7}])
    out = tmp_path / "out"
    there = [str(tmp_path / "lists"), "-o", str(out)]
    too_many = run(*there, *on(address, "--max-errors", "1", engines=1), code=7)  # the bad rows of all parts
    assert "2 rows failed, --max-errors allows 1" in too_many
    changed = run(*there, *on(address, "--max-tokens", "16", engines=1), code=8)
    assert "`--max-tokens` was not given, is 16" in changed
    process = start(*there, *on(address, "--max-tokens", "16", "--restart", engines=1))
    wait_until(lambda: f'"pid": {process.pid},' in (out / "_rerank" / "lock").read_text(), "has no lock")
    process.terminate()
    said = process.communicate(timeout=100)[1].decode()
    assert process.returncode == 143, said
    run(*there, *on(address, "--max-tokens", "16", "--restart", engines=1), code=3)
    assert "holds a finished run" in run(*there, *on(address, "--restart", engines=1), code=4)
    assert len(joined(out, "").splitlines()) == 40


HURT = """
import os, sys
if "rerank_cli.engine.worker" in " ".join(sys.orig_argv):
    from rerank_cli.engine import worker
    whole = worker.Unit.pairs
    def pairs(unit):
        if len(unit.ids) and max(unit.ends - [0, *unit.ends[:-1]]) >= 100:
            os.kill(os.getpid(), 9)
        return whole(unit)
    worker.Unit.pairs = pairs
"""


def test_a_row_that_kills_its_worker_is_an_error_after_three_tries(tmp_path: Path) -> None:
    (tmp_path / "hurt").mkdir()
    (tmp_path / "hurt" / "sitecustomize.py").write_text(HURT)
    rows = [{"query": "two roads", "passages": [f"wood {n}", "yellow"]} for n in range(2)]
    rows[1]["passages"][1] = "wood " * 200
    source = write_lines(tmp_path / "in.jsonl", rows)
    options = ["--engine", "ray", "--cpus-per-engine", "1", "--engines", "1"]  # on a cluster that the run starts
    out = tmp_path / "out"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "hurt")}
    said = run(source, "-o", str(out), *options, code=3, env=environment)
    assert "1 passage of a list that is ranked without it could not be scored" in said
    assert "was lost (killed by SIGKILL" in said
    (error,) = read_lines(out / "_rerank" / "in.jsonl.errors.jsonl")
    assert (error["row"], error["error"]["code"]) == (2, "engine-died")
    assert error["error"]["message"].startswith("passages[1]: the pair has ended 3 processes")
    assert len(read_lines(out / "in.jsonl")) == 2
    assert json.loads((out / "_manifest.json").read_text())["counts"]["engine_deaths"] >= 3


def test_too_few_cpus_are_refused_within_seconds(tmp_path: Path, lists: Path) -> None:
    began = time.monotonic()
    said = run(str(lists), "-o", str(tmp_path / "out"), "--engine", "ray", "--engines", "99", code=6)
    assert re.search(r"error: --engine ray: 99 engines of 1 CPU need 99, and the cluster has \d+", said)
    assert time.monotonic() - began < 30  # 5 s where nothing else runs; Ray itself would wait for ever


def test_a_cluster_that_does_not_answer_is_told(tmp_path: Path, lists: Path) -> None:
    options = ["--engine", "ray", "--ray-address", "127.0.0.1:9"]
    assert "127.0.0.1:9: no Ray cluster answers" in run(str(lists), "-o", str(tmp_path / "out"), *options, code=4)
