"""A language that the model cannot read is told, and `--max-unknown` makes its pairs bad rows; labels by the way."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from rerank_cli.cli import main
from tests.conftest import read_lines, write_lines

MONOBERT = str(Path(__file__).parents[1] / "parity" / "monobert-2label-open" / "checkpoint")
ROWS = [
    {"query": "delete a folder", "passage": "soup recipe"},
    {"query": "如何删除一个文件夹", "passage": "汤的食谱把水煮开"},
]


def run(tmp_path: Path, *options: str) -> int:
    source = write_lines(tmp_path / "in.jsonl", ROWS)
    out = ("-o", str(tmp_path / "out.jsonl"), "--overwrite", "--model", MONOBERT)
    return main(["score", source, *out, *options])


def test_pairs_of_unknown_tokens_are_warned_about_and_reported(tmp_path, capsys):
    assert run(tmp_path) == 0
    assert "warning: of 1 pair more than 5 % of the tokens are unknown to the model" in capsys.readouterr().err
    found = json.loads((tmp_path / "out.jsonl.report.json").read_text())["unknown_tokens"]
    assert found["pairs_over_5_percent"] == 1
    assert 0.2 < found["share"] < 0.9
    assert found["tokens"] > 8


def test_nothing_is_said_where_the_model_knows_the_words(tmp_path, capsys):
    assert run(tmp_path, "--limit", "1") == 0
    assert "unknown" not in capsys.readouterr().err
    assert "unknown_tokens" not in json.loads((tmp_path / "out.jsonl.report.json").read_text())


def test_with_max_unknown_they_are_bad_rows(tmp_path):
    assert run(tmp_path, "--max-unknown", "5%") == 3
    assert len(read_lines(tmp_path / "out.jsonl")) == 1
    (error,) = read_lines(tmp_path / "out.jsonl.errors.jsonl")
    assert (error["row"], error["error"]["code"]) == (2, "unknown-tokens")


def test_of_a_chat_template_only_the_texts_count(tmp_path, capsys):
    folder = tmp_path / "model"
    shutil.copytree(MONOBERT, folder)
    (folder / "chat_template.jinja").write_text(
        "\u6c64\u6c64\u6c64 {{ messages[0].content }} \u6c64 {{ messages[1].content }}"
    )
    source = write_lines(tmp_path / "in.jsonl", ROWS)
    out = ("-o", str(tmp_path / "out.jsonl"), "--overwrite", "--model", str(folder))
    assert main(["score", source, *out]) == 0
    assert "warning: of 1 pair more than 5 %" in capsys.readouterr().err
    assert json.loads((tmp_path / "out.jsonl.report.json").read_text())["unknown_tokens"]["tokens"] == 16
    assert main(["score", source, *out, "--max-unknown", "90%"]) == 3
    (error,) = read_lines(tmp_path / "out.jsonl.errors.jsonl")
    assert (error["row"], error["error"]["code"]) == (2, "unknown-tokens")


def test_a_dry_run_tells_of_them(tmp_path, capsys):
    assert run(tmp_path, "--dry-run") == 0
    said = capsys.readouterr()
    assert "warning: of 1 pair more than 5 %" in said.err
    assert json.loads(said.out)["unknown_tokens"]["tokens"] == 16
    assert run(tmp_path, "--dry-run", "--limit", "1") == 0
    assert json.loads(capsys.readouterr().out)["unknown_tokens"] is None


@pytest.mark.parametrize("value", ["5", "101%", "x%", ""])
def test_a_share_is_a_percentage(tmp_path, capsys, value):
    assert run(tmp_path, "--max-unknown", value) == 2
    assert f"--max-unknown {value}".strip() in capsys.readouterr().err


def test_the_default_score_of_two_labels_is_their_difference(tmp_path):
    found = []
    for options in ([], ["--label", "1"], ["--label", "0"]):
        assert run(tmp_path, *options) == 0
        found.append([row["logit"] for row in read_lines(tmp_path / "out.jsonl")])
    difference, one, zero = found
    assert difference == pytest.approx([a - b for a, b in zip(one, zero, strict=True)], abs=1e-5)


def test_a_label_that_is_not_there_is_a_fault_of_usage(tmp_path, capsys):
    assert run(tmp_path, "--label", "2") == 2
    assert "has 2 labels, counted from 0" in capsys.readouterr().err
