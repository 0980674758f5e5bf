"""The encoders' golden checkpoints with heads of 16 channels, which the varlen kernel takes; their own have 12.

The weights stay: 3 heads of 16 in place of 4 of 12. What is expected is computed by transformers, pair by pair.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from rerank_cli.checkpoint import read_checkpoint
from rerank_cli.encoding.encoder import open_encoder
from rerank_cli.records import EncodedPair

HERE = Path(__file__).parent
ENCODERS = ["bert-ce-open", "xlmr-ce-open", "modernbert-ce-open"]


def wide_checkpoint(name: str, folder: Path) -> Path:
    """A copy of the golden's checkpoint in `folder`, with wider heads."""
    path = folder / name.replace("-ce-", "-wide-")
    if not path.exists():
        shutil.copytree(HERE / name / "checkpoint", path)
        config = json.loads((path / "config.json").read_text())
        assert config["hidden_size"] == 48
        (path / "config.json").write_text(json.dumps({**config, "num_attention_heads": 3}))
    return path


def wide_cases(name: str, folder: Path) -> tuple[Path, list[EncodedPair], npt.NDArray[np.float32]]:
    """The checkpoint, the golden's cases as it reads them, and the logits that transformers gives for them."""
    from transformers import AutoModelForSequenceClassification

    path = wide_checkpoint(name, folder)
    checkpoint = read_checkpoint(path)
    pairs: list[EncodedPair] = []
    for case in map(json.loads, (HERE / name / "cases.jsonl").read_text(encoding="utf-8").splitlines()):
        encoder = open_encoder(checkpoint, max_tokens=case["max_length"], truncate="reference", special_tokens="allow")
        pairs += encoder.encode([(case["query"], case["passage"])])[0]
    model = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    model.eval()
    logits = []
    with torch.inference_mode():
        for pair in pairs:
            ids = torch.from_numpy(pair.input_ids.astype(np.int64))[None]
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            if name.startswith("bert"):
                inputs["token_type_ids"] = (torch.arange(ids.shape[1]) >= pair.second_start).long()[None]
            logits.append(float(model(**inputs).logits[0, 0]))
    return path, pairs, np.array(logits, dtype=np.float32)
