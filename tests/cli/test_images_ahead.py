"""Page images in processes of their own, through the command line: the bytes of a run without them, always."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rerank_cli.cli import main
from rerank_cli.planning import run_plan
from tests.conftest import read_lines, write_lines
from tests.processes import Started
from tests.unit.images import encoded, hurt_readers, picture, readers_of, saved

PARITY = Path(__file__).parents[1] / "parity"
RERANKER = str(PARITY / "nemotron-vl-rerank-open" / "checkpoint")
EMBEDDER = str(PARITY / "nemotron-vl-embed-open" / "checkpoint")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Pairs with 20 page images in two windows, PNG and JPEG, bad ones among them, most of them several times."""
    folder = tmp_path_factory.mktemp("pages")
    names = []
    for number in range(20):
        kind = ("PNG", "JPEG")[number % 2]
        names.append(saved(folder, f"{number:02}.{kind.lower()}", picture(150 + 3 * number, 400), kind))
    (folder / "05.jpeg").write_bytes(encoded(picture(300, 300), "JPEG")[:-500])
    (folder / "12.png").write_bytes(b"no image")
    (folder / "16.png").unlink()
    rows = [{"query": f"page {number % 3}", "passage": "", "image": names[number // 4]} for number in range(80)]
    rows[7:7] = [{"query": "page 1", "passage": "a text"}, {"query": "q", "passage": "", "image": "../secret.png"}]
    return write_lines(folder / "rows.jsonl", rows)


def command(source: str, out: Path, *, tiles: int = 1) -> list[str]:
    options = ["--max-input-tiles", str(tiles), "--checkpoint-every", "0s"]
    return ["score", source, "-o", str(out), "--model", RERANKER, *options]


def run_with(processes: int, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(run_plan, "_image_processes", lambda cores, engines: processes)
    return main([*arguments, "-q"])


def written(out: Path) -> tuple[bytes, bytes]:
    return out.read_bytes(), Path(f"{out}.errors.jsonl").read_bytes()


@pytest.fixture(scope="module")
def whole(pages: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """What a run writes that reads its images itself."""
    out = tmp_path_factory.mktemp("whole") / "out.jsonl"
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert run_with(0, monkeypatch, *command(pages, out)) == 3
    assert len(read_lines(out)) == 69
    return written(out)


def test_processes_change_no_byte(
    pages: str, whole: tuple[bytes, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.jsonl"
    assert run_with(3, monkeypatch, *command(pages, out)) == 3
    assert written(out) == whole
    report = json.loads(Path(f"{out}.report.json").read_text())
    assert report["plan"]["image_processes"] == 3
    assert report["seconds"]["images"] > 0
    assert readers_of(os.getpid()) == []


@pytest.mark.parametrize("tokens", ["780", "600"])  # the image has room beside no query; it has none
def test_pages_that_do_not_fit_are_cut_alike(
    pages: str, tokens: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for processes in (0, 2):
        out = tmp_path / f"{processes}.jsonl"
        limits = ("--max-tokens", tokens, "--limit", "40")
        assert run_with(processes, monkeypatch, *command(pages, out, tiles=2), *limits) == 3
        found.append(written(out))
    assert found[0] == found[1]
    assert b'"kept_tiles": 1' in found[0][0]


def test_an_embedder_has_the_same_vectors(pages: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for processes in (0, 2):
        out = tmp_path / f"{processes}.jsonl"
        vectors = ("--embeddings", f"{out}.parquet")
        arguments = ["score", pages, "-o", str(out), "--model", EMBEDDER, "--max-input-tiles", "1", *vectors]
        assert run_with(processes, monkeypatch, *arguments) == 3
        found.append((*written(out), Path(f"{out}.parquet").read_bytes()))
    assert found[0] == found[1]


@pytest.mark.parametrize("images", [0, 3])
def test_few_images_start_no_process(images: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = tmp_path / "mark"
    hurt = hurt_readers(tmp_path / "hurt", at_start=f"open({str(mark)!r}, 'w').close()")
    monkeypatch.setenv("PYTHONPATH", hurt)
    names = [saved(tmp_path, f"{number}.png") for number in range(images)]
    rows = [{"query": "q", "passage": f"{n}"} for n in range(50)]
    rows += [{"query": "q", "passage": "", "image": name} for name in names]
    assert run_with(2, monkeypatch, *command(write_lines(tmp_path / "rows.jsonl", rows), tmp_path / "out.jsonl")) == 0
    assert not mark.exists()


# Real runs, and what kills them and their processes


def start(source: str, out: Path, hurt: str) -> subprocess.Popen[bytes]:
    return Started(
        [sys.executable, "-m", "rerank_cli", *command(source, out)],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": hurt},
        start_new_session=True,  # a group of its own, for signals
    )


def wait_until(holds: Callable[[], object], otherwise: str) -> None:
    deadline = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.01)


def test_an_image_that_ends_its_process_costs_its_row_and_a_killed_process_nothing(
    pages: str, whole: tuple[bytes, bytes], tmp_path: Path
) -> None:
    log, out = tmp_path / "log", tmp_path / "out.jsonl"
    log.touch()
    hurt = hurt_readers(
        tmp_path / "hurt",
        f"open({str(log)!r}, 'a').write(name + ' '); name == '08.png' and os.kill(os.getpid(), 9); time.sleep(0.02)",
    )
    process = start(pages, out, hurt)
    wait_until(lambda: len(log.read_text().split()) > 12 or process.poll() is not None, "no image is read")
    for pid in readers_of(process.pid):
        os.kill(pid, signal.SIGKILL)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 3, said.decode()
    rows = [row for row in map(json.loads, whole[0].splitlines()) if row.get("image") != "08.png"]
    assert len(rows) == 65
    found = read_lines(out)
    # A batch with fewer pairs may move the last digit.
    assert [row.pop("logit") for row in found] == pytest.approx([row.pop("logit") for row in rows], abs=1e-4)
    assert found == rows
    bad = [row["error"] for row in read_lines(f"{out}.errors.jsonl")]
    died = [error["message"] for error in bad if error["code"] == "image-reader-died"]
    assert died == ["the image has ended 2 processes that read it (killed by SIGKILL (out of memory?))"] * 4
    assert len(bad) == len(whole[1].splitlines()) + 4
    assert b"a process that reads images was lost (killed by SIGKILL" in said
    assert b"Traceback" not in said


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)], ids=["TERM", "KILL"])
def test_a_stopped_run_leaves_no_process_says_nothing_of_them_and_goes_on_to_the_same_bytes(
    pages: str,
    whole: tuple[bytes, bytes],
    tmp_path: Path,
    number: signal.Signals,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log, out = tmp_path / "log", tmp_path / "out.jsonl"
    log.touch()
    hurt = hurt_readers(
        tmp_path / "hurt", f"open({str(log)!r}, 'a').write(name + ' '); time.sleep(1000 * (name == '18.png'))"
    )
    process = start(pages, out, hurt)
    wait_until(lambda: "18.png" in log.read_text() or process.poll() is not None, "no image is read")
    found = readers_of(process.pid)
    if number == signal.SIGKILL:
        process.kill()
    else:
        os.killpg(process.pid, number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == code, said.decode()
    assert found
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in found), "a process outlives the run")
    assert b"Traceback" not in said
    assert Path(f"{out}.job").exists()
    assert run_with(1, monkeypatch, *command(pages, out)) == 3
    assert written(out) == whole
