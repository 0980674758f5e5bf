"""Yes/no language models against transformers' own modules, and against the goldens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from rerank_cli.checkpoint import read_checkpoint
from rerank_cli.checkpoint.families import family_of
from rerank_cli.encoding.encoder import answer_ids, open_encoder
from rerank_cli.errors import ModelError
from rerank_cli.models import RerankModel, load_model
from rerank_cli.records import EncodedPair

PARITY = Path(__file__).parents[2] / "parity"
FOLDERS = {name: PARITY / f"{name}-open" for name in ("qwen3-reranker", "mxbai-v2", "bge-gemma")}
QWEN3 = FOLDERS["qwen3-reranker"] / "checkpoint"


def open_model(folder: Path, precision: str = "fp32") -> RerankModel:
    return load_model(read_checkpoint(folder), device="cpu", precision=precision, attention="runs")


def random_pairs(*lengths: int) -> list[EncodedPair]:
    generator = np.random.default_rng(2)
    return [EncodedPair(generator.integers(5, 700, length).astype(np.int32), length, length) for length in lengths]


@torch.inference_mode()
def logits(model: RerankModel, pairs: list[EncodedPair]) -> np.ndarray:
    order = sorted(range(len(pairs)), key=lambda place: -len(pairs[place].input_ids))
    found = np.empty(len(pairs), dtype=np.float32)
    found[order] = model.forward([pairs[place] for place in order]).numpy()
    return found


@torch.inference_mode()
def reference(folder: Path, pairs: list[EncodedPair]) -> np.ndarray:
    """Each pair alone, through transformers and over the whole vocabulary."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder)
    # transformers 5 changes the `gelu` of a Gemma config
    config.hidden_act = json.loads((folder / "config.json").read_text())["hidden_act"]
    model = AutoModelForCausalLM.from_pretrained(
        folder, config=config, dtype=torch.float32, attn_implementation="eager"
    )
    answers = answer_ids(read_checkpoint(folder))
    found = []
    for pair in pairs:
        ids = torch.from_numpy(pair.input_ids.astype(np.int64))[None]
        last = model(input_ids=ids, use_cache=False).logits[0, -1]
        found.append((last[answers[0]] - (last[answers[1]] if len(answers) == 2 else 0)).item())
    return np.array(found, dtype=np.float32)


@pytest.mark.parametrize("name", FOLDERS)
def test_logits_are_those_of_transformers_in_every_batch(name):
    folder = FOLDERS[name] / "checkpoint"
    model = open_model(folder)
    assert family_of(read_checkpoint(folder).architecture).forward == "llama"
    for lengths in ((30,), (30, 30, 30), (90, 7, 30, 1, 7)):
        pairs = random_pairs(*lengths)
        np.testing.assert_allclose(logits(model, pairs), reference(folder, pairs), atol=5e-5, rtol=0)


@pytest.mark.parametrize("name", FOLDERS)
def test_golden_cases_have_their_logits_alone_and_together(name):
    folder = FOLDERS[name]
    model, checkpoint = open_model(folder / "checkpoint"), read_checkpoint(folder / "checkpoint")
    cases = [json.loads(line) for line in (folder / "cases.jsonl").read_text().splitlines()]
    expected = {
        row["id"]: row["logit"] for row in map(json.loads, (folder / "expected.jsonl").read_text().splitlines())
    }
    pairs = []
    for case in cases:
        encoder = open_encoder(
            checkpoint,
            max_tokens=case["max_length"],
            truncate="reference",
            special_tokens="allow",
            instruction=case.get("instruction"),
        )
        (pair,) = encoder.encode([(case["query"], case["passage"])])[0]
        pairs.append(pair)
    wanted = np.array([expected[case["id"]] for case in cases], dtype=np.float32)
    np.testing.assert_allclose(logits(model, pairs), wanted, atol=2e-4, rtol=0)
    np.testing.assert_allclose(np.concatenate([logits(model, [pair]) for pair in pairs]), wanted, atol=2e-4, rtol=0)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 2e-2)])
@pytest.mark.parametrize("name", FOLDERS)
def test_a_logit_does_not_depend_on_the_batch(name, precision, tolerance):
    model = open_model(FOLDERS[name] / "checkpoint", precision)
    pairs = random_pairs(*np.random.default_rng(4).integers(1, 80, 16))
    alone = np.concatenate([logits(model, [pair]) for pair in pairs])
    for size in (7, 16):
        batches = [logits(model, pairs[begin : begin + size]) for begin in range(0, 16, size)]
        np.testing.assert_allclose(np.concatenate(batches), alone, atol=tolerance, rtol=0)


def changed(folder: Path, weights: dict[str, torch.Tensor] | None = None, **config: Any) -> Path:
    """Qwen3's checkpoint with other weights or values in config.json."""
    shutil.copytree(QWEN3, folder)
    (folder / "config.json").write_text(json.dumps(json.loads((QWEN3 / "config.json").read_text()) | config))
    if weights is not None:
        save_file(weights, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("tied", "of_its_own"), [(False, True), (None, True), (True, False)], ids=["untied", "not told", "tied"]
)
def test_the_output_has_a_table_of_its_own_unless_it_is_tied(tied, of_its_own, tmp_path):
    weights = load_file(QWEN3 / "model.safetensors")
    yes, no = answer_ids(read_checkpoint(QWEN3))
    table = weights["model.embed_tokens.weight"].clone()
    table[yes] *= 3
    table[no] *= -2
    folder = changed(tmp_path / "model", weights | {"lm_head.weight": table}, tie_word_embeddings=tied)
    pairs = random_pairs(20, 8)
    found = logits(open_model(folder), pairs)
    differs = np.abs(found - logits(open_model(QWEN3), pairs)) > 1e-2
    assert differs.all() == of_its_own == differs.any()


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"use_sliding_window": True}, "`use_sliding_window`"),
        ({"use_bidirectional_attention": True}, "`use_bidirectional_attention`"),
        ({"is_causal": False}, "`is_causal`"),
        ({"layer_types": ["full_attention", "sliding_attention", "full_attention"]}, "`layer_types`"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "`rope_type`"),
        ({"tie_word_embeddings": False}, "`lm_head.weight` is missing"),
        ({"num_hidden_layers": 2}, "`model.layers.2."),
        ({"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}, "q_proj.bias"),
        ({"architectures": ["Qwen3MoeForCausalLM"]}, "is not a reranker that is known"),
    ],
)
def test_a_checkpoint_of_another_kind_is_refused(config, told, tmp_path):
    with pytest.raises(ModelError) as caught:
        open_model(changed(tmp_path / "model", **config))
    assert told in caught.value.message
    assert str(tmp_path / "model") in caught.value.message


def test_a_gemma_config_that_names_no_activation_has_the_tanh_one(tmp_path):
    original, found = FOLDERS["bge-gemma"] / "checkpoint", {}
    for name in ("gelu", "gelu_pytorch_tanh", None):
        folder = shutil.copytree(original, tmp_path / str(name))
        config = json.loads((original / "config.json").read_text())
        config.pop("hidden_act")
        (folder / "config.json").write_text(json.dumps(config | ({"hidden_act": name} if name else {})))
        found[name] = logits(open_model(folder), random_pairs(30, 9)).tolist()
    assert found[None] == pytest.approx(found["gelu_pytorch_tanh"], abs=1e-6)
    assert found[None] != pytest.approx(found["gelu"], abs=5e-5)
