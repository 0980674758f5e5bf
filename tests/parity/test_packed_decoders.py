"""Decoders that a checkpoint's files make rerankers, packed, against transformers' padded code on 300 real pairs each.

Each trunk twice: as a classifier, the score row at the last token, and as a language model with a LogitScore, a logit
of its vocabulary less another. The ids are ours: that they are those of sentence-transformers is what
`test_declared.py` compares.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from rerank_cli.checkpoint import read_checkpoint
from rerank_cli.encoding.encoder import open_encoder
from rerank_cli.engine.local import LocalEngine
from rerank_cli.records import EncodedPair
from tests.parity.test_against_transformers import PLAN, TOLERANCE

TRUNKS: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen3": ("qwen3-st-open", {"head_dim": 16}),
    "Qwen2": ("zerank2-open", {}),
    "Llama": ("llama-seqcls-st-open", {"attention_bias": True}),
    "Mistral": ("llama-seqcls-st-open", {"sliding_window": None, "head_dim": 16}),
    "Gemma": ("ctxl-open", {"head_dim": 16}),
}
SIZES = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 1024, "num_labels": 1}  # fmt: skip
TRUE, FALSE = 7, 0


def make(golden: Path, folder: Path, trunk: str, head: str) -> transformers.PreTrainedModel:
    """A checkpoint with random weights and a modules.json, and its model by transformers."""
    given = json.loads((golden / "config.json").read_text())
    tokens = {name: given.get(name) for name in ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id")}
    torch.manual_seed(11)
    config = getattr(transformers, f"{trunk}Config")(**SIZES, **tokens, **TRUNKS[trunk][1])
    model: transformers.PreTrainedModel = getattr(transformers, trunk + head)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.2 if parameter.dim() > 1 else 0.1))
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(golden / name, folder / name)
    package = "sentence_transformers.cross_encoder.modules.logit_score"
    modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    if head == "ForCausalLM":
        modules.append({"idx": 1, "name": "1", "path": "1_LogitScore", "type": f"{package}.LogitScore"})
        (folder / "1_LogitScore").mkdir()
        scored = {"true_token_id": TRUE, "false_token_id": FALSE}
        (folder / "1_LogitScore" / "config.json").write_text(json.dumps(scored))
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "config_sentence_transformers.json").write_text('{"model_type": "CrossEncoder"}')
    return model


@torch.inference_mode()
def padded(model: transformers.PreTrainedModel, pairs: list[EncodedPair], *, language: bool) -> np.ndarray:
    """Scores in batches of 20, each padded on the right to its longest pair."""
    scores: list[float] = []
    for begin in range(0, len(pairs), 20):
        rows = [torch.from_numpy(pair.input_ids.astype(np.int64)) for pair in pairs[begin : begin + 20]]
        lengths = torch.tensor([len(row) for row in rows])
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=model.config.pad_token_id or 0)
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        logits = model(input_ids=ids, attention_mask=mask).logits
        if language:
            last = logits[torch.arange(len(rows)), lengths - 1]
            logits = last[:, TRUE : TRUE + 1] - last[:, FALSE : FALSE + 1]
        scores += logits[:, 0].tolist()
    return np.array(scores)


@pytest.mark.parametrize("head", ["ForSequenceClassification", "ForCausalLM"])
@pytest.mark.parametrize("trunk", TRUNKS)
def test_real_pairs_have_the_logits_of_the_padded_model(goldens, real_pairs, tmp_path, trunk, head):
    model = make(goldens[TRUNKS[trunk][0]].checkpoint, tmp_path / "model", trunk, head)
    checkpoint = read_checkpoint(tmp_path / "model")
    encoded = [chunk for one in open_encoder(checkpoint, max_tokens=256).encode(real_pairs) for chunk in one]
    assert len(encoded) == 300
    with LocalEngine(PLAN, checkpoint) as engine:
        ours = engine.score(encoded)
    reference = padded(model, encoded, language=head == "ForCausalLM")
    assert np.abs(ours - reference).max() <= TOLERANCE * max(1.0, np.abs(reference).max())
    assert np.unique(reference).size > 250
