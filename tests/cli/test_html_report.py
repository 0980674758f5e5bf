"""`--report run.html`: where the page goes, when it is written, and the command that it tells."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rerank_cli.cli import main
from rerank_cli.cli.command_line import quoted
from rerank_cli.errors import StoppedError
from rerank_cli.job.options import JobOptions, Names
from rerank_cli.job.run import Watcher, run_job
from rerank_cli.job.stop import Stop
from rerank_cli.report.page import render_report
from tests.conftest import write_lines

BIN = Path(sys.prefix) / "bin"
LISTS = [{"query_id": n, "query": "which way", "passages": ["a road", f"road {n}"]} for n in range(5)]
PAIRS = [{"query": "which way", "passage": f"road {n}"} for n in range(5)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: str) -> Path:
    """A folder to work in, with inputs in it and the tiny model as `RERANK_MODEL`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RERANK_MODEL", tiny_model)
    write_lines(tmp_path / "lists.jsonl", LISTS)
    write_lines(tmp_path / "pairs.jsonl", PAIRS)
    return tmp_path


def report_of(name: str) -> Any:
    return json.loads(Path(name).read_bytes())


@pytest.mark.parametrize("command", [["score", "pairs.jsonl"], ["rerank-file", "lists.jsonl"]])
@pytest.mark.parametrize("page", ["run.html", "RUN.HTM"])
def test_the_page_stands_beside_the_document(folder: Path, command: list[str], page: str) -> None:
    assert main([*command, "-o", "out.jsonl", "--report", page, "-q"]) == 0
    assert (folder / page).read_bytes() == render_report(report_of("out.jsonl.report.json"))
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["lists.jsonl", "pairs.jsonl", "out.jsonl", "out.jsonl.report.json", page]
    )


@pytest.mark.parametrize("command", [["score", "pairs.jsonl"], ["rerank-file", "lists.jsonl", "-o", "-"]])
def test_rows_on_stdout_leave_the_page_alone(
    folder: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--report", "run.html", "-q"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 5
    assert "standard output" in (folder / "run.html").read_text()
    assert sorted(path.name for path in folder.iterdir()) == ["lists.jsonl", "pairs.jsonl", "run.html"]


def test_a_name_that_is_no_page_is_the_document_as_ever(folder: Path) -> None:
    assert main(["score", "pairs.jsonl", "-o", "out.jsonl", "--report", "run.json", "-q"]) == 0
    assert report_of("run.json")["counts"]["pairs"] == 5
    assert not (folder / "out.jsonl.report.json").exists()


def test_a_finished_run_gets_a_page_and_computes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["rerank-file", "lists.jsonl", "-o", "out.jsonl"]
    assert main([*command, "-q"]) == 0
    before = (folder / "out.jsonl").stat().st_mtime_ns
    assert main([*command, "--report", "run.html"]) == 0
    assert "nothing to do" in capsys.readouterr().err
    assert (folder / "out.jsonl").stat().st_mtime_ns == before
    assert (folder / "run.html").read_bytes() == render_report(report_of("out.jsonl.report.json"))


@pytest.mark.parametrize("page", ["in.html", "out.html", "no/run.html", "folder.html"])
@pytest.mark.parametrize("is_done", [False, True])
def test_a_page_that_would_replace_something_else_is_refused(folder: Path, page: str, is_done: bool) -> None:
    (folder / "folder.html").mkdir()
    source = folder / "in.html"
    source.write_bytes((folder / "lists.jsonl").read_bytes())
    command = ["rerank-file", "in.html", "-o", "out.html", "--in-format", "jsonl", "--out-format", "jsonl", "-q"]
    if is_done:
        assert main(command) == 0
    assert main([*command, "--report", page]) in (2, 4)
    assert source.read_bytes() == (folder / "lists.jsonl").read_bytes()
    assert (folder / "out.html").exists() == is_done


def test_a_run_that_is_stopped_leaves_an_older_page_as_it_was(folder: Path) -> None:
    (folder / "run.html").write_text("older")
    write_lines(folder / "bad.jsonl", [b'{"query": "a", "passage": "b"}', b"{"])
    given = ["score", "bad.jsonl", "-o", "out.jsonl", "--report", "run.html", "--on-error", "fail", "--overwrite", "-q"]
    assert main(given) == 7
    assert (folder / "run.html").read_text() == "older"


def test_the_command_of_a_report_does_the_run_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RERANK_TOP_N", "1")
    name = "a 'quoted' $HOME\x1b[2J\udcff.jsonl"
    Path("lists.jsonl").rename(name)
    assert main(["rerank-file", name, "-o", "out.jsonl", "--report", "run.html", "-q"]) == 0
    command = report_of("out.jsonl.report.json")["command"]
    assert command["folder"] == str(folder)
    assert "RERANK_TOP_N=1" in command["line"]
    assert command["line"].isprintable()
    (folder / "out.jsonl").rename("first.jsonl")
    (folder / "out.jsonl.report.json").unlink()
    (folder / "run.html").unlink()
    for variable in ("RERANK_TOP_N", "RERANK_MODEL"):
        monkeypatch.delenv(variable)
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run(["bash", "-c", command["line"]], cwd=command["folder"], env=environment, check=True)
    assert (folder / "out.jsonl").read_bytes() == (folder / "first.jsonl").read_bytes()


@settings(max_examples=20)
@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), min_size=1))
def test_a_shell_reads_back_what_was_quoted(words: list[str]) -> None:
    line = "printf '%s\\0' " + " ".join(map(quoted, words))
    assert line.isprintable()
    told = subprocess.run(["bash", "-c", line], env={"LC_ALL": "C.UTF-8"}, capture_output=True, check=True).stdout
    assert told.decode().split("\0")[:-1] == words


def test_a_title_is_of_a_page_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["rerank-file", "lists.jsonl", "-o", "out.jsonl", "--title", "Spring"]
    assert main([*command, "-q"]) == 2
    assert "no page" in capsys.readouterr().err
    assert main([*command, "-q", "--report", "run.html"]) == 0
    assert "<title>Spring " in Path("run.html").read_text()
    again = ["--title", "Summer", "--overwrite", "--report", "run.html", "-q"]
    assert main([*command[:-2], *again]) == 0  # the finished run gets a page with another title
    assert "<title>Summer " in Path("run.html").read_text()


def test_a_resumed_run_shows_the_queries_that_an_undisturbed_one_shows(folder: Path) -> None:
    """Lists, changes, scores and moves: what is told of two orders does not depend on a stop."""
    passages = [f"road {n} to {'the sea ' * (n % 3)}" for n in range(6)]
    rows = [
        {
            "query_id": n,
            "query": f"way {n}",
            "passages": [{"id": f"p{k}", "text": passages[(n + k) % 6]} for k in range(6)],
        }
        for n in range(200)
    ]
    write_lines(folder / "in.jsonl", rows)
    Path("qrels.txt").write_text("".join(f"{n} 0 p{n % 6} 1\n" for n in range(200)))
    command = ["rerank-file", "in.jsonl", "--qrels", "qrels.txt", "--metric", "RR@10", "-q"]
    assert main([*command, "-o", "whole.jsonl"]) == 0
    options = JobOptions(
        ("in.jsonl",), Names("resumed.jsonl"), model=os.environ["RERANK_MODEL"], qrels="qrels.txt", metrics=("RR@10",),
        checkpoint_every=0.0,
    )  # fmt: skip
    stop = Stop()
    watcher = Watcher(on_progress=lambda *told: stop.request(StoppedError("enough", exit_code=9)))
    with pytest.raises(StoppedError):
        run_job(options, watcher, stop=stop)
    resumed, whole = run_job(options).report, report_of("whole.jsonl.report.json")
    assert resumed["continued"] == 1
    assert len(whole["changes"]["gained"]) == 10
    for part in ("changes", "scores_by_relevance", "moves"):
        assert json.loads(json.dumps(resumed[part])) == whole[part]
    rows = [json.loads(line) for line in Path("whole.jsonl").read_text().splitlines()]
    written = {str(row["query_id"]): row["passages"] for row in rows}
    for one in (*whole["changes"]["gained"], *whole["changes"]["lost"]):
        assert [(each["id"], each["text"]) for each in one["new"]] == [
            (each["id"], " ".join(each["text"].split())) for each in written[one["query"]][:5]
        ]


def test_nothing_is_imported_for_a_page_that_nobody_asks_for() -> None:
    code = "import sys, rerank_cli.job.output; sys.exit('jinja2' in sys.modules or 'markupsafe' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
