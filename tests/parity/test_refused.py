"""Folders that are no reranker: each is refused in one sentence that says what it is, before anything else is wrong."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from rerank_cli import Reranker
from rerank_cli.cli import main
from rerank_cli.errors import RerankError

FOLDERS = sorted((Path(__file__).parent / "refused").iterdir())


@pytest.fixture
def refusal(tmp_path, capsys):
    """The exit code and the sentence of all that can be asked about a model, which must be one."""
    (tmp_path / "rows.jsonl").write_text('{"query": "a", "passage": "b", "passages": [{"text": "b"}]}\n')

    def ask(folder: Path, **options: str | int) -> tuple[int, str]:
        model = ["--model", str(folder)]
        for name, value in options.items():
            model += [f"--{name.removeprefix('taken_')}", str(value)]
        run = [str(tmp_path / "rows.jsonl"), "-o", str(tmp_path / "out.jsonl"), *model]
        told = set()
        for command in (
            ["score", *run], ["rerank-file", *run], ["rerank-file", *run, "--dry-run"],
            ["mem-estimate", *model, "--batch-size", "1", "--format", "text"],
            ["profile-select", *model, "--format", "text"],
        ):  # fmt: skip
            code = main(command)
            said = capsys.readouterr().err
            assert said.startswith("error: "), (command, said)
            assert "Traceback" not in said
            told.add((code, said.splitlines()[0].removeprefix("error: ")))
        with pytest.raises(RerankError) as raised:
            Reranker(folder, **options)
        told.add((raised.value.exit_code, raised.value.message))
        assert len(told) == 1, told
        assert not (tmp_path / "out.jsonl").exists()
        return told.pop()

    return ask


@pytest.mark.parametrize("folder", FOLDERS, ids=[folder.name for folder in FOLDERS])
def test_a_folder_that_is_no_reranker_is_refused_by_what_it_is_whoever_asks(folder, refusal):
    code, said = refusal(folder / "checkpoint")
    assert code == 5
    sentence = said.replace(str(folder), "")
    for words in json.loads((folder / "META.json").read_text())["why_words"]:
        assert re.search(words, sentence, re.IGNORECASE), (words, sentence)


def test_labels_that_leave_the_score_open_are_refused_whoever_asks(tmp_path, refusal, capsys):
    folder = tmp_path / "checkpoint"
    shutil.copytree(FOLDERS[0].parents[1] / "bert-ce-open" / "checkpoint", folder)
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {"0": "no", "1": "maybe", "2": "yes"}
    (folder / "config.json").write_text(json.dumps(config))
    code, said = refusal(folder)
    assert code == 5
    assert "the model gives 3 labels (0 `no`, 1 `maybe`, 2 `yes`), a reranker one score" in said
    for command in ("mem-estimate", "profile-select"):
        assert main([command, "--model", str(folder), "--label", "2"]) == 0
        assert main([command, "--model", str(folder), "--label", "3"]) == 2
        assert "has 3 labels, counted from 0" in capsys.readouterr().err


def test_a_chat_model_runs_as_the_family_that_its_user_names(tmp_path, capsys):
    (folder,) = (folder for folder in FOLDERS if folder.name.startswith("qwen3-chat"))
    rows, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    rows.write_text('{"query": "a", "passage": "b"}\n')
    model = ["--model", str(folder / "checkpoint"), "--quiet"]
    assert main(["score", str(rows), "-o", str(out), *model, "--as", "qwen3-reranker"]) == 0
    assert "scored as Qwen3-Reranker" in capsys.readouterr().err
    assert isinstance(json.loads(out.read_text())["logit"], float)
    for command in ("mem-estimate", "profile-select"):
        assert main([command, *model[:2], "--as", "qwen3-reranker"]) == 0
    with Reranker(folder / "checkpoint", taken_as="qwen3-reranker") as reranker:
        assert reranker.score([("a", "b")]) == pytest.approx([json.loads(out.read_text())["logit"]], abs=1e-6)
    capsys.readouterr()
    assert main(["score", str(rows), "-o", str(tmp_path / "two.jsonl"), *model, "--as", "mxbai-rerank-v2"]) == 2
    assert "is a Qwen2ForCausalLM" in capsys.readouterr().err
    assert main(["score", str(rows), "-o", str(tmp_path / "two.jsonl"), *model, "--as", "qwen"]) == 2
    assert "known are qwen3-reranker" in capsys.readouterr().err
