"""Random tiny checkpoints that declare how they are scored, as sentence-transformers 5.4 to 6.2 writes such folders.

Each is made from its seed alone: a decoder or an encoder with random weights, the tokenizer of a golden folder, and
modules, pooling, templates, ids, prompts, sizes, limits and spellings drawn at random. Some declare what is refused.
"""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file

from tests.parity.conftest import HERE

_DECODERS = {"Qwen3": "qwen3-st", "Qwen2": "zerank2", "Llama": "llama-seqcls-st", "Mistral": "llama-seqcls-st",
             "Gemma": "ctxl"}  # fmt: skip
_ENCODERS = {"Bert": "bert-prompt", "ModernBert": "ettin", "XLMRoberta": "xlmr-ce", "Electra": "bert-stcfg"}
_NEW = {
    "Transformer": "sentence_transformers.base.modules.transformer.Transformer",
    "Dense": "sentence_transformers.base.modules.dense.Dense",
    "Normalize": "sentence_transformers.base.modules.normalize.Normalize",
    "Pooling": "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
    "LayerNorm": "sentence_transformers.sentence_transformer.modules.layer_norm.LayerNorm",
    "LogitScore": "sentence_transformers.cross_encoder.modules.logit_score.LogitScore",
}
_POOLINGS = ["cls", "mean", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
_OLD_POOLINGS = {
    "cls": "pooling_mode_cls_token", "mean": "pooling_mode_mean_tokens", "max": "pooling_mode_max_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens", "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}  # fmt: skip
_ACTIVATIONS = ["linear.Identity", "activation.Tanh", "activation.GELU", "activation.ReLU", "activation.SiLU"]
_PROMPTS = ["search_query: ", "Find a page that helps", "Übung, 東京\n", "Given a Case, retrieve a Precedent"]
PAIRS = [
    ("How long does a seal last?", "A pump with a worn seal loses pressure within an hour."),
    ("harbour", "crane"),
    ("  Where do bees go in winter?\n", "\tBees find their way home.\n\n"),
    ("Crème façade", "水泵的密封圈磨损后会漏水。 Übergröße"),
    ("Does the night train stop?", ""),
    ("How long does a seal last?", "The valve must be closed before the filter is changed. " * 12),
    ("Does the old harbour have a crane, " * 12, "Step 12.7: 3,400 kg. " * 20),
]


def make_checkpoint(folder: Path, seed: int) -> dict[str, Any]:
    """Write a checkpoint into `folder`; returns what is special about it, for messages."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    kind = ["logit", "decoder", "head", "encoder"][seed % 4]
    told: dict[str, Any] = {"seed": seed, "kind": kind}
    decoder = kind in ("logit", "decoder")
    family = draw.choice(list(_DECODERS if decoder else _ENCODERS))
    if kind == "head" and family == "Electra":
        family = "Bert"
    golden = HERE / f"{(_DECODERS if decoder else _ENCODERS)[family]}-open" / "checkpoint"
    told["family"] = family
    tail = {"logit": "ForCausalLM", "head": "Model"}.get(kind, "ForSequenceClassification")
    given = json.loads((golden / "config.json").read_text())
    config = getattr(transformers, f"{family}Config")(**_sizes(draw, family, given))
    model = getattr(transformers, family + tail)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.15)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(golden / name, folder / name)
    _declare(folder, draw, told, kind=kind, hidden=config.hidden_size, vocabulary=config.vocab_size)
    return told


def _sizes(draw: random.Random, family: str, given: dict[str, Any]) -> dict[str, Any]:
    heads = draw.choice([2, 4])
    sizes: dict[str, Any] = {
        "vocab_size": given["vocab_size"] + draw.randrange(3),
        "hidden_size": heads * draw.choice([8, 12]),
        "intermediate_size": draw.choice([40, 64]),
        "num_hidden_layers": draw.choice([1, 2, 3]),
        "num_attention_heads": heads,
        "pad_token_id": given.get("pad_token_id"),
        "bos_token_id": given.get("bos_token_id"),
        "eos_token_id": given.get("eos_token_id"),
        "max_position_embeddings": draw.choice([512, 1024]),
        "num_labels": 1,
    }
    if family in _DECODERS:
        sizes |= {"num_key_value_heads": draw.choice([1, heads]), "head_dim": draw.choice([8, 16])}
        sizes |= {"tie_word_embeddings": draw.random() < 0.5, "rope_theta": draw.choice([1e4, 5e5])}
        if family == "Qwen2":
            del sizes["head_dim"]
        if family == "Mistral":
            sizes["sliding_window"] = None
        if family == "Llama":
            sizes["attention_bias"] = draw.random() < 0.3
    elif family == "ModernBert":
        sizes |= {"num_hidden_layers": 3, "global_attn_every_n_layers": 2, "local_attention": 16}
        sizes |= {"cls_token_id": given["cls_token_id"], "sep_token_id": given["sep_token_id"]}
    elif family == "XLMRoberta":
        # Rows up to the padding id are no positions, which the library does not take off its limit.
        sizes |= {"type_vocab_size": 1, "max_position_embeddings": 1026}
    elif family == "Electra":
        sizes |= {"embedding_size": sizes["hidden_size"]}
    return sizes


def _declare(
    folder: Path, draw: random.Random, told: dict[str, Any], *, kind: str, hidden: int, vocabulary: int
) -> None:
    chat = kind in ("logit", "decoder") and draw.random() < 0.75
    task = {"logit": "text-generation", "head": "feature-extraction"}.get(kind, "sequence-classification")
    output, module_output = {
        "logit": ("logits", "causal_logits"), "head": ("last_hidden_state", "token_embeddings")
    }.get(kind, ("logits", "scores"))  # fmt: skip
    modality: dict[str, Any] = {"text": {"method": "forward", "method_output_name": output}}
    form = draw.choice(["flat", "structured"])
    if chat:
        modality["message"] = {**modality["text"], "format": form}
    if chat or draw.random() < 0.3:  # without `message` a template is not used
        (folder / "chat_template.jinja").write_text(_template(draw, form))
    module: dict[str, Any] = {"transformer_task": task}
    if chat or draw.random() < 0.7:
        module |= {"modality_config": modality, "module_output_name": module_output}
    module |= _limits(draw)
    shared = _shared(folder, draw)
    chain: list[tuple[str, dict[str, Any]]] = []
    if kind == "logit":
        false = draw.choice([None, draw.randrange(vocabulary)])
        chain = [
            ("LogitScore", {"true_token_id": draw.choice([0, draw.randrange(vocabulary)]), "false_token_id": false})
        ]
    elif kind == "head":
        chain = _head(draw, hidden)
    if draw.random() < 0.1:
        told["unknown"] = draw.choice(["modules", "module", "key"])
        if told["unknown"] == "modules":
            chain.insert(0, ("WeightedLayerPooling", {"word_embedding_dimension": hidden}))
        elif told["unknown"] == "module" and chain:
            chain[0][1]["scale"] = 2.0
        else:
            module["config_args"] = {"rms_norm_eps": 0.5, "layer_norm_eps": 0.5}
    _write_modules(folder, draw, chain)
    (folder / "sentence_bert_config.json").write_text(json.dumps(module))
    (folder / "config_sentence_transformers.json").write_text(json.dumps(shared))
    told |= {"chain": [name for name, _ in chain], "module": module, "shared": shared}


def _limits(draw: random.Random) -> dict[str, Any]:
    module: dict[str, Any] = {}
    if draw.random() < 0.5:
        module["max_seq_length"] = draw.choice([24, 64, 200])
    if draw.random() < 0.3:
        module["do_lower_case"] = True
    if draw.random() < 0.3:
        module["processing_kwargs"] = {"chat_template": {"add_generation_prompt": True}}
    return module


def _shared(folder: Path, draw: random.Random) -> dict[str, Any]:
    prompts = {f"p{number}": text for number, text in enumerate(draw.sample(_PROMPTS, 2))} | {"none": ""}
    shared: dict[str, Any] = {
        "model_type": "CrossEncoder",
        "prompts": prompts,
        "default_prompt_name": draw.choice([None, *prompts]),
        "activation_fn": draw.choice(["torch.nn.modules.linear.Identity", "torch.nn.modules.activation.Sigmoid"]),
    }
    if draw.random() < 0.3:
        edited = json.loads((folder / "tokenizer_config.json").read_text())
        edited["truncation_side"] = "left"
        (folder / "tokenizer_config.json").write_text(json.dumps(edited))
    return shared


def _head(draw: random.Random, hidden: int) -> list[tuple[str, dict[str, Any]]]:
    modes = draw.sample(_POOLINGS, draw.choice([1, 1, 2]))
    pooling: dict[str, Any] = {"embedding_dimension": hidden, "pooling_mode": modes if len(modes) > 1 else modes[0]}
    if draw.random() < 0.3:
        modes = modes[:1]
        old = {key: mode == modes[0] for mode, key in _OLD_POOLINGS.items()}
        pooling = {"word_embedding_dimension": hidden, **old, "include_prompt": True}
    size = hidden * len(modes)
    chain: list[tuple[str, dict[str, Any]]] = [("Pooling", pooling)]
    for _ in range(draw.choice([0, 1, 2])):
        name = draw.choice(["Dense", "LayerNorm", "Normalize"])
        if name == "Dense":
            outputs = draw.choice([size, 20])
            dense: dict[str, Any] = {"in_features": size, "out_features": outputs, "bias": draw.random() < 0.5}
            if draw.random() < 0.8:
                dense["activation_function"] = f"torch.nn.modules.{draw.choice(_ACTIVATIONS)}"
            if draw.random() < 0.3:
                dense["use_residual"] = True
            chain.append((name, dense))
            size = outputs
        else:
            chain.append((name, {"dimension": size} if name == "LayerNorm" else {}))
    last = {
        "in_features": size, "out_features": 1, "bias": draw.random() < 0.5,
        "activation_function": f"torch.nn.modules.{draw.choice(_ACTIVATIONS)}",
        "module_input_name": "sentence_embedding", "module_output_name": "scores",
    }  # fmt: skip
    return [*chain, ("Dense", last)]


def _write_modules(folder: Path, draw: random.Random, chain: list[tuple[str, dict[str, Any]]]) -> None:
    old = draw.random() < 0.5
    entries = [{"idx": 0, "name": "0", "path": "", "type": _spelled("Transformer", old=old)}]
    for number, (name, config) in enumerate(chain, 1):
        path = f"{number}_{name}"
        entries.append({"idx": number, "name": str(number), "path": path, "type": _spelled(name, old=old)})
        (folder / path).mkdir()
        if name != "Normalize":
            (folder / path / "config.json").write_text(json.dumps(config))
        weights: dict[str, torch.Tensor] = {}
        if name == "Dense":
            outputs, inputs = config["out_features"], config["in_features"]
            weights["linear.weight"] = torch.randn(outputs, inputs) * 0.4
            if config["bias"]:
                weights["linear.bias"] = torch.randn(outputs) * 0.3
            if config.get("use_residual") and outputs != inputs:
                weights["residual.weight"] = torch.randn(outputs, inputs) * 0.3
        elif name == "LayerNorm":
            size = config["dimension"]
            weights = {"norm.weight": 1 + torch.randn(size) * 0.2, "norm.bias": torch.randn(size) * 0.3}
        if weights:
            save_file(weights, folder / path / "model.safetensors")
    (folder / "modules.json").write_text(json.dumps(entries))


def _spelled(name: str, *, old: bool) -> str:
    # LogitScore is younger than the old package.
    return (
        f"sentence_transformers.models.{name}"
        if old and name != "LogitScore"
        else _NEW.get(name, f"sentence_transformers.models.{name}")
    )


def _template(draw: random.Random, form: str) -> str:
    content = "content" if form == "flat" else "content[0].text"
    change = draw.choice(["", "", " | trim", " | replace('  ', ' ')"])
    query = "{{ (messages | selectattr('role', 'eq', 'query') | first)." + content + change + " }}"
    passage = "{{ (messages | selectattr('role', 'eq', 'document') | first)." + content + change + " }}"
    system = (
        "{% set s = messages | selectattr('role', 'eq', 'system') | first | default(none) %}"
        "{% if s %}" + draw.choice(["Instruct: ", "<|im_start|>system\n"]) + "{{ s." + content + " }}\n{% endif %}"
    )
    before = draw.choice(["{{ bos_token }}", "<|im_start|>user\n", "Check this.\n", "<Q> "])
    between = draw.choice(["\n<Document>: ", " ", "<|im_end|>\n<|im_start|>user\n", "\n\n"])
    after = draw.choice(
        [" ??", "\n", "\n\n\n", "<|im_end|>\n<|im_start|>assistant\n", "{{ '\\n\\n' }}", "", "\nAnswer:"]
    )
    texts = [query, passage] if draw.random() < 0.7 else [passage, query]
    last = draw.choice(["", "{% if add_generation_prompt %} >{% endif %}"])
    return f"{system}{before}{texts[0]}{between}{texts[1]}{after}{last}"
