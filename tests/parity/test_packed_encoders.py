"""Encoders whose published names transformers does not read by itself, packed, against other people's padded code.

300 pairs of real texts each: jina-reranker-v2 as XLM-R under its own names, gte-multilingual-reranker as transformers'
Gte, ettin as sentence-transformers reads it, monoBERT and ELECTRA as transformers does.
"""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, ElectraConfig

from tests.parity.test_against_transformers import TOLERANCE, Variant, our_logits, reference_logits, write_checkpoint

FLASH_TO_OWN = {
    "roberta.emb_ln": "roberta.embeddings.LayerNorm", "encoder.layers": "encoder.layer",
    "mixer.out_proj": "attention.output.dense", "norm1": "attention.output.LayerNorm",
    "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense", "norm2": "output.LayerNorm",
}  # fmt: skip


def copied(golden, folder: Path, **config: Any) -> Path:
    """The golden's checkpoint with other facts in config.json; None takes a key away."""
    shutil.copytree(golden.checkpoint, folder)
    facts = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps({key: value for key, value in facts.items() if value is not None}))
    return folder


def jina_under_its_own_names(golden, folder: Path) -> Path:
    path = copied(golden, folder, model_type="xlm-roberta", auto_map=None)
    tensors = {}
    for name, tensor in load_file(path / "model.safetensors").items():
        for flash, own in FLASH_TO_OWN.items():
            name = name.replace(flash, own)
        if "mixer.Wqkv" in name:
            for part, piece in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                tensors[name.replace("mixer.Wqkv", f"attention.self.{part}")] = piece.contiguous()
        else:
            tensors[name] = tensor
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return path


def gte_for_transformers(golden, folder: Path) -> Path:
    """transformers writes fixed NTK as linear scaling of another base."""
    facts = json.loads((golden.checkpoint / "config.json").read_text())
    factor, theta = facts["rope_scaling"]["factor"], facts["rope_theta"]
    size = facts["hidden_size"] // facts["num_attention_heads"]
    rope = {"rope_type": "linear", "rope_theta": theta * factor, "factor": factor ** (2 / size)}
    return copied(
        golden, folder, model_type="gte", architectures=["GteForSequenceClassification"], auto_map=None,
        rope_scaling=None, rope_theta=None, rope_parameters=rope,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "rewritten"), [("jina-v2-open", jina_under_its_own_names), ("gte-multilingual-open", gte_for_transformers)]
)
def test_real_pairs_have_the_logits_of_the_same_model_under_the_names_of_transformers(
    goldens, real_pairs, tmp_path, name, rewritten
):
    ours = our_logits(goldens[name].checkpoint, real_pairs, max_tokens=512)
    reference = reference_logits(rewritten(goldens[name], tmp_path / "model"), real_pairs, max_tokens=512)
    assert np.abs(ours - reference).max() <= TOLERANCE * max(1.0, np.abs(reference).max())
    assert np.unique(reference).size > 250


def test_real_pairs_have_the_scores_of_ettin_as_sentence_transformers_gives_them(goldens, real_pairs):
    judge = pytest.importorskip("sentence_transformers").CrossEncoder
    path = goldens["ettin-open"].checkpoint
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = judge(str(path), device="cpu", local_files_only=True).predict(
            real_pairs, activation_fn=torch.nn.Identity(), batch_size=16, show_progress_bar=False
        )
    ours = our_logits(path, real_pairs, max_tokens=8192)
    assert np.abs(ours - reference).max() <= TOLERANCE * max(1.0, np.abs(reference).max())
    assert np.unique(reference).size > 250


def test_real_pairs_have_the_difference_of_the_two_logits_of_transformers(goldens, real_pairs):
    path = goldens["monobert-2label-open"].checkpoint
    model = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    reference = []
    with torch.inference_mode():
        for begin in range(0, len(real_pairs), 20):
            queries, passages = zip(*real_pairs[begin : begin + 20], strict=True)
            inputs = tokenizer(
                list(queries), list(passages), padding=True, truncation=True, max_length=512, return_tensors="pt"
            )
            logits = model(**inputs).logits
            reference += (logits[:, 1] - logits[:, 0]).tolist()
    ours = our_logits(path, real_pairs, max_tokens=512)
    assert np.abs(ours - np.array(reference)).max() <= TOLERANCE * max(1.0, np.abs(reference).max())


@pytest.mark.parametrize("embedding", [72, 24])
def test_real_pairs_have_the_logits_of_electra(goldens, real_pairs, tmp_path, embedding):
    sizes = {"hidden_size": 72, "num_hidden_layers": 3, "num_attention_heads": 6, "intermediate_size": 100}
    variant = Variant(
        ElectraConfig, "ElectraForSequenceClassification", "bert-ce-open",
        {**sizes, "embedding_size": embedding, "max_position_embeddings": 512, "hidden_act": "gelu"},
    )  # fmt: skip
    path = write_checkpoint(variant, goldens["bert-ce-open"].checkpoint, tmp_path / "model")
    ours = our_logits(path, real_pairs, max_tokens=256)
    reference = reference_logits(path, real_pairs, max_tokens=256)
    assert np.abs(ours - reference).max() <= TOLERANCE * max(1.0, np.abs(reference).max())
    assert reference.std() > 0.01
