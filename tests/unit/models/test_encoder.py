from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from rerank_cli.checkpoint import read_checkpoint
from rerank_cli.checkpoint.max_tokens import model_max_tokens
from rerank_cli.errors import ModelError
from rerank_cli.models.encoder import EncoderCrossEncoder, _roberta_positions
from rerank_cli.models.packed import pack
from rerank_cli.records import EncodedPair

CPU = torch.device("cpu")


def load(path, *, dtype=torch.float32) -> EncoderCrossEncoder:
    return EncoderCrossEncoder(read_checkpoint(path), device=CPU, dtype=dtype, attention="runs")


def refusal(path) -> str:
    with pytest.raises(ModelError) as caught:
        load(path)
    return caught.value.message


def pair(*ids: int, second: int = 1) -> EncodedPair:
    return EncodedPair(input_ids=np.array(ids, dtype=np.int32), second_start=second, tokens=len(ids))


def test_a_batch_gives_one_float32_logit_a_pair(tiny):
    logits = load(tiny("bert")).forward([pair(2, 30, 3, 40, 3, second=3), pair(2, 3), pair(2, 31, 3)])
    assert logits.dtype == torch.float32
    assert logits.shape == (3,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_are_float32_whatever_the_layers_are(tiny, dtype):
    logits = load(tiny("bert"), dtype=dtype).forward([pair(2, number, 3, 50, 3) for number in range(20, 60)])
    assert logits.dtype == torch.float32
    # a bf16 head would leave 8 bits of each logit
    assert not torch.equal(logits, logits.bfloat16().float())


def test_it_tells_which_kernels_it_runs_on(tiny):
    kernels = load(tiny("bert")).kernels
    fast = "oneDNN, prepacked" if torch.backends.mkldnn.is_available() else "F.linear"
    assert kernels == f"linear layers: {fast}; attention: runs"


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"position_embedding_type": "relative_key"}, "position_embedding_type `relative_key` is not supported"),
        ({"position_embedding_type": 3}, "`position_embedding_type` must be text: 3"),
        ({"is_decoder": True}, "a decoder is not a cross-encoder"),
        ({"add_cross_attention": True}, "a decoder is not a cross-encoder"),
        ({"hidden_act": "mish"}, "activation `mish` is not known"),
        ({"hidden_act": ["gelu"]}, "`hidden_act` must be text: ['gelu']"),
        ({"num_hidden_layers": 0}, "0 layers, hidden size 48, 4 heads do not fit together"),
        ({"num_attention_heads": 5}, "2 layers, hidden size 48, 5 heads do not fit together"),
        ({"num_attention_heads": 0}, "2 layers, hidden size 48, 0 heads do not fit together"),
        ({"num_attention_heads": -4}, "2 layers, hidden size 48, -4 heads do not fit together"),
        ({"hidden_size": None}, "`hidden_size` must be a whole number: None"),
        ({"hidden_size": "48"}, "`hidden_size` must be a whole number: '48'"),
        ({"layer_norm_eps": "tiny"}, "`layer_norm_eps` must be a number: 'tiny'"),
    ],
)
def test_a_config_that_cannot_be_run_rightly_is_refused(tiny, config, why):
    path = tiny("bert", config=config)
    message = refusal(path)
    assert message.startswith(f"{path / 'config.json'}: ")
    assert why in message


@pytest.mark.parametrize(
    ("config", "weight"),
    [
        ({"vocab_size": 907}, "bert.embeddings.word_embeddings.weight"),
        ({"intermediate_size": 95}, "bert.encoder.layer.0.intermediate.dense.weight"),
        ({"max_position_embeddings": 511}, "bert.embeddings.position_embeddings.weight"),
        ({"type_vocab_size": 1}, "bert.embeddings.token_type_embeddings.weight"),
    ],
)
def test_sizes_that_are_not_those_of_the_weights_are_refused_by_name(tiny, config, weight):
    message = refusal(tiny("bert", config=config))
    assert f"`{weight}` has shape" in message
    assert "model.safetensors" in message


def test_fewer_layers_than_the_weights_have_are_refused(tiny):
    assert "`bert.encoder.layer.1.attention" in refusal(tiny("bert", config={"num_hidden_layers": 1}))


def test_more_layers_than_the_weights_have_are_refused(tiny):
    message = refusal(tiny("bert", config={"num_hidden_layers": 3}))
    assert "weight `bert.encoder.layer.2.attention.self.query.weight` is missing" in message


@pytest.mark.parametrize(
    ("family", "weight", "architecture"),
    [
        ("bert", "bert.lora_A", "BertForSequenceClassification"),
        ("xlmr", "roberta.lora_A", "XLMRobertaForSequenceClassification"),
        ("xlmr", "lm.roberta.pooler.bias", "XLMRobertaForSequenceClassification"),
    ],
)
def test_an_adapter_beside_the_weights_is_refused(tiny, family, weight, architecture):
    path = tiny(family, weights=lambda tensors: tensors.update({weight: torch.ones(2)}))
    assert refusal(path) == f"{path}: weights that {architecture} does not have: `{weight}`"


def test_the_pooler_that_robertas_head_does_not_use_may_be_there(tiny):
    plain = tiny("xlmr")
    with_pooler = tiny(
        "xlmr", weights=lambda tensors: tensors.update({"roberta.pooler.dense.weight": torch.ones(48, 48)})
    )
    pairs = [pair(0, 30, 2, 2, 40, 2)]
    assert torch.allclose(load(plain).forward(pairs), load(with_pooler).forward(pairs), atol=1e-5)


def test_the_pooler_of_bert_is_needed(tiny):
    path = tiny("bert", weights=lambda tensors: tensors.pop("bert.pooler.dense.weight"))
    assert refusal(path) == f"{path}: weight `bert.pooler.dense.weight` is missing"


@pytest.mark.parametrize(("family", "acts"), [("bert", True), ("xlmr", False)])
def test_token_types_act_in_bert_and_not_in_roberta(tiny, family, acts):
    ids = (2, 30, 31, 32, 3, 40, 3)
    one, other = load(tiny(family)).forward([pair(*ids, second=5), pair(*ids, second=2)]).tolist()
    assert (abs(one - other) > 1e-3) is acts


@pytest.mark.parametrize("padding_id", [-2, 511, 99_999])
def test_a_padding_id_that_leaves_robertas_positions_no_row_is_refused(tiny, padding_id):
    message = refusal(tiny("xlmr", config={"pad_token_id": padding_id, "max_position_embeddings": 512}))
    assert f"`pad_token_id` is {padding_id}, and positions that begin behind it are not in a table of 512" in message


@pytest.mark.parametrize("padding_id", [1, 0, 7])
def test_roberta_counts_positions_behind_the_padding_id_and_not_the_padding(padding_id):
    texts = [[5, padding_id, 6, padding_id, padding_id, 8], [padding_id], [9, 9], [padding_id, 9]]
    batch = pack([pair(*ids) for ids in texts], device=CPU)
    positions = _roberta_positions(batch, padding_id)[: batch.tokens].tolist()
    expected = []
    for ids in texts:
        count = 0
        for number in ids:
            count += number != padding_id
            expected.append(padding_id + (count if number != padding_id else 0))
    assert positions == expected


def test_nothing_of_one_batch_stays_for_the_next(tiny):
    model = load(tiny("bert"))
    one, other = [pair(2, 30, 3, 40, 3)], [pair(2, *range(20, 90), 3)]
    first = model.forward(one)
    model.forward(other)
    assert torch.equal(model.forward(one), first)


# --- XLM-R under the names of its flash implementation

JINA = Path(__file__).parents[2] / "parity" / "jina-v2-open" / "checkpoint"


def jina(tmp_path, *, weights=lambda tensors: None, **config) -> Path:
    folder = Path(shutil.copytree(JINA, tmp_path / "jina"))
    facts = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(facts))
    tensors = load_file(folder / "model.safetensors")
    weights(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"emb_pooler": "mean"}, "`emb_pooler` is set"),
        ({"lora_adaptations": ["retrieval.query"]}, "`lora_adaptations` is set"),
        ({"position_embedding_type": "rotary"}, "position_embedding_type `rotary` is not supported"),
    ],
)
def test_another_model_of_the_jina_line_is_refused(tmp_path, config, why):
    assert why in refusal(jina(tmp_path, **config))


def test_an_adapter_within_the_weights_is_named(tmp_path):
    name = "roberta.embeddings.word_embeddings.parametrizations.weight.0.lora_A"
    message = refusal(jina(tmp_path, weights=lambda tensors: tensors.update({name: torch.ones(2)})))
    assert "LoRA adapter" in message
    assert name in message


@pytest.mark.parametrize("config", [{}, {"model_type": "xlm-roberta"}])
def test_positions_behind_the_padding_id_follow_from_the_architecture(tmp_path, config):
    # 1026 rows hold 1024 tokens; a pair of them must find a row for each.
    path = jina(tmp_path, **config)
    (path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "XLMRobertaTokenizer"}))
    checkpoint = read_checkpoint(path)
    assert model_max_tokens(checkpoint) == 1024
    assert load(path).forward([pair(0, *[5] * 1022, 2)]).isfinite().all()


def test_a_narrow_electra_widens_its_embeddings(tiny):
    def as_electra(tensors):
        for name in list(tensors):
            tensors[name.replace("bert.", "electra.", 1)] = tensors.pop(name)
        for table in ("word", "position", "token_type"):
            key = f"electra.embeddings.{table}_embeddings.weight"
            tensors[key] = tensors[key][:, :20].contiguous()
        for part in ("weight", "bias"):
            key = f"electra.embeddings.LayerNorm.{part}"
            tensors[key] = tensors[key][:20].contiguous()
            tensors[f"classifier.dense.{part}"] = tensors.pop(f"electra.pooler.dense.{part}")
            tensors[f"classifier.out_proj.{part}"] = tensors.pop(f"classifier.{part}")
        tensors["electra.embeddings_project.weight"] = torch.randn(48, 20)
        tensors["electra.embeddings_project.bias"] = torch.randn(48)

    electra = {"architectures": ["ElectraForSequenceClassification"], "embedding_size": 20, "model_type": "electra"}
    logits = load(tiny("bert", config=electra, weights=as_electra)).forward([pair(2, 30, 3, 40, 3, second=3)])
    assert logits.isfinite().all()
