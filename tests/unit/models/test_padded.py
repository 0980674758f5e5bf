from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as CLASSIFIER_NAMES

from rerank_cli.checkpoint import read_checkpoint
from rerank_cli.errors import ModelError
from rerank_cli.models.padded import IGNORE_PADDING, PaddedCrossEncoder, known_architectures
from rerank_cli.records import EncodedPair

CPU = torch.device("cpu")


def load(path, *, dtype=torch.float32) -> PaddedCrossEncoder:
    return PaddedCrossEncoder(read_checkpoint(path), device=CPU, dtype=dtype, attention="runs")


def refusal(path) -> ModelError:
    with pytest.raises(ModelError) as caught:
        load(path)
    return caught.value


def pair(*ids: int, second: int = 3) -> EncodedPair:
    return EncodedPair(input_ids=np.array(ids, dtype=np.int32), second_start=second, tokens=len(ids))


UNTYPED = [pair(*range(5, 5 + length), second=length) for length in (9, 5, 9, 7)]
PAIRS = [pair(2, 30, 3, 40, 41, 42, 3), pair(2, 30, 3, 44, 3), pair(2, 3, 50, 3, second=2)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_batch_gives_one_float32_logit_a_pair(tiny, dtype):
    logits = load(tiny("deberta"), dtype=dtype).forward(PAIRS)
    assert logits.dtype == torch.float32
    assert logits.shape == (3,)


def test_padding_changes_nothing(tiny):
    model = load(tiny("deberta"))
    alone = torch.cat([model.forward([one]) for one in PAIRS])
    assert torch.allclose(model.forward(PAIRS), alone, atol=1e-6)


SIZES = {
    "num_labels": 1, "vocab_size": 60, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2, "use_cache": False,
    "decoder_start_token_id": 0, "cutoffs": [20, 40], "block_sizes": [2, 2], "word_embed_proj_dim": 32,
    "initializer_range": 0.2, "attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0,
    **dict.fromkeys(("hidden_size", "d_model", "embedding_size", "dim", "n_embd", "emb_dim", "d_embed"), 32),
    **dict.fromkeys(("intermediate_size", "d_inner", "d_ff", "hidden_dim", "ffn_dim", "n_inner"), 64),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "moe_intermediate_size"), 64),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "num_key_value_heads"), 2),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads", "num_experts_per_tok"), 2),
    **dict.fromkeys(("encoder_layers", "decoder_layers", "num_hidden_layers", "n_layer", "n_layers", "num_layers"), 2),
    **dict.fromkeys(("head_dim", "d_kv", "d_head"), 16),
    **dict.fromkeys(("num_experts", "num_local_experts"), 4),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 128),
}  # fmt: skip
"""Of every kind of model, as far as its configuration has them."""
TYPES = {name.removesuffix("ForSequenceClassification"): kind for kind, name in CLASSIFIER_NAMES.items()}


def tiny_model(kind: str):
    config = CONFIG_MAPPING[TYPES[kind]]
    known = config().to_dict()
    chosen = {key: value for key, value in SIZES.items() if key in known or key == "num_labels"}
    torch.manual_seed(1)
    model = getattr(transformers, f"{kind}ForSequenceClassification")(config(**chosen)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0, 0.15)
    return model


@pytest.mark.parametrize("kind", [kind for kind in sorted(IGNORE_PADDING) if kind in TYPES])
def test_a_kind_that_ignores_the_padding_gives_a_padded_pair_the_logit_of_the_pair_alone(kind):
    model = tiny_model(kind)
    ids = torch.arange(5, 12)[None]
    ids[0, -1] = 1  # encoder-decoder models look for the end of the text
    padded = torch.nn.functional.pad(ids, (0, 33), value=model.config.pad_token_id or 0)
    mask = torch.zeros_like(padded)
    mask[0, : ids.shape[1]] = 1
    with torch.inference_mode():
        alone = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        among = model(input_ids=padded, attention_mask=mask).logits
    assert torch.allclose(alone, among, rtol=1e-4, atol=1e-4 * float(alone.abs().max()))


@pytest.mark.parametrize(
    "kind", ["Canine", "ConvBert", "FNet", "Funnel", "MobileBert", "Nystromformer", "XLNet", "Yoso"]
)
def test_a_layer_that_reads_the_padding_is_given_none(tiny, kind):
    path = tiny("bert")
    reference = tiny_model(kind)
    reference.save_pretrained(path)
    with torch.inference_mode():
        alone = [reference(input_ids=torch.from_numpy(one.input_ids)[None].long()).logits for one in UNTYPED]
        logits = load(path).forward(UNTYPED)
    assert torch.allclose(logits, torch.cat(alone)[:, 0], rtol=1e-5, atol=1e-5)


def test_it_tells_which_kernels_it_runs_on(tiny):
    assert load(tiny("deberta")).kernels == "transformers, padded to the longest pair of a batch"


class Recorder(torch.nn.Module):
    """In the place of transformers' model: notes what it is called with."""

    def forward(self, **inputs):
        self.inputs = inputs

        class Output:
            logits = torch.zeros(len(inputs["input_ids"]), 1)

        return Output()


def called_with(path) -> dict[str, list[list[int]]]:
    model = load(path)
    model._model = Recorder()
    model.forward(PAIRS[:2])
    return {name: value.tolist() for name, value in model._model.inputs.items()}


def test_a_model_with_token_types_is_given_them(tiny):
    assert called_with(tiny("bert")) == {
        "input_ids": [[2, 30, 3, 40, 41, 42, 3], [2, 30, 3, 44, 3, 0, 0]],
        "attention_mask": [[1] * 7, [1, 1, 1, 1, 1, 0, 0]],
        "token_type_ids": [[0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 1, 0, 0]],
    }


def test_token_types_are_given_too_where_the_config_leaves_their_number_to_its_class(tiny):
    assert "token_type_ids" in called_with(tiny("bert", config={"type_vocab_size": None}))


@pytest.mark.parametrize("family", ["deberta", "xlmr", "modernbert"])
def test_a_model_without_token_types_is_not_given_any(tiny, family):
    assert set(called_with(tiny(family))) == {"input_ids", "attention_mask"}


def test_the_padding_id_is_the_models_own(tiny):
    assert called_with(tiny("xlmr"))["input_ids"][1][-2:] == [1, 1]
    # RoBERTa's class knows its padding id where config.json says nothing; 0 would be a token of the text
    assert called_with(tiny("xlmr", config={"pad_token_id": None}))["input_ids"][1][-2:] == [1, 1]


def test_a_model_without_a_padding_id_is_refused(tiny):
    path = tiny("bert")
    config = (path / "config.json").read_text().replace('"pad_token_id": 0', '"pad_token_id": null')
    (path / "config.json").write_text(config)
    assert refusal(path).message == f"{path / 'config.json'}: no `pad_token_id`, which a padded batch needs"


def test_a_padding_id_below_zero_is_refused(tiny):
    path = tiny("deberta", config={"pad_token_id": -1})
    assert refusal(path).message == (
        f"{path / 'config.json'}: `pad_token_id` is -1, and a padded batch needs the id of a token"
    )


def test_a_decoder_without_its_first_token_is_refused(tiny):
    path = tiny("bert")
    model = tiny_model("MT5")
    model.config.decoder_start_token_id = None
    model.save_pretrained(path)
    assert refusal(path).message == (
        f"{path / 'config.json'}: no `decoder_start_token_id`, which a decoder begins with"
    )


def test_a_config_that_asks_for_tuples_changes_nothing(tiny):
    logits = load(tiny("deberta", config={"return_dict": False})).forward(PAIRS)
    assert torch.equal(logits, load(tiny("deberta")).forward(PAIRS))


def test_a_packed_family_has_the_same_logits_padded(tiny):
    from rerank_cli.models.encoder import EncoderCrossEncoder

    path = tiny("bert")
    packed = EncoderCrossEncoder(read_checkpoint(path), device=CPU, dtype=torch.float32, attention="runs")
    assert torch.allclose(load(path).forward(PAIRS), packed.forward(PAIRS), atol=1e-5)


LOADS_AND_TELLS = """
import sys
from pathlib import Path
import torch
from transformers.utils import logging
from rerank_cli.checkpoint import read_checkpoint
from rerank_cli.models.padded import PaddedCrossEncoder

def settings():
    checkpoint = read_checkpoint(Path(sys.argv[1]))
    PaddedCrossEncoder(checkpoint, device=torch.device("cpu"), dtype=torch.float32, attention="runs")
    return logging.get_verbosity() == logging.INFO, logging.is_progress_bar_enabled()

logging.set_verbosity_info()
logging.enable_progress_bar()
print(settings())
logging.disable_progress_bar()
print(settings())
"""


def test_loading_says_nothing_and_leaves_the_settings_of_transformers_as_they_were(tiny):
    # In a process of its own: this one's environment forbids bars for good as soon as a command has run in it.
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_DISABLE_PROGRESS_BARS"}
    command = [sys.executable, "-c", LOADS_AND_TELLS, str(tiny("deberta"))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.splitlines() == ["(True, True)", "(True, False)"]
    assert "Loading weights" not in done.stderr


# --- what is refused


def test_an_architecture_that_nobody_knows_is_refused_with_those_that_are_known(tiny):
    path = tiny("deberta", config={"architectures": ["Nonsense"]})
    error = refusal(path)
    assert error.message == f"{path}/config.json: architecture `Nonsense` is not a reranker that is known"
    assert "XLMRobertaForSequenceClassification" in (error.hint or "")
    assert "the sequence classifiers of transformers" in (error.hint or "")


def test_an_architecture_that_is_not_that_of_the_config_is_refused(tiny):
    path = tiny("deberta", config={"architectures": ["AlbertForSequenceClassification"]})
    error = refusal(path)
    assert error.message == f"{path}: architecture `AlbertForSequenceClassification` is not known to transformers"
    assert "never run" in (error.hint or "")


def test_a_type_of_model_that_transformers_does_not_know_is_refused(tiny):
    path = tiny("deberta", config={"model_type": "my-own-model"})
    assert refusal(path).message.startswith(f"{path}: transformers cannot read this config.json: ")
    assert "\n" not in refusal(path).message


CANARY = """
from pathlib import Path
Path(__file__).with_name("canary").write_text("this code was run")
class MyConfig: ...
class MyModel: ...
"""


@pytest.mark.parametrize("model_type", ["deberta-v2", "my-own-model"])
def test_code_in_a_checkpoint_is_never_run(tiny, model_type):
    auto_map = {
        "AutoConfig": "modeling_mine.MyConfig",
        "AutoModelForSequenceClassification": "modeling_mine.MyModel",
        "AutoTokenizer": ["modeling_mine.MyModel", None],
    }
    path = tiny("deberta", config={"model_type": model_type, "auto_map": auto_map})
    (path / "modeling_mine.py").write_text(CANARY)
    if model_type == "deberta-v2":
        assert load(path).forward(PAIRS).shape == (3,)  # by transformers' own class
    else:
        refusal(path)
    assert not (path / "canary").exists()


def test_the_canary_would_sing(tmp_path):
    code = tmp_path / "modeling_mine.py"
    code.write_text(CANARY)
    exec(compile(CANARY, code, "exec"), {"__file__": str(code)})
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda tensors: tensors.pop("classifier.weight"), "missing keys: `classifier.weight`"),
        (lambda tensors: tensors.update({"lora.a": torch.ones(2)}), "unexpected keys: `lora.a`"),
        (lambda tensors: tensors.update({"classifier.weight": torch.ones(3, 48)}), "mismatched keys: "),
        (lambda tensors: tensors.update({"classifier.weight": torch.ones(3, 48)}), "classifier.weight"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(tiny, change, why):
    path = tiny("deberta", weights=change)
    message = refusal(path).message
    assert message.startswith(f"{path}: weights ")
    assert why in message


def test_an_index_that_transformers_cannot_use_is_a_model_error(tiny):
    path = tiny("deberta")
    tensors = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    save_file(tensors, path / "part.safetensors")
    index = '{"weight_map": {' + ", ".join(f'"{name}": "part.safetensors"' for name in tensors) + "}}"
    (path / "model.safetensors.index.json").write_text(index)
    assert refusal(path).message.startswith(f"{path}: weights cannot be loaded: ")


def test_the_known_architectures_are_sequence_classifiers():
    known = known_architectures()
    assert known == sorted(known)
    assert {"DebertaV2ForSequenceClassification", "MPNetForSequenceClassification"} <= set(known)
