"""Bad checkpoints through the command line: exit code 5, one sentence that names what is wrong, and nothing written."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rerank_cli.checkpoint.families import FAMILIES
from rerank_cli.cli import main

PARITY = Path(__file__).parents[1] / "parity"
BERT, LLAMA, SHARDED, PADDED, EMBEDDER, YES_NO = (
    "bert-ce-open", "llama-rerank-open", "automodel-ce-open", "deberta-ce-open", "nemotron-vl-embed-open",
    "qwen3-reranker-open",
)  # fmt: skip
# A family of each kind, with a weight that it has
WEIGHT_OF = {
    BERT: "bert.encoder.layer.0.attention.self.query.weight",
    LLAMA: "model.layers.1.mlp.down_proj.weight",
    PADDED: "deberta.encoder.layer.0.attention.self.query_proj.weight",
    EMBEDDER: "language_model.layers.0.self_attn.q_proj.weight",
    YES_NO: "model.layers.0.self_attn.q_norm.weight",
}

Spoil = Callable[[Path], object]


def config(**changes: Any) -> Spoil:
    def spoil(model: Path) -> None:
        facts = json.loads((model / "config.json").read_text()) | changes
        (model / "config.json").write_text(json.dumps({name: fact for name, fact in facts.items() if fact is not None}))

    return spoil


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Spoil:
    def spoil(model: Path) -> None:
        tensors = load_file(model / "model.safetensors")
        change(tensors)
        save_file(tensors, model / "model.safetensors")

    return spoil


def header(change: Callable[[dict[str, Any]], object]) -> Spoil:
    """Another header before the same data."""

    def spoil(model: Path) -> None:
        data = (model / "model.safetensors").read_bytes()
        length = struct.unpack("<Q", data[:8])[0]
        facts = json.loads(data[8 : 8 + length])
        change(facts)
        text = json.dumps(facts).encode()
        (model / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])

    return spoil


def without(*names: str) -> Spoil:
    return lambda model: [(model / name).unlink() for name in names]


def written(name: str, text: str) -> Spoil:
    return lambda model: (model / name).write_text(text)


def as_pickle(model: Path) -> None:
    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()


def cut_in_half(model: Path) -> None:
    data = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(data[: len(data) // 2])


def huge_header(model: Path) -> None:
    data = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(struct.pack("<Q", 2**62) + data[8:])


def overlapping(facts: dict[str, Any]) -> None:
    name, other = [name for name in facts if name != "__metadata__"][:2]
    facts[name]["data_offsets"] = facts[other]["data_offsets"]


def larger_than_its_bytes(facts: dict[str, Any]) -> None:
    facts[WEIGHT_OF[LLAMA]]["shape"] = [100_000, 100_000]


def beyond_the_end(facts: dict[str, Any]) -> None:
    begin, end = facts["score.weight"]["data_offsets"]
    facts["score.weight"]["data_offsets"] = [begin + 2**40, end + 2**40]


def index_of_another(model: Path) -> None:
    path = model / "model.safetensors.index.json"
    facts = json.loads(path.read_text())
    facts["weight_map"]["model.ghost.weight"] = next(iter(facts["weight_map"].values()))
    path.write_text(json.dumps(facts))


def drop(name: str) -> Spoil:
    return weights(lambda tensors: tensors.pop(name))


def add(name: str) -> Spoil:
    return weights(lambda tensors: tensors.update({name: torch.ones(3)}))


def reshape(name: str) -> Spoil:
    return weights(lambda tensors: tensors.update({name: torch.ones(3, 5)}))


ROPE = {"rope_type": "yarn", "factor": 4.0}
NVFP4 = {"quant_method": "modelopt", "quant_algo": "NVFP4"}
BAD: list[tuple[str, str, Spoil, list[str]]] = [
    ("no-config", BERT, without("config.json"), ["no config.json"]),
    ("config-not-json", BERT, written("config.json", "{"), ["config.json: not JSON"]),
    ("no-architecture", BERT, config(architectures=None), ["`architectures` must name one class"]),
    ("unknown-architecture", BERT, config(architectures=["JinaForRanking"]),
     ["architecture `JinaForRanking`", "known are", *FAMILIES]),
    ("unknown-classifier", BERT, config(architectures=["OwnForSequenceClassification"]),
     ["architecture `OwnForSequenceClassification`", "is not a reranker that is known"]),
    ("two-labels", BERT, config(id2label={"0": "no", "1": "yes"}), ["`classifier.weight` has shape [1, 48]"]),
    ("wrong-size", LLAMA, config(hidden_size=None), ["`hidden_size` must be a whole number"]),
    ("unknown-rope", LLAMA, config(rope_scaling=ROPE),
     ["`rope_type` of `rope_scaling` is not known: 'yarn'", "llama3"]),
    ("rope-of-another-kind", LLAMA, config(rope_scaling={"rope_type": {"yarn": 4}}), ["is not known: {'yarn': 4}"]),
    ("size-out-of-range", BERT, config(hidden_size=2**63), ["`hidden_size` must be a whole number: 9223372"]),
    ("number-out-of-range", LLAMA, config(rms_norm_eps=float("inf")), ["`rms_norm_eps` must be a number: inf"]),
    ("image-without-tokens", EMBEDDER, config(downsample_ratio=1e-3), ["`downsample_ratio`"]),
    ("unknown-rope-of-a-language-model", YES_NO, config(rope_scaling=ROPE), ["'yarn'"]),
    ("unknown-pooling", LLAMA, config(pooling="weighted"), ["`pooling` is not known: 'weighted'"]),
    ("no-inner-config", EMBEDDER, config(llm_config=None), ["`llm_config` must be an object"]),
    *((f"missing-weight-{name}", name, drop(weight), [f"`{weight}`"]) for name, weight in WEIGHT_OF.items()),
    *((f"extra-weight-{name}", name, add("adapter.lora"), ["`adapter.lora`"]) for name in WEIGHT_OF),
    *((f"other-shape-{name}", name, reshape(weight), [f"`{weight}`"]) for name, weight in WEIGHT_OF.items()),
    ("missing-shard", SHARDED, without("model-00002-of-00003.safetensors"),
     ["model-00002-of-00003.safetensors: this shard is missing"]),
    ("index-that-lies", SHARDED, index_of_another, ["the index promises", "`model.ghost.weight`"]),
    ("no-index", SHARDED, without("model.safetensors.index.json"), ["several safetensors files and no index"]),
    ("no-weights", BERT, without("model.safetensors"), ["no *.safetensors weights"]),
    ("pickle", BERT, as_pickle, ["pickle is not read: `pytorch_model.bin`"]),
    ("cut-file", LLAMA, cut_in_half, ["model.safetensors: the header describes"]),
    ("huge-header", LLAMA, huge_header, ["not a safetensors file"]),
    ("overlapping-tensors", LLAMA, header(overlapping), ["model.safetensors: "]),
    ("larger-than-its-bytes", LLAMA, header(larger_than_its_bytes),
     [f"`{WEIGHT_OF[LLAMA]}` has shape [100000, 100000]"]),
    ("beyond-the-end", LLAMA, header(beyond_the_end), ["`score.weight` begins at byte"]),
    ("no-tokenizer", BERT, without("tokenizer.json"), ["no tokenizer.json"]),
    ("tokenizer-not-one", LLAMA, written("tokenizer.json", '{"model": 1}'), ["tokenizer.json: not a tokenizer"]),
    ("tokenizer-of-another", LLAMA, config(vocab_size=100), ["but the model's `vocab_size` is 100"]),
    ("unknown-quantisation", LLAMA, config(quantization_config={"quant_method": "gptq", "bits": 4}),
     ["quantisation by `gptq`"]),
    ("unknown-algorithm", EMBEDDER, config(quantization_config=NVFP4), ["`modelopt` with `NVFP4`"]),
    ("quantised-by-others-in-transformers", PADDED, config(quantization_config={"quant_method": "bitsandbytes"}),
     ["quantisation by `bitsandbytes`"]),
]  # fmt: skip


@pytest.mark.parametrize(("golden", "spoil", "said"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_a_bad_checkpoint_is_refused_in_one_sentence(golden, spoil, said, tmp_path, capfd):
    model = Path(shutil.copytree(PARITY / golden / "checkpoint", tmp_path / "model"))
    spoil(model)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"query": "a", "passage": "b"}\n')
    assert main(["score", str(rows), "-o", str(tmp_path / "out.jsonl"), "--model", str(model)]) == 5
    out, err = capfd.readouterr()
    assert out == ""
    lines = [line for line in err.splitlines() if not line.startswith("taken for ")]
    assert [line.split(":")[0] for line in lines] in (["error"], ["error", "hint"])
    assert str(model) in lines[0]
    for part in said:
        assert part in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "rows.jsonl"]


CANARY = "import pathlib; pathlib.Path(__file__).with_name('sung').touch()\n"
REMOTE = ("configuration_mine", "modeling_mine", "tokenization_mine", "processing_mine", "sitecustomize")


def with_code_of_its_own(model: Path) -> None:
    """Files that leave a mark when they are imported, named by every `auto_map` there is."""
    for name in REMOTE:
        (model / f"{name}.py").write_text(CANARY)
    model_map = {
        "AutoConfig": "configuration_mine.MineConfig",
        "AutoModel": "modeling_mine.MineModel",
        "AutoModelForSequenceClassification": "modeling_mine.MineForSequenceClassification",
        "AutoModelForCausalLM": "modeling_mine.MineForCausalLM",
    }
    config(auto_map=model_map)(model)
    facts = json.loads((model / "tokenizer_config.json").read_text())
    facts["auto_map"] = {"AutoTokenizer": ["tokenization_mine.MineTokenizer", None]}
    (model / "tokenizer_config.json").write_text(json.dumps(facts))
    (model / "processor_config.json").write_text('{"auto_map": {"AutoProcessor": "processing_mine.MineProcessor"}}')


@pytest.mark.parametrize(
    ("golden", "architecture", "code"),
    [
        (LLAMA, None, 0),
        (PADDED, None, 0),
        (EMBEDDER, None, 0),
        (BERT, "MineForSequenceClassification", 5),
        (BERT, "MineModel", 5),
    ],
)
def test_code_in_a_checkpoint_is_never_imported(golden, architecture, code, tmp_path):
    model = Path(shutil.copytree(PARITY / golden / "checkpoint", tmp_path / "model"))
    with_code_of_its_own(model)
    if architecture:
        config(architectures=[architecture], model_type="mine")(model)
    # In a process of its own, with the checkpoint's folder as the working directory: nothing is imported from there.
    done = subprocess.run(
        [sys.executable, "-P", "-m", "rerank_cli", "score", "--model", ".", "-q"],
        input='{"query": "a", "passage": "b"}\n',
        cwd=model,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert ("logit" in done.stdout or "cosine" in done.stdout) == (code == 0)
    assert not (model / "sung").exists()


def test_the_canary_sings_when_it_is_imported(tmp_path):
    with_code_of_its_own(Path(shutil.copytree(PARITY / BERT / "checkpoint", tmp_path / "model")))
    subprocess.run([sys.executable, str(tmp_path / "model" / "modeling_mine.py")], check=True)
    assert (tmp_path / "model" / "sung").exists()


@pytest.mark.parametrize(
    "change", [{"hidden_dropout_prob": "much"}, {"id2label": [1]}, {"initializer_range": "x"}, {"dtype": "float99"}]
)
@pytest.mark.parametrize("command", ["score", "mem-estimate"])
def test_a_value_that_another_programs_classes_do_not_take_is_no_fault_of_this_program(
    command, change, tmp_path, capsys
):
    model = tmp_path / "model"
    shutil.copytree(PARITY / PADDED / "checkpoint", model)
    config(**change)(model)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"query": "a", "passage": "b"}\n')
    given = [str(rows), "-o", str(tmp_path / "out.jsonl")] if command == "score" else []
    code = main([command, *given, "--model", str(model)])
    said = capsys.readouterr().err
    assert code in (0, 5)
    assert code == 0 or said.startswith("error: ")
    assert "Traceback" not in said
