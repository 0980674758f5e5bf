"""Llama cross-encoders against transformers' own Llama, run eagerly with a mask that hides nothing."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from rerank_cli.checkpoint import Checkpoint, read_checkpoint
from rerank_cli.checkpoint.families import family_of
from rerank_cli.errors import ModelError
from rerank_cli.models import RerankModel, llama, load_model
from rerank_cli.models.elementwise import _GATES
from rerank_cli.models.linear import LinearLoader, row_scaled_refusal
from rerank_cli.models.packed import pack
from rerank_cli.records import EncodedPair

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaBidirectionalForSequenceClassification"],
    "model_type": "llama_bidirec",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 60,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "id2label": {"0": "LABEL_0"},
}
# With theta 500,000 and heads of 16 channels the wavelengths are 6, 32, 167, ... tokens: kept, mixed, stretched.
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "old-keys": {"rope_theta": 500000.0, "rope_scaling": LLAMA3, "head_dim": 16},
    "new-keys": {"rope_parameters": {**LLAMA3, "rope_theta": 500000.0}},
    "type-as-old-configs-write-it": {"rope_scaling": {"type": "linear", "factor": 4.0}},
    "trained-length-from-the-positions": {
        "rope_scaling": {key: LLAMA3[key] for key in LLAMA3 if key != "original_max_position_embeddings"},
        "max_position_embeddings": 40,
    },
    "wide-heads": {"head_dim": 16},
    "null-head-dim": {"head_dim": None, "rope_scaling": None, "num_key_value_heads": None},
    "one-key-head": {"num_key_value_heads": 1},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "gelu": {"hidden_act": "gelu"},
    "temperature": {"temperature": 0.25},
    "cls": {"pooling": "cls"},
    "last": {"pooling": "last", "rope_scaling": LLAMA3},
    "causal": {"is_causal": True},
    "causal-cls": {"is_causal": True, "pooling": "cls"},
    "causal-last": {"is_causal": True, "pooling": "last"},
}


def random_weights(config: dict[str, Any], seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden, inner, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    size = config.get("head_dim") or hidden // heads
    keys = (config.get("num_key_value_heads") or heads) * size
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for index in range(config["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        linears = {"q_proj": (heads * size, hidden), "k_proj": (keys, hidden), "v_proj": (keys, hidden)}
        linears["o_proj"] = (hidden, heads * size)
        gated = {"gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner)}
        for group, names, biased in (
            ("self_attn", linears, config.get("attention_bias")),
            ("mlp", gated, config.get("mlp_bias")),
        ):
            for name, shape in names.items():
                shapes[f"{layer}.{group}.{name}.weight"] = shape
                if biased:
                    shapes[f"{layer}.{group}.{name}.bias"] = shape[:1]
        shapes[f"{layer}.input_layernorm.weight"] = shapes[f"{layer}.post_attention_layernorm.weight"] = (hidden,)
    shapes |= {"model.norm.weight": (hidden,), "score.weight": (1, hidden)}
    weights = {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}
    return {name: 1 + tensor if "norm" in name else tensor for name, tensor in weights.items()}


def write_checkpoint(folder: Path, config: dict[str, Any], weights: dict[str, torch.Tensor] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    save_file(random_weights(config) if weights is None else weights, folder / "model.safetensors")
    return folder


def pairs_of(*lengths: int, vocabulary: int = 60, seed: int = 1) -> list[EncodedPair]:
    generator = np.random.default_rng(seed)
    return [
        EncodedPair(
            input_ids=generator.integers(0, vocabulary, length).astype(np.int32), second_start=length, tokens=length
        )
        for length in lengths
    ]


def logits(checkpoint: Checkpoint, pairs: list[EncodedPair], *, precision: str = "fp32") -> np.ndarray:
    return logits_of(load_model(checkpoint, device="cpu", precision=precision, attention="runs"), pairs)


@torch.inference_mode()
def logits_of(model: RerankModel, pairs: list[EncodedPair]) -> np.ndarray:
    order = sorted(range(len(pairs)), key=lambda place: -len(pairs[place].input_ids))
    found = np.empty(len(pairs), dtype=np.float32)
    found[order] = model.forward([pairs[place] for place in order]).numpy()
    return found


@torch.inference_mode()
def reference(config: dict[str, Any], weights: dict[str, torch.Tensor], pairs: list[EncodedPair]) -> np.ndarray:
    """Each pair alone, through transformers' LlamaModel with explicit masks."""
    from transformers import LlamaConfig, LlamaModel

    known = {key: copy.deepcopy(value) for key, value in config.items() if value is not None}
    for key in ("architectures", "model_type", "pooling", "temperature", "is_causal", "id2label"):
        known.pop(key, None)
    model = LlamaModel(LlamaConfig(**known, attn_implementation="eager")).eval()
    model.load_state_dict({name[6:]: tensor for name, tensor in weights.items() if name.startswith("model.")})
    found = []
    for pair in pairs:
        length = len(pair.input_ids)
        mask = torch.zeros(1, 1, length, length)
        if config.get("is_causal"):
            mask += torch.full((length, length), torch.finfo(torch.float32).min).triu(1)
        ids = torch.from_numpy(pair.input_ids.astype(np.int64))[None]
        hidden = model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state[0]
        pooled = {"avg": hidden.mean(0), "cls": hidden[0], "last": hidden[-1]}[config.get("pooling", "avg")]
        found.append((weights["score.weight"][0] @ pooled / config.get("temperature", 1.0)).item())
    return np.array(found, dtype=np.float32)


BATCHES = {"one": (9,), "equal": (9, 9, 9), "mixed": (40, 9, 1, 17, 9, 2)}


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_are_those_of_the_reference_in_every_batch(name, tmp_path):
    config = CONFIG | VARIANTS[name]
    weights = random_weights(config)
    checkpoint = read_checkpoint(write_checkpoint(tmp_path / "model", config, weights))
    assert family_of(checkpoint.architecture).forward == "llama"
    for lengths in BATCHES.values():
        pairs = pairs_of(*lengths)
        expected = reference(config, weights, pairs)
        np.testing.assert_allclose(logits(checkpoint, pairs), expected, atol=2e-5, rtol=0)


def test_a_pair_of_several_chunks_has_the_logit_of_the_reference(tmp_path):
    config = CONFIG | VARIANTS["old-keys"] | {"num_hidden_layers": 1}
    weights = random_weights(config)
    checkpoint = read_checkpoint(write_checkpoint(tmp_path / "model", config, weights))
    pairs = pairs_of(2500, 3)
    for precision, tolerance in (("fp32", 2e-5), ("bf16", 2e-2)):
        found = logits(checkpoint, pairs, precision=precision)
        np.testing.assert_allclose(found, reference(config, weights, pairs), atol=tolerance, rtol=0)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(
    "wrong",
    [
        {"is_causal": True},
        {"rope_scaling": None},
        {"rope_scaling": {**LLAMA3, "factor": 4.0}},
        {"rope_scaling": {**LLAMA3, "original_max_position_embeddings": 4096}},
        {"rope_theta": 10_000.0},
        {"pooling": "cls"},
        {"pooling": "last"},
        {"temperature": 2.0},
        {"rms_norm_eps": 0.1},
    ],
)
def test_a_config_that_says_otherwise_gives_other_logits(wrong, batch, tmp_path):
    config = CONFIG | VARIANTS["old-keys"]
    pairs = pairs_of(*(length + 30 for length in BATCHES[batch]))
    right = logits(read_checkpoint(write_checkpoint(tmp_path / "right", config)), pairs)
    other = logits(read_checkpoint(write_checkpoint(tmp_path / "wrong", config | wrong)), pairs)
    assert (np.abs(right - other) > 1e-4).all()


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 2e-2)])
@pytest.mark.parametrize("pooling", ["avg", "last"])
def test_a_logit_does_not_depend_on_the_batch(pooling, precision, tolerance, tmp_path):
    checkpoint = read_checkpoint(write_checkpoint(tmp_path / "model", CONFIG | {"pooling": pooling}))
    lengths = np.random.default_rng(5).integers(1, 60, 64)
    pairs = pairs_of(*lengths)
    model = load_model(checkpoint, device="cpu", precision=precision, attention="runs")
    alone = np.concatenate([logits_of(model, [pair]) for pair in pairs[:24]])
    assert np.unique(alone).size > 20
    for size in (7, 64):
        batches = [logits_of(model, pairs[begin : begin + size]) for begin in range(0, 24, size)]
        np.testing.assert_allclose(np.concatenate(batches)[:24], alone, atol=tolerance, rtol=0)


def test_shards_are_one_model(tmp_path):
    weights = random_weights(CONFIG)
    whole = read_checkpoint(write_checkpoint(tmp_path / "whole", CONFIG, weights))
    folder = write_checkpoint(tmp_path / "sharded", CONFIG)
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    parts = {f"model-0000{i + 1}-of-00003.safetensors": names[i::3] for i in range(3)}
    for file, held in parts.items():
        save_file({name: weights[name] for name in held}, folder / file)
    index = {"weight_map": {name: file for file, held in parts.items() for name in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    pairs = pairs_of(9, 5)
    np.testing.assert_allclose(logits(read_checkpoint(folder), pairs), logits(whole, pairs), atol=1e-6, rtol=0)


def test_a_head_of_the_language_model_is_left_alone(tmp_path):
    weights = random_weights(CONFIG)
    plain = read_checkpoint(write_checkpoint(tmp_path / "plain", CONFIG, weights))
    more = read_checkpoint(
        write_checkpoint(tmp_path / "more", CONFIG, weights | {"lm_head.weight": torch.ones(60, 32)})
    )
    pairs = pairs_of(9)
    assert logits(more, pairs).tolist() == logits(plain, pairs).tolist()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux tells what is mapped")
def test_weights_in_16_bits_stay_where_they_lie(tmp_path):
    weights = {name: tensor.bfloat16() for name, tensor in random_weights(CONFIG).items()}
    checkpoint = read_checkpoint(write_checkpoint(tmp_path / "model", CONFIG, weights))
    model = load_model(checkpoint, device="cpu", precision="bf16", attention="runs")
    mapped = [
        range(*(int(edge, 16) for edge in line.split()[0].split("-")))
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith(str(checkpoint.path / "model.safetensors"))
    ]
    for layer in model._trunk._layers:
        for linear in (*layer.qkv.layers, layer.attention_out, *layer.gate_up.layers, layer.down):
            assert any(linear._weight.data_ptr() in place for place in mapped)


def loader(together: bool) -> Callable[..., LinearLoader]:
    return lambda *given, **more: LinearLoader(*given, **more | {"together": together})


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp8"])
@pytest.mark.parametrize("changed", [{}, {"attention_bias": True, "mlp_bias": True}], ids=["plain", "with-biases"])
def test_products_side_by_side_as_on_a_gpu_compute_the_same(changed, precision, tmp_path, monkeypatch):
    if precision == "fp8" and row_scaled_refusal(torch.device("cpu")):
        pytest.skip("this torch has no products in FP8 on a CPU")
    config = CONFIG | changed
    checkpoint = read_checkpoint(write_checkpoint(tmp_path / "model", config, random_weights(config)))
    pairs = [EncodedPair(np.arange(3, 3 + n, dtype=np.int32), 2, n) for n in (40, 17, 5)]
    found = []
    for together in (False, True):
        monkeypatch.setattr(llama, "LinearLoader", loader(together))
        monkeypatch.setattr(llama.Unfused, "has_gate", lambda self, activation: activation in _GATES)
        model = load_model(checkpoint, device="cpu", precision=precision, attention="runs")
        layer = model._trunk._layers[0]
        assert (len(layer.qkv.layers), len(layer.gate_up.layers)) == ((1, 1) if together else (3, 2))
        found.append(model.forward(pairs))
    assert torch.allclose(*found, atol=1e-5 if precision == "fp32" else 2e-2)


def drop(name):
    return lambda weights: {key: tensor for key, tensor in weights.items() if key != name}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (drop("score.weight"), "weight `score.weight` is missing"),
        (drop("model.layers.1.mlp.up_proj.weight"), "`model.layers.1.mlp.up_proj.weight` is missing"),
        (lambda weights: weights | {"score.bias": torch.ones(1)}, "`score.bias`"),
        (lambda weights: weights | {"model.layers.0.self_attn.q_proj.bias": torch.ones(32)}, "q_proj.bias"),
        (lambda weights: weights | {"model.norm.weight": torch.ones(31)}, "shape [31], config.json asks for [32]"),
        (lambda weights: weights | {"model.layers.2.mlp.up_proj.weight": torch.ones(2)}, "model.layers.2"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(change, told, tmp_path):
    checkpoint = read_checkpoint(write_checkpoint(tmp_path / "model", CONFIG, change(random_weights(CONFIG))))
    with pytest.raises(ModelError) as caught:
        load_model(checkpoint, device="cpu", precision="fp32", attention="runs")
    assert told in caught.value.message
    assert str(tmp_path / "model") in caught.value.message


@pytest.mark.parametrize(
    ("wrong", "key"),
    [
        ({"pooling": "weighted_avg"}, "pooling"),
        ({"pooling": ["avg"]}, "pooling"),
        ({"temperature": 0}, "temperature"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"is_causal": "yes"}, "is_causal"),
        ({"hidden_size": None}, "hidden_size"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"head_dim": 7}, "head_dim"),
        ({"hidden_act": "mish"}, "mish"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope_type"),
        ({"rope_scaling": ["llama3"]}, "rope_scaling"),
        ({"rope_parameters": {**LLAMA3, "factor": None}}, "factor"),
        ({"rope_parameters": {**LLAMA3, "low_freq_factor": 4.0}}, "low_freq_factor"),
        ({"rope_theta": 0}, "rope_theta"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"id2label": {"0": "no", "1": "yes"}}, "2 labels"),
    ],
)
def test_a_config_that_cannot_be_scored_rightly_is_refused_by_key(wrong, key, tmp_path):
    folder = write_checkpoint(tmp_path / "model", CONFIG)
    (folder / "config.json").write_text(json.dumps(CONFIG | wrong))
    with pytest.raises(ModelError) as caught:
        load_model(read_checkpoint(folder), device="cpu", precision="fp32", attention="runs")
    assert key in caught.value.message
    assert str(folder / "config.json") in caught.value.message


def test_an_unknown_architecture_is_told_which_are_known(tmp_path):
    folder = write_checkpoint(tmp_path / "model", CONFIG)
    (folder / "config.json").write_text(json.dumps(CONFIG | {"architectures": ["JinaForRanking"]}))
    with pytest.raises(ModelError) as caught:
        load_model(read_checkpoint(folder), device="cpu", precision="fp32", attention="runs")
    assert "LlamaBidirectionalForSequenceClassification" in str(caught.value.hint)
    assert "Qwen3ForCausalLM" in str(caught.value.hint)


LENGTHS = [9000, 300, 129, 128, 90, 65, 64, 63, 31, 30, 30, 7, 3, 1, 1]


def means_of(lengths: list[int], x: torch.Tensor) -> torch.Tensor:
    batch = pack([EncodedPair(np.ones(n, dtype=np.int32), 1, n) for n in lengths], device=torch.device("cpu"))
    filler = torch.full((len(batch.input_ids) - len(x), x.shape[1]), torch.nan, dtype=x.dtype)
    return llama._means_by_pieces(torch.cat([x, filler]), batch)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_means_by_pieces_are_those_of_each_pair(dtype):
    x = torch.randn(sum(LENGTHS), 16, generator=torch.Generator().manual_seed(4)).to(dtype)
    expected = torch.stack([rows.double().mean(0) for rows in x.split(LENGTHS)])
    found = means_of(LENGTHS, x)
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), expected, atol=1e-6)
    assert torch.equal(found, means_of(LENGTHS, x))


def test_a_pairs_mean_does_not_depend_on_its_neighbours_and_none_loses_its_numbers_to_another():
    x = torch.randn(sum(LENGTHS), 16, generator=torch.Generator().manual_seed(5))
    together = means_of(LENGTHS, x)
    alone = torch.cat([means_of([length], rows) for length, rows in zip(LENGTHS, x.split(LENGTHS), strict=True)])
    assert torch.equal(together, alone)
    x[LENGTHS[0] + 5] = torch.inf
    assert torch.equal(means_of(LENGTHS, x)[2:], together[2:])
    assert not means_of(LENGTHS, x)[1].isfinite().any()
