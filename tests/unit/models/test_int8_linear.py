from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from rerank_cli.checkpoint import read_checkpoint
from rerank_cli.errors import ModelError
from rerank_cli.models import Calibrates, RerankModel, load_model
from rerank_cli.models.attention import attend, attend_by_powers
from rerank_cli.models.int8_calibration import Int8Model
from rerank_cli.models.int8_encoder import Int8Encoder
from rerank_cli.models.int8_linear import Int8Linear, ScaleAndZero, balance, int8_hindrance, split_units, steps
from rerank_cli.models.int8_modernbert import Int8ModernBert
from rerank_cli.models.packed import pack
from rerank_cli.records import EncodedPair

CPU = torch.device("cpu")
needs_int8 = pytest.mark.skipif(int8_hindrance() is not None, reason="this torch has no int8 layers of oneDNN")


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float(((found.float() - expected).pow(2).mean() / expected.var()).sqrt())


def pairs(count: int = 40) -> list[EncodedPair]:
    generator = np.random.default_rng(0)
    found = []
    for number in range(count):
        ids = np.concatenate(([2], generator.integers(20, 60, 3 + number % 17), [3])).astype(np.int32)
        found.append(EncodedPair(input_ids=ids, second_start=2 + number % 3, tokens=len(ids)))
    return found


def test_factors_change_nothing_of_a_product():
    x, weight = random(48, 24) * torch.logspace(-2, 2, 24), random(40, 24, seed=1)
    factors = balance(x.abs().amax(0), weight)
    expected = x.double() @ weight.double().T
    found = (x * factors).double() @ (weight / factors).double().T
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-4)
    assert float((x * factors).abs().max()) == pytest.approx(127, abs=0.01)


def test_a_channel_that_was_never_seen_above_zero_has_a_finite_factor():
    assert balance(torch.tensor([0.0, 1.0]), torch.tensor([[1.0, 0.0]])).isfinite().all()
    assert balance(torch.zeros(2), torch.zeros(1, 2)).isfinite().all()


def test_steps_are_rounded_to_even_and_clipped_to_127_on_either_side_of_128():
    found = steps(torch.tensor([-1e9, -127.4, -0.6, 0.0, 0.5, 1.5, 127.0, 1e9]))
    assert found.dtype == torch.uint8
    assert found.tolist() == [1, 1, 127, 128, 128, 130, 255, 255]


@needs_int8
@pytest.mark.parametrize(("gelu", "then"), [(False, lambda y: y), (True, F.gelu)])
@pytest.mark.parametrize("out", [torch.float32, torch.bfloat16])
def test_a_layer_is_its_product_within_a_hundredth(gelu, then, out):
    x, weight, bias = random(48, 64), random(40, 64, seed=1), random(40, seed=2)
    factors = balance(x.abs().amax(0), weight)
    y = Int8Linear(weight / factors, bias, out=out, gelu=gelu)(steps(x * factors))
    assert y.dtype == out
    assert relative(y, then(x @ weight.T + bias)) < 0.015


@needs_int8
def test_outliers_in_a_channel_cost_little_with_factors_and_much_without():
    x, weight, bias = random(256, 64), random(40, 64, seed=1) * 0.1, torch.zeros(40)
    x[:, 7] *= 40
    weight[:, 7] *= 0.02
    expected = x @ weight.T
    factors = balance(x.abs().amax(0), weight)
    with_factors = Int8Linear(weight / factors, bias)(steps(x * factors))
    one = torch.full((64,), 127 / float(x.abs().max()))
    without = Int8Linear(weight / one, bias)(steps(x * one))
    assert relative(with_factors, expected) < 0.02
    assert relative(without, expected) > 5 * relative(with_factors, expected)


@needs_int8
def test_bytes_in_a_grid_go_from_one_layer_to_the_next_and_onto_the_residual():
    x, expand, contract = random(48, 64), random(96, 64, seed=1) * 0.2, random(32, 96, seed=2)
    bias, residual = random(96, seed=3), random(48, 32, seed=4)
    inner = F.gelu(x @ expand.T + bias)
    grid = ScaleAndZero.over(float(inner.min()), float(inner.max()))
    factors = balance(x.abs().amax(0), expand)
    found = Int8Linear(expand / factors, bias, out=grid, gelu=True)(steps(x * factors))
    assert found.dtype == torch.uint8
    expected = inner @ contract.T + residual
    y = Int8Linear(contract, torch.zeros(32), inputs=grid).add(found, residual)
    assert y.data_ptr() == residual.data_ptr()  # in place
    assert relative(y, expected) < 0.02


def test_large_units_are_apart_and_every_unit_is_in_one_part():
    most = torch.ones(200)
    most[[5, 150]] = 30
    parts = split_units(most)
    assert len(parts) == 2
    assert {5, 150} <= set(parts[0].tolist())
    assert sorted(torch.cat(parts).tolist()) == list(range(200))
    assert [len(part) for part in split_units(torch.ones(40))] == [40]


@pytest.mark.parametrize("kind", ["runs", "products"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_by_powers_of_two_is_attention(dtype, kind):
    batch = pack(pairs(9), device=CPU)
    rows = len(batch.input_ids)
    q, k, v = (random(rows, 2, 16, seed=seed) for seed in range(3))
    expected = attend(q, k, v, batch, kind="runs")
    scaled = q * (math.log2(math.e) * 16**-0.5)
    room = torch.zeros(rows, 32)
    found = attend_by_powers(scaled.to(dtype), k.to(dtype), v.to(dtype), batch, room, kind=kind)
    assert found is room
    n = batch.tokens
    assert torch.allclose(found[:n], expected[:n], atol=1e-5 if dtype == torch.float32 else 0.04)
    assert not found[n:].any()


def test_scores_too_large_for_a_power_of_two_are_computed_with_the_maximum_subtracted():
    batch = pack(pairs(3), device=CPU)
    q, k, v = (random(len(batch.input_ids), 2, 16, seed=seed) for seed in range(3))
    expected = attend(q * 100, k, v, batch, kind="runs")
    found = attend_by_powers(
        *(x.bfloat16() for x in (q * 100 * math.log2(math.e) * 16**-0.5, k, v)),
        batch,
        torch.zeros(len(q), 32),
        kind="products",
    )
    assert found.isfinite().all()
    assert (found - expected)[: batch.tokens].abs().mean() < 0.1


FAMILIES = ["bert", "xlmr", "modernbert"]
CLS = {"classifier_pooling": "cls"}  # the last layer of ModernBERT is then for the first token alone
VARIANTS = [*((family, {}) for family in FAMILIES), ("modernbert", CLS)]


def in_float32(path) -> RerankModel:
    return load_model(read_checkpoint(path), device="cpu", precision="fp32", attention="runs")


def calibrated(path, seen: list[EncodedPair]) -> tuple[Int8Model, dict]:
    model = load_model(read_checkpoint(path), device="cpu", precision="int8", attention="runs")
    assert isinstance(model, Int8Model)
    assert isinstance(model, Calibrates)
    with torch.inference_mode():
        state = model.calibrate([seen])
    return model, state


def forward(model, batch: list[EncodedPair]) -> torch.Tensor:
    with torch.inference_mode():
        return model.forward(batch)


@needs_int8
@pytest.mark.parametrize(("family", "config"), VARIANTS)
def test_logits_are_near_those_of_float32(tiny, family, config):
    path = tiny(family, config=config)
    exact = forward(in_float32(path), pairs())
    model, _ = calibrated(path, pairs()[::3])
    found = forward(model, pairs())
    assert float((found - exact).abs().mean()) < 0.1 * float(exact.std())  # random weights are harder than trained ones
    assert not torch.equal(found, exact)


class Unrounded(Int8Linear):
    """The layer without bytes."""

    def __init__(self, weight, bias, *, inputs=None, out=None, gelu=False):
        self._plain = weight, bias
        self._gelu = gelu

    def __call__(self, x):
        y = F.linear(x, *self._plain)
        return F.gelu(y) if self._gelu else y

    def add(self, x, residual):
        return residual + self(x)


def folded(path) -> Int8Model:
    """A model with all that int8 does to the weights, and no rounding."""
    kind = Int8ModernBert if "ModernBert" in read_checkpoint(path).architecture else Int8Encoder

    class Folded(kind):
        _rounded_linear = Unrounded
        _steps = staticmethod(lambda x: x)

    model = Folded(read_checkpoint(path), device=CPU, dtype=torch.float32, attention="runs")
    model._narrow = torch.float32
    with torch.inference_mode():
        model.calibrate([pairs()[::3]])
    return model


def with_biases(tensors: dict[str, torch.Tensor]) -> None:
    """Biases for all layers of a ModernBERT that can have one."""
    for name in [name for name in tensors if name.startswith(("model.", "head.norm")) and name.endswith(".weight")]:
        if "tok_embeddings" not in name:
            tensors[name.replace(".weight", ".bias")] = random(len(tensors[name]), seed=len(name)).half() * 0.3


BIASED = dict.fromkeys(("norm_bias", "attention_bias", "mlp_bias"), True)


@needs_int8
@pytest.mark.parametrize(
    ("family", "config", "weights"),
    [*((*variant, None) for variant in VARIANTS), ("modernbert", BIASED, with_biases)],
)
def test_but_for_the_rounding_the_logits_are_those_of_float32(tiny, family, config, weights):
    path = tiny(family, config=config, weights=weights)
    exact = forward(in_float32(path), pairs())
    assert torch.allclose(forward(folded(path), pairs()), exact, atol=1e-5)


class Names(TorchDispatchMode):
    """Counts operators by name."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.found[str(func)] = self.found.get(str(func), 0) + 1
        return func(*args, **(kwargs or {}))


@needs_int8
def test_all_products_of_the_layers_but_the_last_are_in_int8(tiny):
    model, _ = calibrated(tiny("bert"), pairs())
    layers = read_checkpoint(tiny("bert")).integer("num_hidden_layers")
    with Names() as names:
        model.forward(pairs())
    assert isinstance(model, Int8Encoder)
    parts = len(model._layers[0].mlp)
    plain = sum(count for name, count in names.found.items() if name.startswith("onednn.qlinear_pointwise.default"))
    added = sum(count for name, count in names.found.items() if name.startswith("onednn.qlinear_pointwise.binary"))
    assert layers > 1
    assert plain == (layers - 1) * (1 + parts)  # qkv, expand
    assert added == (layers - 1) * (1 + parts)  # attention's output, contract


@needs_int8
@pytest.mark.parametrize(("config", "kept"), [({}, 0), (CLS, 1)])
def test_all_products_of_modernbert_are_in_int8_but_those_for_the_first_token_alone(tiny, config, kept):
    model, _ = calibrated(tiny("modernbert", config=config), pairs())
    with Names() as names:
        model.forward(pairs())
    counts = [names.found[f"onednn.qlinear_pointwise.{kind}"] for kind in ("default", "binary")]
    assert counts == [4 * 3 - 2 * kept, (4 - kept) * 2]  # qkv, gate, up; attention's output, down


@needs_int8
@pytest.mark.parametrize("family", FAMILIES)
def test_a_state_that_went_through_json_gives_the_same_bits(tiny, family):
    path = tiny(family)
    model, state = calibrated(path, pairs()[:10])
    other = load_model(read_checkpoint(path), device="cpu", precision="int8", attention="runs")
    assert isinstance(other, Int8Model)
    other.use(json.loads(json.dumps(state)))
    assert torch.equal(forward(model, pairs()), forward(other, pairs()))
    assert other.kernels == model.kernels
    assert "int8" in other.kernels
    assert "calibrated on 10 pairs" in other.kernels


@needs_int8
def test_other_pairs_to_calibrate_on_give_other_bits(tiny):
    path = tiny("bert")
    assert not torch.equal(
        forward(calibrated(path, pairs()[:2])[0], pairs()), forward(calibrated(path, pairs())[0], pairs())
    )


@needs_int8
@pytest.mark.parametrize("family", FAMILIES)
def test_a_state_of_another_version_or_model_is_refused(tiny, family):
    model, state = calibrated(tiny(family), pairs())
    for wrong in ({**state, "format": 99}, {**state, "layers": []}):
        with pytest.raises(ModelError, match="calibrated by another version, or for another model"):
            model.use(wrong)


@needs_int8
@pytest.mark.parametrize(
    ("family", "config", "why"),
    [
        ("deberta", {}, "only BERT, RoBERTa and XLM-R classifiers and ModernBERT have int8 layers, not DebertaV2For"),
        ("modernbert", {"hidden_activation": "relu"}, "int8 layers know the activation `gelu`, not `relu`"),
        ("bert", {"hidden_act": "relu"}, "int8 layers know the activation `gelu`, not `relu`"),
    ],
)
def test_a_family_without_int8_layers_is_refused(tiny, family, config, why):
    with pytest.raises(ModelError) as caught:
        load_model(read_checkpoint(tiny(family, config=config)), device="cpu", precision="int8", attention="runs")
    assert why in caught.value.message
