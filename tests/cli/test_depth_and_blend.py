"""`--depth` and `--blend`: the head of a list alone is scored, and the given order has a say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import scipy.stats

from rerank_cli.cli import main
from tests.conftest import TINY_CHECKPOINT, read_lines

SAMPLES = Path(__file__).parents[2] / "samples"


def rerank(out: Path, *options: str, source: str = "python-docs.jsonl", code: int = 0) -> list[dict[str, Any]]:
    model = ["--model", str(TINY_CHECKPOINT), "--max-tokens", "64"]  # what it scores does not matter here
    arguments = ["rerank-file", str(SAMPLES / source), "-o", str(out), "--quiet", "--overwrite", *model, *options]
    assert main(arguments) == code
    return read_lines(out) if out.suffix == ".jsonl" and not code else []


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return rerank(tmp_path_factory.mktemp("plain") / "out.jsonl", "--limit", "3")


def logits(row: dict[str, Any]) -> list[float]:
    """In the given order."""
    return [one["logit"] for one in sorted(row["passages"], key=lambda one: one["index"])]


def test_what_is_below_the_depth_keeps_its_place_without_a_score(plain: list[dict[str, Any]], tmp_path: Path) -> None:
    for row, whole in zip(rerank(tmp_path / "out.jsonl", "--limit", "3", "--depth", "4"), plain, strict=True):
        passages = row["passages"]
        assert [one["rank"] for one in passages] == list(range(1, len(whole["passages"]) + 1))
        assert [one["index"] for one in passages[4:]] == list(range(4, len(passages)))
        assert all(one["logit"] is None for one in passages[4:])
        head = logits(whole)[:4]
        assert [one["index"] for one in passages[:4]] == sorted(range(4), key=lambda place: -head[place])
        # A window is another batch, and another batch may end in another last digit.
        assert [one["logit"] for one in passages[:4]] == pytest.approx(sorted(head, reverse=True), abs=1e-4)


@pytest.mark.parametrize("blend", ["rrf:0.3", "rrf:1", "z:0", "z:0.4"])
def test_a_blend_decides_the_ranks_and_the_logits_stay(blend: str, plain: list[dict[str, Any]], tmp_path: Path) -> None:
    kind, _, text = blend.partition(":")
    weight = float(text)
    for row, whole in zip(rerank(tmp_path / "out.jsonl", "--limit", "3", "--blend", blend), plain, strict=True):
        scores = np.array(logits(whole))
        places = np.arange(1, len(scores) + 1)
        if kind == "rrf":
            joined = (1 - weight) / (60 + scipy.stats.rankdata(-scores, "ordinal")) + weight / (60 + places)
        else:
            joined = (1 - weight) * scipy.stats.zscore(scores) + weight * scipy.stats.zscore(-np.log(places))
        assert [one["index"] for one in row["passages"]] == np.argsort(-joined, kind="stable").tolist()
        assert logits(row) == scores.tolist()


def test_a_table_has_nulls_below_the_depth(tmp_path: Path) -> None:
    rerank(tmp_path / "out.parquet", "--depth", "2", "--limit", "20", "--prob", source="python-docs-flat.parquet")
    rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert len(rows) == 20
    for row in rows:
        assert (row["logit"] is None) == (row["prob"] is None) == (row["index"] >= 2)
        assert row["index"] < 2 or row["rank"] == row["index"] + 1


def test_a_threshold_drops_what_has_no_score_and_top_n_does_not(tmp_path: Path) -> None:
    options = ("--limit", "2", "--depth", "2")
    assert all(len(one["passages"]) == 5 for one in rerank(tmp_path / "out.jsonl", *options, "--top-n", "5"))
    for row in rerank(tmp_path / "out.jsonl", *options, "--threshold", "-100", "--restart"):
        assert [one["index"] for one in sorted(row["passages"], key=lambda one: one["index"])] == [0, 1]


def test_the_measured_order_is_the_one_that_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What `evaluate` promises of a setting is what `rerank-file` then has."""
    qrels = str(SAMPLES / "qrels.txt")
    rerank(tmp_path / "plain.jsonl", "--limit", "6")
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "plain.jsonl"), "--qrels", qrels, "--format", "json", "-q"]) == 0
    promised = json.loads(capsys.readouterr().out)["systems"][0]["use"]["depths"]
    rerank(tmp_path / "out.jsonl", "--limit", "6", "--depth", "5")
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "out.jsonl"), "--qrels", qrels, "--format", "json", "-q"]) == 0
    kept = json.loads(capsys.readouterr().out)["systems"][0]["measures"][0]["value"]
    assert kept == pytest.approx(next(one["value"] for one in promised if one["depth"] == 5))


def test_they_are_part_of_the_job_where_they_are_given(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    rerank(out, "--limit", "1")
    asked = json.loads((tmp_path / "out.jsonl.report.json").read_text())["job"]["asked"]
    assert not {"--depth", "--blend"} & set(asked)
    rerank(out, "--limit", "1", "--depth", "3", "--blend", "z:0.50")
    asked = json.loads((tmp_path / "out.jsonl.report.json").read_text())["job"]["asked"]
    assert (asked["--depth"], asked["--blend"]) == (3, "z:0.5")


@pytest.mark.parametrize("options", [("--depth", "3"), ("--blend", "rrf:0.5")])
@pytest.mark.parametrize("shape", ["nim", "trec", "cohere"])
def test_shapes_in_the_order_of_their_scores_refuse_another_order(
    shape: str, options: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rerank(tmp_path / "out.jsonl", *options, "--out-format", shape, code=2)
    assert f"{options[0]}: changes the order, and rows of the shape {shape} are" in capsys.readouterr().err


@pytest.mark.parametrize("options", [("--blend", "rrf"), ("--blend", "z:1.5"), ("--depth", "0")])
def test_wrong_values_are_refused(options: tuple[str, str], tmp_path: Path) -> None:
    rerank(tmp_path / "out.jsonl", *options, code=2)
