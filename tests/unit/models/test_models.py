from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from rerank_cli import models
from rerank_cli.checkpoint import read_checkpoint
from rerank_cli.checkpoint.families import FAMILIES
from rerank_cli.engine.local import name_faults
from rerank_cli.errors import DoesNotFitError, ModelError
from rerank_cli.models import class_of, load_model
from rerank_cli.models.encoder import EncoderCrossEncoder
from rerank_cli.models.modernbert import ModernBertCrossEncoder
from rerank_cli.records import EncodedPair


def load(path, **more):
    settings = {"device": "cpu", "precision": "fp32", "attention": "runs"} | more
    return load_model(read_checkpoint(path), **settings)


@pytest.mark.parametrize(
    ("family", "kind"),
    [("bert", EncoderCrossEncoder), ("xlmr", EncoderCrossEncoder), ("modernbert", ModernBertCrossEncoder)],
)
def test_a_checkpoint_gets_the_family_of_its_architecture(tiny, family, kind):
    path = tiny(family)
    assert class_of(read_checkpoint(path).architecture) is kind is type(load(path))


def test_every_other_classifier_of_transformers_is_padded(tiny):
    path = tiny("deberta")
    assert class_of(read_checkpoint(path).architecture).__name__ == "PaddedCrossEncoder"
    assert type(load(path)).__name__ == "PaddedCrossEncoder"


@pytest.mark.parametrize("family", ["bert", "xlmr", "modernbert", "deberta"])
def test_every_family_tells_its_kernels(tiny, family):
    assert load(tiny(family)).kernels


NAMES = {"id2label": {"0": "contradiction", "1": "neutral", "2": "entailment"}}


@pytest.mark.parametrize("family", ["bert", "xlmr", "modernbert", "deberta"])
def test_a_classifier_with_three_labels_is_no_reranker_until_one_is_chosen(tiny, family):
    path = tiny(family, config=NAMES)
    with pytest.raises(ModelError) as caught:
        load(path)
    names = "0 `contradiction`, 1 `neutral`, 2 `entailment`"
    assert caught.value.message == f"{path / 'config.json'}: the model gives 3 labels ({names}), a reranker one score"
    assert "`--label N`" in (caught.value.hint or "")


@pytest.mark.parametrize("family", ["bert", "xlmr", "modernbert", "deberta"])
def test_labels_that_the_head_does_not_have_are_refused(tiny, family):
    with pytest.raises(ModelError, match=r"classifier.*has shape \[1, 48\].* asks for \[2, 48\]"):
        load(tiny(family, config={"id2label": {"0": "no", "1": "yes"}}))


@pytest.mark.parametrize("family", ["bert", "xlmr", "modernbert", "deberta"])
def test_the_head_tells_its_labels_where_the_config_does_not(tiny, family):
    pairs = [EncodedPair(np.array([2, 30, 3, 40, 3], dtype=np.int32), second_start=3, tokens=5)]
    told, untold = tiny(family), tiny(family, config={"id2label": None, "num_labels": None, "label2id": None})
    with torch.inference_mode():
        assert load(told).forward(pairs).tolist() == load(untold).forward(pairs).tolist()


@pytest.mark.parametrize(("label", "rows"), [(None, (1, 0)), (0, (0, None)), (1, (1, None))])
@pytest.mark.parametrize("family", ["bert", "xlmr", "modernbert", "deberta"])
def test_two_labels_give_their_difference_and_a_label_that_is_chosen_its_logit(tiny, family, label, rows):
    generator = torch.Generator().manual_seed(3)
    heads = {}

    def widen(tensors):
        name = next(name for name in ("classifier.out_proj", "classifier") if f"{name}.weight" in tensors)
        weight = torch.randn(2, 48, generator=generator)
        heads.update(name=name, weight=weight, bias=torch.tensor([0.5, -0.25]))
        tensors.update({f"{name}.weight": weight, f"{name}.bias": heads["bias"]})

    two = tiny(family, config={"id2label": {"0": "no", "1": "yes"}}, weights=widen)

    def narrow(tensors):
        plus, minus = rows
        weight, bias = heads["weight"][plus], heads["bias"][plus]
        if minus is not None:
            weight, bias = weight - heads["weight"][minus], bias - heads["bias"][minus]
        tensors.update({f"{heads['name']}.weight": weight[None], f"{heads['name']}.bias": bias[None]})

    one = tiny(family, weights=narrow)
    pairs = [EncodedPair(np.arange(20, 40, dtype=np.int32), second_start=8, tokens=20)]
    with torch.inference_mode():
        found = load_model(
            replace(read_checkpoint(two), label=label), device="cpu", precision="fp32", attention="runs"
        ).forward(pairs)
        assert torch.allclose(found, load(one).forward(pairs), atol=1e-5)


@pytest.mark.parametrize(
    ("architecture", "told"), [("JinaForRanking", ""), ("BertLMHeadModel", "language model"), ("LlamaModel", "head")]
)
def test_an_unknown_architecture_is_refused_by_what_it_is_or_with_those_that_are_known(tiny, architecture, told):
    path = tiny("bert", config={"architectures": [architecture]})
    with pytest.raises(ModelError) as caught:
        load(path)
    assert str(path) in caught.value.message
    assert f"architecture `{architecture}`" in caught.value.message
    if told:
        assert told in caught.value.message
    else:
        assert all(name in (caught.value.hint or "") for name in FAMILIES)


def test_several_architectures_are_refused(tiny):
    path = tiny("bert", config={"architectures": ["BertForSequenceClassification", "BertModel"]})
    with pytest.raises(ModelError, match="must name one class"):
        load(path)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_where_the_varlen_kernel_does_not_run_the_model_says_that_it_uses_runs(tiny, precision):
    assert load(tiny("bert"), precision=precision, attention="varlen").kernels.endswith("attention: runs")


def test_a_model_on_cuda_keeps_sdpa_from_cudnn_and_has_its_device_current(tiny, monkeypatch):
    # cuDNN makes a plan for every new shape. Triton starts on the current device, whichever the tensors are on.
    entered = []

    class Entered:
        def __init__(self, device):
            self.device = device

        def __enter__(self):
            entered.append(self.device)

        def __exit__(self, *_):
            entered.append(None)

    def family(checkpoint, *, device, dtype, attention):
        assert entered == [torch.device("cuda:1")]
        return "loaded"

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device", Entered)
    monkeypatch.setitem(models._CLASSES, "bert", family)
    before = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        torch.backends.cuda.enable_cudnn_sdp(True)
        assert load(tiny("bert"), device="cuda:1") == "loaded"
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        assert torch.backends.cuda.flash_sdp_enabled()
        with name_faults("cuda:1"):
            assert entered == [torch.device("cuda:1"), None, torch.device("cuda:1")]
        with name_faults("cpu"):
            assert len(entered) == 4
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_does_not_fit(tiny):
    with pytest.raises(DoesNotFitError, match=r"--device cuda:0: torch .* sees no CUDA device"):
        load(tiny("bert"), device="cuda:0")


def test_native_families_load_without_transformers(tiny):
    code = (
        "import sys, pathlib\n"
        "from rerank_cli.checkpoint.read import read_checkpoint\n"
        "from rerank_cli.encoding.encoder import open_encoder\n"
        "from rerank_cli.models import load_model\n"
        "for path in sys.argv[1:]:\n"
        "    checkpoint = read_checkpoint(pathlib.Path(path))\n"
        "    pairs = open_encoder(checkpoint, max_tokens=64).encode([('a', 'b')])\n"
        "    load_model(checkpoint, device='cpu', precision='fp32', attention='runs').forward(pairs[0])\n"
        "sys.exit('transformers' in sys.modules)\n"
    )
    paths = [str(tiny(family)) for family in ("bert", "xlmr", "modernbert")]
    result = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
