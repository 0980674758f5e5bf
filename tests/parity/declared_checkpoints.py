"""Random tiny checkpoints that declare how they are scored, as sentence-transformers 5.4 to 6.2 writes such folders.

Each is made from its seed alone: a decoder or an encoder with random weights, the tokenizer of a golden folder, and
modules, pooling, templates and where they stand, ids, prompts, sizes, limits, sides, names of files and spellings drawn
at random. Some declare what is refused.
"""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.parity.conftest import HERE

_DECODERS = {"Qwen3": "qwen3-st", "Qwen2": "zerank2", "Llama": "llama-seqcls-st", "Mistral": "llama-seqcls-st",
             "Gemma": "ctxl"}  # fmt: skip
# The last ones have no packed model, and no head of modules.
_BARE = {"Bert": "bert-prompt", "ModernBert": "ettin", "XLMRoberta": "xlmr-ce", "Electra": "bert-stcfg",
         "Roberta": "ettin", "Camembert": "xlmr-ce"}  # fmt: skip
_ENCODERS = {**_BARE, "DistilBert": "bert-types", "DebertaV2": "deberta-ce", "Albert": "deberta-ce"}
_PADDED_DECODERS = {"Gemma2": "ctxl", "Phi3": "llama-seqcls-st"}
FOLDERS = {
    family: HERE / f"{golden}-open" / "checkpoint"
    for family, golden in {**_DECODERS, **_PADDED_DECODERS, **_ENCODERS}.items()
}
"""The folder with the tokenizer of each family."""
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
_ACTIVATIONS = [
    "linear.Identity", "activation.Tanh", "activation.GELU", "activation.ReLU", "activation.SiLU", "activation.Mish",
    "activation.ELU", "activation.Sigmoid", "activation.Softplus", "activation.Hardswish", "activation.LeakyReLU",
]  # fmt: skip
_PROMPTS = ["search_query: ", "Find a page that helps", "Übung, 東京\n", "Given a Case, retrieve a Precedent"]
_CONFIG_NAMES = ["sentence_roberta_config.json", "sentence_distilbert_config.json", "sentence_xlm-roberta_config.json"]
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
    """Write a checkpoint into `folder`; returns what is special about it, for messages.

    `refused` in it says why it may be, or must be, refused.
    """
    draw = random.Random(seed)
    torch.manual_seed(seed)
    kind = ["logit", "decoder", "head", "encoder"][seed % 4]
    told: dict[str, Any] = {"seed": seed, "kind": kind}
    families = {"logit": _DECODERS, "decoder": _DECODERS | _PADDED_DECODERS, "head": _BARE, "encoder": _ENCODERS}[kind]
    family = told["family"] = draw.choice(list(families))
    golden = FOLDERS[family]
    tail = {"logit": "ForCausalLM", "head": "Model"}.get(kind, "ForSequenceClassification")
    given = json.loads((golden / "config.json").read_text())
    config = getattr(transformers, f"{family}Config")(**sizes_of(draw, family, given))
    model = getattr(transformers, family + tail)(config).eval()
    randomise(model, matrices=0.15, vectors=0.1)
    nested = draw.random() < 0.25
    own = folder / draw.choice(["0_Transformer", "modules/encoder"]) if nested else folder
    own.mkdir(parents=True)
    model.save_pretrained(own, max_shard_size=draw.choice(["50KB", "5GB"]))
    if kind == "head" and draw.random() < 0.3 and (own / "model.safetensors").is_file():
        base = type(model).base_model_prefix
        tensors = load_file(own / "model.safetensors")
        save_file({f"{base}.{name}": one for name, one in tensors.items()}, own / "model.safetensors", {"format": "pt"})
        told["prefixed"] = base
    shutil.copyfile(golden / "tokenizer.json", own / "tokenizer.json")
    tokenizer = json.loads((golden / "tokenizer_config.json").read_text())
    tokenizer.pop("chat_template", None)
    _declare(folder, own, draw, told, tokenizer, kind=kind, hidden=config.hidden_size, vocabulary=config.vocab_size)
    (own / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return told


def randomise(model: torch.nn.Module, *, matrices: float, vectors: float) -> None:
    """Matrices with this standard deviation; so much noise is added to norms and biases."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, matrices)
            else:
                parameter.add_(torch.randn_like(parameter) * vectors)


def sizes_of(draw: random.Random, family: str, given: dict[str, Any]) -> dict[str, Any]:  # noqa: C901 (a line for each thing that is drawn)
    """What the configuration of a tiny model is made with. given: config.json of the folder that has its tokenizer."""
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
    if family in _DECODERS or family in _PADDED_DECODERS:
        sizes |= {"num_key_value_heads": draw.choice([1, heads]), "head_dim": draw.choice([8, 16])}
        sizes |= {"tie_word_embeddings": draw.random() < 0.5, "rope_theta": draw.choice([1e4, 5e5])}
        sizes |= {"rms_norm_eps": draw.choice([1e-6, 1e-5])}
        if family in ("Qwen2", "Phi3"):
            del sizes["head_dim"]
        if family in ("Mistral", "Phi3"):
            sizes["sliding_window"] = None
        if family == "Llama":
            sizes["attention_bias"] = draw.random() < 0.3
    elif family == "ModernBert":
        sizes |= {"num_hidden_layers": 3, "global_attn_every_n_layers": 2, "local_attention": 16}
        sizes |= {"cls_token_id": given["cls_token_id"], "sep_token_id": given["sep_token_id"]}
        sizes |= {"classifier_pooling": draw.choice(["cls", "mean"])}
    elif family in ("XLMRoberta", "Roberta", "Camembert"):
        # Rows up to the padding id are no positions, which the library does not take off its limit. The padding id of
        # another tokenizer is larger.
        sizes |= {"type_vocab_size": 1, "max_position_embeddings": 1026 + (given.get("pad_token_id") or 0)}
    elif family in ("Electra", "Albert"):
        sizes |= {"embedding_size": sizes["hidden_size"] if draw.random() < 0.5 else 16}
    elif family == "DebertaV2":
        known = ("relative_attention", "position_buckets", "norm_rel_ebd", "share_att_key", "pos_att_type",
                 "position_biased_input", "type_vocab_size", "max_relative_positions")  # fmt: skip
        sizes |= {name: given[name] for name in known if name in given}
    elif family == "DistilBert":
        sizes |= {"dim": sizes["hidden_size"], "hidden_dim": sizes["intermediate_size"]}
        sizes |= {"n_layers": sizes["num_hidden_layers"], "n_heads": heads}
        for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
            del sizes[name]
    if family in ("Bert", "XLMRoberta", "Roberta", "Electra"):
        sizes |= {"hidden_act": draw.choice(["gelu", "gelu", "relu", "gelu_new", "silu"])}
        sizes |= {"layer_norm_eps": draw.choice([1e-12, 1e-5])}
    return sizes


def _declare(  # noqa: C901 (a line for each thing that is drawn)
    folder: Path,
    own: Path,
    draw: random.Random,
    told: dict[str, Any],
    tokenizer: dict[str, Any],
    *,
    kind: str,
    hidden: int,
    vocabulary: int,
) -> None:
    """All files but the model's. own: its folder. tokenizer: its tokenizer_config.json, which is changed."""
    chat = kind in ("logit", "decoder") and draw.random() < 0.75
    task = {"logit": "text-generation", "head": "feature-extraction"}.get(kind, "sequence-classification")
    output, module_output = {
        "logit": ("logits", "causal_logits"), "head": ("last_hidden_state", "token_embeddings")
    }.get(kind, ("logits", "scores"))  # fmt: skip
    modality: dict[str, Any] = {"text": {"method": "forward", "method_output_name": output}}
    form = draw.choice(["flat", "structured"])
    if chat:
        modality["message"] = {**modality["text"], "format": draw.choice([form, form, "auto"])}
    if chat or draw.random() < 0.3:  # without `message` a template is not used
        told["template"] = _write_template(own, draw, tokenizer, _template(draw, form))
        if own != folder and (own / "additional_chat_templates" / "default.jinja").is_file() and chat:
            told["refused"] = "default template of a nested model"
    module: dict[str, Any] = {"transformer_task": task}
    if chat or draw.random() < 0.7:
        module |= {"modality_config": modality, "module_output_name": module_output}
    module |= _limits(draw, tokenizer, decoder=kind in ("logit", "decoder"))
    shared = _shared(draw, tokenizer)
    chain: list[tuple[str, dict[str, Any]]] = []
    if kind == "logit":
        chain = [("LogitScore", _logit_score(draw, vocabulary))]
    elif kind == "head":
        chain = _head(draw, hidden)
    elif own == folder and draw.random() < 0.15:
        # Nothing but a template is declared.
        told["refused"] = "no modules.json"
    if "refused" not in told and draw.random() < 0.1:
        told["refused"] = draw.choice(["modules", "module" if chain else "key", "key"])
        if told["refused"] == "modules":
            chain.insert(0, ("WeightedLayerPooling", {"word_embedding_dimension": hidden}))
        elif told["refused"] == "module":
            chain[0][1]["scale"] = 2.0
        else:
            module["config_args"] = {"rms_norm_eps": 0.5, "layer_norm_eps": 0.5}
    if told.get("refused") != "no modules.json":
        _write_modules(folder, own, draw, chain)
    name = draw.choice(_CONFIG_NAMES) if draw.random() < 0.2 else "sentence_bert_config.json"
    (own / name).write_text(json.dumps(module))
    (folder / "config_sentence_transformers.json").write_text(json.dumps(shared))
    told |= {"chain": [name for name, _ in chain], "module": module, "shared": shared, "file": name}


def _logit_score(draw: random.Random, vocabulary: int) -> dict[str, Any]:
    values: dict[str, Any] = {"true_token_id": draw.choice([0, draw.randrange(vocabulary), vocabulary - 1])}
    if draw.random() < 0.7:
        values["false_token_id"] = draw.choice([None, 0, draw.randrange(vocabulary)])
    if draw.random() < 0.5:
        values["module_input_name"] = "causal_logits"
    return values


def _write_template(own: Path, draw: random.Random, tokenizer: dict[str, Any], template: str) -> str:
    """Where the template stands: in one of the places that there are, with others beside it that do not count."""
    other = "{{ messages }} is never seen"
    place = draw.choice(["file", "file", "text", "list", "files", "file over text", "files over list"])
    if place.startswith("file"):
        (own / "chat_template.jinja").write_text(template)
    if place.startswith("files"):
        (own / "additional_chat_templates").mkdir()
        (own / "additional_chat_templates" / "rag.jinja").write_text(other)
        if draw.random() < 0.3:
            (own / "chat_template.jinja").rename(own / "additional_chat_templates" / "default.jinja")
    if place in ("text", "file over text"):
        tokenizer["chat_template"] = template if place == "text" else other
    if place in ("list", "files over list"):
        texts = {"tool_use": other, "default": template if place == "list" else other}
        tokenizer["chat_template"] = [{"name": name, "template": text} for name, text in texts.items()]
    return place


def _limits(draw: random.Random, tokenizer: dict[str, Any], *, decoder: bool) -> dict[str, Any]:  # noqa: C901 (a line for each thing that is drawn)
    """Limits, case and sides, in each of the places that they may stand in."""
    module: dict[str, Any] = {}
    processing: dict[str, Any] = {}
    place = draw.choice(["", "module", "tokenizer", "processing", "arguments", "both"])
    if place in ("module", "both"):
        module["max_seq_length"] = draw.choice([24, 64, 200])
    if place in ("tokenizer", "both"):
        tokenizer["model_max_length"] = draw.choice([32, 80, 300])
    if place == "processing":
        processing["text"] = {"max_length": draw.choice([28, 72]), "truncation": draw.choice([True, "longest_first"])}
    if place == "arguments":
        module[draw.choice(["tokenizer_args", "processor_kwargs"])] = {"model_max_length": draw.choice([28, 72])}
    if draw.random() < 0.3:
        module["do_lower_case"] = draw.random() < 0.8
    if draw.random() < 0.3:
        processing["chat_template"] = {"add_generation_prompt": draw.random() < 0.8}
    if processing:
        module["processing_kwargs"] = processing
    if draw.random() < 0.3:
        tokenizer["truncation_side"] = "left"
    if decoder and draw.random() < 0.3:
        tokenizer["padding_side"] = "left"
    if tokenizer.get("tokenizer_class") == "BertTokenizer":
        if draw.random() < 0.3:
            tokenizer["do_lower_case"] = draw.random() < 0.5
        if draw.random() < 0.3:
            tokenizer["model_input_names"] = ["input_ids", "attention_mask"]
    return module


def _shared(draw: random.Random, tokenizer: dict[str, Any]) -> dict[str, Any]:
    texts = draw.sample(_PROMPTS, 2)
    prompts = dict(zip(["query", "p1"], texts, strict=True)) | {"none": "", "document": ""}
    shared: dict[str, Any] = {
        "model_type": "CrossEncoder",
        "prompts": prompts,
        "default_prompt_name": draw.choice([None, *prompts]),
        "activation_fn": draw.choice(["torch.nn.modules.linear.Identity", "torch.nn.modules.activation.Sigmoid"]),
    }
    if draw.random() < 0.15:
        shared |= {"prompts": {}, "default_prompt_name": None}
    if draw.random() < 0.3:
        shared["__version__"] = {"sentence_transformers": "6.2.0"}
    return shared


def _head(draw: random.Random, hidden: int) -> list[tuple[str, dict[str, Any]]]:
    modes = draw.sample(_POOLINGS, draw.choice([1, 1, 2]))
    pooling: dict[str, Any] = {"embedding_dimension": hidden, "pooling_mode": modes if len(modes) > 1 else modes[0]}
    if draw.random() < 0.3:
        old = {key: mode in modes for mode, key in _OLD_POOLINGS.items()}
        pooling = {"word_embedding_dimension": hidden, **old}
    if draw.random() < 0.3:
        pooling["include_prompt"] = draw.random() < 0.5
    size = hidden * len(modes)
    chain: list[tuple[str, dict[str, Any]]] = [("Pooling", pooling)]
    for _ in range(draw.choice([0, 1, 2, 3])):
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


def _write_modules(folder: Path, own: Path, draw: random.Random, chain: list[tuple[str, dict[str, Any]]]) -> None:
    old = draw.random() < 0.5
    path = "" if own == folder else own.relative_to(folder).as_posix()
    entries = [{"idx": 0, "name": "0", "path": path, "type": _spelled("Transformer", old=old)}]
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
