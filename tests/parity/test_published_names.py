"""jina-reranker-v2 and gte-multilingual-reranker as anybody may publish them, against transformers' own models.

Random sizes, keys, labels, precisions and options, in the names and keys of the authors' code: the score is that of the
same weights in a model of transformers, or the folder is refused by name. `RERANK_CLI_DECLARED=200` draws more of them.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file

from tests.parity.conftest import HERE
from tests.parity.declared_checkpoints import PAIRS, randomise
from tests.parity.test_declared import scored

COUNT = int(os.environ.get("RERANK_CLI_DECLARED", "12"))
TOLERANCE = 1e-4
_REFUSED = 5
# What neither model gives a score to: keys of config.json, and what the refusal calls them.
_JINA_REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"position_embedding_type": "rotary"}, "position_embedding_type"),
    ({"emb_pooler": "mean"}, "`emb_pooler`"),
    ({"lora_adaptations": ["retrieval.query"]}, "`lora_adaptations`"),
    ({"hidden_act": "relu"}, "`hidden_act` is 'relu'"),
]
_GTE_REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"rope_scaling": {"type": "ntk", "factor": 8.0, "mixed_b": 0.5}}, "`rope_scaling`"),
    ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "`rope_scaling`"),
    ({"rope_scaling": {"type": "ntk", "factor": 0.5}}, "`rope_scaling`"),
    ({"rope_scaling": {"type": "ntk"}}, "`rope_scaling`"),
    ({"logn_attention_scale": True}, "`logn_attention_scale`"),
    ({"layer_norm_type": "rms_norm"}, "`layer_norm_type`"),
    ({"pack_qkv": False}, "`pack_qkv`"),
    ({"position_embedding_type": "absolute"}, "`position_embedding_type`"),
]
_NO_SAY: list[dict[str, Any]] = [
    {},
    {"_name_or_path": "somebody/some-model", "transformers_version": "4.46.3", "use_cache": False},
    {"output_past": True, "initializer_range": 0.01, "attention_probs_dropout_prob": 0.2},
    {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid", "version": "4.1.0"}},
    {"use_flash_attn": False, "use_memory_efficient_attention": True, "unpad_inputs": True},
    {"problem_type": "regression", "finetuning_task": "rerank", "bos_token_id": 0, "eos_token_id": 2},
]


def _rename(tensors: dict[str, torch.Tensor], rows: list[tuple[str, str]]) -> dict[str, torch.Tensor]:
    """Tensors under other names: each row replaces what it matches, one after another."""
    renamed = {}
    for old, tensor in tensors.items():
        name = old
        for pattern, target in rows:
            name = re.sub(pattern, target, name)
        renamed[name] = tensor.contiguous()
    return renamed


def _join(tensors: dict[str, torch.Tensor], parts: list[str], whole: str) -> None:
    """Tensors of several layers side by side under one name; `parts` and `whole` stand in the names."""
    for first in [name for name in tensors if parts[0] in name]:
        names = [first.replace(parts[0], part) for part in parts]
        tensors[first.replace(parts[0], whole)] = torch.cat([tensors.pop(name) for name in names])


def _sizes(draw: random.Random, vocabulary: int) -> dict[str, Any]:
    heads = draw.choice([1, 2, 3, 4])
    return {
        "vocab_size": vocabulary + draw.randrange(3),
        "hidden_size": heads * draw.choice([8, 12, 16]),
        "num_attention_heads": heads,
        "num_hidden_layers": draw.choice([1, 2, 3]),
        "intermediate_size": draw.choice([40, 64, 96]),
        "layer_norm_eps": draw.choice([1e-12, 1e-5]),
        "type_vocab_size": draw.choice([1, 1, 2]),
        "pad_token_id": 1,
    }


def _jina(draw: random.Random, vocabulary: int) -> tuple[Any, dict[str, torch.Tensor], dict[str, Any]]:
    """transformers' model, its weights under the authors' names, and config.json."""
    labels = draw.choice([1, 1, 2])
    sizes = _sizes(draw, vocabulary) | {
        "max_position_embeddings": draw.choice([66, 258, 514, 1026]),
        "hidden_act": draw.choice(["gelu", "gelu", "gelu_new", "gelu_pytorch_tanh"]),
    }
    own = transformers.XLMRobertaConfig(**sizes, num_labels=labels, attn_implementation="eager")
    model = transformers.XLMRobertaForSequenceClassification(own).eval()
    randomise(model, matrices=0.2, vectors=0.2)
    rows = [
        (r"embeddings\.LayerNorm", "emb_ln"), (r"encoder\.layer\.", "encoder.layers."),
        (r"attention\.output\.dense", "mixer.out_proj"), (r"attention\.output\.LayerNorm", "norm1"),
        (r"intermediate\.dense", "mlp.fc1"), (r"output\.LayerNorm", "norm2"), (r"\boutput\.dense", "mlp.fc2"),
    ]  # fmt: skip
    tensors = _rename(dict(model.state_dict()), rows)
    _join(tensors, [f"attention.self.{name}" for name in ("query", "key", "value")], "mixer.Wqkv")
    if draw.random() < 0.3:
        tensors["roberta.pooler.dense.weight"] = torch.randn(sizes["hidden_size"], sizes["hidden_size"])
        tensors["roberta.pooler.dense.bias"] = torch.randn(sizes["hidden_size"])
    config = {
        **sizes, "architectures": ["XLMRobertaForSequenceClassification"], "position_embedding_type": "absolute",
        "emb_pooler": None, "lora_adaptations": None, "matryoshka_dimensions": None, "use_flash_attn": True,
        "auto_map": {"AutoConfig": "configuration_xlm_roberta.XLMRobertaFlashConfig"},
    }  # fmt: skip
    config |= draw.choice([{}, {}, {"model_type": "xlm-roberta"}, {"model_type": "xlm-roberta-flash"}])
    _leave_out(draw, config, {"layer_norm_eps": 1e-12, "type_vocab_size": 2, "hidden_act": "gelu", "pad_token_id": 1})
    for key in ("position_embedding_type", "emb_pooler", "lora_adaptations", "matryoshka_dimensions", "auto_map"):
        if draw.random() < 0.3:
            del config[key]
    return model, tensors, config | _labels(draw, labels)


def _gte(draw: random.Random, vocabulary: int) -> tuple[Any, dict[str, torch.Tensor], dict[str, Any]]:
    """transformers' model, its weights under the authors' names, and config.json."""
    labels = draw.choice([1, 1, 2])
    sizes = _sizes(draw, vocabulary) | {"hidden_act": draw.choice(["gelu", "gelu", "silu", "relu", "gelu_new"])}
    sizes["max_position_embeddings"] = draw.choice([64, 512, 8192])
    theta = draw.choice([10_000, 20_000, 160_000.0, 500_000])
    factor = draw.choice([None, 1, 1.0, 2, 4.0, 8.0, 10.5])
    size = sizes["hidden_size"] // sizes["num_attention_heads"]
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    if factor:
        rope = {"rope_type": "linear", "rope_theta": theta * factor, "factor": factor ** (2 / size)}
    own = transformers.GteConfig(**sizes, num_labels=labels, rope_parameters=rope, attn_implementation="eager")
    model = transformers.GteForSequenceClassification(own).eval()
    randomise(model, matrices=0.2, vectors=0.2)
    rows = [
        (r"^gte\.", "new."), (r"\blayers\.", "encoder.layer."), (r"self_attn\.", "attention."),
        (r"post_attention_layernorm", "attn_ln"), (r"post_mlp_layernorm", "mlp_ln"),
    ]  # fmt: skip
    tensors = _rename(dict(model.state_dict()), rows)
    _join(tensors, [f"attention.{part}_proj" for part in "qkv"], "attention.qkv_proj")
    _join(tensors, ["mlp.up_proj", "mlp.gate_proj"], "mlp.up_gate_proj")
    config = {
        **sizes, "architectures": ["NewForSequenceClassification"], "model_type": "new", "rope_theta": theta,
        "rope_scaling": factor and {"type": "ntk", "factor": factor}, "position_embedding_type": "rope",
        "layer_norm_type": "layer_norm", "logn_attention_clip1": False, "logn_attention_scale": False,
        "pack_qkv": True, "auto_map": {"AutoModel": "Alibaba-NLP/new-impl--modeling.NewModel"},
    }  # fmt: skip
    if factor and draw.random() < 0.2:
        config["rope_scaling"]["mixed_b"] = None
    if not factor and draw.random() < 0.5:
        del config["rope_scaling"]
    missing = {"layer_norm_eps": 1e-12, "type_vocab_size": 1, "hidden_act": "gelu", "rope_theta": 10_000.0}
    _leave_out(draw, config, missing)
    for key in ("position_embedding_type", "layer_norm_type", "logn_attention_scale", "pack_qkv", "model_type"):
        if draw.random() < 0.3:
            del config[key]
    return model, tensors, config | _labels(draw, labels)


def _leave_out(draw: random.Random, config: dict[str, Any], defaults: dict[str, Any]) -> None:
    """Keys that say what is so without them may be missing."""
    for key, value in defaults.items():
        if config.get(key) == value and draw.random() < 0.5:
            del config[key]


def _labels(draw: random.Random, count: int) -> dict[str, Any]:
    names = {"id2label": {str(n): f"LABEL_{n}" for n in range(count)}}
    return draw.choice([names, {"num_labels": count}, names | {"num_labels": count}, {}])


KINDS: dict[str, tuple[Callable[..., Any], list[tuple[dict[str, Any], str]]]] = {
    "jina-v2": (_jina, _JINA_REFUSED),
    "gte-multilingual": (_gte, _GTE_REFUSED),
}


def make(folder: Path, seed: int) -> tuple[Any, Any, str | None, str]:
    """Write a folder; returns transformers' model, its tokenizer, what must be said of a refusal, and a prompt."""
    draw = random.Random(f"published {seed}")
    torch.manual_seed(seed)
    kind = list(KINDS)[seed % 2]
    draw_model, refusals = KINDS[kind]
    golden = HERE / f"{kind}-open" / "checkpoint"
    model, tensors, config = draw_model(draw, json.loads((golden / "config.json").read_text())["vocab_size"])
    config |= draw.choice(_NO_SAY)
    refused = None
    if draw.random() < 0.2:
        more, refused = draw.choice(refusals)
        config |= more
    folder.mkdir()
    if (precision := draw.choice([None, torch.bfloat16, torch.float16])) is not None:
        tensors = {name: one.to(precision) if one.is_floating_point() else one for name, one in tensors.items()}
        with torch.no_grad():  # of weights alone: rotary frequencies stay as they are
            for parameter in model.parameters():
                parameter.copy_(parameter.to(precision))
        config["torch_dtype"] = str(precision).removeprefix("torch.")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    shutil.copyfile(golden / "tokenizer.json", folder / "tokenizer.json")
    options = json.loads((golden / "tokenizer_config.json").read_text())
    options.pop("model_max_length")
    if draw.random() < 0.6:
        options["model_max_length"] = draw.choice([60, 1024, 10**30])
    if draw.random() < 0.3:
        options["tokenizer_class"] = draw.choice(["XLMRobertaTokenizerFast", "PreTrainedTokenizerFast"])
    (folder / "tokenizer_config.json").write_text(json.dumps(options))
    prompt = ""
    if draw.random() < 0.3:
        prompt = draw.choice(["query: ", "Find a page that helps\n"])
        module = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}
        (folder / "modules.json").write_text(json.dumps([module]))
        shared = {"model_type": "CrossEncoder", "prompts": {"q": prompt}, "default_prompt_name": "q"}
        (folder / "config_sentence_transformers.json").write_text(json.dumps(shared))
    if draw.random() < 0.5:
        (folder / "modeling_xlm_roberta.py").write_text("raise SystemExit('code of a checkpoint was run')\n")
    tokenizer = getattr(transformers, options["tokenizer_class"]).from_pretrained(folder)
    positions = config["max_position_embeddings"] - (2 if kind == "jina-v2" else 0)
    tokenizer.model_max_length = min(options.get("model_max_length", 10**30), positions)
    return model, tokenizer, refused, prompt


@torch.inference_mode()
def expected(model: Any, tokenizer: Any, prompt: str) -> list[float]:
    texts = [prompt + query for query, _ in PAIRS], [passage for _, passage in PAIRS]
    rows = []
    for query, passage in zip(*texts, strict=True):
        # In lists: an empty passage alone is no second text to the tokenizer.
        ids = tokenizer([query], [passage], truncation=True, return_tensors="pt")["input_ids"]
        rows.append(model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].tolist())
    return [row[1] - row[0] if len(row) > 1 else row[0] for row in rows]


@pytest.mark.parametrize("seed", range(COUNT))
def test_a_model_under_its_published_names_has_the_score_of_transformers_or_is_refused_by_name(seed, tmp_path, capsys):
    folder = tmp_path / "checkpoint"
    model, tokenizer, refused, prompt = make(folder, seed)
    code, logits, said = scored(folder, capsys)
    about = (said, json.loads((folder / "config.json").read_text()))
    if refused:
        assert code == _REFUSED, about
        assert refused in said, about
        return
    assert code == 0, about
    wanted = expected(model, tokenizer, prompt)
    worst = max(abs(one - other) for one, other in zip(logits, wanted, strict=True))
    assert worst <= TOLERANCE, (worst, *about, [*zip(logits, wanted, strict=True)])
