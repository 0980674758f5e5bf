from __future__ import annotations

import numpy as np
import pytest
import torch

from rerank_cli.checkpoint import read_checkpoint
from rerank_cli.errors import ModelError
from rerank_cli.models.modernbert import ModernBertCrossEncoder, _read_theta
from rerank_cli.records import EncodedPair

CPU = torch.device("cpu")
GLOBAL, LOCAL = "full_attention", "sliding_attention"


def load(path, *, dtype=torch.float32) -> ModernBertCrossEncoder:
    return ModernBertCrossEncoder(read_checkpoint(path), device=CPU, dtype=dtype, attention="runs")


def refusal(path) -> str:
    with pytest.raises(ModelError) as caught:
        load(path)
    return caught.value.message


def pairs(*lengths: int) -> list[EncodedPair]:
    generator = np.random.default_rng(1)
    ids = [generator.integers(5, 800, size=length).astype(np.int32) for length in lengths]
    return [EncodedPair(input_ids=part, second_start=len(part), tokens=len(part)) for part in ids]


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_batch_gives_one_float32_logit_a_pair(tiny, pooling, dtype):
    logits = load(tiny("modernbert", config={"classifier_pooling": pooling}), dtype=dtype).forward(pairs(70, 5, 5, 1))
    assert logits.dtype == torch.float32
    assert logits.shape == (4,)
    assert not torch.equal(logits, logits.bfloat16().float())


def test_it_tells_which_kernels_it_runs_on(tiny):
    assert load(tiny("modernbert")).kernels.endswith("; attention: runs")


def test_a_config_without_switches_means_what_transformers_means(tiny):
    # gelu, [CLS] pooling, a window of 128, every third layer global, no biases
    switches = (
        "classifier_pooling hidden_activation classifier_activation local_attention norm_eps "
        "global_attn_every_n_layers global_rope_theta local_rope_theta "
        "norm_bias mlp_bias attention_bias classifier_bias"
    )
    silent = dict.fromkeys(switches.split())
    spoken = {"classifier_pooling": "cls", "local_attention": 128}
    one = load(tiny("modernbert", config=silent)).forward(pairs(200, 90))
    other = load(tiny("modernbert", config=spoken)).forward(pairs(200, 90))
    assert torch.equal(one, other)


def test_old_and_new_names_of_the_layers_mean_the_same(tiny):
    new = {
        "global_attn_every_n_layers": None,
        "layer_types": [GLOBAL, LOCAL, LOCAL, GLOBAL],
        "global_rope_theta": None,
        "local_rope_theta": None,
        "rope_parameters": {
            GLOBAL: {"rope_type": "default", "rope_theta": 160_000.0},
            LOCAL: {"rope_type": "default", "rope_theta": 10_000},
        },
    }
    assert torch.equal(
        load(tiny("modernbert", config=new)).forward(pairs(90)), load(tiny("modernbert")).forward(pairs(90))
    )


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, (160_000.0, 10_000.0)),
        ({"global_rope_theta": 5000, "local_rope_theta": 70.5}, (5000.0, 70.5)),
        ({"rope_parameters": {GLOBAL: {"rope_theta": 5.0}}}, (5.0, 10_000.0)),
        ({"rope_parameters": {LOCAL: {"rope_theta": 7, "rope_type": "default"}}}, (160_000.0, 7.0)),
        ({"rope_parameters": {GLOBAL: {}, LOCAL: {}}}, (160_000.0, 10_000.0)),
        ({"rope_scaling": None}, (160_000.0, 10_000.0)),
    ],
)
def test_rotary_bases_are_read_in_both_spellings(tiny, config, expected):
    theta = _read_theta(read_checkpoint(tiny("modernbert", config=config)))
    assert (theta[GLOBAL], theta[LOCAL]) == expected


def test_a_local_base_of_null_is_the_global_one(tiny):
    path = tiny("modernbert")
    config = (path / "config.json").read_text().replace('"local_rope_theta": 10000.0', '"local_rope_theta": null')
    (path / "config.json").write_text(config)
    assert _read_theta(read_checkpoint(path)) == {GLOBAL: 160_000.0, LOCAL: 160_000.0}


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"num_attention_heads": 5}, "4 layers, hidden size 48, 5 heads"),
        ({"num_attention_heads": 0}, "4 layers, hidden size 48, 0 heads"),
        ({"num_attention_heads": 16}, "16 heads"),  # three channels a head: rotary positions need pairs
        ({"num_hidden_layers": 0}, "0 layers"),
        ({"local_attention": -2}, "local_attention -2 do not fit together"),
        ({"sliding_window": 4}, "`sliding_window` is 4, which is not the half of `local_attention`"),
        ({"layer_types": [GLOBAL]}, "`layer_types` does not describe 4 layers"),
        ({"layer_types": [GLOBAL, LOCAL, LOCAL, "chunked"]}, "`layer_types` does not describe 4 layers"),
        ({"layer_types": [GLOBAL, LOCAL, LOCAL, ["x"]]}, "`layer_types` does not describe 4 layers"),
        ({"layer_types": 4}, "`layer_types` does not describe 4 layers: 4"),
        ({"classifier_pooling": "max"}, "classifier_pooling `max` is not known"),
        ({"classifier_pooling": 1}, "`classifier_pooling` must be text: 1"),
        ({"classifier_activation": "mish"}, "activation `mish` is not known"),
        ({"hidden_activation": "mish"}, "activation `mish` is not known"),
        ({"rope_scaling": {"type": "yarn"}}, "`rope_scaling` is not known for ModernBERT"),
        ({"rope_parameters": {"rope_theta": 10.0}}, "`rope_parameters` must describe"),
        ({"rope_parameters": [1]}, "`rope_parameters` must describe"),
        ({"rope_parameters": {GLOBAL: {"rope_type": "yarn"}}}, "rope_parameters of full_attention are not known"),
        ({"rope_parameters": {LOCAL: 10_000}}, "rope_parameters of sliding_attention are not known"),
        ({"rope_parameters": {LOCAL: {"rope_theta": "big"}}}, "`rope_theta` of sliding_attention must be a number"),
        ({"rope_parameters": {LOCAL: {"rope_theta": 0}}}, "`rope_theta` of sliding_attention must be a number over 0"),
        ({"global_rope_theta": "big"}, "`global_rope_theta` must be a number"),
        ({"local_rope_theta": "big"}, "`local_rope_theta` must be a number"),
    ],
)
def test_a_config_that_cannot_be_run_rightly_is_refused(tiny, config, why):
    path = tiny("modernbert", config=config)
    message = refusal(path)
    assert message.startswith(f"{path / 'config.json'}: ")
    assert why in message


@pytest.mark.parametrize(
    ("switch", "weight"),
    [
        ("norm_bias", "model.embeddings.norm.bias"),
        ("attention_bias", "model.layers.0.attn.Wqkv.bias"),
        ("mlp_bias", "model.layers.0.mlp.Wi.bias"),
        ("classifier_bias", "head.dense.bias"),
    ],
)
def test_a_bias_that_the_config_promises_must_be_there(tiny, switch, weight):
    path = tiny("modernbert", config={switch: True})
    assert refusal(path) == f"{path}: weight `{weight}` is missing"


@pytest.mark.parametrize("weight", ["head.dense.bias", "model.layers.0.attn.Wo.bias", "model.final_norm.bias"])
def test_a_bias_that_the_config_does_not_promise_is_refused(tiny, weight):
    path = tiny("modernbert", weights=lambda tensors: tensors.update({weight: torch.ones(48)}))
    assert refusal(path).endswith(f"does not have: `{weight}`")


def test_the_last_bias_is_there_whatever_the_config_says(tiny):
    path = tiny("modernbert", weights=lambda tensors: tensors.pop("classifier.bias"))
    assert refusal(path) == f"{path}: weight `classifier.bias` is missing"


def test_a_pair_of_8192_tokens_gets_its_logit_beside_short_ones(tiny):
    # The longest that real checkpoints read. That memory stays linear in the length is tested with attention.
    long, short = pairs(8192, 12)
    model = load(tiny("modernbert"))
    with torch.inference_mode():
        together, alone = model.forward([long, short]), model.forward([short])
    assert torch.isfinite(together).all()
    assert abs(float(together[1] - alone[0])) <= 1e-5
