"""Random checkpoints that declare how they are scored, against sentence-transformers: its score, or a refusal.

Never another score with exit code 0. `RERANK_CLI_DECLARED=400` makes more of them than the forty of a common run.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from rerank_cli.cli import main
from tests.parity.declared_checkpoints import PAIRS, make_checkpoint
from tests.parity.wider_checkpoints import widen

sentence_transformers = pytest.importorskip("sentence_transformers")

COUNT = int(os.environ.get("RERANK_CLI_DECLARED", "40"))
TOLERANCE = 1e-4
_REFUSED = 5
# What may be refused, and by what name. Nothing: what neither transformers' tokenizer nor a template sets apart.
REFUSALS = {
    None: "puts no special tokens around a pair",
    "modules": "`WeightedLayerPooling` is not known",
    "module": "is not known",
    "key": "nothing is known",
    "default template of a nested model": "does not count for a model in a folder of its own",
    "blank": "programs differ in which of the two they take",
    "rope": "`rope_type` of|is not known|transformers cannot read this config.json: Class validation",
    "labels": "the model gives 3 labels",
    "unknown module": r"the module `\w+` is not known",
    "lost prompt": "`default_prompt_name` is 'is not there'",
    "no modules.json": "carries no pair|puts no special tokens around a pair|cannot be read|is not known",
}


def expected(folder: Path) -> list[float]:
    # Of two labels the second one is relevant; the library gives both.
    model = sentence_transformers.CrossEncoder(
        str(folder), device="cpu", local_files_only=True, model_kwargs={"dtype": torch.float32}
    )
    logits = model.predict(PAIRS, batch_size=3, activation_fn=torch.nn.Identity(), convert_to_numpy=True)
    rows = logits.reshape(len(PAIRS), -1).tolist()
    return [row[1] - row[0] if len(row) > 1 else row[0] for row in rows]


def refusals(told: dict[str, Any]) -> str:
    """What the message of a refusal may say."""
    return "|".join(REFUSALS[cause] for cause in (told.get("refused"), *told.get("may", ()), *told.get("must", ())))


def scored(folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[float], str]:
    """Exit code, logits, and what was said."""
    source, target = folder.parent / "pairs.jsonl", folder.parent / "scored.jsonl"
    source.write_text("".join(json.dumps({"query": q, "passage": p}) + "\n" for q, p in PAIRS))
    target.unlink(missing_ok=True)
    arguments = ["--precision", "fp32", "--truncate", "reference", "--special-tokens", "allow", "--overwrite"]
    code = main(["score", str(source), "-o", str(target), "--model", str(folder), "--quiet", *arguments])
    said = capsys.readouterr().err
    logits = [json.loads(line)["logit"] for line in target.read_text().splitlines()] if code == 0 else []
    return code, logits, said


@pytest.mark.parametrize("seed", range(COUNT))
def test_a_declared_checkpoint_has_the_score_of_its_library_or_is_refused_by_name(seed, tmp_path, capsys):
    folder = tmp_path / "checkpoint"
    told = make_checkpoint(folder, seed)
    widen(folder, told)
    code, logits, said = scored(folder, capsys)
    if code == _REFUSED:
        assert re.search(refusals(told), said), (said, told)
        return
    assert code == 0, (said, told)
    assert told.get("refused") in (None, "module", "no modules.json") and not told.get("must"), told
    wanted = expected(folder)
    worst = max(abs(one - other) for one, other in zip(logits, wanted, strict=True))
    assert worst <= TOLERANCE, (worst, told, [*zip(logits, wanted, strict=True)])
