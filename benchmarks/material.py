"""Pairs and checkpoints to measure with, and the machine's description."""

from __future__ import annotations

import json
import platform
import random
import shutil
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import torch

from rerank_cli.checkpoint import Checkpoint, locate_checkpoint, read_checkpoint
from rerank_cli.machine.cpu import detect_cpu
from rerank_cli.models.weights import WeightReader

COLLECTIONS = Path(__file__).parents[2] / "shared" / "collections"
"""Candidate lists that may not be redistributed; where they are missing, `samples/` serves."""

SAMPLES = Path(__file__).parents[1] / "samples" / "python-docs.jsonl"


def candidate_lists(collection: str) -> Path:
    """The candidate lists of a collection, or the samples where it is not at hand (said aloud)."""
    path = COLLECTIONS / collection / "candidates.jsonl"
    if path.exists():
        return path
    print(f"note: {path} is not here; using {SAMPLES.name} instead")
    return SAMPLES


def read_pairs(path: Path, *, limit: int, seed: int = 0) -> list[tuple[str, str]]:
    """`limit` (query, passage) pairs of a file of candidate lists, shuffled."""
    pairs = list(_pairs(path))
    random.Random(seed).shuffle(pairs)
    return pairs[:limit]


def read_lists(path: Path, *, lists: int, candidates: int, seed: int = 0) -> list[tuple[str, list[str]]]:
    """Some (query, passages) lists of a file, cut to `candidates` each, in shuffled order as a search gives them."""
    with path.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    draw = random.Random(seed)
    chosen = []
    for row in draw.sample(rows, min(lists, len(rows))):
        passages = [passage["text"] for passage in (row.get("candidates") or row["passages"])[:candidates]]
        chosen.append((row["query"], draw.sample(passages, len(passages))))
    return chosen


def _pairs(path: Path) -> Iterator[tuple[str, str]]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            for passage in row.get("candidates") or row["passages"]:
                yield row["query"], passage["text"]


def plain_checkpoint(folder: Path, *, layers: int | None = None, model: str | None = None) -> Path:
    """A BERT checkpoint as transformers loads it: 8-bit weights dequantised, the first `layers` layers, float32."""
    from safetensors.torch import save_file

    checkpoint = read_checkpoint(locate_checkpoint(model))
    config = dict(checkpoint.config)
    config["num_hidden_layers"] = kept = min(layers or 10**6, checkpoint.integer("num_hidden_layers"))
    folder.mkdir(parents=True, exist_ok=True)
    with WeightReader(checkpoint, dtype=torch.float32, device=torch.device("cpu")) as weights:
        tensors = {name: weights.take(name, checkpoint.tensors[name].shape) for name in _weights(checkpoint, kept)}
        save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    _copy_tokenizer(checkpoint.path, folder)
    return folder


LLAMA = {
    "architectures": ["LlamaBidirectionalForSequenceClassification"],
    "model_type": "llama_bidirec",
    "hidden_act": "silu",
    "hidden_size": 512,
    "intermediate_size": 2048,
    "max_position_embeddings": 8192,
    "num_attention_heads": 8,
    "num_hidden_layers": 8,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500_000.0,
    "vocab_size": 30_522,  # the built-in model's, whose ids it is given
    "id2label": {"0": "LABEL_0"},
    "pooling": "avg",
    "temperature": 1.0,
}


def llama_checkpoint(folder: Path) -> Path:
    """A small Llama cross-encoder with random weights in float32, and the built-in model's tokenizer."""
    from safetensors.torch import save_file

    from benchmarks.padded import llama_of

    torch.manual_seed(0)
    model = llama_of(LLAMA, device="cpu", dtype=torch.float32)
    weights = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    hidden = model.config.hidden_size
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights | {"score.weight": torch.randn(1, hidden) / hidden**0.5}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(LLAMA))
    _copy_tokenizer(locate_checkpoint(None), folder)
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer["model_max_length"] = LLAMA["max_position_embeddings"]
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return folder


ETTIN = {
    "architectures": ["ModernBertModel"], "model_type": "modernbert", "hidden_size": 384, "intermediate_size": 576,
    "num_hidden_layers": 10, "num_attention_heads": 6, "local_attention": 128, "global_attn_every_n_layers": 3,
    "max_position_embeddings": 8192, "vocab_size": 30_522, "pad_token_id": 0, "cls_token_id": 101, "sep_token_id": 102,
    "bos_token_id": 101, "eos_token_id": 102,
}  # fmt: skip
QWEN3 = {
    "architectures": ["Qwen3ForSequenceClassification"], "model_type": "qwen3", "hidden_size": 512,
    "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 4,
    "head_dim": 64, "max_position_embeddings": 8192, "vocab_size": 30_522, "pad_token_id": 0, "num_labels": 1,
    "tie_word_embeddings": False,
}  # fmt: skip
_TYPES = "sentence_transformers.models."


def ettin_checkpoint(folder: Path, **sizes: int) -> Path:
    """An ettin of 10 layers of 384, or of other sizes, with random weights: a bare ModernBERT, its head in modules."""
    from safetensors.torch import save_file
    from transformers import AutoModel, ModernBertConfig

    torch.manual_seed(0)
    config = ETTIN | sizes
    AutoModel.from_config(ModernBertConfig(**config)).save_pretrained(folder)
    hidden = config["hidden_size"]
    pooling = {"embedding_dimension": hidden, "pooling_mode": "cls"}
    dense = {"in_features": hidden, "out_features": hidden, "bias": False}
    dense["activation_function"] = "torch.nn.modules.activation.GELU"
    last = {"in_features": hidden, "out_features": 1, "bias": True, "module_output_name": "scores"}
    last["activation_function"] = "torch.nn.modules.linear.Identity"
    modules = [
        ("Pooling", pooling, {}),
        ("Dense", dense, {"linear.weight": torch.randn(hidden, hidden) / hidden**0.5}),
        ("LayerNorm", {"dimension": hidden}, {"norm.weight": torch.ones(hidden), "norm.bias": torch.zeros(hidden)}),
        ("Dense", last, {"linear.weight": torch.randn(1, hidden) / hidden**0.5, "linear.bias": torch.zeros(1)}),
    ]
    for number, (kind, config, tensors) in enumerate(modules, 1):
        place = folder / f"{number}_{kind}"
        place.mkdir()
        (place / "config.json").write_text(json.dumps(config))
        if tensors:
            save_file(tensors, place / "model.safetensors")
    _declare(folder, [kind for kind, _, _ in modules])
    return folder


def qwen3_checkpoint(folder: Path) -> Path:
    """A Qwen3 classifier of 8 layers of 512 with random weights, which reads plain pairs."""
    from transformers import AutoModelForSequenceClassification, Qwen3Config

    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(Qwen3Config(**QWEN3)).save_pretrained(folder)
    _declare(folder, [])
    return folder


def _declare(folder: Path, kinds: list[str]) -> None:
    """The files that say how the model in `folder` is scored, and the built-in model's tokenizer."""
    rows = [{"idx": 0, "name": "0", "path": "", "type": f"{_TYPES}Transformer"}]
    rows += [
        {"idx": number, "name": str(number), "path": f"{number}_{kind}", "type": _TYPES + kind}
        for number, kind in enumerate(kinds, 1)
    ]
    (folder / "modules.json").write_text(json.dumps(rows))
    task = "feature-extraction" if kinds else "sequence-classification"
    (folder / "sentence_bert_config.json").write_text(json.dumps({"transformer_task": task}))
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"model_type": "CrossEncoder"}))
    _copy_tokenizer(locate_checkpoint(None), folder)
    names = {"model_input_names": ["input_ids", "attention_mask"], "model_max_length": 512}
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text()) | names
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))


def _copy_tokenizer(source: Path, folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(source / name, folder / name)


def _weights(checkpoint: Checkpoint, layers: int) -> list[str]:
    names = [name for name in checkpoint.tensors if not name.endswith((".scale", ".zero"))]
    return [name for name in names if ".layer." not in name or int(name.split(".layer.")[1].split(".")[0]) < layers]


def machine() -> str:
    """Processor, cores and versions, in a line."""
    cpu = detect_cpu()
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "transformers", "tokenizers"))
    return f"{cpu.name}, {cpu.cores} cores, Python {platform.python_version()}, {versions}"
