"""Pairs of padded models as they were trained: what stands around them is the word of tokenizer.json.

transformers 5 builds the tokenizers of DeBERTa v1 and ALBERT anew and gives other pairs than version 4 did, which read
the file as it is. So the truth here is the file, read by the tokenizers library alone, and transformers' model on top.
Two labels are read likewise: by the probability of label 1, as monoBERT's and monoELECTRA's authors do.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

from rerank_cli.checkpoint import read_checkpoint
from rerank_cli.encoding.encoder import open_encoder
from rerank_cli.engine.local import LocalEngine
from tests.parity.declared_checkpoints import randomise
from tests.parity.test_against_transformers import PLAN

SIZES = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 64,
         "max_position_embeddings": 128, "type_vocab_size": 2}  # fmt: skip
PAIRS = [
    ("How long does a Seal last?", "A pump with a worn seal loses pressure."),
    ("Crème", "naïve 水泵"),
    ("", "a b"),
]
TOLERANCE = 1e-5


def texts() -> list[str]:
    return [form for pair in PAIRS for text in pair for form in (text, text.lower(), text[::-1])] * 5


def byte_pairs() -> Tokenizer:
    """As DeBERTa v1 has it: GPT-2's pieces of bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator(texts(), trainer)
    return tokenizer


def unigrams() -> Tokenizer:
    """As ALBERT has it: SentencePiece's pieces of lower-cased words."""
    tokenizer = Tokenizer(models.Unigram())
    steps = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"'), normalizers.NFKD()]
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.StripAccents(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=special, unk_token="[UNK]", show_progress=False)
    tokenizer.train_from_iterator(texts(), trainer)
    return tokenizer


def words() -> Tokenizer:
    """As BERT has it."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(texts(), trainers.WordPieceTrainer(special_tokens=special, show_progress=False))
    return tokenizer


TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {"Deberta": byte_pairs, "Albert": unigrams, "Bert": words}
SETTINGS: dict[str, dict[str, Any]] = {
    "Deberta": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_biased_input": False},
    "Albert": {"embedding_size": 16},
    "Electra": {"embedding_size": 16},
}


def make(folder: Path, family: str, *, labels: int) -> Path:
    """A tiny checkpoint whose tokenizer.json says what stands around a pair."""
    tokenizer = TOKENIZERS.get(family, words)()
    ids = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0", pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1", special_tokens=ids
    )
    torch.manual_seed(labels)
    sizes = {**SIZES, **SETTINGS.get(family, {}), "vocab_size": tokenizer.get_vocab_size(), "num_labels": labels}
    config = getattr(transformers, f"{family}Config")(**sizes, pad_token_id=tokenizer.token_to_id("[PAD]"))
    model = getattr(transformers, f"{family}ForSequenceClassification")(config)
    randomise(model, matrices=0.3, vectors=0.1)
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {f"{name}_token": f"[{name.upper()}]" for name in ("cls", "sep", "pad", "unk", "mask")}
    named |= {"tokenizer_class": f"{family}Tokenizer", "model_max_length": 128}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    return folder


def true_logits(folder: Path) -> np.ndarray:
    """Those of the file's own pairs, one after another."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
    model = getattr(transformers, architecture).from_pretrained(folder).eval()
    found = []
    for query, passage in PAIRS:
        pair = tokenizer.encode(query, passage)
        with torch.no_grad():
            given = {"input_ids": torch.tensor([pair.ids]), "token_type_ids": torch.tensor([pair.type_ids])}
            found.append(model(**given).logits[0].double().numpy())
    return np.array(found)


def our_logits(folder: Path, label: int | None = None) -> np.ndarray:
    checkpoint = replace(read_checkpoint(folder), label=label)
    encoded = [chunk for chunks in open_encoder(checkpoint, max_tokens=128).encode(PAIRS) for chunk in chunks]
    with LocalEngine(PLAN, checkpoint) as engine:
        return engine.score(encoded)


@pytest.mark.parametrize("family", ["Deberta", "Albert"])
def test_a_pair_is_that_of_tokenizer_json_and_not_of_transformers_5(family, tmp_path):
    folder = make(tmp_path / "model", family, labels=1)
    assert np.abs(our_logits(folder) - true_logits(folder)[:, 0]).max() <= TOLERANCE
    theirs = AutoTokenizer.from_pretrained(folder)("a", "b")
    own = Tokenizer.from_file(str(folder / "tokenizer.json")).encode("a", "b")
    assert (theirs["input_ids"], theirs.get("token_type_ids")) != (own.ids, own.type_ids), "there is nothing to mend"


@pytest.mark.parametrize("family", ["Bert", "Electra", "Deberta"])
def test_two_labels_have_the_order_of_the_second_ones_probability_and_each_can_be_asked_for(family, tmp_path):
    folder = make(tmp_path / "model", family, labels=2)
    logits = true_logits(folder)
    ours = our_logits(folder)
    relevant = np.exp(logits[:, 1]) / np.exp(logits).sum(1)
    assert np.abs(1 / (1 + np.exp(-ours)) - relevant).max() <= TOLERANCE
    for label in (0, 1):
        assert np.abs(our_logits(folder, label) - logits[:, label]).max() <= TOLERANCE
    config = json.loads((folder / "config.json").read_text())
    for names in ({"num_labels": 2}, {}):  # older files have the number alone, or leave it to the default
        left = {key: value for key, value in config.items() if key not in ("id2label", "label2id", "num_labels")}
        (folder / "config.json").write_text(json.dumps(left | names))
        assert our_logits(folder).tolist() == ours.tolist()
