"""A CUDA device that computes behind the host: nothing waits for it, nothing is read or reused too early."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rerank_cli.checkpoint import Checkpoint, locate_checkpoint, read_checkpoint
from rerank_cli.engine.local import LocalEngine
from rerank_cli.models import load_model
from rerank_cli.models.attention import varlen_runs
from rerank_cli.models.linear import row_scaled_refusal
from rerank_cli.models.transfer import Overlapping, transfer_for
from rerank_cli.planning.memory import BatchSize, MemoryModel, Placement, count_weights, estimate, read_model_shape
from rerank_cli.planning.run_plan import Plan
from rerank_cli.records import EncodedPair, ImageBlock, Tiles

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]

PARITY = Path(__file__).parents[1] / "parity"
CUDA = torch.device("cuda", 0)
FAMILIES = [
    "bert-ce-open", "xlmr-ce-open", "modernbert-ce-open", "llama-rerank-open", "automodel-ce-open",
    "qwen3-reranker-open", "mxbai-v2-open", "bge-gemma-open", "nemotron-vl-rerank-open", "nemotron-vl-embed-open",
    "nemotron-vl-embed-fp8-open",
]  # fmt: skip
ONE_B = {
    "architectures": ["LlamaBidirectionalForSequenceClassification"], "hidden_size": 2048, "intermediate_size": 8192,
    "num_hidden_layers": 4, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 32000,
    "pooling": "avg", "id2label": {"0": "x"},
}  # fmt: skip


@contextmanager
def no_waiting() -> Iterator[None]:
    """Inside, what would wait for the device is an error."""
    before = torch.cuda.get_sync_debug_mode()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch calls the mode a prototype
            torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def keep_busy() -> None:
    """Work for a tenth of a second and more, behind which all that comes waits."""
    busy = torch.ones(8192, 8192, device=CUDA)
    for _ in range(20):
        busy = torch.mm(busy, busy).clamp_(max=1)


def pairs_of(lengths: Any, seed: int = 0) -> list[EncodedPair]:
    draw = np.random.default_rng(seed)
    return [EncodedPair(draw.integers(3, 30, n, dtype=np.int32), min(2, n), n) for n in lengths]


def engine(precision: str = "fp16", token_budget: int = 2048) -> LocalEngine:
    plan = Plan(
        profile="p", kind="generic", device="cuda:0", precision=precision, max_tokens=512, token_budget=token_budget,
        window_pairs=512, attention="varlen", threads=2, reasons=(),
    )  # fmt: skip
    return LocalEngine(plan, read_checkpoint(locate_checkpoint(None)))


def lengths(count: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(5, 300, count).tolist()


def with_images(checkpoint: Checkpoint) -> list[EncodedPair]:
    size = checkpoint.config["force_image_size"]
    tokens = (size // checkpoint.config["vision_config"]["patch_size"]) ** 2 // 4
    draw, pairs = np.random.default_rng(1), []
    for _ in range(5):
        image = Tiles(draw.integers(0, 255, (3, size, size, 3), dtype=np.uint8))
        ids = np.full(3 * tokens + 5, 3, dtype=np.int32)
        pairs.append(EncodedPair(ids, 2, len(ids), ImageBlock(2, 3 * tokens, 3, 3, image)))
    return pairs


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "fp8"])
@pytest.mark.parametrize("name", FAMILIES)
def test_no_forward_waits_for_the_device(name: str, precision: str) -> None:
    checkpoint = read_checkpoint(PARITY / name / "checkpoint")
    llama = name not in ("bert-ce-open", "xlmr-ce-open", "modernbert-ce-open")
    if precision == "fp8" and (not llama or row_scaled_refusal(CUDA)):
        pytest.skip("no products in FP8 here")
    model: Any = load_model(checkpoint, device="cuda:0", precision=precision, attention="varlen")
    pairs = pairs_of([90, 41, 40, 40, 7, 1])
    made = []
    with torch.inference_mode():
        for round_number in range(2):  # in the first, kernels are loaded and memory is reserved
            keep_busy()
            if round_number:
                torch.cuda.synchronize()
                with no_waiting():
                    made = _both(model, pairs, checkpoint)
            else:
                _both(model, pairs, checkpoint)
    assert all(torch.isfinite(one).all() for one in made)


def _both(model: Any, pairs: list[EncodedPair], checkpoint: Checkpoint) -> list[torch.Tensor]:
    """Texts, and images where the model sees them."""
    if not hasattr(model, "see"):
        return [model.forward(pairs)]
    seen = with_images(checkpoint)
    model.see(seen)
    made = [model.forward(seen)]
    model.see([])
    return [*made, model.forward(pairs)]


def test_an_engine_hands_over_and_collects_without_waiting() -> None:
    with engine() as scorer:
        expected = scorer.score(pairs_of(lengths(200, 1)))
        keep_busy()
        with no_waiting():
            pending = scorer.submit(pairs_of(lengths(200, 1)))
            assert pending.scores() is None, "the device has other things to do yet"
            while (scores := pending.scores()) is None:
                scorer.wait(0.05)
    assert np.array_equal(scores.logits, expected)


def test_parts_under_way_have_the_bits_of_parts_that_are_waited_for() -> None:
    parts = [pairs_of(lengths(150, seed), seed) for seed in range(6)]
    with engine() as scorer:
        expected = [scorer.score(part) for part in parts]
        for _ in range(5):
            pending = [scorer.submit(part) for part in parts]
            while any(one.scores() is None for one in pending):
                scorer.wait(0.05)
            for one, wanted in zip(pending, expected, strict=True):
                scores = one.scores()
                assert scores is not None
                assert scores.logits.tobytes() == wanted.tobytes()


def test_waiting_is_bounded_though_the_device_is_busy() -> None:
    with engine() as scorer:
        scorer.score(pairs_of([10]))
        for _ in range(5):
            keep_busy()
        pending = scorer.submit(pairs_of([10]))
        scorer.wait(0.001)
        assert pending.scores() is None
        while pending.scores() is None:
            scorer.wait(1.0)


def test_what_travels_is_neither_read_nor_reused_too_early() -> None:
    """Buffers of like sizes are made and dropped while the device is far behind; each must still have its numbers."""
    transfer = transfer_for(CUDA)
    assert isinstance(transfer, Overlapping)
    draw = np.random.default_rng(0)
    sums, arriving, expected = [], [], []
    for number in range(400):
        if number % 50 == 0:
            keep_busy()
        host = draw.integers(0, 1000, int(draw.integers(1, 400_000)), dtype=np.int64)
        there = transfer.to_device(torch.from_numpy(host))
        sums.append(there.sum())
        arriving.append(transfer.to_host(there[:50].float() * 2))
        expected.append(host)
        del there
    for total, back, host in zip(sums, arriving, expected, strict=True):
        assert total.item() == host.sum()
        assert np.array_equal(back.wait().numpy(), host[:50].astype(np.float32) * 2)


def test_copies_to_the_device_run_on_a_stream_of_their_own() -> None:
    transfer = transfer_for(CUDA)
    host = torch.ones(1 << 22)
    transfer.to_device(host)
    torch.cuda.synchronize()
    keep_busy()
    compute = torch.cuda.current_stream(CUDA).record_event()
    transfer.to_device(host)
    copied = transfer._copies.record_event()
    while not copied.query():
        pass
    assert not compute.query(), "the copy was done before what was computed meanwhile"


_FAULT = """
import sys
from types import SimpleNamespace
import numpy as np, torch
from rerank_cli.engine.local import LocalEngine
from rerank_cli.errors import EngineError
from rerank_cli.records import EncodedPair

class Faulty:
    kernels = "faulty"
    def forward(self, pairs):
        beyond = torch.full((len(pairs),), 7, device="cuda:0")
        return torch.zeros(3, device="cuda:0")[beyond]

plan = SimpleNamespace(device="cuda:0", threads=1, lanes=1, token_budget=64, precision="fp32", attention="runs")
scorer = LocalEngine(plan, SimpleNamespace(architecture="BertForSequenceClassification"), model=Faulty())
try:
    scorer.score([EncodedPair(np.ones(8, dtype=np.int32), 2, 8)] * 40)
except EngineError as error:
    print(error.message)
"""


def test_a_fault_of_a_kernel_is_an_error_of_the_engine_and_no_number() -> None:
    done = subprocess.run([sys.executable, "-c", _FAULT], capture_output=True, text=True, timeout=300)
    assert done.stdout.startswith("cuda:0: CUDA error: device-side assert"), done.stderr


def test_two_runs_of_a_command_write_the_same_bytes(tmp_path: Path) -> None:
    samples = Path(__file__).parents[2] / "samples" / "python-docs.jsonl"
    written = []
    for number in range(2):
        out = tmp_path / f"{number}.jsonl"
        command = ["rerank-file", str(samples), "-o", str(out), "--device", "cuda", "--token-budget", "4096"]
        subprocess.run([sys.executable, "-m", "rerank_cli", *command], check=True, timeout=300)
        written.append(out.read_bytes())
        assert json.loads(out.with_name(f"{number}.jsonl.report.json").read_text())
    assert written[0] == written[1]


def test_the_number_of_launches_does_not_depend_on_the_number_of_pairs() -> None:
    if not varlen_runs(CUDA, torch.bfloat16):
        pytest.skip("no varlen kernel")
    model = load_model(_blank(), device="cuda:0", precision="bf16", attention="varlen")
    counted = []
    with torch.inference_mode():
        for some in ([640] * 2, [20] * 64, [55, *range(49, 0, -1)]):  # as many tokens, so the same products
            pairs = pairs_of(some)
            model.forward(pairs)
            torch.cuda.synchronize()
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
                model.forward(pairs)
                torch.cuda.synchronize()
            counted.append(sum(1 for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA))
    assert max(counted) <= min(counted) + 4


def _blank() -> Checkpoint:
    return Checkpoint(Path("nowhere"), "made up", ONE_B, {}, {}, blank=True)


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_a_loaded_model_holds_the_bytes_that_are_estimated(precision: str) -> None:
    if precision == "fp8" and row_scaled_refusal(CUDA):
        pytest.skip("no products in FP8 here")
    shape = read_model_shape(_blank())
    expected = MemoryModel(shape, count_weights(shape, None))
    place = Placement(precision=precision, capability=torch.cuda.get_device_capability(CUDA))
    load_model(_blank(), device="cuda:0", precision=precision, attention="varlen")  # what libraries keep is there then
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated(CUDA)
    torch.cuda.reset_peak_memory_stats(CUDA)
    model = load_model(_blank(), device="cuda:0", precision=precision, attention="varlen")
    held = torch.cuda.memory_allocated(CUDA) - before
    most = torch.cuda.max_memory_allocated(CUDA) - before
    found = estimate(expected, BatchSize.of([8]), place)
    assert held == pytest.approx(found.weights, rel=0.01)
    # A blank weight is made on the device: the table of embeddings is not copied, and nothing else is larger.
    assert most - held <= found.loading + found.forward + 2**21
    del model
