from __future__ import annotations

import pytest
import torch

from rerank_cli.errors import ModelError
from rerank_cli.models.linear import ACTIVATIONS, OneDnnLinear, PlainLinear, activation, linear_kind, onednn_runs

CPU = torch.device("cpu")
needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
KINDS = [PlainLinear, pytest.param(OneDnnLinear, marks=needs_onednn)]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def expected(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`x @ weight.T + bias` in float64."""
    y = x.double() @ weight.double().T
    return y if bias is None else y + bias.double()


# The formulas that the names stand for in the papers, in float64, apart from torch's own functions.
FORMULAS = {
    "gelu": lambda x: 0.5 * x * (1 + torch.erf(x / 2**0.5)),
    "gelu_new": lambda x: 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))),
    "gelu_pytorch_tanh": lambda x: 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))),
    "relu": lambda x: x.clamp(min=0),
    "silu": lambda x: x / (1 + torch.exp(-x)),
    "swish": lambda x: x / (1 + torch.exp(-x)),
    "tanh": lambda x: 2 / (1 + torch.exp(-2 * x)) - 1,
    None: lambda x: x,
}


def test_there_is_a_formula_for_every_activation():
    assert set(FORMULAS) == {*ACTIVATIONS, None}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("name", FORMULAS)
def test_a_layer_is_its_product_and_then_its_activation(kind, with_bias, name):
    x, weight, bias = random(48, 24), random(40, 24, seed=1), random(40, seed=2) if with_bias else None
    y = kind(weight, bias, then=name)(x)
    assert y.shape == (48, 40)
    assert torch.allclose(y.double(), FORMULAS[name](expected(x, weight, bias)), atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("with_bias", [True, False])
def test_the_sum_is_new_or_takes_the_place_of_the_residual(kind, with_bias):
    x, weight, bias = random(48, 24), random(40, 24, seed=1), random(40, seed=2) if with_bias else None
    residual = random(48, 40, seed=3)
    given, before = x.clone(), residual.clone()
    y = kind(weight, bias).add(x, residual)
    assert torch.allclose(y.double(), expected(x, weight, bias) + before.double(), atol=2e-5)
    assert torch.equal(x, given)
    assert y is residual or torch.equal(residual, before)


@pytest.mark.parametrize("kind", KINDS)
def test_a_residual_is_added_without_the_activation(kind):
    x, weight, bias, residual = random(16, 8), random(8, 8, seed=1), random(8, seed=2), random(16, 8, seed=3)
    y = kind(weight, bias, then="relu").add(x, residual.clone())
    assert torch.allclose(y.double(), expected(x, weight, bias) + residual.double(), atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 15, 16, 17, 2049])
def test_any_number_of_rows_will_do(kind, rows):
    x, weight, bias = random(rows, 8), random(4, 8, seed=1), random(4, seed=2)
    assert torch.allclose(kind(weight, bias)(x).double(), expected(x, weight, bias), atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_may_be_a_view_with_gaps(kind):
    wide, weight, bias = random(16, 24), random(4, 8, seed=1), random(4, seed=2)
    x = wide[:, 8:16]
    assert torch.allclose(kind(weight, bias)(x).double(), expected(x, weight, bias), atol=2e-5)


@needs_onednn
def test_a_cpu_uses_the_prepacked_layers_in_fp32():
    # The slow kind gives the same logits, so that nothing else would tell.
    assert linear_kind(CPU, torch.float32) is OneDnnLinear
    assert linear_kind(CPU, torch.float32).kernel == "oneDNN, prepacked"


def test_other_devices_use_the_plain_layers():
    assert linear_kind(torch.device("meta"), torch.float32) is PlainLinear
    assert linear_kind(torch.device("cuda:0"), torch.float16) is PlainLinear
    assert PlainLinear.kernel == "F.linear"


def test_a_dtype_that_onednn_refuses_falls_to_the_plain_layers():
    assert not onednn_runs(torch.float64)
    assert linear_kind(CPU, torch.float64) is PlainLinear


@pytest.mark.parametrize("name", ["mish", "GELU", ""])
def test_an_unknown_activation_is_refused_with_those_that_are_known(name):
    with pytest.raises(ModelError) as caught:
        activation(name, where="model/config.json")
    assert caught.value.message == f"model/config.json: activation `{name}` is not known"
    assert "gelu_new" in (caught.value.hint or "")


@pytest.mark.parametrize(("inputs", "outputs"), [(384, 1536), (512, 1536), (640, 640), (768, 3072), (1024, 1024)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_is_the_same_to_the_bit_whatever_rows_are_beside_it(
    inputs: int, outputs: int, dtype: torch.dtype
) -> None:
    if not onednn_runs(dtype):
        pytest.skip("this torch has no prepacked layers of oneDNN for it")
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(outputs, inputs, generator=generator).to(dtype) / inputs**0.5
    layer = OneDnnLinear(weight, None)
    x = torch.randn(1024, inputs, generator=generator).to(dtype)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as a lane has
    try:
        with torch.inference_mode():
            few = layer(x[:32].contiguous())
            for rows in (64, 160, 512, 1024):
                assert torch.equal(layer(x[:rows].contiguous())[:32], few), rows
    finally:
        torch.set_num_threads(threads)
