"""The logits that NVIDIA's model cards print, for whoever has the weights: `pytest --model-dir DIR`.

DIR holds config.json, tokenizer.json, tokenizer_config.json and model.safetensors of
nvidia/llama-nemotron-rerank-1b-v2 or of nvidia/llama-nemotron-rerank-vl-1b-v2; its `architectures` entry says which.
The option may be given twice.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rerank_cli.checkpoint import read_checkpoint
from rerank_cli.checkpoint.families import FAMILIES
from rerank_cli.cli import main

CARDS = json.loads((Path(__file__).parents[1] / "data" / "nim" / "golden_logits.json").read_text())["usable"]
MODEL_OF = {
    "LlamaBidirectionalForSequenceClassification": "nvidia/llama-nemotron-rerank-1b-v2",
    "LlamaNemotronVLForSequenceClassification": "nvidia/llama-nemotron-rerank-vl-1b-v2",
}
# The cards' logits were computed in bf16, whose noise is that of the largest numbers on the way and not of the logit: a
# logit of -0.26 is no more exact than one of 20. So it is 2 % of the largest of a card's logits.
TOLERANCE = 0.02


def texts_of(model: str) -> list[dict]:
    """The examples of a card whose passages are texts; pictures are only named by their addresses."""
    return [card for card in CARDS if card["model"] == model and "documents" in card and "images" not in card]


@pytest.mark.parametrize("model", MODEL_OF.values())
def test_every_model_has_an_example_of_texts(model):
    (card,) = texts_of(model)
    assert len(card["documents"]) == len(card["logits"]) == 3


@pytest.mark.parametrize("architecture", MODEL_OF)
def test_the_published_weights_give_the_published_logits(architecture, request, tmp_path):
    folders = [
        folder
        for folder in request.config.getoption("--model-dir")
        if read_checkpoint(Path(folder)).architecture == architecture
    ]
    if not folders:
        pytest.skip(f"`--model-dir` names no folder with the weights of {MODEL_OF[architecture]}")
    if architecture not in FAMILIES:
        pytest.skip(f"{architecture} is not read yet")
    (card,) = texts_of(MODEL_OF[architecture])
    rows, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    pairs = ({"query": card["query"], "passage": passage} for passage in card["documents"])
    rows.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    arguments = ["score", str(rows), "-o", str(out), "-q", "--overwrite", "--precision", "bf16", "--max-tokens", "512"]
    for folder in folders:
        assert main([*arguments, "--model", str(folder)]) == 0
        logits = [json.loads(line)["logit"] for line in out.read_text().splitlines()]
        allowed = TOLERANCE * max(map(abs, card["logits"]))
        assert logits == pytest.approx(card["logits"], abs=allowed)
