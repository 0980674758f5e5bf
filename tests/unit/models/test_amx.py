"""The kernel for whole layers on a CPU with tiles: beside float64, beside torch, and in other batches."""

from __future__ import annotations

import ctypes
import math
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
from rerank_cli.models.amx import AmxLayer, AmxLayers, AmxLinear, AmxSteps, AmxTokens
from rerank_cli.models.int8_encoder import Int8Encoder
from rerank_cli.models.int8_linear import int8_hindrance
from rerank_cli.planning.choices import ProfileRequest
from rerank_cli.planning.cpu_kernels import cpu_attention
from rerank_cli.planning.known_model import find_model
from rerank_cli.planning.memory import BatchSize, MemoryModel, Placement, estimate, read_model_shape
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

    def linear(outputs: int, inputs: int) -> AmxLinear:
        weight = torch.randn(outputs, inputs, generator=draw) * inputs**-0.5
        return AmxLinear(weight.bfloat16(), 0.1 * torch.randn(outputs, generator=draw))

    def norm() -> tuple[Tensor, Tensor]:
        weight = 1 + 0.1 * torch.randn(sizes.hidden, generator=draw)
        return weight, 0.1 * torch.randn(sizes.hidden, generator=draw)

    hidden, inner = sizes.hidden, sizes.inner
    return [
        AmxLayer(linear(3 * hidden, hidden), linear(hidden, hidden), norm(), linear(inner, hidden),
                   linear(hidden, inner), norm())
        for _ in range(sizes.layers)
    ]  # fmt: skip


def random_int8_layers(sizes: Sizes, *, large: int, seed: int = 0) -> list[AmxLayer]:
    """Any bytes, with scales that keep numbers where those of a model are: values fill a byte, queries are small."""
    draw = torch.Generator().manual_seed(seed)
    hidden, inner = sizes.hidden, sizes.inner

    def uniform(count: int, about: float) -> Tensor:
        return about * (0.5 + torch.rand(count, generator=draw))

    def linear(outputs: int, inputs: int, about: float) -> AmxLinear:
        weight = torch.randint(-127, 128, (outputs, inputs), generator=draw, dtype=torch.int8)
        bias = 0.1 * torch.randn(outputs, generator=draw)
        return AmxLinear(weight, bias, uniform(outputs, about * inputs**-0.5 / (73 * 40)))

    def norm() -> tuple[Tensor, Tensor]:
        return uniform(hidden, 1), 0.1 * torch.randn(hidden, generator=draw)

    def layer() -> AmxLayer:
        qkv, contract = linear(3 * hidden, hidden, 1), linear(hidden, inner, 1)
        assert qkv.scale is not None
        qkv.scale[2 * hidden :] *= 40
        grids = (20.0, -100.0), (50.0, -110.0)
        steps = AmxSteps(uniform(hidden, 40), uniform(hidden, 40), grids, uniform(hidden, inner**-0.5 / (73 * 20)))
        return AmxLayer(qkv, linear(hidden, hidden, 1), norm(), linear(inner, hidden, 1), contract, norm(), steps)

    return [layer() for _ in range(sizes.layers)]


def exact_int8(sizes: Sizes, layers: list[AmxLayer], x: Tensor, *, large: int) -> Tensor:
    """Int8 layers over one pair, rounded where the kernel rounds to bytes and nowhere else, in float64."""
    x = x.double()
    for layer in layers:
        steps = layer.steps
        assert steps is not None
        qkv = int8_product(layer.qkv, rounded(x * steps.input_factors))
        q, k, v = qkv.unflatten(1, (3, sizes.heads, -1)).transpose(0, 2).unbind(1)
        context = F.scaled_dot_product_attention(q, k, v, scale=math.log(2)).transpose(0, 1).flatten(1)
        x = norm(layer.attention_norm, x + int8_product(layer.out, rounded(context)))
        inner = F.gelu(int8_product(layer.expand, rounded(x * steps.attended_factors)))
        grids = torch.tensor(steps.grids).double()[(torch.arange(sizes.inner) >= large).long()]
        inner = rounded(inner * grids[:, 0] + grids[:, 1])
        weight = layer.contract.weight.double()
        first = inner[:, :large] @ weight[:, :large].T * steps.large_scale
        rest = inner[:, large:] @ weight[:, large:].T * layer.contract.scale
        x = norm(layer.out_norm, x + first + rest + layer.contract.bias)
    return x


def int8_product(layer: AmxLinear, x: Tensor) -> Tensor:
    return x @ layer.weight.double().T * layer.scale + layer.bias


def rounded(x: Tensor) -> Tensor:
    return x.round().clamp(-128, 127)


def packed(sizes: Sizes, layers: list[AmxLayer], *, large: int | None = None) -> AmxLayers:
    made = AmxLayers(
        layers=sizes.layers, hidden=sizes.hidden, inner=sizes.inner, heads=sizes.heads, epsilon=EPSILON, large=large
    )
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


def linear(layer: AmxLinear, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight.double(), layer.bias.double())


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
@pytest.mark.parametrize("large", [0, 64])
@pytest.mark.parametrize(
    "sizes", [Sizes(64, 128, 2), Sizes(384, 1536, 12), Sizes(768, 3072, 12, 1), Sizes(128, 192, 1)], ids=str
)
def test_int8_layers_are_those_of_a_plain_reference(sizes: Sizes, large: int) -> None:
    layers = random_int8_layers(sizes, large=large)
    lengths = [300, 64, 33, 32, 31, 17, 2, 1]
    x = random_rows(sizes, sum(lengths)).float()
    expected = torch.cat([exact_int8(sizes, layers, rows, large=large) for rows in x.split(lengths)])
    packed(sizes, layers, large=large).run(x, lengths, threads=1)
    error = (x.double() - expected).abs()
    # A number that is nearly between two bytes may fall to either side, as queries, keys and values are bfloat16.
    assert error.mean() < 0.01 * expected.std()
    assert error.max() < 0.3 * expected.std()


@needs_tiles
@pytest.mark.parametrize("types", [1, 3])
@pytest.mark.parametrize("int8", [False, True])
def test_layers_begin_with_embeddings(types: int, int8: bool) -> None:
    sizes = Sizes(64, 128, 2)
    layers = random_int8_layers(sizes, large=64) if int8 else random_layers(sizes)
    made = packed(sizes, layers, large=64 if int8 else None)
    draw = torch.Generator().manual_seed(3)
    dtype = torch.float32 if int8 else torch.bfloat16
    tables = [torch.randn(rows, sizes.hidden, generator=draw).to(dtype) for rows in (50, 40, types)]
    weights = 1 + 0.1 * torch.randn(sizes.hidden, generator=draw), torch.randn(sizes.hidden, generator=draw)
    made.embed(*tables, norm=weights)
    lengths = [40, 33, 7]
    ids = [torch.randint(len(table), (80,), generator=draw) for table in tables]
    begun = norm(weights, sum(table[row].double() for table, row in zip(tables, ids, strict=True)))
    expected, found = begun.to(dtype), torch.zeros(80, sizes.hidden, dtype=dtype)
    made.run(expected, lengths, threads=1)
    made.run(found, lengths, threads=2, tokens=AmxTokens(*ids))
    assert (found.float() - expected.float()).abs().mean() < 0.01
    for place in range(3):
        for wrong in (-1, len(tables[place])):
            beyond = [row.clone() for row in ids]
            beyond[place][5] = wrong
            with pytest.raises(IndexError, match="of a table of"):
                made.run(found, lengths, threads=1, tokens=AmxTokens(*beyond))


@needs_tiles
def test_large_scores_and_large_activations_are_no_trouble() -> None:
    sizes = Sizes(64, 64, 2, 1)
    (layer,) = random_layers(sizes)
    layer.qkv.weight.mul_(8)
    layer.expand.weight.mul_(16)
    x = random_rows(sizes, 70) * 4
    expected = exact(sizes, [layer], x)
    packed(sizes, [layer]).run(x, [70], threads=1)
    assert torch.isfinite(x).all()
    assert (x.double() - expected).abs().mean() < 0.02


@needs_tiles
@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_pair_is_the_same_to_the_bit_in_every_batch(threads: int, int8: bool) -> None:
    sizes = Sizes(128, 192, 2) if int8 else Sizes(96, 160, 3)
    layers = random_int8_layers(sizes, large=64) if int8 else random_layers(sizes)
    made = packed(sizes, layers, large=64 if int8 else None)
    lengths = [512, 300, 299, 130, 64, 64, 33, 32, 31, 17, 16, 2, 1, 1]
    x = random_rows(sizes, sum(lengths)).to(torch.float32 if int8 else torch.bfloat16)
    alone = [rows.clone() for rows in x.split(lengths)]
    for rows in alone:
        made.run(rows, [len(rows)], threads=1)
    for order in (range(len(lengths)), range(len(lengths))[::-1], [5, 1, 0, 9, 12]):
        batch = torch.cat([x.split(lengths)[place] for place in order])
        made.run(batch, [lengths[place] for place in order], threads=threads)
        assert torch.equal(batch, torch.cat([alone[place] for place in order]))


@needs_tiles
@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_pair_that_is_not_a_number_spoils_no_other(bad: float, int8: bool) -> None:
    sizes = Sizes(64, 128, 2)
    layers = random_int8_layers(sizes, large=64) if int8 else random_layers(sizes)
    made = packed(sizes, layers, large=64 if int8 else None)
    lengths = [40, 37, 20, 5]
    x = random_rows(sizes, sum(lengths)).to(torch.float32 if int8 else torch.bfloat16)
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
        sizes = amx.Sizes(shape.layers, shape.hidden, shape.intermediate, shape.heads, 0, 0, EPSILON)
        room = library.amx_room(ctypes.byref(sizes), groups.rows, longest)
        assert groups.threads * room == pytest.approx(amx_workspace(shape, groups, longest), rel=0.001)


@needs_tiles
@pytest.mark.parametrize(("pairs", "length", "threads"), [(1, 8, 1), (1, 300, 1), (8, 128, 2), (40, 60, 4)])
def test_int8_layers_take_less_than_their_calibration(pairs: int, length: int, threads: int) -> None:
    checkpoint = read_checkpoint(locate_checkpoint(None))
    shape, batch = read_model_shape(checkpoint), BatchSize.of([length] * pairs)
    library = amx.library()
    assert library is not None
    groups = amx_groups(pairs=pairs, tokens=batch.tokens, longest=length, threads=threads)
    sizes = amx.Sizes(shape.layers, shape.hidden, shape.intermediate, shape.heads, 1, 64, EPSILON)
    taken = groups.threads * library.amx_room(ctypes.byref(sizes), groups.rows, length) + 4 * shape.hidden * batch.rows
    place = Placement(cpu=True, precision="int8", cores=threads, attention="amx")
    spared = 3 * (shape.layers - 1) * (4 * shape.hidden**2 + 2 * shape.hidden * shape.intermediate)  # bytes for float32
    assert taken <= estimate(MemoryModel.of_checkpoint(checkpoint), batch, place).forward + spared


def test_which_sizes_it_takes() -> None:
    taken = {"hidden": 384, "inner": 1536, "heads": 12, "activation": "gelu"}
    assert amx.takes("bf16", **taken)
    for other in ({"hidden": 312}, {"inner": 1540}, {"heads": 24}, {"heads": 5}, {"activation": "relu"}, {"heads": 0}):
        assert not amx.takes("bf16", **taken | other), other
    assert amx.takes("int8", **taken)
    assert not amx.takes("int8", **taken | {"hidden": 96, "heads": 3}), "bytes go by 64"
    assert not amx.takes("fp32", **taken)


@needs_tiles
@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_the_plan_takes_it_unless_it_is_told_not_to(monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    shape = read_model_shape(read_checkpoint(locate_checkpoint(None)))
    assert cpu_attention(detect_cpu(), precision, shape) == "amx"
    answer = plan_model(ProfileRequest(device="cpu", precision=precision), find_model(None), Machine(cpu=detect_cpu()))
    assert answer.plan is not None
    assert answer.plan.attention == "amx"
    assert any("AMX tiles" in reason for reason in answer.reasons), "-v tells of it"
    assert cpu_attention(detect_cpu(), precision) == cpu_attention(detect_cpu(), "fp32", shape) == "runs"
    monkeypatch.setenv(amx.SWITCH, "0")
    assert cpu_attention(detect_cpu(), precision, shape) == "runs"


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


@needs_tiles
@pytest.mark.skipif(int8_hindrance() is not None, reason="this torch has no int8 layers of oneDNN")
def test_an_int8_model_by_tiles_has_the_weights_and_steps_of_one_by_torch() -> None:
    from tests.memory.conftest import pairs_of

    checkpoint = read_checkpoint(locate_checkpoint(None))
    pairs = pairs_of([200, 128, 90, 77, 60, 50, 40, 33, 17, 9])
    with torch.inference_mode():
        exactly = load_model(checkpoint, device="cpu", precision="fp32", attention="runs").forward(pairs)
        torchs, ours = (
            load_model(checkpoint, device="cpu", precision="int8", attention=attention) for attention in ("runs", "amx")
        )
        assert isinstance(torchs, Int8Encoder)
        assert isinstance(ours, Int8Encoder)
        ours.use(torchs.calibrate([pairs]))
        assert ours.kernels == "layers: AMX tiles, int8, calibrated on 10 pairs"
        by_torch, by_tiles = torchs.forward(pairs), ours.forward(pairs)
    assert float((by_tiles - exactly).abs().mean()) <= max(0.05, 1.5 * float((by_torch - exactly).abs().mean()))
    assert not torch.equal(by_tiles, by_torch)
