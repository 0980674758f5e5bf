"""Folders that are no reranker: each is refused in one sentence that says what it is, before anything else is wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from rerank_cli.cli import main

FOLDERS = sorted((Path(__file__).parent / "refused").iterdir())


@pytest.mark.parametrize("command", ["score", "rerank-file"])
@pytest.mark.parametrize("folder", FOLDERS, ids=[folder.name for folder in FOLDERS])
def test_a_folder_that_is_no_reranker_is_refused_by_what_it_is(folder, command, tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"query": "a", "passage": "b", "passages": [{"text": "b"}]}\n')
    out = tmp_path / "out.jsonl"
    assert main([command, str(rows), "-o", str(out), "--model", str(folder / "checkpoint")]) == 5
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert "Traceback" not in said
    assert not out.exists()
    sentence = said.splitlines()[0].replace(str(folder), "")
    for words in json.loads((folder / "META.json").read_text())["why_words"]:
        assert re.search(words, sentence, re.IGNORECASE), (words, sentence)


def test_a_chat_model_runs_as_the_family_that_its_user_names(tmp_path, capsys):
    (folder,) = (folder for folder in FOLDERS if folder.name.startswith("qwen3-chat"))
    rows, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    rows.write_text('{"query": "a", "passage": "b"}\n')
    model = ["--model", str(folder / "checkpoint"), "--quiet"]
    assert main(["score", str(rows), "-o", str(out), *model, "--as", "qwen3-reranker"]) == 0
    assert "scored as Qwen3-Reranker" in capsys.readouterr().err
    assert isinstance(json.loads(out.read_text())["logit"], float)
    assert main(["score", str(rows), "-o", str(tmp_path / "two.jsonl"), *model, "--as", "mxbai-rerank-v2"]) == 2
    assert "is a Qwen2ForCausalLM" in capsys.readouterr().err
    assert main(["score", str(rows), "-o", str(tmp_path / "two.jsonl"), *model, "--as", "qwen"]) == 2
    assert "known are qwen3-reranker" in capsys.readouterr().err
