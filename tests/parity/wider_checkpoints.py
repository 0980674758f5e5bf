"""What published folders say besides: keys, labels, precisions, options that `declared_checkpoints.py` draws none of.

`widen` changes a folder that it has made, by a seed of its own, so that one seed gives one checkpoint with both.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

_HEADS = ("score", "classifier", "classifier.out_proj")
# Neither changes a score, or each changes it as transformers says; a folder may hold any of them.
_KEYS: list[dict[str, Any]] = [
    {"_name_or_path": "somebody/some-model", "transformers_version": "4.57.1"},
    {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity", "version": "4.0.1"}},
    {"use_cache": False},
    {"gradient_checkpointing": True, "classifier_dropout": 0.3},
    {"torch_dtype": "bfloat16"},
    {"output_attentions": False, "return_dict": True, "chunk_size_feed_forward": 0},
]
_ROPE: list[dict[str, Any]] = [
    {"rope_type": "linear", "factor": 4.0},
    {"type": "linear", "factor": 2.0},
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
    {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 128,
    },
]  # fmt: skip
_TOKENIZER: list[dict[str, Any]] = [
    {"add_bos_token": True},
    {"add_eos_token": True},
    {"add_bos_token": False, "add_eos_token": False},
    {"add_prefix_space": True},
    {"strip_accents": False},
    {"tokenize_chinese_chars": False},
    {"clean_up_tokenization_spaces": True, "split_special_tokens": False},
    {"padding_side": "left"},
    {"model_max_length": 1000000000000000019884624838656},
    {"extra_special_tokens": {}, "additional_special_tokens": []},
]
_SETTINGS: list[dict[str, Any]] = [
    {"model_kwargs": {"attn_implementation": "eager"}},
    {"model_args": {"torch_dtype": "float32"}, "tokenizer_args": {"use_fast": True}},
    {"config_kwargs": {"revision": "main"}},
]
_ACTIVATIONS = ["CELU", "Hardsigmoid", "Hardtanh", "LogSigmoid", "ReLU6", "SELU", "Softsign", "Tanhshrink"]
_MODULES = ["WordWeights", "Router", "LSTM", "CNN", "Dropout", "SpladePooling"]


def widen(folder: Path, told: dict[str, Any]) -> None:
    """Change the folder of a checkpoint, of which `told` says what is special; what is done is added to it."""
    draw = random.Random(f"wider {told['seed']}")
    told["wider"] = []
    own = next(path.parent for path in sorted(folder.rglob("config.json")) if "architectures" in path.read_text())
    changes: list[Callable[[Path, Path, random.Random, dict[str, Any]], Any]] = [
        _keys, _rope, _tokenizer, _settings, _labels, _half, _activations, _pooling, _unknown_module, _lost_prompt,
    ]  # fmt: skip
    for change in changes:
        often = 0.08 if change in (_unknown_module, _lost_prompt) else 0.35
        if draw.random() < often and (what := change(folder, own, draw, told)):
            told["wider"].append((change.__name__.removeprefix("_"), what))


def _edit(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def _keys(folder: Path, own: Path, draw: random.Random, told: dict[str, Any]) -> Any:
    chosen = draw.choice(_KEYS)
    _edit(own / "config.json", **chosen)
    return chosen


def _rope(folder: Path, own: Path, draw: random.Random, told: dict[str, Any]) -> Any:
    """Scaled positions, in the old key or in the new one."""
    config = json.loads((own / "config.json").read_text())
    if told["kind"] not in ("logit", "decoder"):
        return None
    chosen = draw.choice(_ROPE)
    theta = config.pop("rope_theta", None) or (config.pop("rope_parameters", None) or {}).get("rope_theta", 1e4)
    config.pop("rope_parameters", None)
    if draw.random() < 0.5:
        config |= {"rope_theta": theta, "rope_scaling": chosen}
    else:
        config |= {"rope_parameters": {"rope_theta": theta, **chosen}}
    (own / "config.json").write_text(json.dumps(config))
    told.setdefault("may", []).append("rope")
    return chosen


def _tokenizer(folder: Path, own: Path, draw: random.Random, told: dict[str, Any]) -> Any:
    chosen = draw.choice(_TOKENIZER)
    if "padding_side" in chosen and told["kind"] not in ("logit", "decoder"):
        return None  # the library then counts positions from the padding on, so a score depends on the batch
    _edit(own / "tokenizer_config.json", **chosen)
    if "add_prefix_space" in chosen:
        told.setdefault("may", []).append("blank")
    return chosen


def _settings(folder: Path, own: Path, draw: random.Random, told: dict[str, Any]) -> Any:
    chosen = draw.choice(_SETTINGS)
    file = own / told["file"]
    if not file.is_file() or any(key in json.loads(file.read_text()) for key in chosen):
        return None
    _edit(file, **chosen)
    return chosen


def _labels(folder: Path, own: Path, draw: random.Random, told: dict[str, Any]) -> Any:
    """Two labels or three, in a head of as many rows; told by their names, by their number, or by the head alone."""
    if told["kind"] not in ("decoder", "encoder") or not (own / "model.safetensors").is_file():
        return None
    tensors = load_file(own / "model.safetensors")
    head = next((name for name in _HEADS if f"{name}.weight" in tensors), None)
    if head is None:
        return None
    labels = draw.choice([2, 2, 3])
    config = json.loads((own / "config.json").read_text())
    for key in ("id2label", "label2id", "num_labels"):
        config.pop(key, None)
    told_by = draw.choice(["names", "number", "head" if labels == 2 else "names"])
    if told_by == "names":
        config |= {"id2label": {str(n): f"LABEL_{n}" for n in range(labels)}}
        config |= {"label2id": {f"LABEL_{n}": n for n in range(labels)}}
    elif told_by == "number":
        config["num_labels"] = labels
    if draw.random() < 0.5:  # with one label the library refuses it
        config["problem_type"] = "single_label_classification"
    (own / "config.json").write_text(json.dumps(config))
    for name in (f"{head}.weight", f"{head}.bias"):
        if name in tensors:
            tensors[name] = torch.randn(labels, *tensors[name].shape[1:]) * 0.3
    save_file(tensors, own / "model.safetensors", {"format": "pt"})
    told["labels"] = labels
    if labels > 2:
        told.setdefault("must", []).append("labels")
    return labels, told_by


def _half(folder: Path, own: Path, draw: random.Random, told: dict[str, Any]) -> Any:
    """Weights in 16 bits, as most are published."""
    kind = draw.choice([torch.bfloat16, torch.float16])
    for file in own.glob("*.safetensors"):
        tensors = {name: one.to(kind) if one.is_floating_point() else one for name, one in load_file(file).items()}
        save_file(tensors, file, {"format": "pt"})
    name = str(kind).removeprefix("torch.")
    _edit(own / "config.json", dtype=name)
    return name


def _activations(folder: Path, own: Path, draw: random.Random, told: dict[str, Any]) -> Any:
    """Other classes of torch.nn, by their short path too."""
    for file in sorted(folder.glob("*_Dense/config.json")):
        name = draw.choice(_ACTIVATIONS)
        _edit(file, activation_function=f"torch.nn.{draw.choice(['', 'modules.activation.'])}{name}")
    return told["kind"] == "head"


def _pooling(folder: Path, own: Path, draw: random.Random, told: dict[str, Any]) -> Any:
    """What the first versions of the module wrote: fewer keys, and none that is true."""
    file = folder / "1_Pooling" / "config.json"
    config = json.loads(file.read_text()) if file.is_file() else {}
    modes = [key for key, value in config.items() if key.startswith("pooling_mode_") and value]
    if config.get("pooling_mode") != "mean" and modes != ["pooling_mode_mean_tokens"]:
        return None
    size = config.get("embedding_dimension") or config["word_embedding_dimension"]
    old = {"word_embedding_dimension": size, "pooling_mode_cls_token": False, "pooling_mode_max_tokens": False}
    file.write_text(json.dumps(old | draw.choice([{}, {"pooling_mode_mean_tokens": False}])))
    return True


def _unknown_module(folder: Path, own: Path, draw: random.Random, told: dict[str, Any]) -> Any:
    file = folder / "modules.json"
    if not file.is_file():
        return None
    entries = json.loads(file.read_text())
    name = draw.choice(_MODULES)
    entry = {"name": "more", "path": f"9_{name}", "type": f"sentence_transformers.models.{name}"}
    entries.insert(draw.randrange(1, len(entries) + 1), entry)
    file.write_text(json.dumps([{**one, "idx": number} for number, one in enumerate(entries)]))
    (folder / f"9_{name}").mkdir()
    (folder / f"9_{name}" / "config.json").write_text("{}")
    told.setdefault("must", []).append("unknown module")
    return name


def _lost_prompt(folder: Path, own: Path, draw: random.Random, told: dict[str, Any]) -> Any:
    if not (folder / "modules.json").is_file():
        return None
    _edit(folder / "config_sentence_transformers.json", default_prompt_name="is not there")
    told.setdefault("must", []).append("lost prompt")
    return True
