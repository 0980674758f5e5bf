"""An option that would change nothing is refused by name: whoever types it believes that it does something."""

from __future__ import annotations

from pathlib import Path

import pytest

from rerank_cli import Reranker
from rerank_cli.cli import main
from rerank_cli.errors import UsageError
from rerank_cli.job.options import NEEDS
from tests.conftest import TINY_CHECKPOINT, write_lines

_TYPED = {
    "chunk_overlap": ["--chunk-overlap", "8"], "pool": ["--pool", "max"], "store_limit": ["--store-limit", "1GB"],
    "metrics": ["--metric", "P@1"], "teacher.negatives": ["--negatives", "2"],
    "teacher.absolute_margin": ["--absolute-margin", "1"], "teacher.relative_margin": ["--relative-margin", "0.1"],
    "teacher.positive_field": ["--positive-field", "good"], "teacher.relevant_from": ["--relevant-from", "2"],
    "first.keep": ["--first-keep", "10"], "first.top": ["--first-top", "5"],
}  # fmt: skip


@pytest.fixture
def lists(tmp_path: Path) -> str:
    passages = [{"id": "a", "text": "in a yellow wood"}, {"id": "b", "text": "two roads"}]
    return write_lines(tmp_path / "in.jsonl", [{"query_id": "1", "query": "two roads", "passages": passages}])


@pytest.mark.parametrize("path", NEEDS)
def test_what_changes_nothing_is_refused_before_anything_is_read(
    path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    option = _TYPED[path]
    run = ["rerank-file", str(tmp_path / "nowhere.jsonl"), "-o", str(tmp_path / "out.jsonl")]
    assert main([*run, *option]) == 2
    (needed,) = NEEDS[path].fields.values()
    assert f"error: {option[0]}: changes nothing without `{needed}`" in capsys.readouterr().err


def test_with_what_they_need_they_are_heard(lists: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    qrels = tmp_path / "qrels.txt"
    qrels.write_text("1 0 a 1\n")
    out = tmp_path / "out.jsonl"
    run = ["rerank-file", lists, "-o", str(out), "--model", str(TINY_CHECKPOINT), "-q"]
    needed = ["--truncate", "chunk", "--store", str(tmp_path / "store"), "--qrels", str(qrels)]
    shown = [word for path, words in _TYPED.items() if not path.startswith(("teacher.", "first.")) for word in words]
    assert main([*run, *needed, *shown]) == 0
    # What the environment says is for many runs, of which some have a use for it.
    monkeypatch.setenv("RERANK_POOL", "mean")
    monkeypatch.setenv("RERANK_NEGATIVES", "2")
    monkeypatch.setenv("RERANK_FIRST_KEEP", "10")
    monkeypatch.setenv("RERANK_RAY_ADDRESS", "127.0.0.1:6379")
    assert main([*run, "--restart", "--overwrite"]) == 0


def test_options_of_a_cluster_are_refused_without_one(lists: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rerank-file", lists, "-o", "-", "--cpus-per-engine", "1"]) == 2
    assert "--cpus-per-engine: changes nothing without `--engine ray`" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["CALIBRATE_TO", "KEEP_PRECISION", "PER_QUERY"])
def test_what_evaluate_cannot_give_is_refused_from_the_environment_too(
    name: str, lists: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(f"RERANK_{name}", "0.5" if name == "KEEP_PRECISION" else str(tmp_path / "x.tsv"))
    assert main(["evaluate", lists]) == 2
    assert f"--{name.lower().replace('_', '-')}: changes nothing without `--qrels FILE`" in capsys.readouterr().err


def test_a_reranker_refuses_them_in_the_words_of_python() -> None:
    with pytest.raises(UsageError, match='pool: changes nothing without `truncate="chunk"`'):
        Reranker(str(TINY_CHECKPOINT), pool="mean")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--group-by", "topic"], "--group-by: the rows of in.jsonl are lists"),
        (["--image-field", "page"], "--image-field page: none of the first 1 rows of in.jsonl has it"),
    ],
)
def test_fields_that_no_row_has_are_refused(
    options: list[str], said: str, lists: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["rerank-file", "in.jsonl", "-o", "out.jsonl", "--model", str(TINY_CHECKPOINT), *options]) == 4
    assert said in capsys.readouterr().err
    assert not Path("out.jsonl").exists()


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--ship-at", "0.1"], 2, "--ship-at: changes nothing without `--qrels FILE`"),
        (["--qrels", "qrels.txt", "--calibrator", "platt"], 2, "changes nothing without `--calibrate-to FILE`"),
        (["--qrels", "qrels.txt", "--run-report", "x.json"], 2, "changes nothing without `--calibrate-to FILE`"),
        (["--qrels", "qrels.txt", "--relevant-from", "2"], 2, "`--calibrate-to FILE` or `--keep-precision P`"),
        (["--qrels", "qrels.txt", "--id-field", "docid"], 4, "--id-field docid: no row of ranked.jsonl has it"),
    ],
)
def test_evaluate_refuses_them_too(
    options: list[str], code: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    passages = [{"id": "a", "rank": 1, "index": 1, "logit": 2.0}, {"id": "b", "rank": 2, "index": 0, "logit": 1.0}]
    write_lines(tmp_path / "ranked.jsonl", [{"query_id": "1", "query": "two roads", "passages": passages}])
    Path("qrels.txt").write_text("1 0 a 1\n")
    assert main(["evaluate", "ranked.jsonl", *options]) == code
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("solved", ["batch-size", "max-tokens"])
def test_mem_estimate_refuses_what_it_is_to_find(solved: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mem-estimate", "--vram", "8GB", "--solve", solved, f"--{solved}", "64"]) == 2
    assert f"--{solved}: is what `--solve {solved}` finds" in capsys.readouterr().err
