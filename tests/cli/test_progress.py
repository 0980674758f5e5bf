"""What a terminal shows of a run while it goes on, of a real one (pty), against what the run did."""

from __future__ import annotations

import fcntl
import gzip
import io
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from rerank_cli.cli.console import _bar_of
from rerank_cli.job.progress import Progress
from tests.conftest import write_lines, write_table
from tests.processes import Started

ROOT = Path(__file__).parents[2]
SLOW = float(os.environ.get("RERANK_SLOW_WINDOW", "0.3"))
UNITS = {"s": 1, "min": 60}
SHOWN = re.compile(
    r"([\d,]+) pairs\s.*?(\d+) %\s+([\d,.]+) pairs/s\s+(\d+):(\d\d):(\d\d)(?:\s+(less than|about) (\d+) (s|min) left)?"
)


@dataclass
class Look:
    """The bar, once it was drawn."""

    at: float
    pairs: int
    percent: int
    speed: float
    elapsed: float
    left: float | None


@dataclass
class Watched:
    """A run on a terminal. lines: whatever stood in one line of it, whole or in part."""

    looks: list[Look]
    said: str
    code: int
    lines: list[str]


def watch(
    arguments: list[str],
    *,
    seconds_per_token: float,
    batch: int = 8,
    columns: int = 100,
    stop_at: int | None = None,
) -> Watched:
    """Run on a terminal of so many columns; stop_at: the percentage at which Ctrl-C is pressed."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    env = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    env |= {"TERM": "xterm", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "tests.cli.slow_run", f"{seconds_per_token}", f"{batch}", *arguments]
    with Started(
        command,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=ROOT,
        env=env,
        start_new_session=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    ) as process:
        os.close(theirs)
        looks, said = [], ""
        while True:
            ready, _, _ = select.select([ours], [], [], 60)
            assert ready, "a bar is drawn ten times a second"
            try:
                data = os.read(ours, 65536)
            except OSError:  # Linux: the other end is closed
                break
            if not data:
                break
            text, at = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", data.decode(errors="replace")), time.monotonic()
            said += text
            if found := list(SHOWN.finditer(text)):
                looks.append(_look(found[-1], at))
                if stop_at is not None and looks[-1].percent >= stop_at:
                    process.send_signal(signal.SIGINT)
                    stop_at = None
        code = process.wait(60)
    os.close(ours)
    return Watched(looks, said, code, re.split(r"[\r\n]+", said))


def _look(found: re.Match[str], at: float) -> Look:
    pairs, percent, speed, hours, minutes, seconds, about, left, unit = found.groups()
    elapsed = 3600 * int(hours) + 60 * int(minutes) + int(seconds)
    return Look(
        at, int(pairs.replace(",", "")), int(percent), float(speed.replace(",", "")), elapsed,
        None if left is None else 0 if about == "less than" else int(left) * UNITS[unit],
    )  # fmt: skip


def rows(count: int = 60, passages: int = 10) -> list[dict[str, Any]]:
    """Lists of passages that differ in length, in no order."""
    return [
        {
            "query": f"query {number}",
            "passages": [f"{number} {n} " + "word " * (number * 7 + n * 3) for n in range(passages)],
        }
        if number % 3
        else {"query": f"query {number}", "passages": [f"{number} {n} " + "word " * (n * 5) for n in range(passages)]}
        for number in (value * 17 % 40 for value in range(count))
    ]


def check(run: Watched, *, begins_at: int = 0, columns: int = 100) -> None:
    """What must hold of every bar: no end before the end, an estimate that is true from a tenth on, and one line."""
    looks = run.looks
    short = [line for line in run.lines if "/out.jsonl" not in line]  # a path stays in one piece
    assert all(len(line) <= columns for line in short), max(short, key=len)
    assert len(looks) > 20, run.said
    assert looks[0].percent >= begins_at - 3  # of bytes, where rows were told
    assert all(look.percent < 100 for look in looks)
    assert all(one.percent <= next_.percent for one, next_ in pairwise(looks))
    assert {look.elapsed for look in looks} >= set(range(int(looks[0].elapsed), int(looks[-1].elapsed)))
    began = next(look.at for look in looks if look.pairs)
    ended = looks[-1].at  # that Python and torch take themselves apart afterwards is no part of the work
    took = ended - began
    told = [look for look in looks if look.left is not None]
    assert len(told) > 0.7 * len(looks), "the estimate stands there as soon as a batch is finished, at any width"
    for look in told:
        if look.left == 0:
            assert ended - look.at <= 1 + 0.1 * took, "no end before the end"
        if look.left >= 2 and look.percent - begins_at >= 0.1 * (100 - begins_at) + 1:
            # Shown in whole seconds, and what is written after the last pair takes a moment.
            assert abs(look.at + look.left - ended) <= 0.15 * took + 1.5, (look, took)


def write_input(folder: Path, kind: str) -> list[str]:
    """The same rows in files of a kind."""
    found = rows()
    if kind == "parquet":
        return [write_table(folder / "in.parquet", found, row_group_size=7)]
    if kind == "many":
        return [write_lines(folder / f"in{n}.jsonl", found[n::4]) for n in range(4)]
    path = write_lines(folder / "in.jsonl", found)
    if kind == "gzip":
        (folder / "in.jsonl.gz").write_bytes(gzip.compress(Path(path).read_bytes()))
        return [f"{path}.gz"]
    if kind == "zstd":
        import pyarrow as pa

        with pa.OSFile(f"{path}.zst", "wb") as raw, pa.CompressedOutputStream(raw, "zstd") as stream:
            stream.write(Path(path).read_bytes())
        return [f"{path}.zst"]
    return [path]


@pytest.mark.slow
def test_the_bar_is_true(tmp_path: Path, tiny_model: str) -> None:
    """Of every kind of input, of a limit, and of a run that is one slow window (a minute, in `SLOW` of the time).

    The engine sleeps, so the runs go on beside each other.
    """
    kinds = {"jsonl": 80, "gzip": 100, "zstd": 120, "parquet": 80, "many": 120, "limit": 100, "slow window": 80}

    def run(kind: str) -> Watched:
        folder = tmp_path / kind
        folder.mkdir()
        if kind == "slow window":
            inputs, limit = write_input(folder, "jsonl"), ["--limit", "50"]  # 500 pairs: windows have 512
        else:
            limit = ["--limit", "30"] if kind == "limit" else []
            inputs = write_input(folder, "jsonl" if limit else kind)
        return watch(
            ["rerank-file", *inputs, "-o", str(folder / "out.jsonl"), "--model", tiny_model, *limit],
            seconds_per_token={"limit": 2e-4, "slow window": SLOW * 60 / 139_000}.get(kind, 1.2e-4),
            batch=24 if kind == "slow window" else 8,
            columns=kinds[kind],
        )

    with ThreadPoolExecutor(len(kinds)) as beside:
        for kind, watched in zip(kinds, beside.map(run, kinds), strict=True):
            assert watched.code == 0, (kind, watched.said)
            check(watched, columns=kinds[kind])


@pytest.mark.slow
def test_a_narrow_terminal_has_what_matters_most_in_one_line(tmp_path: Path, tiny_model: str) -> None:
    (source,) = write_input(tmp_path, "jsonl")
    run = watch(
        ["rerank-file", source, "-o", str(tmp_path / "out.jsonl"), "--model", tiny_model],
        seconds_per_token=6e-5,
        columns=40,
    )
    assert run.code == 0, run.said
    shown = [line for line in run.lines if " % " in line or "left" in line]
    assert all(len(line) <= 40 for line in shown)
    assert sum(bool(re.search(r"\d+ % .*(about|less than) \d+ s left", line)) for line in shown) > 10, run.said


@pytest.mark.slow
def test_a_run_that_was_stopped_says_what_is_kept_and_the_next_begins_there(tmp_path: Path, tiny_model: str) -> None:
    (source,) = [
        write_lines(
            tmp_path / "in.jsonl", [{"query": f"q{n}", "passage": f"a {n} " + "b " * (n % 50)} for n in range(640)]
        )
    ]
    command = ["score", source, "-o", str(tmp_path / "out.jsonl"), "--model", tiny_model, "--checkpoint-every", "0"]
    first = watch(command, seconds_per_token=4e-4, stop_at=45)
    assert first.code == 130
    last = first.said.strip().splitlines()[-1].strip()
    found = re.fullmatch(
        r"stopped: (\d+) of 640 rows \((\d+) %\) are kept; about \d+ s is left; run the same command again",
        last,
    )
    assert found, first.said
    kept, percent = map(int, found.groups())
    assert kept % 64 == 0
    assert percent == round(100 * kept / 640)
    second = watch(command, seconds_per_token=4e-4)
    assert second.code == 0, second.said
    assert f"resumes after {kept} of 640 rows ({percent} %), which an earlier process has finished at " in second.said
    check(second, begins_at=percent)
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 640


@pytest.mark.slow
def test_a_log_says_the_same(tmp_path: Path, tiny_model: str) -> None:
    (source,) = write_input(tmp_path, "jsonl")
    command = [sys.executable, "-m", "tests.cli.slow_run", "1e-4", "8"]
    done = subprocess.run(
        [*command, "rerank-file", source, "-o", str(tmp_path / "out.jsonl"), "--model", tiny_model],
        cwd=ROOT, capture_output=True, text=True, check=True, env={**os.environ, "LINE_EVERY": "4"},
    )  # fmt: skip
    found = re.search(
        r"([\d,]+) pairs in (\d+) s \(([\d,.]+) pairs/s\), (\d+) %, about (\d+) (s|min) left", done.stderr
    )
    assert found, done.stderr
    pairs, seconds, speed = int(found[1].replace(",", "")), int(found[2]), float(found[3])
    assert pairs / (seconds + 0.55) <= speed <= pairs / (seconds - 0.55)  # shown in whole seconds
    report = json.loads((tmp_path / "out.jsonl.report.json").read_text())
    assert report["speed"]["pairs_per_second"] == pytest.approx(
        report["counts"]["pairs"] / report["seconds"]["wall"], rel=0.01
    )


@pytest.mark.parametrize("columns", [20, 30, 40, 60, 80, 100, 120, 200])
@pytest.mark.parametrize(("pairs", "share"), [(0, None), (24, 0.061), (12_345_678, 0.4567)])
def test_the_bar_is_one_line_at_any_width_and_keeps_the_estimate(
    columns: int, pairs: int, share: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    clock = iter(range(10**6))
    progress = Progress(clock=lambda: float(next(clock)) * 3_000)
    if share is not None:
        progress.submit(100, 1.0)
        progress.end_part(pairs, share, rows=1)
    live = _bar_of(progress)
    live.console.width = columns
    lines = [
        "".join(segment.text for segment in line) for line in live.console.render_lines(live.renderable, pad=False)
    ]
    assert len(lines) == 1
    assert len(lines[0]) <= columns
    assert share is None or f"{round(100 * share)} %" in lines[0]
    assert share is None or columns < 40 or "left" in lines[0]
