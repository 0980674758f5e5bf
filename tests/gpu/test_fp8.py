"""FP8 checkpoints on a CUDA device: the product of the tensor cores, and the embedder's vectors beside ModelOpt's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from rerank_cli.checkpoint import read_checkpoint
from rerank_cli.encoding.encoder import open_encoder, split_pair
from rerank_cli.models import load_model
from rerank_cli.models.linear import Fp8Linear, fp8_runs
from rerank_cli.models.weights import Fp8Weight

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]

GOLDEN = Path(__file__).parents[1] / "parity" / "nemotron-vl-embed-fp8-open"
CUDA = torch.device("cuda", 0)


def needs_fp8() -> None:
    if not fp8_runs(CUDA, torch.bfloat16):
        pytest.skip(f"{torch.cuda.get_device_name(CUDA)} has no FP8 product: compute capability below 8.9")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("rows", [1, 17, 2048])
def test_the_product_is_that_of_a_cpu(dtype, rows):
    needs_fp8()
    generator = torch.Generator().manual_seed(4)
    weight = torch.randn(256, 128, generator=generator)
    scale = weight.abs().max() / 448
    fp8 = Fp8Weight((weight / scale).to(torch.float8_e4m3fn), scale, torch.tensor(0.01))
    x = torch.randn(rows, 128, generator=generator).to(dtype)
    there = Fp8Weight(*(part.to(CUDA) for part in (fp8.values, fp8.scale, fp8.input_scale)))
    bias = torch.ones(256, dtype=dtype)
    found = Fp8Linear(there, bias.to(CUDA))(x.to(CUDA)).float().cpu()
    rounded = (x.float() / fp8.input_scale).clamp(-448, 448).to(torch.float8_e4m3fn).float()
    expected = rounded @ fp8.values.float().T * fp8.input_scale * fp8.scale + bias.float()
    assert (found - expected).abs().max() <= 0.01 * expected.abs().max()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_embedder_runs_in_fp8_and_comes_near_to_modelopts_own_vectors(precision):
    needs_fp8()
    checkpoint = read_checkpoint(GOLDEN / "checkpoint")
    model = load_model(checkpoint, device="cuda:0", precision=precision, attention="varlen")
    assert "multiplied as they are, by torch._scaled_mm" in model.kernels
    expected = {row["id"]: row for row in map(json.loads, (GOLDEN / "expected.jsonl").read_text().splitlines())}
    for case in map(json.loads, (GOLDEN / "cases.jsonl").read_text().splitlines()):
        if case["image"]:
            continue
        encoder = open_encoder(checkpoint, max_tokens=case["max_length"], truncate="reference", special_tokens="allow")
        is_query = case["kind"] == "query"
        pair = (case["text"], "") if is_query else ("", case["text"])
        text = split_pair(encoder.encode([pair])[0][0])[0 if is_query else 1]
        with torch.inference_mode():
            found = model.forward([text])[0].cpu().numpy()
        wanted = np.array(expected[case["id"]]["w8a8_embedding"])
        assert found @ wanted / np.linalg.norm(found) / np.linalg.norm(wanted) >= 0.98, case["id"]


def test_fp32_activations_dequantise_and_have_the_reference_vectors():
    checkpoint = read_checkpoint(GOLDEN / "checkpoint")
    model = load_model(checkpoint, device="cuda:0", precision="fp32", attention="runs")
    assert "dequantised as they are read: activations are in fp32" in model.kernels
    case = json.loads((GOLDEN / "cases.jsonl").read_text().splitlines()[0])
    expected = json.loads((GOLDEN / "expected.jsonl").read_text().splitlines()[0])
    encoder = open_encoder(checkpoint, max_tokens=case["max_length"], truncate="reference", special_tokens="allow")
    text = split_pair(encoder.encode([(case["text"], "")])[0][0])[0]
    with torch.inference_mode():
        found = model.forward([text])[0].cpu().numpy()
    assert np.abs(found - np.array(expected["embedding"])).max() <= 2e-4
