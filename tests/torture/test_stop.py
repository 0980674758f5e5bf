"""Signals, deadlines and readers that go away: real processes, stopped at any moment."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import LONG, TINY_CHECKPOINT, write_lines
from tests.processes import Started
from tests.torture.conftest import TEXT, outputs
from tests.torture.runs import ROOT, Asked, Runs, on_one_core

MOMENTS = 100 if LONG else 4
SECONDS = 10.0 if LONG else 120.0  # from a signal to the end of the process, where nobody else needs the machine


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Pairs for half a second of work."""
    path = tmp_path_factory.mktemp("many") / "pairs.jsonl"
    rows = ({"query": TEXT.split()[n % 7], "passage": f"{TEXT} {n}"} for n in range(1500))
    return write_lines(path, rows)


def program(*arguments: str, **settings: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "rerank_cli", *arguments, "--model", str(TINY_CHECKPOINT)]
    return Started(command, cwd=ROOT, preexec_fn=on_one_core, **settings)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_signal_at_any_moment_costs_nothing(
    tmp_path: Path, runs: Runs, many: str, number: signal.Signals, code: int
) -> None:
    (tmp_path / "whole").mkdir()
    whole = runs.run(Asked((many,), str(tmp_path / "whole" / "out.jsonl"), {"pairs": True}))
    moment = random.Random(number)
    for place in range(MOMENTS):
        folder = tmp_path / str(place)
        folder.mkdir()
        asked = Asked((many,), str(folder / "out.jsonl"), {"pairs": True})
        after = moment.uniform(0, whole.seconds)
        first = runs.run(asked, after=after, signal=number)
        assert first.code in (code, 0), first.said
        assert first.seconds - after < SECONDS
        if (folder / "out.jsonl").exists():  # it came when all was done
            assert (folder / "out.jsonl").read_bytes() == (tmp_path / "whole" / "out.jsonl").read_bytes()
        assert runs.run(asked).code == 0
        assert outputs(folder) == outputs(tmp_path / "whole")


def test_a_deadline_ends_the_run_and_the_next_one_goes_on(tmp_path: Path, runs: Runs, many: str) -> None:
    out = tmp_path / "out.jsonl"
    asked = Asked((many,), str(out), {"pairs": True})
    at_once = runs.run(asked, options={"pairs": True, "deadline": 0.0})
    assert at_once.code == 9
    assert "the deadline is reached" in at_once.said
    assert list(tmp_path.iterdir()) == []
    codes = []
    while not codes or codes[-1] == 9:
        codes.append(runs.run(asked, options={"pairs": True, "deadline": 0.3 * (1 + len(codes))}).code)
    assert codes[-1] == 0
    (tmp_path / "whole").mkdir()
    runs.run(asked, output=str(tmp_path / "whole" / "out.jsonl"))
    assert out.read_bytes() == (tmp_path / "whole" / "out.jsonl").read_bytes()


HOLDS = """
import signal, sys, time
from rerank_cli.job.stop import Stop
signal.signal(signal.SIGINT, signal.default_int_handler)
stop = Stop()
with stop.listening(), stop.held():
    print("ready", flush=True)
    while stop._request is None:
        time.sleep(0.01)
    print("finishes what is held", flush=True)
    while True:
        time.sleep(0.01)
"""


def test_the_second_interrupt_leaves_at_once() -> None:
    with Started([sys.executable, "-c", HOLDS], cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        # Not before it was heard: two signals that come while a process waits for its turn are one.
        assert process.stdout.readline() == b"finishes what is held\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=SECONDS) == 130


def test_a_reader_that_takes_nothing_does_not_keep_a_stopped_run(many: str) -> None:
    with program("score", many, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read(1)  # it writes; the pipe is full soon, as nobody reads on
        time.sleep(1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=SECONDS) == 143


@pytest.mark.parametrize("_", range(50 if LONG else 1))
def test_a_reader_that_leaves_ends_the_run_without_a_word(many: str, _: int) -> None:
    with program("score", many, "-q", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        with Started(["head", "-1"], stdin=process.stdout, stdout=subprocess.PIPE) as head:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.close()
            first, _nothing = head.communicate()
        assert first.startswith(b'{"query": "two"')
        assert process.wait(timeout=300) == 141
        assert process.stderr.read() == b""
