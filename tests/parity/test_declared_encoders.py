"""Random encoders with random declarations, with sentence-transformers as the judge of their scores.

Each checkpoint is written as sentence-transformers saves it, or as older versions did: a trunk, a pooling, a head of
any Dense, LayerNorm and Normalize modules, a default prompt, a limit, lower-casing, token types, and the side that is
cut.
"""

from __future__ import annotations

import json
import random
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModel, AutoModelForSequenceClassification, BertConfig, ElectraConfig, XLMRobertaConfig
from transformers import ModernBertConfig as ModernBert

from rerank_cli.checkpoint import read_checkpoint
from rerank_cli.checkpoint.max_tokens import model_max_tokens
from rerank_cli.encoding.encoder import open_encoder
from rerank_cli.engine.local import LocalEngine
from tests.parity.test_against_transformers import PLAN

sentence_transformers = pytest.importorskip("sentence_transformers")

TOLERANCE = 1e-5  # times the largest score
HIDDEN = 48
MODES = ("cls", "mean", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
OLD_MODES = {
    "cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens", "mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "weightedmean": "weightedmean_tokens", "lasttoken": "lasttoken",
}  # fmt: skip
ACTIVATIONS = ("GELU", "Tanh", "ReLU", "SiLU", "Sigmoid", "ELU", "Mish", "LeakyReLU", "Softplus")
SIZES = {"hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
TRUNKS: dict[str, tuple[str, Any]] = {
    "Bert": ("bert-ce-open", lambda vocabulary: BertConfig(vocab_size=vocabulary, **SIZES)),
    "Electra": (
        "bert-ce-open",
        lambda vocabulary: ElectraConfig(vocab_size=vocabulary, embedding_size=32, hidden_act="gelu", **SIZES),
    ),
    "XLMRoberta": (
        "xlmr-ce-open",
        lambda vocabulary: XLMRobertaConfig(
            vocab_size=vocabulary, max_position_embeddings=514, type_vocab_size=1, pad_token_id=1, **SIZES
        ),
    ),
    "ModernBert": (
        "modernbert-ce-open",
        lambda vocabulary: ModernBert(
            vocab_size=vocabulary, local_attention=16, max_position_embeddings=512, pad_token_id=0,
            cls_token_id=1, sep_token_id=2, bos_token_id=1, eos_token_id=2, **{**SIZES, "num_hidden_layers": 4},
        ),
    ),
}  # fmt: skip


def write(seed: int, folder: Path) -> dict[str, Any]:
    """A checkpoint of everything that `seed` decides; returns what is worth saying where it fails."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    trunk = draw.choice(list(TRUNKS))
    source, make = TRUNKS[trunk]
    golden = Path(__file__).parent / source / "checkpoint"
    bare = draw.random() < 0.7
    folder.mkdir()
    config = make(json.loads((golden / "config.json").read_text())["vocab_size"])
    config.num_labels = 1
    model = (AutoModel if bare else AutoModelForSequenceClassification).from_config(config)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            tensor.copy_(_drawn(name, tensor))
    model.save_pretrained(folder)
    shutil.copy(golden / "tokenizer.json", folder)
    tokenizer = json.loads((golden / "tokenizer_config.json").read_text())
    if draw.random() < 0.4:
        tokenizer["model_input_names"] = ["input_ids", "attention_mask"]
    if draw.random() < 0.4:
        tokenizer["truncation_side"] = draw.choice(["left", "right"])
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    modules = _write_head(draw, folder) if bare else []
    first = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}
    (folder / "modules.json").write_text(json.dumps([first, *modules]))
    task, output = ("feature-extraction", "last_hidden_state") if bare else ("sequence-classification", "logits")
    own: dict[str, Any] = {
        "transformer_task": task,
        "modality_config": {"text": {"method": "forward", "method_output_name": output}},
        "module_output_name": "token_embeddings" if bare else "scores",
    }
    if draw.random() < 0.5:
        own["max_seq_length"] = draw.randint(40, 120)
    if draw.random() < 0.5:
        own["do_lower_case"] = draw.choice([True, False])
    (folder / "sentence_bert_config.json").write_text(json.dumps(own))
    prompts = draw.choice([{}, {"q": "Represent this: "}, {"q": "query: ", "other": "title: "}])
    shared = {
        "model_type": "CrossEncoder",
        "prompts": prompts,
        "default_prompt_name": draw.choice([None, "q"]) if prompts else None,
        "activation_fn": "torch.nn.modules.linear.Identity",
    }
    (folder / "config_sentence_transformers.json").write_text(json.dumps(shared))
    return {"trunk": trunk, "modules": [module["type"] for module in modules], **own, **shared, **tokenizer}


def _drawn(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if tensor.dim() == 1:
        return ("norm" in name.lower() and name.endswith("weight")) + 0.2 * torch.randn_like(tensor)
    return 2.5 * torch.randn_like(tensor) / tensor.shape[1] ** 0.5


def _write_head(draw: random.Random, folder: Path) -> list[dict[str, Any]]:
    modes = draw.sample(MODES, draw.choice([1, 1, 1, 2]))
    if draw.random() < 0.3:  # as versions before 5.4 write it
        modes = [mode for mode in OLD_MODES if mode in modes]
        order = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
        modes.sort(key=order.index)
        pooling: dict[str, Any] = {"word_embedding_dimension": HIDDEN}
        pooling |= {f"pooling_mode_{old}": mode in modes for mode, old in OLD_MODES.items()}
    else:
        chosen = modes[0] if len(modes) == 1 else modes
        pooling = {"embedding_dimension": HIDDEN, "pooling_mode": chosen}
    pooling["include_prompt"] = draw.random() < 0.5
    size = HIDDEN * len(modes)
    found = [("Pooling", pooling, {})]
    for _ in range(draw.randint(0, 3)):
        kind = draw.choice(["Dense", "Dense", "LayerNorm", "Normalize"])
        if kind == "Dense":
            outputs = draw.choice([size, 24, 40])
            found.append(_dense(draw, size, outputs, "sentence_embedding"))
            size = outputs
        elif kind == "LayerNorm":
            norm = {"norm.weight": 1 + 0.3 * torch.randn(size), "norm.bias": 0.3 * torch.randn(size)}
            found.append(("LayerNorm", {"dimension": size}, norm))
        else:
            found.append(("Normalize", {}, {}))
    found.append(_dense(draw, size, 1, "scores"))
    rows = []
    for number, (kind, config, tensors) in enumerate(found, 1):
        path = f"{number}_{kind}"
        (folder / path).mkdir()
        if config:
            (folder / path / "config.json").write_text(json.dumps(config))
        if tensors:
            save_file(tensors, folder / path / "model.safetensors")
        rows.append({"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"})
    return rows


def _dense(draw: random.Random, inputs: int, outputs: int, writes: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    config: dict[str, Any] = {"in_features": inputs, "out_features": outputs, "bias": draw.random() < 0.6}
    if writes == "scores":
        config["activation_function"] = "torch.nn.modules.linear.Identity"
    elif draw.random() < 0.8:  # a missing one is Tanh
        config["activation_function"] = f"torch.nn.modules.activation.{draw.choice(ACTIVATIONS)}"
    config["module_output_name"] = writes
    tensors = {"linear.weight": 2 * torch.randn(outputs, inputs) / inputs**0.5}
    if config["bias"]:
        tensors["linear.bias"] = 0.3 * torch.randn(outputs)
    if writes != "scores" and draw.random() < 0.3:
        config["use_residual"] = True
        if inputs != outputs:
            tensors["residual.weight"] = torch.randn(outputs, inputs) / inputs**0.5
    return "Dense", config, tensors


def pairs(real_pairs: list[tuple[str, str]], seed: int) -> list[tuple[str, str]]:
    found = random.Random(seed).sample(real_pairs, 10)
    return [*found, ("ÄRGER im Büro", "Ein ARGER Fall"), ("", "x"), (found[0][1], found[1][1]), ("a", "b")]


@pytest.mark.parametrize("seed", range(24))
def test_a_random_declaration_has_the_scores_of_sentence_transformers(real_pairs, tmp_path, seed):
    facts = write(seed, tmp_path / "model")
    texts = pairs(real_pairs, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        judge = sentence_transformers.CrossEncoder(str(tmp_path / "model"), device="cpu", local_files_only=True)
        expected = np.array(
            [judge.predict([text], activation_fn=torch.nn.Identity(), show_progress_bar=False)[0] for text in texts]
        )
    checkpoint = read_checkpoint(tmp_path / "model")
    encoder = open_encoder(
        checkpoint, max_tokens=model_max_tokens(checkpoint), truncate="reference", special_tokens="allow"
    )
    with LocalEngine(PLAN, checkpoint) as engine:
        ours = engine.score([pair for entry in encoder.encode(texts) for pair in entry])
    assert np.abs(ours - expected).max() <= TOLERANCE * max(1.0, np.abs(expected).max()), facts
    assert expected.std() > 0.001, facts
