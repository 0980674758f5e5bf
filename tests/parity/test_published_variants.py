"""Checkpoints of the families whose own code is never run, with other weights, sizes, keys and files.

As in `test_golden_variants`, each is made from a golden's files and a seed. No library scores these folders without the
code in them, so the reference is put together here from what is published of each: transformers' XLM-R under jina's
names, transformers' Llama without its causal mask, its SigLIP with tiles, and GTE's trunk in plain torch.
`RERANK_CLI_VARIANTS=20` makes so many of each golden; without it there is one of every third.
"""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from rerank_cli.cli import main
from tests.conftest import write_lines
from tests.parity.conftest import HERE
from tests.parity.declared_checkpoints import PAIRS, randomise
from tests.parity.test_declared import scored
from tests.parity.test_golden_variants import exchange_ids

COUNT = int(os.environ.get("RERANK_CLI_VARIANTS", "0"))
TOLERANCE = 1e-4
Tensors = dict[str, torch.Tensor]
Pair = tuple[str, str]


def read_config(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


def write_weights(folder: Path, tensors: Tensors, draw: random.Random, told: dict[str, Any]) -> Tensors:
    """One file or two shards, in some precision; returns what a reader has of them in float32."""
    told["dtype"] = draw.choice(["float32", "float32", "bfloat16", "float16"])
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    dtype = getattr(torch, told["dtype"])

    def is_kept(name: str) -> bool:
        return tensors[name].dtype == torch.float8_e4m3fn or name.endswith("_scale")

    kept = {name: one if is_kept(name) else one.to(dtype) for name, one in tensors.items()}
    told["shards"] = draw.choice([1, 2])
    if told["shards"] == 1:
        save_file(kept, folder / "model.safetensors", {"format": "pt"})
    else:
        names = draw.sample(sorted(kept), len(kept))
        halves = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
        for file, own in halves.items():
            save_file({name: kept[name] for name in own}, folder / file, {"format": "pt"})
        index = {"metadata": {}, "weight_map": {name: file for file, own in halves.items() for name in own}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return {name: one.float() for name, one in kept.items()}


def encoded(folder: Path, pair: Pair, most: int) -> list[int]:
    named = json.loads((folder / "tokenizer_config.json").read_text())["tokenizer_class"]
    tokenizer = getattr(transformers, named).from_pretrained(folder)
    # A list of one pair: of a pair alone an empty text is taken for none.
    ids: list[int] = tokenizer([pair[0]], [pair[1]], truncation="longest_first", max_length=most)["input_ids"][0]
    return ids


# jina-reranker-v2: XLM-R under the names of its flash implementation.


def make_jina(folder: Path, draw: random.Random, told: dict[str, Any]) -> Callable[[Pair], float]:
    config = read_config(folder)
    config |= {"num_hidden_layers": draw.choice([1, 2, 3]), "intermediate_size": draw.choice([48, 96])}
    config |= {"layer_norm_eps": draw.choice([1e-5, 1e-12]), "max_position_embeddings": draw.choice([130, 514, 1026])}
    told["sizes"] = {name: config[name] for name in ("num_hidden_layers", "max_position_embeddings")}
    (folder / "config.json").write_text(json.dumps(config))
    if draw.random() < 0.5:
        for file in folder.glob("*.py"):
            file.unlink()
    known = {name: value for name, value in config.items() if name not in ("auto_map", "architectures", "torch_dtype")}
    plain = transformers.XLMRobertaConfig(**known, attn_implementation="eager")
    model = transformers.XLMRobertaForSequenceClassification(plain).eval()
    randomise(model, matrices=0.15, vectors=0.1)
    tensors: Tensors = {}
    flash = {
        "attention.output.dense": "mixer.out_proj", "attention.output.LayerNorm": "norm1",
        "intermediate.dense": "mlp.fc1", "output.dense": "mlp.fc2", "output.LayerNorm": "norm2",
    }  # fmt: skip
    own = model.state_dict()
    for name, one in own.items():
        if name.startswith("roberta.embeddings.LayerNorm"):
            tensors[name.replace("embeddings.LayerNorm", "emb_ln")] = one
        elif not name.startswith("roberta.encoder.layer."):
            tensors[name] = one
        elif ".attention.self." not in name:
            number, rest = name.removeprefix("roberta.encoder.layer.").split(".", 1)
            part, kind = rest.rsplit(".", 1)
            tensors[f"roberta.encoder.layers.{number}.{flash[part]}.{kind}"] = one
    for number in range(config["num_hidden_layers"]):
        for kind in ("weight", "bias"):
            stem = f"roberta.encoder.layer.{number}.attention.self"
            parts = [own[f"{stem}.{name}.{kind}"] for name in ("query", "key", "value")]
            tensors[f"roberta.encoder.layers.{number}.mixer.Wqkv.{kind}"] = torch.cat(parts)
    tensors = {name: one.clone() for name, one in tensors.items() if "position_ids" not in name}
    write_weights(folder, tensors, draw, told)
    model.to(getattr(torch, told["dtype"])).float()
    most = config["max_position_embeddings"] - config["pad_token_id"] - 1
    declared = json.loads((folder / "tokenizer_config.json").read_text()).get("model_max_length", most)

    def reference(pair: Pair) -> float:
        ids = encoded(folder, pair, min(most, declared))
        return float(model(input_ids=torch.tensor([ids])).logits)

    return reference


# gte-multilingual-reranker: post-norm, rotary places with fixed NTK, gated.


def make_gte(folder: Path, draw: random.Random, told: dict[str, Any]) -> Callable[[Pair], float]:
    config = read_config(folder)
    heads = draw.choice([2, 4])
    hidden, inner = heads * draw.choice([8, 16]), draw.choice([40, 96])
    config |= {"num_hidden_layers": draw.choice([1, 2, 3]), "hidden_size": hidden, "num_attention_heads": heads}
    config |= {"intermediate_size": inner, "rope_theta": draw.choice([10_000.0, 20_000, 160_000])}
    config |= {
        "hidden_act": draw.choice(["gelu", "gelu", "relu", "silu"]),
        "layer_norm_eps": draw.choice([1e-12, 1e-5]),
    }
    config["rope_scaling"] = draw.choice([None, {"type": "ntk", "factor": 8.0}, {"type": "ntk", "factor": 2.0}])
    config["type_vocab_size"] = draw.choice([1, 2])
    told["sizes"] = {name: config[name] for name in ("hidden_act", "rope_scaling", "rope_theta", "type_vocab_size")}
    (folder / "config.json").write_text(json.dumps(config))
    shapes: dict[str, tuple[int, ...]] = {
        "new.embeddings.word_embeddings.weight": (config["vocab_size"], hidden),
        "new.embeddings.token_type_embeddings.weight": (config["type_vocab_size"], hidden),
        "new.pooler.dense.weight": (hidden, hidden), "classifier.weight": (1, hidden),
        "new.pooler.dense.bias": (hidden,), "classifier.bias": (1,),
        "new.embeddings.LayerNorm.weight": (hidden,), "new.embeddings.LayerNorm.bias": (hidden,),
    }  # fmt: skip
    for number in range(config["num_hidden_layers"]):
        stem = f"new.encoder.layer.{number}"
        for name, rows, columns in (
            ("attention.qkv_proj", 3 * hidden, hidden), ("attention.o_proj", hidden, hidden),
            ("mlp.down_proj", hidden, inner), ("mlp.up_gate_proj", 2 * inner, hidden),
        ):  # fmt: skip
            shapes[f"{stem}.{name}.weight"] = rows, columns
            if name != "mlp.up_gate_proj":
                shapes[f"{stem}.{name}.bias"] = (rows,)
        for name in ("attn_ln", "mlp_ln"):
            shapes |= {f"{stem}.{name}.weight": (hidden,), f"{stem}.{name}.bias": (hidden,)}
    tensors = write_weights(folder, drawn_tensors(shapes), draw, told)
    act = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu}[config["hidden_act"]]
    most = json.loads((folder / "tokenizer_config.json").read_text()).get("model_max_length", 8192)

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(x, (hidden,), tensors[f"{name}.weight"], tensors[f"{name}.bias"], config["layer_norm_eps"])

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x, tensors[f"{name}.weight"], tensors.get(f"{name}.bias"))

    def reference(pair: Pair) -> float:
        ids = torch.tensor(encoded(folder, pair, min(most, config["max_position_embeddings"])))
        size, factor = hidden // heads, (config["rope_scaling"] or {}).get("factor", 1.0)
        places = torch.arange(0, size, 2, dtype=torch.float64) / size
        frequencies = (config["rope_theta"] * factor) ** -places / factor ** (2 / size)
        angles = torch.outer(torch.arange(len(ids), dtype=torch.float64), frequencies)
        cos, sin = (torch.cat([part, part], 1).float() for part in (angles.cos(), angles.sin()))

        def turned(x: torch.Tensor) -> torch.Tensor:
            first, second = x.chunk(2, dim=-1)
            return x * cos + torch.cat([-second, first], -1) * sin

        table = tensors["new.embeddings.word_embeddings.weight"]
        x = norm(table[ids] + tensors["new.embeddings.token_type_embeddings.weight"][0], "new.embeddings.LayerNorm")
        for number in range(config["num_hidden_layers"]):
            stem = f"new.encoder.layer.{number}"
            stacked = linear(x, f"{stem}.attention.qkv_proj").view(len(ids), 3, heads, size).permute(1, 2, 0, 3)
            query, key, value = turned(stacked[0]), turned(stacked[1]), stacked[2]
            weights = torch.softmax(query @ key.transpose(1, 2) / size**0.5, dim=-1)
            seen = (weights @ value).transpose(0, 1).reshape(len(ids), hidden)
            x = norm(x + linear(seen, f"{stem}.attention.o_proj"), f"{stem}.attn_ln")
            up, gate = linear(x, f"{stem}.mlp.up_gate_proj").chunk(2, dim=-1)
            x = norm(x + linear(up * act(gate), f"{stem}.mlp.down_proj"), f"{stem}.mlp_ln")
        return float(linear(torch.tanh(linear(x[0], "new.pooler.dense")), "classifier"))

    return reference


def drawn_tensors(shapes: dict[str, tuple[int, ...]]) -> Tensors:
    """Noise; what is a norm's weight lies near 1."""
    return {
        name: 0.15 * torch.randn(shape) if len(shape) != 1 or name.endswith("bias") else 1 + 0.1 * torch.randn(shape)
        for name, shape in shapes.items()
    }


# Llama without a causal mask: llama-nemotron-rerank-1b, AutoModel's cross-encoders, and the trunk of the VL models.


def llama_of(config: dict[str, Any]) -> Any:
    """transformers' model, of which each position sees all."""
    known = (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim",
        "num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "hidden_act", "attention_bias", "mlp_bias",
    )  # fmt: skip
    values = {name: copy.deepcopy(config[name]) for name in known if name in config}
    rope = config.get("rope_parameters") or {**(config["rope_scaling"] or {}), "rope_theta": config["rope_theta"]}
    rope = {"rope_type": "default", **copy.deepcopy(rope)}
    plain = transformers.LlamaConfig(**values, rope_parameters=rope, attn_implementation="eager")
    return transformers.LlamaModel(plain).eval()


def resize_llama(config: dict[str, Any], draw: random.Random) -> None:
    config |= {"num_hidden_layers": draw.choice([1, 2, 3]), "intermediate_size": draw.choice([64, 160])}
    config |= {"rms_norm_eps": draw.choice([1e-5, 1e-6]), "num_key_value_heads": draw.choice([1, 2, 4])}
    rope = config.pop("rope_parameters", None) or {**config.pop("rope_scaling"), "rope_theta": config.pop("rope_theta")}
    rope = draw.choice([rope, {"rope_type": "default", "rope_theta": rope["rope_theta"]}, {**rope, "factor": 4.0}])
    if draw.random() < 0.5:
        config["rope_parameters"] = rope
    else:
        config["rope_theta"] = rope.pop("rope_theta")
        config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    config["is_causal"] = draw.choice([False, False, True])
    if not config["is_causal"] and draw.random() < 0.5:
        del config["is_causal"]


def hidden_of(model: Any, x: torch.Tensor, config: dict[str, Any]) -> torch.Tensor:
    """The last hidden states [tokens, hidden] of vectors [tokens, hidden]."""
    count = len(x)
    mask = torch.full((count, count), float("-inf")).triu(1) if config.get("is_causal") else torch.zeros(count, count)
    for layer in model.layers:
        layer.self_attn.is_causal = False
    found: torch.Tensor = model(inputs_embeds=x[None], attention_mask=mask[None, None], use_cache=False)[0][0]
    return found


def pooled(x: torch.Tensor, pooling: str) -> torch.Tensor:
    return {"avg": x.mean(0), "cls": x[0], "last": x[-1]}[pooling]


def make_llama(folder: Path, draw: random.Random, told: dict[str, Any]) -> Callable[[Pair], float]:
    config = read_config(folder)
    resize_llama(config, draw)
    config |= {"pooling": draw.choice(["avg", "cls", "last"]), "temperature": draw.choice([1.0, 0.25, 2.0])}
    told["sizes"] = {name: config.get(name) for name in ("pooling", "temperature", "is_causal", "rope_parameters")}
    (folder / "config.json").write_text(json.dumps(config))
    model = llama_of(config)
    randomise(model, matrices=0.15, vectors=0.1)
    tensors = {f"model.{name}": one.clone() for name, one in model.state_dict().items()}
    tensors["score.weight"] = 0.3 * torch.randn(1, config["hidden_size"])
    kept = write_weights(folder, tensors, draw, told)
    model.load_state_dict({name.removeprefix("model."): one for name, one in kept.items() if name != "score.weight"})
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def reference(pair: Pair) -> float:
        ids = tokenizer.encode(f"question:{pair[0]} \n \n passage:{pair[1]}").ids
        x = hidden_of(model, model.embed_tokens(torch.tensor(ids)), config)
        return float(kept["score.weight"] @ pooled(x, config["pooling"]) / config["temperature"])

    return reference


# The VL models: tiles through SigLIP, four patches a vector, in place of the image's tokens.


def siglip_of(config: dict[str, Any]) -> Any:
    return transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**config, attn_implementation="eager")).eval()


def tiles_of(image: Image.Image) -> torch.Tensor:
    """[tiles, 3, 512, 512]; of an image that is one tile, or two beside each other with a thumbnail."""
    whole = image.resize((512, 512))
    if image.width == image.height:
        found = [whole]
    else:
        assert image.width == 2 * image.height
        wide = image.resize((1024, 512))
        found = [wide.crop((0, 0, 512, 512)), wide.crop((512, 0, 1024, 512)), whole]
    pixels = [torch.frombuffer(bytearray(one.tobytes()), dtype=torch.uint8).view(512, 512, 3) for one in found]
    values = (torch.stack(pixels).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
    return values.to(torch.bfloat16).float()


def make_vl(  # noqa: C901, PLR0915 (a line for each thing that is drawn, and each part of the model)
    folder: Path, draw: random.Random, told: dict[str, Any]
) -> Callable[[str, Image.Image | None], torch.Tensor]:
    """Returns the pooled hidden state of a prompt, in which `<image>` stands for the image."""
    config = read_config(folder)
    language, vision = config["llm_config"], config["vision_config"]
    resize_llama(language, draw)
    vision |= {"num_hidden_layers": draw.choice([1, 2]), "intermediate_size": draw.choice([40, 72])}
    config["pooling"] = draw.choice(["avg", "cls", "last"])
    is_reranker = "ForSequenceClassification" in config["architectures"][0]
    if is_reranker:
        config["temperature"] = draw.choice([1.0, 0.5])
    (folder / "config.json").write_text(json.dumps(config))
    told["sizes"] = {name: language.get(name) for name in ("num_hidden_layers", "is_causal", "rope_scaling")}
    told["pooling"] = config["pooling"]
    given = load_file(HERE / f"{told['golden']}-open" / "checkpoint" / "model.safetensors")
    unused = {name: one for name, one in given.items() if ".head." in name}
    llama, tower = llama_of(language), siglip_of(vision)
    for one in (llama, tower):
        randomise(one, matrices=0.15, vectors=0.1)
    outer = "model." if is_reranker else ""
    nested = "vision_model." if draw.random() < 0.5 else ""
    told["nested"] = bool(nested)
    tensors = {f"{outer}language_model.{name}": one.clone() for name, one in llama.state_dict().items()}
    for name, one in tower.state_dict().items():
        if ".head." not in f".{name}":
            tensors[f"{outer}vision_model.{nested}{name.removeprefix('vision_model.')}"] = one.clone()
    if nested:
        tensors |= unused
    size, hidden = 4 * vision["hidden_size"], language["hidden_size"]
    tensors |= {
        f"{outer}mlp1.{name}": one
        for name, one in drawn_tensors(
            {"0.weight": (size,), "0.bias": (size,), "1.weight": (hidden, size), "1.bias": (hidden,),
             "3.weight": (hidden, hidden), "3.bias": (hidden,)}
        ).items()
    }  # fmt: skip
    if is_reranker:
        tensors["score.weight"] = 0.3 * torch.randn(1, hidden)
    if "fp8" in told["golden"]:
        for name in [one for one in tensors if "language_model.layers" in one and one.endswith("proj.weight")]:
            scale = tensors[name].abs().max() / 448
            tensors[name] = (tensors[name] / scale).to(torch.float8_e4m3fn)
            tensors[f"{name}_scale"], tensors[name.replace("weight", "input_scale")] = scale, torch.tensor(0.05)
    kept = write_weights(folder, tensors, draw, told)
    kept = {name: one * kept.get(f"{name}_scale", 1.0) for name, one in kept.items()}

    def part(prefix: str) -> Tensors:
        return {name.removeprefix(prefix): one for name, one in kept.items() if name.startswith(prefix)}

    own = set(llama.state_dict())
    llama.load_state_dict({name: one for name, one in part(f"{outer}language_model.").items() if name in own})
    flat = {name.removeprefix("vision_model."): one for name, one in part(f"{outer}vision_model.").items()}
    prefix = "vision_model." if any(name.startswith("vision_model.") for name in tower.state_dict()) else ""
    shown = {f"{prefix}{name}": one for name, one in flat.items() if not name.startswith("head.")}
    missing = tower.load_state_dict(shown, strict=False).missing_keys
    assert not [name for name in missing if "head." not in name]
    project = part(f"{outer}mlp1.")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def vectors_of(image: Image.Image) -> torch.Tensor:
        states = tower(pixel_values=tiles_of(image)).last_hidden_state  # [tiles, 1024, hidden]
        x = states.view(-1, 16, 2, 16, 2, vision["hidden_size"]).permute(0, 1, 3, 2, 4, 5).reshape(-1, size)
        x = F.layer_norm(x, (size,), project["0.weight"], project["0.bias"], 1e-5)
        x = F.gelu(F.linear(x, project["1.weight"], project["1.bias"]))
        return F.linear(x, project["3.weight"], project["3.bias"])

    def state(prompt: str, image: Image.Image | None) -> torch.Tensor:
        if image is None:
            ids = torch.tensor(tokenizer.encode(prompt).ids)
            return pooled(hidden_of(llama, llama.embed_tokens(ids), language), config["pooling"])
        seen = vectors_of(image)
        block = "<img>" + "<IMG_CONTEXT>" * len(seen) + "</img>"
        ids = torch.tensor(tokenizer.encode(prompt.replace("<image>", block, 1)).ids)
        x = llama.embed_tokens(ids).clone()
        x[ids == config["img_context_token_id"]] = seen
        return pooled(hidden_of(llama, x, language), config["pooling"])

    if not is_reranker:
        return state
    return lambda prompt, image: kept["score.weight"] @ state(prompt, image) / config["temperature"]


def drawn_image(draw: random.Random, folder: Path) -> Image.Image:
    side = draw.choice([512, 256])
    width = side * draw.choice([1, 2])
    image = Image.frombytes("RGB", (8, 8), draw.randbytes(192)).resize((width, side), Image.Resampling.NEAREST)
    image.save(folder / "page.png")
    return image


_MAKERS = {"jina-v2": make_jina, "gte-multilingual": make_gte, "llama-rerank": make_llama, "automodel-ce": make_llama}
_VL = ["nemotron-vl-rerank", "nemotron-vl-embed", "nemotron-vl-embed-fp8"]


def start(golden: str, seed: int, folder: Path) -> tuple[random.Random, dict[str, Any]]:
    draw = random.Random(f"{golden} {seed}")
    torch.manual_seed(seed)
    shutil.copytree(HERE / f"{golden}-open" / "checkpoint", folder)
    told: dict[str, Any] = {"golden": golden, "seed": seed}
    if golden not in _VL and draw.random() < 0.5:
        told["ids"] = exchange_ids(folder, draw)
    return draw, told


@pytest.mark.parametrize("seed", range(max(1, COUNT)))
@pytest.mark.parametrize("kind", _MAKERS if COUNT else [*_MAKERS][2:3])
@torch.inference_mode()
def test_a_variant_of_a_published_layout_has_the_score_that_is_published(kind, seed, tmp_path, capsys):
    folder = tmp_path / "checkpoint"
    draw, told = start(kind, seed, folder)
    reference = _MAKERS[kind](folder, draw, told)
    code, logits, said = scored(folder, capsys)
    assert code == 0, (said, told)
    wanted = [reference(pair) for pair in PAIRS]
    worst = max(abs(one - other) for one, other in zip(logits, wanted, strict=True))
    assert worst <= TOLERANCE, (worst, told, [*zip(logits, wanted, strict=True)])


@pytest.mark.parametrize("seed", range(max(1, COUNT)))
@pytest.mark.parametrize("kind", _VL if COUNT else _VL[1:2])
@torch.inference_mode()
def test_a_variant_of_a_model_that_sees_pages_has_the_score_that_is_published(kind, seed, tmp_path, capsys):
    folder = tmp_path / "checkpoint"
    draw, told = start(kind, seed, folder)
    reference = make_vl(folder, draw, told)
    image = drawn_image(draw, tmp_path)
    rows = [{"query": q, "passage": p} for q, p in PAIRS[:3]]
    rows += [
        {"query": "harbour", "passage": "", "image": "page.png"},
        {"query": "seal", "passage": "A pump", "image": "page.png"},
    ]
    source = write_lines(tmp_path / "rows.jsonl", rows)
    asked = ["--image-root", str(tmp_path), "--precision", "fp32", "--quiet", "--special-tokens", "allow"]
    assert main(["score", source, "-o", str(tmp_path / "out.jsonl"), "--model", str(folder), *asked]) == 0, (
        told,
        capsys.readouterr(),
    )
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    for row, one in zip(rows, found, strict=True):
        page = image if "image" in row else None
        if kind == "nemotron-vl-rerank":
            start_of_image = "<image> " if page else ""
            prompt = f"{start_of_image}question:{row['query']} \n \n passage:{row['passage']}"
            wanted, got = float(reference(prompt, page)), one["logit"]
        else:
            middle = "<image> " if page else ""
            sides = reference(f"query: {row['query']}", None), reference(f"passage: {middle}{row['passage']}", page)
            wanted, got = float(F.cosine_similarity(*sides, dim=0)), one["cosine"]
        assert abs(wanted - got) <= TOLERANCE, (wanted, got, row, told)
