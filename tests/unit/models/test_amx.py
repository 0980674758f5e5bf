"""The kernel for whole layers on a CPU with tiles: beside float64, beside torch, and in other batches."""

from __future__ import annotations

import ctypes
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rerank_cli.checkpoint import locate_checkpoint, read_checkpoint
from rerank_cli.machine import amx
from rerank_cli.machine.cpu import detect_cpu
from rerank_cli.machine.detect import Machine
from rerank_cli.models import load_model
from rerank_cli.models.amx import AmxLayer, AmxLayers
from rerank_cli.planning.choices import ProfileRequest
from rerank_cli.planning.cpu_kernels import cpu_attention
from rerank_cli.planning.known_model import find_model
from rerank_cli.planning.memory import read_model_shape
from rerank_cli.planning.memory.peak import amx_groups, amx_workspace
from rerank_cli.planning.run_plan import plan_model
from tests.parity.conftest import HERE

EPSILON = 1e-12
needs_tiles = pytest.mark.skipif(amx.library() is None, reason="no AMX here, or amx.cpp was not compiled")


@dataclass(frozen=True)
class Sizes:
    hidden: int
    inner: int
    heads: int
    layers: int = 2


# Heads of 32 and of 64 channels, hidden sizes of MiniLM, BERT base and large, and the least and odd ones of 32.
SHAPES = [
    Sizes(32, 32, 1), Sizes(96, 160, 3), Sizes(64, 128, 1), Sizes(384, 1536, 12), Sizes(768, 3072, 12, 1),
    Sizes(1024, 512, 16, 1), Sizes(1024, 96, 32, 1), Sizes(256, 1024, 2, 1),
]  # fmt: skip


def random_layers(sizes: Sizes, *, seed: int = 0) -> list[AmxLayer]:
    draw = torch.Generator().manual_seed(seed)

    def linear(outputs: int, inputs: int) -> tuple[Tensor, Tensor]:
        weight = torch.randn(outputs, inputs, generator=draw) * inputs**-0.5
        return weight.bfloat16(), 0.1 * torch.randn(outputs, generator=draw)

    def norm() -> tuple[Tensor, Tensor]:
        weight = 1 + 0.1 * torch.randn(sizes.hidden, generator=draw)
        return weight, 0.1 * torch.randn(sizes.hidden, generator=draw)

    hidden, inner = sizes.hidden, sizes.inner
    return [
        AmxLayer(linear(3 * hidden, hidden), linear(hidden, hidden), norm(), linear(inner, hidden),
                   linear(hidden, inner), norm())
        for _ in range(sizes.layers)
    ]  # fmt: skip


def packed(sizes: Sizes, layers: list[AmxLayer]) -> AmxLayers:
    made = AmxLayers(layers=sizes.layers, hidden=sizes.hidden, inner=sizes.inner, heads=sizes.heads, epsilon=EPSILON)
    for layer in layers:
        made.add(layer)
    return made


def exact(sizes: Sizes, layers: list[AmxLayer], x: Tensor) -> Tensor:
    """The layers over one pair in float64; x: [tokens, hidden]."""
    x = x.double()
    for layer in layers:
        q, k, v = linear(layer.qkv, x).unflatten(1, (3, sizes.heads, -1)).transpose(0, 2).unbind(1)
        context = F.scaled_dot_product_attention(q, k, v).transpose(0, 1).flatten(1)
        x = norm(layer.attention_norm, x + linear(layer.out, context))
        x = norm(layer.out_norm, x + linear(layer.contract, F.gelu(linear(layer.expand, x))))
    return x


def linear(weights: tuple[Tensor, Tensor], x: Tensor) -> Tensor:
    return F.linear(x, weights[0].double(), weights[1].double())


def norm(weights: tuple[Tensor, Tensor], x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weights[0].double(), weights[1].double(), EPSILON)


def random_rows(sizes: Sizes, tokens: int, *, seed: int = 1) -> Tensor:
    return torch.randn(tokens, sizes.hidden, generator=torch.Generator().manual_seed(seed)).bfloat16()


@needs_tiles
@pytest.mark.parametrize("sizes", SHAPES, ids=str)
def test_layers_are_as_near_to_float64_as_bfloat16_allows(sizes: Sizes) -> None:
    layers = random_layers(sizes)
    draw = np.random.default_rng(sizes.hidden + sizes.heads)
    lengths = [1, 15, 16, 17, 31, 32, 33, 512, *draw.integers(1, 200, size=4)]
    lengths = sorted(map(int, lengths), reverse=True)
    x = random_rows(sizes, sum(lengths) + 7)  # and filler behind
    expected = torch.cat([exact(sizes, layers, rows) for rows in x[: sum(lengths)].split(lengths)])
    before = x.clone()
    packed(sizes, layers).run(x, lengths, threads=1)
    assert torch.equal(x[sum(lengths) :], before[sum(lengths) :]), "the filler is nobody's"
    error = (x[: sum(lengths)].double() - expected).abs()
    # Outputs of a norm are about 1; a number of bfloat16 is off by up to 2^-9 of itself, and some steps add up.
    assert error.max() < 0.1
    assert error.mean() < 0.006


@needs_tiles
def test_large_scores_and_large_activations_are_no_trouble() -> None:
    sizes = Sizes(64, 64, 2, 1)
    (layer,) = random_layers(sizes)
    layer.qkv[0].mul_(8)
    layer.expand[0].mul_(16)
    x = random_rows(sizes, 70) * 4
    expected = exact(sizes, [layer], x)
    packed(sizes, [layer]).run(x, [70], threads=1)
    assert torch.isfinite(x).all()
    assert (x.double() - expected).abs().mean() < 0.02


@needs_tiles
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_pair_is_the_same_to_the_bit_in_every_batch(threads: int) -> None:
    sizes = Sizes(96, 160, 3)
    made = packed(sizes, random_layers(sizes))
    lengths = [512, 300, 299, 130, 64, 64, 33, 32, 31, 17, 16, 2, 1, 1]
    x = random_rows(sizes, sum(lengths))
    alone = [rows.clone() for rows in x.split(lengths)]
    for rows in alone:
        made.run(rows, [len(rows)], threads=1)
    for order in (range(len(lengths)), range(len(lengths))[::-1], [5, 1, 0, 9, 12]):
        batch = torch.cat([x.split(lengths)[place] for place in order])
        made.run(batch, [lengths[place] for place in order], threads=threads)
        assert torch.equal(batch, torch.cat([alone[place] for place in order]))


@needs_tiles
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_pair_that_is_not_a_number_spoils_no_other(bad: float) -> None:
    sizes = Sizes(64, 96, 2)
    made = packed(sizes, random_layers(sizes))
    lengths = [40, 37, 20, 5]
    x = random_rows(sizes, sum(lengths))
    well = x.clone()
    made.run(well, lengths, threads=1)
    x[40:77] = bad
    made.run(x, lengths, threads=1)
    kept = [*range(40), *range(77, 102)]
    assert torch.equal(x[kept], well[kept])
    assert x[40:77].isnan().all(), "it is told, not covered"


@needs_tiles
@pytest.mark.parametrize("longest", [1, 33, 512, 700])
def test_the_memory_model_counts_what_the_kernel_writes(longest: int) -> None:
    shape = read_model_shape(read_checkpoint(locate_checkpoint(None)))
    library = amx.library()
    assert library is not None
    for pairs, threads in ((1, 1), (1, 4), (20, 2)):
        groups = amx_groups(pairs=pairs, tokens=pairs * longest, longest=longest, threads=threads)
        sizes = amx.Sizes(shape.layers, shape.hidden, shape.intermediate, shape.heads, EPSILON)
        room = library.amx_room(ctypes.byref(sizes), groups.rows, longest)
        assert groups.threads * room == pytest.approx(amx_workspace(shape, groups, longest), rel=0.001)


def test_which_sizes_it_takes() -> None:
    taken = {"hidden": 384, "inner": 1536, "heads": 12, "activation": "gelu"}
    assert amx.takes(**taken)
    for other in ({"hidden": 312}, {"inner": 1540}, {"heads": 24}, {"heads": 5}, {"activation": "relu"}, {"heads": 0}):
        assert not amx.takes(**taken | other), other  # type: ignore[arg-type]


@needs_tiles
def test_the_plan_takes_it_unless_it_is_told_not_to(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = read_model_shape(read_checkpoint(locate_checkpoint(None)))
    assert cpu_attention(detect_cpu(), "bf16", shape) == "amx"
    answer = plan_model(ProfileRequest(device="cpu", precision="bf16"), find_model(None), Machine(cpu=detect_cpu()))
    assert answer.plan is not None
    assert answer.plan.attention == "amx"
    assert any("AMX tiles" in reason for reason in answer.reasons), "-v tells of it"
    assert cpu_attention(detect_cpu(), "bf16") == cpu_attention(detect_cpu(), "fp32", shape) == "runs"
    monkeypatch.setenv(amx.SWITCH, "0")
    assert cpu_attention(detect_cpu(), "bf16", shape) == "runs"


@needs_tiles
def test_a_library_of_another_source_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = Path(amx.__file__).parents[1] / "models"
    shutil.copy(folder / "_amx.so", tmp_path)
    (tmp_path / "amx.cpp").write_bytes((folder / "amx.cpp").read_bytes())
    monkeypatch.setattr(amx, "_MODELS", tmp_path)
    assert amx.library.__wrapped__() is not None
    (tmp_path / "amx.cpp").write_bytes(b"// another\n")
    assert amx.library.__wrapped__() is None
    (tmp_path / "_amx.so").unlink()
    assert amx.library.__wrapped__() is None


def test_a_model_of_other_sizes_goes_by_torch() -> None:
    checkpoint = read_checkpoint(HERE / "bert-ce-open" / "checkpoint")  # 48 channels
    model = load_model(checkpoint, device="cpu", precision="bf16", attention="amx")
    assert model.kernels == load_model(checkpoint, device="cpu", precision="bf16", attention="runs").kernels


@needs_tiles
def test_a_model_says_that_it_runs_by_tiles_and_is_as_near_to_float32_as_by_torch() -> None:
    from tests.memory.conftest import pairs_of

    checkpoint = read_checkpoint(locate_checkpoint(None))
    pairs = pairs_of([200, 128, 90, 33, 17, 9])
    with torch.inference_mode():
        exactly, torchs, ours = (
            load_model(checkpoint, device="cpu", precision=precision, attention=attention)
            for precision, attention in (("fp32", "runs"), ("bf16", "runs"), ("bf16", "amx"))
        )
        assert ours.kernels.startswith("layers: AMX tiles; ")
        expected = exactly.forward(pairs)
        off = [float((model.forward(pairs) - expected).abs().max()) for model in (ours, torchs)]
    assert off[0] <= max(0.1, 1.5 * off[1])
