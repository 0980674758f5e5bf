"""Folders of every kind that is no reranker of ours: each refused in one sentence that says what it is."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import Any

import pytest

from rerank_cli.cli import main

Files = dict[str, Any]

TOKENIZER = (Path(__file__).parents[2] / "parity" / "bert-ce-open" / "checkpoint" / "tokenizer.json").read_bytes()
OLD = "sentence_transformers.models."
SPARSE = "sentence_transformers.sparse_encoder."
CHAT = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
PROJECTION = {
    "1_Dense/config.json": {
        "in_features": 32, "out_features": 128, "bias": False, "activation_function": "torch.nn.Identity",
    },
    "1_Dense/model.safetensors": b"",
}  # fmt: skip
MEAN = {"1_Pooling/config.json": {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}}


def weights(**shapes: list[int]) -> bytes:
    """A safetensors file of numbers, all zero."""
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 4 * shape[0]
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(end)


WEIGHTS = weights(w=[2])


def config(architecture: str, **more: Any) -> Files:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return {"architectures": [architecture], "vocab_size": 2000, "num_labels": 1, **sizes, **more}


def modules(*classes: str) -> list[Files]:
    def path(number: int, dotted: str) -> str:
        return f"{number}_{dotted.rpartition('.')[2]}" if number else ""

    return [
        {"idx": number, "name": str(number), "path": path(number, dotted), "type": dotted}
        for number, dotted in enumerate(classes)
    ]


TEXTS: Files = {"tokenizer.json": TOKENIZER, "tokenizer_config.json": {"tokenizer_class": "BertTokenizer"}}
BERT = {**TEXTS, "config.json": config("BertForSequenceClassification", model_type="bert")}


def of(architecture: str, files: Files | None = None, **more: Any) -> Files:
    """A folder with tokenizer, weights and config.json; `files` stand over them."""
    return {**TEXTS, "config.json": config(architecture, **more), "model.safetensors": WEIGHTS, **(files or {})}


def listed(architecture: str, *classes: str, **files: Any) -> Files:
    """A folder with a modules.json."""
    return {**of(architecture), "modules.json": modules(*classes), **files}


def index(**weight_map: str) -> Files:
    return {"model.safetensors.index.json": {"weight_map": weight_map}}


# Files, and what the sentence says: each word of it.
KINDS: dict[str, tuple[Files, str]] = {
    # weights that are not read
    "openvino": ({**BERT, "openvino_model.xml": b"", "openvino_model.bin": b""}, "OpenVINO only"),
    "openvino in a folder": ({**BERT, "openvino/openvino_model.xml": b""}, "OpenVINO only"),
    "onnx": ({**BERT, "onnx/model.onnx": b"", "onnx/model.onnx_data": b""}, "ONNX only"),
    "gguf": ({"model-q8_0.gguf": b""}, "GGUF only"),
    "gguf with a config": ({**BERT, "model-q8_0.gguf": b""}, "GGUF only"),
    "ggml": ({**BERT, "ggml-model-q4.bin": b""}, "GGUF only"),
    "flax": ({**BERT, "flax_model.msgpack": b""}, "Flax only"),
    "tensorflow": ({**BERT, "tf_model.h5": b""}, "TensorFlow only"),
    "tensorflow of 2018": ({"bert_config.json": {}, "bert_model.ckpt.index": b"", "vocab.txt": b""}, "TensorFlow only"),
    "tensorflow lite": ({**BERT, "model.tflite": b""}, "TensorFlow Lite only"),
    "tensorrt": ({**BERT, "model.engine": b""}, "TensorRT only"),
    "core ml": ({**BERT, "model.mlpackage/Manifest.json": {}}, "Core ML only"),
    "rust": ({**BERT, "rust_model.ot": b""}, "rust-bert only"),
    "paddle": ({**BERT, "model_state.pdparams": b""}, "Paddle only"),
    "mlx": ({**BERT, "weights.npz": b""}, "MLX only"),
    "ctranslate2": ({**TEXTS, "config.json": {}, "model.bin": b"", "shared_vocabulary.json": []}, "CTranslate2 only"),
    "nemo": ({"model.nemo": b""}, "NeMo only"),
    "deepspeed": ({**BERT, "global_step10/mp_rank_00_model_states.pt": b""}, "DeepSpeed only"),
    "fsdp": ({**BERT, "pytorch_model_fsdp_0/__0_0.distcp": b""}, "FSDP only"),
    "pickle": ({**BERT, "pytorch_model.bin": b"\x80\x04"}, "pickle is not read: `pytorch_model.bin`"),
    "pickle in shards": ({**BERT, "pytorch_model-00001-of-00002.bin": b"\x80\x04"}, "pickle is not read"),
    "pickle and no tokenizer.json": ({"config.json": BERT["config.json"], "pytorch_model.bin": b""}, "pickle"),
    "pickle beside others": ({**BERT, "pytorch_model.bin": b"", "tf_model.h5": b"", "model.onnx": b""}, "pickle"),
    "pickle by another name": ({**BERT, "consolidated.00.pth": b""}, "pickle is not read: `consolidated.00.pth`"),
    "pickle of a model that is none": ({**BERT, "config.json": config("BertModel"), "pytorch_model.bin": b""},
                                       "an embedding model"),
    "no weights": (BERT, r"no \*\.safetensors weights"),
    "missing shard": ({**BERT, "a-00001-of-00002.safetensors": WEIGHTS,
                       **index(w="a-00001-of-00002.safetensors", v="a-00002-of-00002.safetensors")},
                      "a-00002-of-00002.safetensors: this shard is missing"),
    "one shard and no index": ({**BERT, "model-00001-of-00002.safetensors": WEIGHTS}, "shard 1 of 2"),
    "index of a file that is not there": ({**BERT, **index(w="model.safetensors")}, "this shard is missing"),
    "pointer for weights": (of("BertForSequenceClassification", {"model.safetensors": POINTER}), "pointer of Git LFS"),
    "pointer for a tokenizer": (of("BertForSequenceClassification", {"tokenizer.json": POINTER}), "pointer of Git LFS"),
    "pointer for weights that are not read": (
        of("LlamaForCausalLM", {"flax_model.msgpack": POINTER, "model.onnx": POINTER}), "LlamaForCausalLM"),
    # adapters
    "adapter": ({"adapter_config.json": {"peft_type": "LORA"}, "adapter_model.safetensors": WEIGHTS},
                "a LoRA adapter .*without a model: merge it first"),
    "adapter in pickle": ({"adapter_config.json": {"peft_type": "LORA"}, "adapter_model.bin": b""},
                          "LoRA adapter .*merge"),
    "adapter of another kind": ({"adapter_config.json": {"peft_type": "IA3"}, "adapter_model.bin": b""},
                                "an IA3 adapter .*merge"),
    "adapter beside its base": (of("BertForSequenceClassification", {"adapter_config.json": {}}), "adapter .*merge"),
    "adapter without config": ({**BERT, "adapter_model.bin": b""}, "adapter .*merge"),
    "adapter without config, beside its base": (
        of("BertForSequenceClassification", {"adapter_model.safetensors": WEIGHTS}), "adapter .*merge"),
    "adapter in the model's own folder": (
        {"modules.json": [{"idx": 0, "name": "0", "path": "0_Transformer", "type": f"{OLD}Transformer"}],
         **{f"0_Transformer/{name}": content for name, content in of("BertForSequenceClassification").items()},
         "0_Transformer/adapter_config.json": {}}, "adapter .*merge"),
    # models of other kinds
    "colbert": (of("HF_ColBERT"), r"`HF_ColBERT`.*late interaction \(ColBERT\)"),
    "pylate": (listed("BertModel", f"{OLD}Transformer", "pylate.models.Dense.Dense", **PROJECTION),
               r"pylate.*late interaction \(ColBERT\)"),
    "colbert in modules": (listed("BertModel", f"{OLD}Transformer", f"{OLD}Dense", **PROJECTION), "late interaction"),
    "splade": (listed("BertForMaskedLM", f"{SPARSE}models.MLMTransformer", f"{SPARSE}models.SpladePooling"), "SPLADE"),
    "splade of today": (listed("BertForMaskedLM", "sentence_transformers.base.modules.transformer.Transformer",
                               f"{SPARSE}modules.splade_pooling.SpladePooling"), "`SpladePooling`.*SPLADE"),
    "splade without modules": (of("BertForMaskedLM"), "`BertForMaskedLM`.*SPLADE"),
    "sparse autoencoder": (listed("BertModel", f"{OLD}Transformer", f"{SPARSE}models.SparseAutoEncoder"), "sparse"),
    "static embeddings": ({"tokenizer.json": TOKENIZER, "model.safetensors": WEIGHTS,
                           "modules.json": modules(f"{OLD}StaticEmbedding", f"{OLD}Normalize")}, "static embeddings"),
    "model2vec": (of("StaticModel"), "static embeddings"),
    "word vectors": ({"modules.json": modules(f"{OLD}WordEmbeddings", f"{OLD}Pooling")}, "word vectors"),
    "clip": (listed("CLIPModel", f"{OLD}CLIPModel"), "embedding model of images and texts"),
    "clip without modules": (of("CLIPModel"), "`CLIPModel`.*embedding model of images and texts"),
    "router": ({"modules.json": modules("sentence_transformers.base.modules.router.Router")}, "`Router`"),
    "bare trunk": (of("BertModel"), "an embedding model"),
    "bare trunk of another kind": (of("MPNetModel"), "`MPNetModel`.*an embedding model"),
    "embedder": (listed("MPNetModel", f"{OLD}Transformer", f"{OLD}Pooling", **MEAN), "an embedding model"),
    "embedder of a language model": (listed("Qwen3Model", f"{OLD}Transformer", f"{OLD}Pooling", f"{OLD}Normalize"),
                                     "an embedding model.*Normalize"),
    "embedder with code": (listed("NomicBertModel", f"{OLD}Transformer", f"{OLD}Pooling", **MEAN), "embedding model"),
    "embedder with code of its own": (
        listed("XLMRobertaModel", "custom_st.Transformer", f"{OLD}Pooling", **{"custom_st.py": b"raise SystemExit"}),
        "code of the checkpoint, which is never run"),
    "t5": (of("T5ForConditionalGeneration"), "`T5ForConditionalGeneration`.*writes text"),
    "bart": (of("BartForConditionalGeneration"), "writes text"),
    "pages": (of("Qwen2VLForConditionalGeneration"), "`Qwen2VLForConditionalGeneration`.*writes text"),
    "gemma2": (of("Gemma2ForCausalLM"), "`Gemma2ForCausalLM`.*a language model of a kind that is not computed"),
    "gpt2": (of("GPT2LMHeadModel"), "a language model of a kind"),
    "tokens": (of("BertForTokenClassification"), "labels tokens"),
    "answers": (of("BertForQuestionAnswering"), "marks answers"),
    "next sentence": (of("BertForNextSentencePrediction"), "whether a sentence follows"),
    "trunk as it was trained": (of("ElectraForPreTraining"), "heads that it was trained with"),
    "reward": (of("LlamaForRewardModelWithGating", auto_map={"AutoModel": "m.M"}), "reward model.*never run"),
    "listwise": (of("JinaForRanking", auto_map={"AutoModel": "m.M"}, hidden_size=80_000, vocab_size=2**31),
                 "`JinaForRanking`.*code of a checkpoint is never run"),
    "layerwise": (of("LayerWiseMiniCPMForCausalLM", auto_map={"AutoModel": "m.M"}), "language model.*never run"),
    "images": ({"config.json": {"architecture": "resnet50", "pretrained_cfg": {}}, "model.safetensors": WEIGHTS},
               "an image model of timm"),
    "images of transformers": (of("ViTForImageClassification"), "a model of images"),
    "diffusers": ({"model_index.json": {}, "unet/model.safetensors": WEIGHTS}, "diffusers"),
    "spacy": ({"config.cfg": b"[nlp]", "meta.json": {}}, "spaCy"),
    # language models that nothing declares
    "chat": (of("Qwen2ForCausalLM", {"chat_template.jinja": CHAT.encode()}), "a chat model, by its chat template"),
    "chat of another trunk": (of("LlamaForCausalLM", {"chat_template.jinja": CHAT.encode()}), "a chat model"),
    "undeclared": (of("MistralForCausalLM"), r"a language model \(MistralForCausalLM\), and no file says"),
    "code": (of("Qwen3ForCausalLM", {"modeling_mine.py": b"raise SystemExit"}), "code of a checkpoint is never run"),
    "code elsewhere": (of("Qwen3ForCausalLM", auto_map={"AutoModel": "m.M"}), "code of a checkpoint is never run"),
    "code of a classifier": (of("MineForSequenceClassification", {"m.py": b"raise SystemExit"}), "`Mine.*never run"),
    # labels
    "entailment": (of("BertForSequenceClassification", id2label={"0": "a", "1": "b", "2": "c"}), "gives 3 labels"),
    "reward of many labels": (of("LlamaForSequenceClassification", num_labels=5), "gives 5 labels"),
    # quantised
    **{f"quantised by {method}": (
        of("Qwen3ForSequenceClassification", quantization_config={"quant_method": method}, hidden_size=80_000),
        f"quantisation by `{method}`")
       for method in ("gptq", "awq", "bitsandbytes", "compressed-tensors", "torchao", "hqq", "fp8")},
    "quantised language model": (of("Qwen2ForCausalLM", quantization_config={"quant_method": "awq"}), "by `awq`"),
    "quantised, as a file of its own says": (
        of("Qwen3ForSequenceClassification", {"quantize_config.json": {"bits": 4}}), "quantisation by `gptq`"),
    "quantised for mlx": (of("Qwen3ForSequenceClassification", quantization={"bits": 4}), "quantisation by `mlx`"),
    # files that can be read in two ways
    "two models": (of("LlamaForSequenceClassification", model_type="bert"), "`model_type` is bert, and `archi"),
    "causal encoder": (of("ModernBertForSequenceClassification", is_causal=True), "`is_causal` is True: in Mod"),
    # folders that hold a checkpoint, and folders that hold none
    "folder above": ({f"checkpoint-500/{name}": content for name, content in BERT.items()}, "no config.json"),
    "empty": ({}, "no config.json"),
    "no architecture": (of("", {"config.json": {"model_type": "bert"}}), "`architectures` must name one class: None"),
    "no fast tokenizer": ({"config.json": BERT["config.json"], "model.safetensors": WEIGHTS}, "no tokenizer.json"),
}  # fmt: skip


def make(folder: Path, files: Files) -> Path:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_that_is_no_reranker_is_refused_by_what_it_is(kind, tmp_path, capsys):
    files, said = KINDS[kind]
    folder = make(tmp_path / "model", files)
    rows, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    rows.write_text('{"query": "a", "passage": "b"}\n')
    assert main(["score", str(rows), "-o", str(out), "--model", str(folder)]) == 5
    told = capsys.readouterr().err
    lines = told.splitlines()
    assert [line.partition(":")[0] for line in lines] in (["error"], ["error", "hint"])
    assert re.search(said, lines[0]), told
    assert "GiB" not in told
    assert not out.exists()


def test_the_folder_below_is_named(tmp_path, capsys):
    folder = make(tmp_path / "model", KINDS["folder above"][0])
    assert main(["mem-estimate", "--model", str(folder)]) == 5
    assert f"hint: there is one in `{folder}/checkpoint-500`: name that folder" in capsys.readouterr().err
