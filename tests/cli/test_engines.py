"""`--engines N`: the same bytes from several processes, also when one of them or the whole run is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import read_lines, write_lines
from tests.processes import Started
from tests.torture.conftest import TEXT
from tests.unit.images import data_uri, encoded, picture

PARITY = Path(__file__).parents[1] / "parity"
ONE_CORE = {min(os.sched_getaffinity(0))}  # so that an engine has one thread, however many there are


def start(source: str, out: Path, *options: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "rerank_cli", "rerank-file", source, "-o", str(out), *options]
    return Started(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, preexec_fn=lambda: os.sched_setaffinity(0, ONE_CORE)
    )


def run(source: str, out: Path, *options: str) -> str:
    process = start(source, out, *options)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said.decode()
    return said.decode()


def workers_of(process: subprocess.Popen[bytes]) -> list[int]:
    """Processes that it has started to score."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in children if b"engine.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def wait_for(process: subprocess.Popen[bytes], sign: Path) -> None:
    deadline = time.monotonic() + 120
    while not sign.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory) -> str:
    """2,000 pairs of some lengths, in four windows."""
    words = TEXT.split()
    rows = (
        {"query": words[n % 9], "passages": [" ".join(words[k % 5 : 6 + (n * k) % 8] * (1 + k % 3)) for k in range(20)]}
        for n in range(100)
    )
    return write_lines(tmp_path_factory.mktemp("engines") / "lists.jsonl", rows)


@pytest.fixture(scope="module")
def whole(lists: str, tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What one engine writes."""
    out = tmp_path_factory.mktemp("one") / "out.jsonl"
    run(lists, out, "--model", tiny_model, "-q")
    return out.read_bytes()


def test_several_engines_write_the_bytes_of_one(lists: str, tiny_model: str, whole: bytes, tmp_path: Path) -> None:
    out, engines = tmp_path / "out.jsonl", 3
    run(lists, out, "--model", tiny_model, "--engines", str(engines))
    assert out.read_bytes() == whole
    report = json.loads(Path(f"{out}.report.json").read_text())
    assert report["plan"]["engines"] == ["cpu"] * engines
    assert report["plan"]["kernels"].endswith(f"; {engines} processes")
    assert report["counts"]["engine_deaths"] == 0
    assert report["memory"]["measured_bytes"] > 3 * 100 * 2**20  # three processes with torch in them
    assert "the processes of 3 engines" in report["memory"]["measured"]
    assert 0 <= report["speed"]["padding_share"] < 0.2
    assert report["seconds"]["compute"] > 0


def test_pages_are_seen_by_several_engines_alike(tmp_path: Path) -> None:
    pages = [data_uri(encoded(picture(300 + 40 * n, 400))) for n in range(20)]  # two parts of a window
    rows = [{"query": f"page {n}", "passages": [{"image": page, "text": "a"} for page in pages]} for n in range(2)]
    source = write_lines(tmp_path / "in.jsonl", rows)
    model = str(PARITY / "nemotron-vl-rerank-open" / "checkpoint")
    outs = [tmp_path / f"{engines}.jsonl" for engines in (1, 2)]
    for engines, out in enumerate(outs, 1):
        run(source, out, "--model", model, "--engines", str(engines), "--max-input-tiles", "1", "-q")
    assert outs[0].read_bytes() == outs[1].read_bytes()
    assert len({passage["logit"] for passage in read_lines(outs[0])[0]["passages"]}) > 10


def test_a_killed_engine_costs_nothing_and_is_told(lists: str, tiny_model: str, whole: bytes, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    process = start(lists, out, "--model", tiny_model, "--engines", "2", "--checkpoint-every", "0s")
    wait_for(process, tmp_path / "out.jsonl.job")
    while len(found := workers_of(process)) < 2:
        assert process.poll() is None
    os.kill(found[0], signal.SIGKILL)
    _, said = process.communicate(timeout=300)
    if process.returncode == 1:  # it was killed while it loaded, and so was the other one's turn
        pytest.fail(said.decode())
    ranks = [[passage["index"] for passage in row["passages"]] for row in read_lines(out)]
    assert ranks == [[passage["index"] for passage in row["passages"]] for row in map(json.loads, whole.splitlines())]
    assert b"was lost (killed by SIGKILL" in said or b"ended while it loaded the model (killed by SIGKILL" in said


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_stopped_run_of_several_engines_goes_on_to_the_same_bytes(
    lists: str, tiny_model: str, whole: bytes, tmp_path: Path, number: int, code: int
) -> None:
    out = tmp_path / "out.jsonl"
    options = ["--model", tiny_model, "--engines", "2", "--checkpoint-every", "0s"]
    process = start(lists, out, *options)
    wait_for(process, tmp_path / "out.jsonl.job" / "journal")
    found = workers_of(process)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode in (code, 0)
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in found):
        assert time.monotonic() < deadline, "an engine outlives the run"
        time.sleep(0.05)
    run(lists, out, *options)
    assert out.read_bytes() == whole
