"""Keys of config.json that change a score in transformers: each is obeyed by the packed models, or refused.

A tiny checkpoint of each packed trunk, its config.json with another value under one key at a time: our logits are those
of transformers with the same file, or there are none. `RERANK_TORTURE=long` takes every key that the class of the
configuration knows, with several values each.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError

from rerank_cli.checkpoint import read_checkpoint
from rerank_cli.engine.local import LocalEngine
from rerank_cli.errors import RerankError
from rerank_cli.records import EncodedPair
from tests.parity.declared_checkpoints import FOLDERS, sizes_of
from tests.parity.test_against_transformers import PLAN

LONG = os.environ.get("RERANK_TORTURE") == "long"
TOLERANCE = 1e-4
ENCODERS = ("Bert", "Roberta", "XLMRoberta", "Camembert", "Electra", "ModernBert")
DECODERS = ("Qwen3", "Qwen2", "Llama", "Mistral", "Gemma")
CLASSES = [f"{trunk}ForSequenceClassification" for trunk in (*ENCODERS, *DECODERS)]
CLASSES += [f"{trunk}ForCausalLM" for trunk in DECODERS]
VALUES: dict[str, list[Any]] = {
    "is_causal": [False, True],
    "is_decoder": [True],
    "use_bidirectional_attention": [True],
    "use_sliding_window": [True],
    "position_embedding_type": ["relative_key"],
    "partial_rotary_factor": [0.5],
    "rope_scaling": [{"rope_type": "linear", "factor": 2.0}, {"rope_type": "dynamic", "factor": 2.0}],
    "layer_types": [["sliding_attention", "full_attention"]],
    "attention_bias": [True],
    "hidden_act": ["relu"],
    "tie_word_embeddings": [True, False],
}
TRUE, FALSE = 7, 3
NOT_RUN = (
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    AssertionError,
    RuntimeError,
    StrictDataclassError,
)
# They change what is compared, and no score.
NOT_COMPARED = {"pad_token_id", "vocab_size", "num_labels", "architectures", "model_type", "dtype", "torch_dtype"}
NOT_COMPARED |= {"id2label", "label2id", "transformers_version", "return_dict", "output_attentions"}


def others(key: str, value: Any) -> list[Any]:
    """Other values of a key, by the kind of the one that it has."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, 2 * value, 1]
    if isinstance(value, float):
        return [0.5, 3 * value]
    if value is None:
        return [True, 2, 0.5]
    if isinstance(value, str):
        return ["relu", "mean", "last"]
    return [list(reversed(value))] if isinstance(value, list) else []


def make(name: str, folder: Path) -> tuple[Any, dict[str, Any]]:
    """A tiny checkpoint of the class, and its config.json."""
    trunk = name.partition("For")[0]
    golden = FOLDERS[trunk]
    given = json.loads((golden / "config.json").read_text())
    sizes = sizes_of(random.Random(3), trunk, given) | {"num_hidden_layers": 3 if trunk == "ModernBert" else 2}
    torch.manual_seed(1)
    kind = getattr(transformers, name)
    model = kind(getattr(transformers, f"{trunk}Config")(**sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(golden / file, folder / file)
    modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    if name.endswith("ForCausalLM"):
        modules.append({"idx": 1, "name": "1", "path": "1", "type": "sentence_transformers.models.LogitScore"})
        (folder / "1").mkdir()
        (folder / "1" / "config.json").write_text(json.dumps({"true_token_id": TRUE, "false_token_id": FALSE}))
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "config_sentence_transformers.json").write_text('{"model_type": "CrossEncoder"}')
    return model, json.loads((folder / "config.json").read_text())


def pairs_for(name: str, vocabulary: int) -> list[EncodedPair]:
    draw = np.random.default_rng(0)
    typed = name.startswith(("Bert", "Electra"))
    lengths = (14, 9, 23, 14)
    return [
        EncodedPair(
            input_ids=draw.integers(8, vocabulary - 8, size=length).astype(np.int32),
            second_start=length // 2 if typed else length,
            tokens=length,
        )
        for length in lengths
    ]


@torch.inference_mode()
def reference(name: str, folder: Path, pairs: list[EncodedPair]) -> np.ndarray:
    model = getattr(transformers, name).from_pretrained(folder, dtype=torch.float32).eval()
    shape = (len(pairs), max(len(pair.input_ids) for pair in pairs))
    ids = torch.full(shape, model.config.pad_token_id or 0)
    mask, types = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    for row, pair in enumerate(pairs):
        length = len(pair.input_ids)
        ids[row, :length] = torch.from_numpy(pair.input_ids.astype(np.int64))
        mask[row, :length], types[row, pair.second_start : length] = 1, 1
    more = {"token_type_ids": types} if name.startswith(("Bert", "Electra")) else {}
    logits = model(input_ids=ids, attention_mask=mask, **more).logits
    if not name.endswith("ForCausalLM"):
        return np.asarray(logits[:, 0])
    last = logits[torch.arange(len(pairs)), mask.sum(1) - 1]
    return np.asarray(last[:, TRUE] - last[:, FALSE])


def ours(folder: Path, pairs: list[EncodedPair]) -> np.ndarray:
    with LocalEngine(PLAN, read_checkpoint(folder)) as engine:
        return engine.score(pairs)


def changes(config: Any) -> Iterator[tuple[str, Any]]:
    values = dict(VALUES)
    if LONG:
        for key, value in config.to_dict().items():
            values[key] = [*values.get(key, []), *others(key, value)]
    for key, candidates in values.items():
        if key not in NOT_COMPARED:
            yield from ((key, value) for value in candidates)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CLASSES)
def test_a_key_is_obeyed_as_transformers_does_or_refused(name, tmp_path):
    folder = tmp_path / "model"
    model, facts = make(name, folder)
    pairs = pairs_for(name, facts["vocab_size"])
    assert np.abs(ours(folder, pairs) - reference(name, folder, pairs)).max() <= TOLERANCE
    refused, wrong = [], []
    for key, value in changes(model.config):
        (folder / "config.json").write_text(json.dumps({**facts, key: value}))
        try:
            found = ours(folder, pairs)
        except RerankError:
            refused.append(key)
            continue
        try:
            wanted = reference(name, folder, pairs)
        except NOT_RUN:  # by transformers, so that nothing is to be compared
            continue
        limited = key == "sliding_window" and name.startswith("Mistral")
        if not limited and not np.abs(found - wanted).max() <= TOLERANCE:
            wrong.append((key, value, float(np.abs(found - wanted).max())))
    assert not wrong
    assert name.startswith(ENCODERS) or "is_causal" in refused
