"""The built-in model is the one that its PROVENANCE.md describes, and gives the logits that stand there."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest

from rerank_cli.checkpoint import locate_checkpoint, read_checkpoint
from rerank_cli.cli import main

QUESTION = "How many people live in Berlin?"
ANSWER = "Berlin has a population of 3,520,031 registered inhabitants in an area of 891.82 square kilometers."
OTHER = "New York City is famous for the Metropolitan Museum of Art."


@pytest.fixture
def folder() -> Path:
    return locate_checkpoint(None)


def test_without_a_model_option_the_berlin_pair_has_its_published_logits(tmp_path, capsys):
    source = tmp_path / "berlin.jsonl"
    source.write_text("".join(json.dumps({"query": QUESTION, "passage": text}) + "\n" for text in (ANSWER, OTHER)))
    assert main(["score", str(source), "--quiet"]) == 0
    logits = [json.loads(line)["logit"] for line in capsys.readouterr().out.splitlines()]
    assert logits == pytest.approx([9.267, -11.188], abs=0.01)


def test_its_files_are_those_of_its_provenance(folder):
    table = re.findall(
        r"^\| `([\w.]+)`[^|]*\| ([\d,]+) \| `([0-9a-f]{64})` \|$", (folder / "PROVENANCE.md").read_text(), re.M
    )
    assert {name for name, _, _ in table} >= {"model.int8.safetensors", "config.json", "tokenizer.json"}
    for name, size, digest in table:
        content = (folder / name).read_bytes()
        assert len(content) == int(size.replace(",", "")), name
        assert hashlib.sha256(content).hexdigest() == digest, name


def test_it_has_as_many_parameters_as_its_provenance_says(folder):
    assert read_checkpoint(folder).parameters == 33_360_385
