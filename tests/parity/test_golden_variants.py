"""Checkpoints of each golden's kind with other weights, sizes, ids, precisions and files, against the reference.

A golden is one folder; anybody's is another. Each variant is made from the golden's own files and a seed: random
weights in other sizes, vocabulary ids exchanged, bf16 or fp16, shards, other or fewer keys in the tokenizer's files.
The reference is sentence-transformers; for language models that rerank by a recipe the recipe itself, on transformers'
tokenizer and model. `RERANK_CLI_VARIANTS=20` makes so many of each golden; without it there is one of every third.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests.parity.conftest import HERE
from tests.parity.declared_checkpoints import PAIRS, randomise
from tests.parity.test_declared import scored

sentence_transformers = pytest.importorskip("sentence_transformers")

COUNT = int(os.environ.get("RERANK_CLI_VARIANTS", "0"))
TOLERANCE = 1e-4
_DECLARED = [
    "bert-ce", "bert-left", "bert-prompt", "bert-stcfg", "bert-types", "deberta-ce", "modernbert-ce", "monobert-2label",
    "xlmr-ce", "ettin", "ctxl", "zerank2", "qwen3-st", "qwen3-seqcls", "llama-seqcls-st",
]  # fmt: skip
_QWEN3 = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n<Instruct>: Given a '
    "web search query, retrieve relevant passages that answer the query\n<Query>: {query}\n<Document>: {passage}"
    "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
)
_MXBAI = (
    "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n",
    "query: {query}", "\n", "document: {passage}", "\n",
    "You are a search relevance expert who evaluates how well documents match search queries. For each query-document "
    "pair, carefully analyze the semantic relationship between them, then provide your binary relevance judgment (0 "
    "for not relevant, 1 for relevant).\nRelevance:",
    "<|im_end|>\n<|im_start|>assistant\n",
)  # fmt: skip
_GEMMA = (
    "A: {query}", "\n", "B: {passage}", "\n",
    "Given a query A and a passage B, determine whether the passage contains an answer to the query by providing a "
    "prediction of either 'Yes' or 'No'.",
)  # fmt: skip
_TOKENIZER: list[dict[str, Any]] = [
    {}, {}, {"clean_up_tokenization_spaces": True}, {"extra_special_tokens": {}, "additional_special_tokens": []},
    {"padding_side": "right"}, {"name_or_path": "somebody/some-model", "special_tokens_map_file": None},
    {"split_special_tokens": False, "errors": "replace"}, {"model_max_length": 10**30}, {"add_bos_token": False},
]  # fmt: skip


def _sizes(draw: random.Random, config: Any) -> dict[str, Any]:
    """Other sizes of what may be of another size."""
    found: dict[str, Any] = {"num_hidden_layers": draw.choice([1, 2, 3, 4])}
    if config.model_type == "modernbert":
        found["num_hidden_layers"] = draw.choice([2, 3, 4])
    if getattr(config, "layer_types", None):
        found["layer_types"] = [
            config.layer_types[n % len(config.layer_types)] for n in range(found["num_hidden_layers"])
        ]
    found["intermediate_size"] = draw.choice([40, 64, 96])
    if (
        draw.random() < 0.5
        and getattr(config, "hidden_act", None) == "gelu"
        and config.model_type in ("bert", "xlm-roberta")
    ):
        found["hidden_act"] = draw.choice(["relu", "gelu_new", "silu"])
    for name, values in {
        "rms_norm_eps": [1e-6, 1e-5],
        "layer_norm_eps": [1e-12, 1e-5],
        "norm_eps": [1e-5, 1e-6],
    }.items():
        if hasattr(config, name):
            found[name] = draw.choice(values)
    return found


def exchange_ids(folder: Path, draw: random.Random) -> bool:  # noqa: C901 (a line for each place of an id)
    """Give every token of the vocabulary the id of another one; special tokens too. Only where ids are a mapping."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"].get("vocab")
    if not isinstance(vocabulary, dict):
        return False
    ids = sorted({*vocabulary.values(), *(one["id"] for one in tokenizer["added_tokens"])})
    keep = {one["id"] for one in tokenizer["added_tokens"]} if draw.random() < 0.5 else set()
    moved = [number for number in ids if number not in keep]
    to = dict(zip(moved, draw.sample(moved, len(moved)), strict=True))

    def new(number: int) -> int:
        return to.get(number, number)

    tokenizer["model"]["vocab"] = {token: new(number) for token, number in vocabulary.items()}
    for one in tokenizer["added_tokens"]:
        one["id"] = new(one["id"])
    tokenizer["added_tokens"].sort(key=lambda one: one["id"])

    def renumber(value: Any) -> Any:
        if isinstance(value, dict):
            if "ids" in value and "tokens" in value:
                return {**value, "ids": [new(number) for number in value["ids"]]}
            return {key: renumber(one) for key, one in value.items()}
        if isinstance(value, list):
            if len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int):  # `sep`, `cls`
                return [value[0], new(value[1])]
            return [renumber(one) for one in value]
        return value

    if tokenizer.get("post_processor"):
        tokenizer["post_processor"] = renumber(tokenizer["post_processor"])
    if tokenizer.get("padding"):
        tokenizer["padding"]["pad_id"] = new(tokenizer["padding"]["pad_id"])
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    for name in ("config.json", "tokenizer_config.json", "1_LogitScore/config.json"):
        file = folder / name
        if not file.is_file():
            continue
        values = json.loads(file.read_text())
        for key, value in values.items():
            if key.endswith("token_id") and isinstance(value, int):
                values[key] = new(value)
        if "added_tokens_decoder" in values:
            values["added_tokens_decoder"] = {
                str(new(int(key))): one for key, one in values["added_tokens_decoder"].items()
            }
        file.write_text(json.dumps(values))
    return True


def _edit(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    if file.is_file():
        values = json.loads(file.read_text())
        change(values)
        file.write_text(json.dumps(values))


def make(golden: str, folder: Path, seed: int) -> dict[str, Any]:
    """Write a variant of a golden; returns what was done."""
    draw = random.Random(f"{golden} {seed}")
    torch.manual_seed(seed)
    shutil.copytree(HERE / f"{golden}-open" / "checkpoint", folder)
    told: dict[str, Any] = {"golden": golden, "seed": seed}
    if draw.random() < 0.5:
        told["ids"] = exchange_ids(folder, draw)
    given = json.loads((folder / "config.json").read_text())
    architecture = given["architectures"][0]
    config = transformers.AutoConfig.from_pretrained(folder)
    told["sizes"] = _sizes(draw, config)
    for name, value in told["sizes"].items():
        setattr(config, name, value)
    model = getattr(transformers, architecture)(config).eval()
    randomise(model, matrices=0.15, vectors=0.1)
    told["dtype"] = draw.choice(["float32", "float32", "bfloat16", "float16"])
    model.to(getattr(torch, told["dtype"]))
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    told["shards"] = draw.choice(["5GB", "60KB"])
    kept = {path.name for path in folder.iterdir()}
    written = folder.parent / "written"
    model.save_pretrained(written, max_shard_size=told["shards"])
    for file in written.glob("*.safetensors*"):
        shutil.move(file, folder / file.name)
    told["config"] = draw.choice(["new", "old"])
    if told["config"] == "new":  # as this transformers writes it
        shutil.move(written / "config.json", folder / "config.json")
    else:
        _edit(folder / "config.json", lambda values: values.update({**told["sizes"], "torch_dtype": told["dtype"]}))
        _edit(folder / "config.json", lambda values: values.pop("dtype", None))
    assert kept <= {path.name for path in folder.iterdir()}
    shutil.rmtree(written)
    told["tokenizer"] = draw.choice(_TOKENIZER)
    if told["tokenizer"] == {"add_bos_token": False} and golden not in ("bge-gemma", "mxbai-v2", "qwen3-reranker"):
        told["tokenizer"] = {}
    _edit(folder / "tokenizer_config.json", lambda values: values.update(told["tokenizer"]))
    if draw.random() < 0.3 and (folder / "special_tokens_map.json").is_file():
        (folder / "special_tokens_map.json").unlink()
        told["without"] = "special_tokens_map.json"
    return told


@torch.inference_mode()
def by_recipe(golden: str, folder: Path) -> list[float]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    # transformers 5 takes Gemma's `gelu` for the tanh approximation: see models/causal.py.
    if golden == "bge-gemma" and json.loads((folder / "config.json").read_text())["hidden_act"] == "gelu":
        for layer in model.model.layers:
            layer.mlp.act_fn = torch.nn.GELU()

    def plain(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    found = []
    for query, passage in PAIRS:
        if golden == "qwen3-reranker":
            head, tail = _QWEN3.split("<Instruct>: ")
            body, end = ("<Instruct>: " + tail).split("<|im_end|>\n<|im_start|>assistant")
            ids = plain(head) + plain(body.replace("{query}", query).replace("{passage}", passage))
            ids += plain("<|im_end|>\n<|im_start|>assistant" + end)
            answers = [tokenizer.convert_tokens_to_ids(word) for word in ("yes", "no")]
        else:
            parts = _MXBAI if golden == "mxbai-v2" else _GEMMA
            ids = [tokenizer.bos_token_id] if golden == "bge-gemma" else []
            for part in parts:
                ids += plain(part.replace("{query}", query).replace("{passage}", passage))
            answers = [plain(word)[0] for word in (("1", "0") if golden == "mxbai-v2" else ("Yes",))]
        logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
        found.append(float(logits[answers[0]] - (logits[answers[1]] if len(answers) > 1 else 0)))
    return found


def by_library(folder: Path) -> list[float]:
    """In batches of one: where the padding of config.json is not the tokenizer's, its scores depend on the batch."""
    model = sentence_transformers.CrossEncoder(
        str(folder), device="cpu", local_files_only=True, model_kwargs={"dtype": torch.float32}
    )
    logits = model.predict(PAIRS, batch_size=1, activation_fn=torch.nn.Identity(), convert_to_numpy=True)
    rows = logits.reshape(len(PAIRS), -1).tolist()
    return [row[1] - row[0] if len(row) > 1 else row[0] for row in rows]


_KINDS = [*_DECLARED, "qwen3-reranker", "mxbai-v2", "bge-gemma"]


@pytest.mark.parametrize("seed", range(max(1, COUNT)))
@pytest.mark.parametrize("kind", _KINDS if COUNT else _KINDS[2::3])
def test_a_variant_of_a_golden_has_the_score_of_its_reference(kind, seed, tmp_path, capsys):
    folder = tmp_path / "checkpoint"
    told = make(kind, folder, seed)
    code, logits, said = scored(folder, capsys)
    assert code == 0, (said, told)
    wanted = by_library(folder) if kind in _DECLARED else by_recipe(kind, folder)
    worst = max(abs(one - other) for one, other in zip(logits, wanted, strict=True))
    assert worst <= TOLERANCE, (worst, told, [*zip(logits, wanted, strict=True)])
