"""`--precision auto:0.99`: tried on the first lists, the same for a run, its shards and its second process."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rerank_cli.cli import main
from rerank_cli.job import precision_choice
from rerank_cli.machine import amx
from rerank_cli.machine.cpu import detect_cpu
from rerank_cli.models.int8_linear import int8_hindrance
from rerank_cli.planning.choices import least_overlap, parse_precision
from rerank_cli.planning.cpu_kernels import cheaper_precisions
from tests.parity.conftest import HERE

MODEL = str(HERE / "bert-ce-open" / "checkpoint")
needs_int8 = pytest.mark.skipif(int8_hindrance() is not None, reason="this torch has no int8 layers of oneDNN")


@pytest.fixture
def source(tmp_path: Path) -> str:
    draw = np.random.default_rng(0)
    words = ["river", "stone", "light", "paper", "green", "seven", "music", "north"]
    rows = [
        {"query": " ".join(draw.choice(words, 2)), "passages": [" ".join(draw.choice(words, n)) for n in range(3, 18)]}
        for _ in range(6)
    ]
    path = tmp_path / "lists.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def ran(source: str, out: Path, *more: str, precision: str) -> dict[str, Any]:
    command = ["rerank-file", source, "-o", str(out), "--model", MODEL, "--device", "cpu", "--precision", precision]
    assert main([*command, *more]) == 0
    report: dict[str, Any] = json.loads(Path(f"{out}.report.json").read_text())
    return report


@pytest.mark.parametrize(
    ("text", "least"), [("auto:0.99", 0.99), ("AUTO:.5", 0.5), ("auto:1", 1.0), ("auto:1.0", 1.0), ("fp32", None)]
)
def test_a_share_is_read(text: str, least: float | None) -> None:
    assert least_overlap(parse_precision(text)) == least


@pytest.mark.parametrize("text", ["auto:0", "auto:.\u0669", "auto:1.1", "auto:", "auto:x", "fp32:0.9", "fp64"])
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_precision(text)


@needs_int8
def test_what_agrees_is_taken_told_and_gives_the_bytes_of_the_precision_by_name(tmp_path, source, capsys):
    report = ran(source, tmp_path / "auto.jsonl", precision="auto:0.01")
    fastest = cheaper_precisions(detect_cpu())[0]
    choice = report["precision_choice"]
    assert (choice["precision"], choice["least"]) == (fastest, 0.01)
    found = choice["tried"][fastest]
    assert found["pairs"] == 6 * 15
    assert found["interval"][0] <= found["top10_overlap"] <= found["interval"][1]
    assert report["plan"]["precision"] == fastest
    assert f"{fastest} is used" in capsys.readouterr().err
    ran(source, tmp_path / "named.jsonl", precision=fastest)
    assert (tmp_path / "auto.jsonl").read_bytes() == (tmp_path / "named.jsonl").read_bytes()


@needs_int8
def test_every_shard_takes_what_the_whole_would(tmp_path, source):
    whole = ran(source, tmp_path / "whole.jsonl", precision="auto:0.9")["precision_choice"]
    for number in (1, 2):
        part = ran(source, tmp_path / f"{number}.jsonl", "--shard", f"{number}/2", precision="auto:0.9")
        assert part["precision_choice"] == whole


def test_where_nothing_agrees_it_is_fp32(tmp_path, source, monkeypatch):
    # Of a comparison all heads are others: what a model would have whose layers low precision breaks.
    def add(self: Any, encoded: Any, logits: Any, look_up: Any) -> None:
        self.heads.add([0, 1], [2, 3], passages=4)

    monkeypatch.setattr(precision_choice.Comparison, "add", add)
    report = ran(source, tmp_path / "out.jsonl", precision="auto:0.5")
    assert report["plan"]["precision"] == "fp32"
    tried = report["precision_choice"]["tried"]
    assert set(tried) == set(cheaper_precisions(detect_cpu()))
    assert all(one.get("top10_overlap") in (0.0, None) for one in tried.values())


def test_a_run_that_is_done_is_recognised_and_another_share_is_another_job(tmp_path, source, capsys):
    ran(source, tmp_path / "out.jsonl", precision="auto:0.9")
    ran(source, tmp_path / "out.jsonl", precision="auto:0.9")
    assert "nothing to do" in capsys.readouterr().err
    command = ["rerank-file", source, "-o", str(tmp_path / "out.jsonl"), "--model", MODEL, "--precision", "auto:0.8"]
    assert main(command) != 0


def test_it_is_refused_by_name_where_it_cannot_be(tmp_path, source, capsys):
    for more, said in [
        (["--first", "int8"], "--first"),
        (["--engine", "ray"], "--engine ray"),
    ]:
        out = str(tmp_path / "out.jsonl") if "ray" not in more else str(tmp_path / "folder")
        assert main(["rerank-file", source, "-o", out, "--model", MODEL, "--precision", "auto:0.9", *more]) == 2
        told = capsys.readouterr().err
        assert "--precision auto:0.9" in told
        assert said in told


def test_python_refuses_it_by_name():
    from rerank_cli import Reranker
    from rerank_cli.errors import UsageError

    with pytest.raises(UsageError, match="a Reranker has none yet"):
        Reranker(MODEL, precision="auto:0.9")


def test_memory_is_that_of_fp32_which_the_run_begins_with(capsys):
    assert main(["mem-estimate", "--device", "cpu", "--precision", "auto:0.9", "--format", "json"]) == 0
    asked = json.loads(capsys.readouterr().out)
    assert main(["mem-estimate", "--device", "cpu", "--precision", "fp32", "--format", "json"]) == 0
    assert asked["rows"] == json.loads(capsys.readouterr().out)["rows"]
    assert main(["mem-estimate", "--gpu", "H100", "--precision", "auto:0.9"]) == 2


def test_a_plan_says_that_the_lists_will_decide(capsys):
    assert main(["profile-select", "--device", "cpu", "--precision", "auto:0.9", "--format", "json"]) == 0
    assert "until the first lists are tried" in capsys.readouterr().out


def test_the_fastest_is_tried_first(monkeypatch):
    cpu = detect_cpu()
    if amx.runs_on(cpu):
        assert cheaper_precisions(cpu) == ("int8", "bf16")
        monkeypatch.setenv(amx.SWITCH, "0")
        assert cheaper_precisions(cpu) == ("bf16", "int8")
    flags = frozenset({"avx512_vnni"})
    assert cheaper_precisions(replace(cpu, flags=flags | {"amx_tile", "amx_bf16"})) == ("bf16", "int8")
    assert cheaper_precisions(replace(cpu, flags=flags | {"avx512_bf16"})) == ("int8", "bf16")
    assert cheaper_precisions(replace(cpu, flags=flags)) == ("int8",)
