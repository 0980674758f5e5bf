"""Packed models against padded transformers, on real texts, and on random models of every shape that we claim to read.

The reference side tokenises too (`AutoTokenizer`), so a difference in token ids shows here as well.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    CamembertConfig,
    ModernBertConfig,
    RobertaConfig,
    XLMRobertaConfig,
)
from transformers import logging as transformers_logging

from rerank_cli.checkpoint import read_checkpoint
from rerank_cli.checkpoint.max_tokens import model_max_tokens
from rerank_cli.encoding.encoder import open_encoder
from rerank_cli.engine.local import LocalEngine

TOLERANCE = 1e-5
PLAN = SimpleNamespace(device="cpu", threads=1, lanes=1, token_budget=4096, precision="fp32", attention="runs")


@pytest.fixture(autouse=True)
def quiet_transformers():
    transformers_logging.disable_progress_bar()
    yield
    with warnings.catch_warnings():  # where a command has run in this process, bars are forbidden for good
        warnings.simplefilter("ignore")
        transformers_logging.enable_progress_bar()


def our_logits(path: Path, pairs: list[tuple[str, str]], *, max_tokens: int) -> np.ndarray:
    checkpoint = read_checkpoint(path)
    encoder = open_encoder(checkpoint, max_tokens=max_tokens, truncate="reference", special_tokens="allow")
    encoded = [chunk for chunks in encoder.encode(pairs) for chunk in chunks]
    with LocalEngine(PLAN, checkpoint) as engine:
        return engine.score(encoded)


def reference_logits(path: Path, pairs: list[tuple[str, str]], *, max_tokens: int) -> np.ndarray:
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32).eval()
    logits = np.empty(len(pairs), dtype=np.float32)
    order = sorted(range(len(pairs)), key=lambda place: len(pairs[place][1]))  # so that little is padding
    with torch.inference_mode():
        for begin in range(0, len(pairs), 16):
            batch = order[begin : begin + 16]
            queries, passages = zip(*(pairs[place] for place in batch), strict=True)
            inputs = tokenizer(
                list(queries),
                list(passages),
                padding=True,
                truncation="longest_first",
                max_length=max_tokens,
                return_tensors="pt",
            )
            logits[batch] = model(**inputs).logits.squeeze(1).numpy()
    return logits


@pytest.mark.parametrize("name", ["bert-ce-open", "xlmr-ce-open", "modernbert-ce-open"])
def test_real_pairs_have_the_logits_of_transformers(goldens, real_pairs, name):
    path = goldens[name].checkpoint
    ours = our_logits(path, real_pairs, max_tokens=512)
    reference = reference_logits(path, real_pairs, max_tokens=512)
    assert np.abs(ours - reference).max() <= TOLERANCE
    assert np.unique(reference).size > 250  # a reference that says the same of every pair would prove nothing


@dataclass(frozen=True)
class Variant:
    """A random model. config: class of transformers; tokenizer: the golden that lends its own; stored: saved as."""

    config: Callable[..., Any]
    architecture: str
    tokenizer: str
    settings: dict[str, Any] = field(default_factory=dict)
    stored: torch.dtype = torch.float32
    shards: int = 1
    renamed: tuple[tuple[str, str], ...] = ()
    config_json: dict[str, Any] = field(default_factory=dict)


def bert(**more: Any) -> Variant:
    return _variant(BertConfig, "BertForSequenceClassification", "bert-ce-open", {"max_position_embeddings": 512}, more)


def roberta(config: Callable[..., Any], architecture: str, **more: Any) -> Variant:
    sizes = {"max_position_embeddings": 514, "type_vocab_size": 1, "pad_token_id": 1}
    return _variant(config, architecture, "xlmr-ce-open", sizes, more)


def modernbert(**more: Any) -> Variant:
    sizes = {"max_position_embeddings": 8192, "num_hidden_layers": 4, "local_attention": 32, "pad_token_id": 0}
    sizes |= {"cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}
    return _variant(ModernBertConfig, "ModernBertForSequenceClassification", "modernbert-ce-open", sizes, more)


def _variant(config, architecture, tokenizer, sizes, more) -> Variant:
    outside = {key: more.pop(key) for key in ("stored", "shards", "renamed", "config_json") if key in more}
    shape = {"hidden_size": 72, "num_hidden_layers": 3, "num_attention_heads": 6, "intermediate_size": 100}
    return Variant(config, architecture, tokenizer, {**shape, **sizes, **more}, **outside)


OLD_NAMES = (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta"))
ALL_BIASES = {"norm_bias": True, "attention_bias": True, "mlp_bias": True, "classifier_bias": True}
OLD_ROPE = {"rope_parameters": None, "global_rope_theta": 90_000.0, "local_rope_theta": 3_000.0}
OLD_LAYERS = {"layer_types": None, "global_attn_every_n_layers": 2}

VARIANTS = {
    "bert": bert(),
    "bert-relu": bert(hidden_act="relu"),
    "bert-gelu_new": bert(hidden_act="gelu_new"),
    "bert-silu": bert(hidden_act="silu"),
    "bert-one-layer": bert(num_hidden_layers=1),
    "bert-one-head": bert(num_attention_heads=1),
    "bert-wide-epsilon": bert(layer_norm_eps=0.5),
    "bert-old-names": bert(renamed=OLD_NAMES),
    "bert-stored-bf16": bert(stored=torch.bfloat16),
    "bert-stored-fp16": bert(stored=torch.float16),
    "bert-sharded": bert(shards=3),
    "roberta": roberta(RobertaConfig, "RobertaForSequenceClassification"),
    "camembert": roberta(CamembertConfig, "CamembertForSequenceClassification"),
    "xlm-roberta": roberta(XLMRobertaConfig, "XLMRobertaForSequenceClassification"),
    "xlm-roberta-other-padding": roberta(XLMRobertaConfig, "XLMRobertaForSequenceClassification", pad_token_id=4),
    "modernbert-mean": modernbert(classifier_pooling="mean"),
    "modernbert-cls": modernbert(classifier_pooling="cls"),
    "modernbert-narrow-window": modernbert(local_attention=8),
    "modernbert-odd-window": modernbert(local_attention=13, classifier_pooling="cls"),
    "modernbert-one-layer": modernbert(num_hidden_layers=1),
    "modernbert-one-layer-mean": modernbert(num_hidden_layers=1, classifier_pooling="mean"),
    "modernbert-local-last": modernbert(num_hidden_layers=3, classifier_pooling="cls"),
    "modernbert-biases": modernbert(**ALL_BIASES),
    "modernbert-sharded": modernbert(shards=4),
    "modernbert-stored-bf16": modernbert(stored=torch.bfloat16),
    "modernbert-relu": modernbert(hidden_activation="relu", classifier_activation="silu"),
    "modernbert-old-config": modernbert(config_json=OLD_ROPE | OLD_LAYERS),
}


def write_checkpoint(variant: Variant, tokenizer: Path, folder: Path) -> Path:
    """Random weights, biases and norms included, large enough that every part of the model shows in the logit."""
    folder.mkdir()
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / file, folder)
    vocabulary = json.loads((tokenizer / "config.json").read_text())["vocab_size"]
    config = variant.config(
        vocab_size=vocabulary, num_labels=1, architectures=[variant.architecture], **variant.settings
    )
    facts = {key: value for key, value in (config.to_dict() | variant.config_json).items() if value is not None}
    (folder / "config.json").write_text(json.dumps(facts))
    torch.manual_seed(7)
    config = type(config).from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_config(config)
    tensors = {}
    for name, tensor in model.state_dict().items():
        spread = 1.0 if tensor.dim() == 1 else 3.0 / tensor.shape[1] ** 0.5
        value = (
            tensor + 0.2 * spread * torch.randn_like(tensor)
            if "norm" in name.lower()
            else spread * torch.randn_like(tensor)
        )
        if name.endswith("bias"):
            value = 0.2 * torch.randn_like(tensor)
        for new, old in variant.renamed:
            name = name.replace(new, old)
        tensors[name] = value.to(variant.stored).contiguous()
    names = sorted(tensors)
    if variant.shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    weight_map = {}
    for shard in range(variant.shards):
        file = f"model-{shard + 1:05}-of-{variant.shards:05}.safetensors"
        held = names[shard :: variant.shards]
        save_file({name: tensors[name] for name in held}, folder / file)
        weight_map |= dict.fromkeys(held, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


@pytest.mark.parametrize("name", VARIANTS)
def test_a_random_model_has_the_logits_of_transformers(goldens, real_pairs, tmp_path, name):
    variant = VARIANTS[name]
    path = write_checkpoint(variant, goldens[variant.tokenizer].checkpoint, tmp_path / "model")
    pairs = real_pairs[::8]
    if variant.tokenizer == "xlmr-ce-open":
        # A padding id in the text, at its end, and neighbours of it: RoBERTa does not count it as a position.
        pairs = [*pairs, ("a <pad> question", "some <pad><pad> words <pad>"), ("<pad>", "<pad>"), ("", "")]
    ours = our_logits(path, pairs, max_tokens=256)
    reference = reference_logits(path, pairs, max_tokens=256)
    assert np.abs(ours - reference).max() <= TOLERANCE * max(1.0, np.abs(reference).max())
    assert reference.std() > 0.01


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_a_long_pair_has_the_logit_of_transformers_where_local_attention_is_cut_in_blocks(
    goldens, real_pairs, tmp_path, pooling
):
    variant = modernbert(local_attention=64, classifier_pooling=pooling)
    path = write_checkpoint(variant, goldens[variant.tokenizer].checkpoint, tmp_path / "model")
    long = " ".join(passage for _, passage in real_pairs[:20])
    pairs = [(real_pairs[0][0], long), real_pairs[0], (real_pairs[1][0], long[: len(long) // 3])]
    ours = our_logits(path, pairs, max_tokens=3000)
    reference = reference_logits(path, pairs, max_tokens=3000)
    assert np.abs(ours - reference).max() <= TOLERANCE * max(1.0, np.abs(reference).max())


def test_a_checkpoint_with_several_shards_is_as_long_as_its_single_file(goldens, tmp_path):
    tokenizer = goldens["bert-ce-open"].checkpoint
    one = read_checkpoint(write_checkpoint(bert(), tokenizer, tmp_path / "one"))
    three = read_checkpoint(write_checkpoint(bert(shards=3), tokenizer, tmp_path / "three"))
    assert one.parameters == three.parameters
    sizes = [sum(tensor.size_bytes for tensor in each.tensors.values()) for each in (one, three)]
    assert sizes[0] == sizes[1]
    assert (len(one.weight_files), len(three.weight_files)) == (1, 3)
    assert model_max_tokens(three) == 512
