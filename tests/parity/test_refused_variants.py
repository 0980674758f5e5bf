"""Folders of each refused kind with other names, families and files: refused by what they are, with exit code 5.

`RERANK_CLI_VARIANTS=20` makes so many of each kind; without it there is one of every third.
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

from rerank_cli.cli import main
from tests.parity.conftest import HERE

COUNT = int(os.environ.get("RERANK_CLI_VARIANTS", "0"))
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
)
Change = Callable[[Path, random.Random], Any]


def edit(file: Path, **values: Any) -> None:
    """Set keys of a JSON file; None takes a key away."""
    found = {**(json.loads(file.read_text()) if file.is_file() else {}), **values}
    file.write_text(json.dumps({key: value for key, value in found.items() if value is not None}))


def adapter(folder: Path, draw: random.Random) -> dict[str, Any]:
    kind = draw.choice(["LORA", "LORA", "IA3", "LOHA", "ADALORA"])
    edit(folder / "adapter_config.json", peft_type=kind, r=draw.choice([4, 64]), base_model_name_or_path="some/model")
    if draw.random() < 0.5:
        (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    if draw.random() < 0.3:
        (folder / "tokenizer.json").unlink(missing_ok=True)
    return {"peft": kind}


def adapter_beside_a_base(folder: Path, draw: random.Random) -> dict[str, Any]:
    base = draw.choice(["", "bert-ce", "xlmr-ce", "qwen3-st", "ettin", "qwen3-seqcls"])
    if base:
        for file in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
            (folder / file).unlink(missing_ok=True)
        shutil.copytree(HERE / f"{base}-open" / "checkpoint", folder, dirs_exist_ok=True)
    (folder / "tokenizer.json").touch()
    return {"base": base, **adapter(folder, draw)}


def onnx(folder: Path, draw: random.Random) -> dict[str, Any]:
    file, *others = folder.rglob("*.onnx")
    for one in others:
        one.unlink()
    name = draw.choice(["model.onnx", "onnx/model_O4.onnx", "onnx/model_quantized.onnx", "model_qint8_avx512.onnx"])
    moved = folder / name
    moved.parent.mkdir(exist_ok=True)
    file.rename(folder / "kept")
    (folder / "kept").rename(moved)
    if draw.random() < 0.5:
        modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
        (folder / "modules.json").write_text(json.dumps(modules))
    if draw.random() < 0.3:
        (folder / "tokenizer.json").unlink()
    return {"file": name}


def gguf(folder: Path, draw: random.Random) -> dict[str, Any]:
    (file,) = folder.glob("*.gguf")
    for name in draw.choice([["model-f16.gguf"], ["x.Q4_K_M.gguf", "x.Q8_0.gguf"], ["ggml-model-i2_s.gguf"]]):
        shutil.copyfile(file, folder / name)
    file.unlink()
    if draw.random() < 0.5:
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(HERE / "qwen3-st-open" / "checkpoint" / name, folder / name)
    return {"files": sorted(one.name for one in folder.iterdir())}


def unknown(folder: Path, draw: random.Random) -> dict[str, Any]:
    name = draw.choice(
        ["JinaForRanking", "JinaVLForRanking", "MT5EncoderModel", "ColBERT", "Qwen3VLForConditionalGeneration",
         "SomethingForSequenceClassification"]
    )  # fmt: skip
    edit(folder / "config.json", architectures=[name], auto_map=None if draw.random() < 0.5 else {"AutoModel": "m.X"})
    if draw.random() < 0.3:
        (folder / "tokenizer.json").unlink()
    if draw.random() < 0.5:
        edit(folder / "config.json", hidden_size=65_536, num_hidden_layers=200)  # no plan of memory comes first
    return {"words": [name]}


def chat(folder: Path, draw: random.Random) -> dict[str, Any]:
    template = (folder / "chat_template.jinja").read_text()
    if draw.random() < 0.5:
        template = CHATML
    (folder / "chat_template.jinja").unlink()
    place = draw.choice(["file", "config", "list"])
    if place == "file":
        (folder / "chat_template.jinja").write_text(template)
    else:
        kept: Any = template if place == "config" else [{"name": "default", "template": template}]
        edit(folder / "tokenizer_config.json", chat_template=kept)
    family = draw.choice(["Qwen3", "Qwen2", "Llama", "Mistral", "Gemma"])
    edit(folder / "config.json", architectures=[f"{family}ForCausalLM"], model_type=family.lower())
    return {"place": place, "family": family, "template": "chatml" if template == CHATML else "stock"}


def embedding(folder: Path, draw: random.Random) -> dict[str, Any]:
    base = draw.choice(["", "bert-ce", "xlmr-ce", "ettin"])
    if base:
        for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(HERE / f"{base}-open" / "checkpoint" / name, folder / name)
        (architecture,) = json.loads((folder / "config.json").read_text())["architectures"]
        family = re.sub(r"For.*|Model$", "", architecture)
        edit(folder / "config.json", architectures=[f"{family}Model"], id2label=None, label2id=None)
    old = "sentence_transformers.models."
    chain = [("Transformer", ""), ("Pooling", "1_Pooling")]
    if draw.random() < 0.5:
        chain.append(("Normalize", "2_Normalize"))
    modules = [{"idx": n, "name": str(n), "path": path, "type": old + name} for n, (name, path) in enumerate(chain)]
    (folder / "modules.json").write_text(json.dumps(modules))
    if draw.random() < 0.5:
        modes = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False, "word_embedding_dimension": 32}
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(modes))
    if draw.random() < 0.5:
        (folder / "config_sentence_transformers.json").unlink(missing_ok=True)
    return {"base": base, "chain": [name for name, _ in chain]}


def code(folder: Path, draw: random.Random) -> dict[str, Any]:
    (file,) = folder.glob("*.py")
    family = draw.choice(["Qwen3ForCausalLM", "Qwen2ForCausalLM", "GemmaForCausalLM", "LlamaForCausalLM"])
    name = draw.choice([file.stem, "modeling_reranker", "custom_st"])
    edit(folder / "config.json", architectures=[family], auto_map={"AutoModelForCausalLM": f"{name}.Reranker"})
    if draw.random() < 0.5:
        file.rename(folder / f"{name}.py")
    else:
        file.unlink()  # it lies in another repository
        edit(folder / "config.json", auto_map={"AutoModelForCausalLM": f"some/repository--{name}.Reranker"})
    if draw.random() < 0.5:
        (folder / "chat_template.jinja").write_text(CHATML)
    return {"family": family, "name": name}


KINDS: dict[str, Change] = {
    "lora-base": adapter_beside_a_base, "lora-only": adapter, "onnx-only": onnx, "gguf-only": gguf,
    "jina-ranking": unknown, "qwen3-chat": chat, "qwen3-embedding": embedding, "zerank1": code,
}  # fmt: skip


@pytest.mark.parametrize("seed", range(max(1, COUNT)))
@pytest.mark.parametrize("kind", KINDS if COUNT else [*KINDS][2::3])
def test_a_variant_of_what_is_refused_is_refused_by_what_it_is(kind, seed, tmp_path, capsys):
    source = HERE / "refused" / f"{kind}-refuse-open"
    folder = tmp_path / "checkpoint"
    shutil.copytree(source / "checkpoint", folder)
    told = KINDS[kind](folder, random.Random(f"{kind} {seed}"))
    (tmp_path / "rows.jsonl").write_text('{"query": "a", "passage": "b"}\n')
    found = main(["score", str(tmp_path / "rows.jsonl"), "-o", str(tmp_path / "out.jsonl"), "--model", str(folder)])
    said = capsys.readouterr().err
    assert found == 5, (said, told)
    assert said.startswith("error: ")
    sentence = said.splitlines()[0].replace(str(folder), "")
    for words in told.get("words") or json.loads((source / "META.json").read_text())["why_words"]:
        assert re.search(words, sentence, re.IGNORECASE), (words, sentence, told)
    assert not (tmp_path / "out.jsonl").exists()
