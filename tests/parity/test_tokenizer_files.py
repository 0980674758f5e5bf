"""What the other files of a tokenizer say of its tokens and its limit: as transformers has it, or refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.parity.conftest import HERE
from tests.parity.test_declared import expected, scored

GOLDENS = ("bert-ce", "qwen3-st")


@pytest.fixture(params=GOLDENS)
def folder(request, tmp_path) -> Path:
    shutil.copytree(HERE / f"{request.param}-open" / "checkpoint", tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def edit(file: Path, **values: Any) -> None:
    found = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(found | values))


def test_the_limit_is_obeyed_under_its_name_of_2020(folder, capsys):
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text())
    config.pop("model_max_length", None)
    file.write_text(json.dumps(config | {"max_len": 20}))
    code, logits, said = scored(folder, capsys)
    assert code == 0, said
    assert logits == pytest.approx(expected(folder), abs=1e-4)


def test_the_limit_of_a_processor_is_that_of_models_that_read_images(folder, capsys):
    edit(folder / "processor_config.json", rerank_max_length=20)
    code, logits, said = scored(folder, capsys)
    assert code == 0, said
    assert logits == pytest.approx(expected(folder), abs=1e-4)


@pytest.mark.parametrize("direction", ["Left", "Right"])
@pytest.mark.parametrize("side", [None, "left", "right"])
def test_the_side_that_is_cut_is_that_of_tokenizer_json_where_no_other_file_names_it(folder, direction, side, capsys):
    truncation = {"direction": direction, "max_length": 14, "strategy": "LongestFirst", "stride": 0}
    edit(folder / "tokenizer.json", truncation=truncation)
    edit(folder / "tokenizer_config.json", model_max_length=40, **({"truncation_side": side} if side else {}))
    code, logits, said = scored(folder, capsys)
    assert code == 0, said
    assert logits == pytest.approx(expected(folder), abs=1e-4)


def test_special_tokens_that_are_to_be_split_are_refused_by_name(folder, capsys):
    edit(folder / "tokenizer_config.json", split_special_tokens=True)
    code, _, said = scored(folder, capsys)
    assert code == 5
    assert "`split_special_tokens`" in said


@pytest.mark.parametrize("kind", ["llama-rerank", "nemotron-vl-rerank", "nemotron-vl-embed", "bge-gemma"])
def test_a_prompt_that_is_cut_on_the_right_alone_refuses_the_left(kind, tmp_path, capsys):
    shutil.copytree(HERE / f"{kind}-open" / "checkpoint", tmp_path / "checkpoint")
    edit(tmp_path / "checkpoint" / "tokenizer_config.json", truncation_side="left")
    code, _, said = scored(tmp_path / "checkpoint", capsys)
    assert code == 5
    assert "`truncation_side` is left" in said


@pytest.mark.parametrize("kind", ["bert-ce", "llama-rerank", "nemotron-vl-rerank", "nemotron-vl-embed", "bge-gemma"])
def test_a_tokenizer_file_whose_truncation_is_no_json_is_told(kind, tmp_path, capsys):
    shutil.copytree(HERE / f"{kind}-open" / "checkpoint", tmp_path / "checkpoint")
    edit(tmp_path / "checkpoint" / "tokenizer.json", truncation={"direction": "Left"})
    file = tmp_path / "checkpoint" / "tokenizer.json"
    file.write_text(file.read_text().replace('"Left"', "Left"))
    code, _, said = scored(tmp_path / "checkpoint", capsys)
    assert code == 5
    assert "tokenizer.json: not a tokenizer: " in said


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("tokenizer_config.json", {"additional_special_tokens": ["<quay>"]}),
        ("tokenizer_config.json", {"extra_special_tokens": {"quay": "<quay>"}}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"5": {"content": "<quay>", "special": True}}}),
        ("added_tokens.json", {"<quay>": 5}),
    ],
)
def test_a_token_that_another_file_adds_is_refused_by_name(folder, name, values, capsys):
    edit(folder / name, **values)
    code, _, said = scored(folder, capsys)
    assert code == 5
    assert "adds `<quay>`" in said
    assert "which is not in it" in said


def test_an_added_token_without_a_row_of_the_model_is_refused_by_name(folder, capsys):
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    number = json.loads((folder / "config.json").read_text())["vocab_size"]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    while len({*tokenizer["model"]["vocab"], *(one["content"] for one in tokenizer["added_tokens"])}) < number:
        free = len({*tokenizer["model"]["vocab"], *(one["content"] for one in tokenizer["added_tokens"])})
        tokenizer["added_tokens"].append({"id": free, "content": f"<free {free}>", **flags})
    tokenizer["added_tokens"].append({"id": number, "content": "<quay>", **flags})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    code, _, said = scored(folder, capsys)
    assert code == 5
    assert f"the added token `<quay>` has the id {number}" in said
