"""The packed families on a CUDA device: the goldens' logits in each precision, and the varlen kernel against runs."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from rerank_cli.checkpoint import locate_checkpoint, read_checkpoint
from rerank_cli.encoding.encoder import open_encoder
from rerank_cli.engine.local import LocalEngine
from rerank_cli.engine.pool import PoolEngine
from rerank_cli.models import load_model
from rerank_cli.models.attention import attend, attend_first, varlen_runs
from rerank_cli.models.elementwise import Fused, disagreement, elementwise_for
from rerank_cli.models.llama import _mean_of_each_pair
from rerank_cli.models.packed import PackedBatch, pack
from rerank_cli.planning.run_plan import Plan
from rerank_cli.records import EncodedPair
from tests.parity.wide import ENCODERS, wide_cases

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]

PARITY = Path(__file__).parents[1] / "parity"
SAMPLES = Path(__file__).parents[2] / "samples" / "python-docs.jsonl"
PACKED = [*ENCODERS, "llama-rerank-open"]
CUDA = torch.device("cuda", 0)

# Of a logit, absolute; these logits lie within +-10. fp32 is the goldens' own tolerance, for which TF32 must be off (it
# is, unless somebody asks torch for it). fp16 has 11 significant bits and bf16 has 8, lost anew in each of the layers.
TOLERANCE = {"fp32": 2e-4, "fp16": 3e-2, "bf16": 2.5e-1}


def needs_varlen(precision: str) -> None:
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    if not varlen_runs(CUDA, dtype):
        pytest.skip(f"{torch.cuda.get_device_name(CUDA)} has no varlen kernel")


def engine(path: Path, *, precision: str, attention: str, device: str = "cuda:0") -> LocalEngine:
    plan = SimpleNamespace(
        device=device, threads=2, lanes=1, token_budget=16384, precision=precision, attention=attention
    )
    return LocalEngine(plan, read_checkpoint(path))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def golden_cases(name: str) -> tuple[list[EncodedPair], np.ndarray]:
    """The token ids of every case of a golden, and its expected logits."""
    folder = PARITY / name
    checkpoint = read_checkpoint(folder / "checkpoint")
    expected = {row["id"]: row["logit"] for row in read_jsonl(folder / "expected.jsonl")}
    pairs, logits = [], []
    for case in read_jsonl(folder / "cases.jsonl"):
        encoder = open_encoder(checkpoint, max_tokens=case["max_length"], truncate="reference", special_tokens="allow")
        pairs += encoder.encode([(case["query"], case["passage"])])[0]
        logits.append(expected[case["id"]])
    return pairs, np.array(logits)


@pytest.fixture(scope="module")
def sample_pairs() -> list[EncodedPair]:
    """100 real pairs for the built-in model."""
    texts = [(row["query"], passage["text"]) for row in read_jsonl(SAMPLES) for passage in row["passages"][:3]][:100]
    encoder = open_encoder(read_checkpoint(locate_checkpoint(None)), max_tokens=512)
    return [pair for encoded in encoder.encode(texts) for pair in encoded]


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("attention", ["runs", "varlen"])
def test_a_golden_has_its_logits_on_the_device(name, precision, attention, tmp_path_factory):
    # The encoders with heads that the varlen kernel takes: with their own they would never meet it.
    path = PARITY / name / "checkpoint"
    if name in ENCODERS:
        path, pairs, expected = wide_cases(name, tmp_path_factory.getbasetemp())
    else:
        pairs, expected = golden_cases(name)
    with engine(path, precision=precision, attention=attention) as opened:
        assert opened.kernels.endswith("runs" if precision == "fp32" else attention)
        together = opened.score(pairs)
        alone = np.concatenate([opened.score([pair]) for pair in pairs])
    assert np.abs(together - expected).max() <= TOLERANCE[precision]
    assert np.abs(alone - expected).max() <= TOLERANCE[precision]


def test_the_built_in_model_has_its_cpu_logits_in_fp32(sample_pairs):
    path = locate_checkpoint(None)
    with engine(path, precision="fp32", attention="runs") as on_device:
        found = on_device.score(sample_pairs)
    with engine(path, precision="fp32", attention="runs", device="cpu") as on_host:
        expected = on_host.score(sample_pairs)
    assert np.abs(found - expected).max() <= 1e-3


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_the_varlen_kernel_has_the_logits_of_runs(sample_pairs, precision):
    needs_varlen(precision)
    path = locate_checkpoint(None)
    logits = []
    for attention in ("runs", "varlen"):
        with engine(path, precision=precision, attention=attention) as opened:
            assert opened.kernels.endswith(attention)
            logits.append(opened.score(sample_pairs))
    assert np.isfinite(logits[0]).all()
    assert np.abs(logits[0] - logits[1]).max() <= TOLERANCE[precision]


def test_fp32_uses_runs_and_says_so():
    with engine(locate_checkpoint(None), precision="fp32", attention="varlen") as opened:
        assert opened.kernels.endswith("runs")


def random_batch(lengths: list[int]) -> PackedBatch:
    pairs = [EncodedPair(input_ids=np.ones(n, dtype=np.int32), second_start=1, tokens=n) for n in lengths]
    return pack(pairs, device=CUDA)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize(
    "options",
    [{}, {"window": 3}, {"window": 64}, {"causal": True}, {"kv_heads": 2}, {"kv_heads": 2, "causal": True}],
    ids=str,
)
@pytest.mark.parametrize("lengths", [[1], [300, 300, 70, 5, 1], [900]], ids=str)
def test_the_kinds_of_attention_agree(precision, options, lengths):
    needs_varlen(precision)
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    batch = random_batch(lengths)
    options = dict(options)
    kv_heads = options.pop("kv_heads", 4)
    generator = torch.Generator(CUDA).manual_seed(5)
    q, k, v = (
        torch.randn(len(batch.input_ids), heads, 32, generator=generator, device=CUDA).to(dtype)
        for heads in (4, kv_heads, kv_heads)
    )
    varlen = attend(q, k, v, batch, kind="varlen", **options)
    exact = attend(q.float(), k.float(), v.float(), batch, kind="runs", **options)
    runs = attend(q, k, v, batch, kind="runs", **options)
    assert (varlen.float() - exact).abs().max() <= 2e-2
    assert (runs.float() - exact).abs().max() <= 2e-2
    assert varlen[batch.tokens :].isfinite().all()


@pytest.mark.parametrize("window", [None, 3])
def test_the_first_tokens_alone_get_what_they_get_among_all(window):
    batch = random_batch([300, 300, 70, 5, 1])
    q, k, v = (torch.randn(len(batch.input_ids), 4, 32, device=CUDA) for _ in range(3))
    everything = attend(q, k, v, batch, kind="runs", window=window)
    first = attend_first(q[batch.starts], k, v, batch, window=window)
    assert torch.allclose(first[:5], everything[batch.starts[:5]], atol=1e-4)


def test_a_batch_travels_in_one_transfer():
    pairs = [EncodedPair(input_ids=np.arange(1, n, dtype=np.int32), second_start=1, tokens=n - 1) for n in (9, 5)]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA], acc_events=True) as profile:
        pack(pairs, device=CUDA)
        torch.cuda.synchronize()
    copies = [event for event in profile.events() if "Memcpy HtoD" in event.name]
    assert len(copies) == 1


def test_scoring_does_not_wait_for_the_device_between_batches(sample_pairs):
    with engine(locate_checkpoint(None), precision="fp32", attention="runs") as opened:
        opened.score(sample_pairs)  # kernels are loaded and memory is reserved with waiting
        before = torch.cuda.get_sync_debug_mode()
        batches = []
        try:
            with warnings.catch_warnings(action="ignore"):  # that it is a prototype
                torch.cuda.set_sync_debug_mode("error")
            with torch.inference_mode():
                batches = [opened._model.forward(sample_pairs[begin : begin + 20]) for begin in range(0, 100, 20)]
        finally:
            torch.cuda.set_sync_debug_mode(before)
    assert torch.isfinite(torch.cat(batches)).all()


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_what_lies_between_the_products_is_fused_and_agrees_with_torch(precision):
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    by, told = elementwise_for(CUDA, dtype)
    assert told == Fused.name
    assert disagreement(by, CUDA, dtype) is None


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_the_first_tokens_by_one_kernel_are_those_by_runs(precision, kv_heads):
    needs_varlen(precision)
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    batch = random_batch([300, 300, 70, 5, 1])
    q = torch.randn(len(batch.starts), 4, 32, device=CUDA).to(dtype)
    k, v = (torch.randn(len(batch.input_ids), kv_heads, 32, device=CUDA).to(dtype) for _ in range(2))
    together = attend_first(q, k, v, batch, kind="varlen")[:5]
    assert (together.float() - attend_first(q.float(), k.float(), v.float(), batch)[:5]).abs().max() <= 2e-2


def test_means_over_pairs_are_those_of_each_alone():
    batch = random_batch([300, 300, 70, 5, 1])
    x = torch.randn(len(batch.input_ids), 64, device=CUDA).bfloat16()
    means = _mean_of_each_pair(x, batch)
    begin = 0
    for length, mean in zip(batch.lengths, means, strict=True):
        assert torch.allclose(mean, x[begin : begin + length].float().mean(0), atol=1e-5)
        begin += length


def test_weights_of_16_bits_are_multiplied_in_fp8():
    if torch.cuda.get_device_capability(CUDA) < (8, 9):
        pytest.skip("no FP8 below compute capability 8.9")
    pairs, _ = golden_cases("llama-rerank-open")
    path = PARITY / "llama-rerank-open" / "checkpoint"
    with engine(path, precision="fp8", attention="varlen") as opened:
        assert "FP8, a scale a row" in opened.kernels
        found = opened.score(pairs)
    # Beside bf16 and not beside FP8 of a CPU, which torch 2.11 does not have with a scale a row.
    on_cpu = load_model(read_checkpoint(path), device="cpu", precision="bf16", attention="runs")
    with torch.inference_mode():
        expected = np.concatenate([on_cpu.forward([pair]).numpy() for pair in pairs])
    assert np.abs(found - expected).max() <= 0.15 * np.abs(expected).max()
    assert not np.array_equal(found, expected)


def test_two_engines_on_the_card_have_the_logits_of_one(sample_pairs):
    checkpoint = read_checkpoint(locate_checkpoint(None))
    plan = Plan(
        profile="p", kind="generic", device="cuda:0", precision="fp16", max_tokens=512, token_budget=4096,
        window_pairs=512, attention="runs", threads=2, reasons=(), engines=("cuda:0", "cuda:0"),
    )  # fmt: skip
    pool = PoolEngine(plan, checkpoint)
    try:
        pending = pool.submit(sample_pairs)
        while not (scores := pending.scores()):
            pool.wait(1.0)
    finally:
        pool.close()
    assert np.array_equal(scores.logits, LocalEngine(plan, checkpoint).score(sample_pairs))
