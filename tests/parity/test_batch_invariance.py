"""A pair's logit, and a text's vector, do not depend on what is computed with them."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rerank_cli.checkpoint import locate_checkpoint, read_checkpoint
from rerank_cli.checkpoint.families import int8_refusal
from rerank_cli.encoding.vision_config import read_vision_geometry
from rerank_cli.job.options import JobOptions, Names
from rerank_cli.job.prepare import find_known, prepare_model
from rerank_cli.job.score_store.logit_facts import depends_on_batch
from rerank_cli.machine.amx import library
from rerank_cli.machine.cpu import detect_cpu
from rerank_cli.models import Calibrates, RerankModel, load_model
from rerank_cli.models.attention import attend_densely
from rerank_cli.models.embedder import NemotronEmbedder
from rerank_cli.planning.choices import ProfileRequest
from rerank_cli.records import EncodedPair, ImageBlock, Tiles
from tests.parity.conftest import HERE

PACKED = ["bert-ce-open", "xlmr-ce-open", "modernbert-ce-open"]
# transformers ends in bf16 too, so that its logits have 8 bits: no tolerance smaller than their spacing would hold.
PADDED = ["deberta-ce-open"]


def random_pairs(vocabulary: int, *, count: int = 200) -> list[EncodedPair]:
    generator = np.random.default_rng(3)
    pairs = []
    for length in generator.integers(3, 90, size=count):
        ids = generator.integers(5, vocabulary - 5, size=length).astype(np.int32)
        pairs.append(
            EncodedPair(input_ids=ids, second_start=int(generator.integers(1, length + 1)), tokens=int(length))
        )
    return pairs


@torch.inference_mode()
def in_batches(model: RerankModel, pairs: list[EncodedPair], size: int) -> np.ndarray:
    """Logits in the order of `pairs`, computed in shuffled batches of `size`."""
    order = list(range(len(pairs)))
    random.Random(size).shuffle(order)
    logits = np.empty(len(pairs), dtype=np.float32)
    for begin in range(0, len(order), size):
        batch = order[begin : begin + size]
        logits[batch] = model.forward([pairs[place] for place in batch]).numpy()
    return logits


@pytest.mark.parametrize(
    ("name", "precision", "tolerance"),
    [*((name, "fp32", 1e-5) for name in PACKED + PADDED), *((name, "bf16", 2e-2) for name in PACKED)],
)
def test_a_logit_does_not_depend_on_the_batch(goldens, name, precision, tolerance):
    if precision == "bf16" and not detect_cpu().has("bf16"):
        pytest.skip("this CPU has no bf16 instructions")
    checkpoint = read_checkpoint(goldens[name].checkpoint)
    pairs = random_pairs(checkpoint.integer("vocab_size"))
    model = load_model(checkpoint, device="cpu", precision=precision, attention="runs")
    alone = in_batches(model, pairs, 1)
    assert np.isfinite(alone).all()
    assert np.unique(alone).size > 100
    for size in (8, 32):
        assert np.abs(in_batches(model, pairs, size) - alone).max() <= tolerance, size


ENCODERS = [*PACKED, "ettin-open", "gte-multilingual-open", "jina-v2-open", "bert-types-open"]


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize(
    ("precision", "attention"),
    [("fp32", "runs"), ("bf16", "runs"), ("bf16", "products"), ("int8", "runs"), ("int8", "products")],
)
def test_a_logit_of_an_encoder_is_the_same_to_the_bit_in_every_batch(goldens, name, precision, attention):
    """What a store of scores promises (`job/score_store/logit_facts.py`)."""
    if precision == "bf16" and not detect_cpu().has("bf16"):
        pytest.skip("this CPU has no bf16 instructions")
    checkpoint = read_checkpoint(goldens[name].checkpoint)
    if precision == "int8" and int8_refusal(checkpoint.architecture, checkpoint.config):
        pytest.skip("it has no int8 layers")
    pairs = random_pairs(checkpoint.integer("vocab_size"), count=80)
    model = load_model(checkpoint, device="cpu", precision=precision, attention=attention)
    if isinstance(model, Calibrates):
        with torch.inference_mode():
            model.calibrate([pairs[:20]])
    alone = in_batches(model, pairs, 1)
    assert np.unique(alone).size > 40
    for size in (3, 8, 40):
        assert in_batches(model, pairs, size).tobytes() == alone.tobytes(), size


@pytest.mark.parametrize("name", ENCODERS)
def test_a_logit_in_fp32_is_the_same_to_the_bit_with_any_number_of_threads(goldens, name):
    """A window with fewer batches than lanes is computed on all cores (`engine/lanes.py`)."""
    checkpoint = read_checkpoint(goldens[name].checkpoint)
    pairs = random_pairs(checkpoint.integer("vocab_size"), count=80)
    model = load_model(checkpoint, device="cpu", precision="fp32", attention="runs")
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 4):
            torch.set_num_threads(threads)
            found += [in_batches(model, pairs, 1), in_batches(model, pairs, 40)]
    finally:
        torch.set_num_threads(before)
    assert len({one.tobytes() for one in found}) == 1


@pytest.mark.parametrize("queries", [1, 2, 3, 5, 7, 11, 15, 16])
@pytest.mark.parametrize("size", [8, 26, 32, 64])
def test_attention_of_a_few_queries_is_the_same_to_the_bit_with_any_number_of_threads(queries, size):
    torch.manual_seed(1)
    keys, values = torch.randn(2, 6, 4, 59, size)
    q = torch.randn(6, 4, queries, size)
    mask = torch.randn(queries, 59)
    before = torch.get_num_threads()
    try:
        for given in (None, mask):
            found = []
            for threads in (1, 2, 3, 4):
                torch.set_num_threads(threads)
                found.append(attend_densely(q, keys, values, attn_mask=given))
                each = [attend_densely(*(x[i : i + 1] for x in (q, keys, values)), attn_mask=given) for i in range(6)]
                found.append(torch.cat(each))
            assert all(torch.equal(one, found[0]) for one in found)
            torch.testing.assert_close(found[0], F.scaled_dot_product_attention(q, keys, values, attn_mask=given))
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(library() is None, reason="no AMX here, or amx.cpp was not compiled")
@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_a_logit_by_tiles_is_the_same_to_the_bit_in_every_batch(precision):
    checkpoint = read_checkpoint(locate_checkpoint(None))
    pairs = random_pairs(checkpoint.integer("vocab_size"), count=60)
    model = load_model(checkpoint, device="cpu", precision=precision, attention="amx")
    if isinstance(model, Calibrates):
        with torch.inference_mode():
            model.calibrate([pairs[:20]])
    assert "AMX tiles" in model.kernels
    alone = in_batches(model, pairs, 1)
    assert np.unique(alone).size > 40
    for size in (3, 8, 60):
        assert in_batches(model, pairs, size).tobytes() == alone.tobytes(), size


@pytest.mark.parametrize(
    ("name", "precision", "varies"),
    [
        ("deberta-ce-open", "fp32", True), ("llama-rerank-open", "fp32", True), ("bert-ce-open", "fp32", False),
        ("nemotron-vl-embed-open", "fp32", False), ("nemotron-vl-embed-open", "fp16", True),
    ],
)  # fmt: skip
def test_which_results_depend_on_their_batch_is_told(name, precision, varies):
    request = ProfileRequest(device="cpu", precision=precision)
    options = JobOptions((), Names("-"), model=str(HERE / name / "checkpoint"), request=request)
    prepared = prepare_model(options, find_known(options))
    if prepared.plan.precision != precision:
        pytest.skip(f"this CPU computes {precision} in {prepared.plan.precision}")
    assert (depends_on_batch(prepared, prepared.plan) is not None) == varies


def embedded_in_batches(model: NemotronEmbedder, texts: list[EncodedPair], size: int) -> np.ndarray:
    """Vectors in the order of `texts`, computed in shuffled batches of `size`."""
    order = list(range(len(texts)))
    random.Random(size).shuffle(order)
    vectors = np.empty((len(texts), model.dimensions), dtype=np.float32)
    with torch.inference_mode():
        for begin in range(0, len(order), size):
            batch = order[begin : begin + size]
            model.see([texts[place] for place in batch])
            vectors[batch] = model.forward([texts[place] for place in batch]).numpy()
    return vectors


def of_length_1(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("name", ["nemotron-vl-embed-open", "nemotron-vl-embed-fp8-open"])
def test_a_vector_in_fp32_is_the_same_to_the_bit_in_every_batch(name):
    """What a store of vectors promises; of texts and of pages."""
    checkpoint = read_checkpoint(HERE / name / "checkpoint")
    texts = random_pairs(checkpoint.within("llm_config").integer("vocab_size"), count=80)
    generator = np.random.default_rng(2)
    for tiles in (1, 3, 2, 1):
        image = Tiles(generator.integers(0, 255, (tiles, 512, 512, 3)).astype(np.uint8))
        length = tiles * read_vision_geometry(checkpoint).tokens_per_tile
        ids = np.full(length + 9, 7, dtype=np.int32)
        texts.append(EncodedPair(ids, len(ids), len(ids), ImageBlock(3, length, tiles, tiles, image)))
    model = load_model(checkpoint, device="cpu", precision="fp32", attention="runs")
    alone = embedded_in_batches(model, texts, 1)
    assert len(np.unique(alone, axis=0)) == len(texts)
    for size in (3, 8, len(texts)):
        assert embedded_in_batches(model, texts, size).tobytes() == alone.tobytes(), size


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("fp16", 2e-3), ("bf16", 2e-2)])
@pytest.mark.parametrize("name", ["nemotron-vl-embed-open", "nemotron-vl-embed-fp8-open"])
def test_a_cosine_does_not_depend_on_the_batch(name, precision, tolerance):
    if precision == "bf16" and not detect_cpu().has("bf16"):
        pytest.skip("this CPU has no bf16 instructions")
    checkpoint = read_checkpoint(HERE / name / "checkpoint")
    texts = random_pairs(checkpoint.within("llm_config").integer("vocab_size"), count=400)  # of 200 pairs
    model = load_model(checkpoint, device="cpu", precision=precision, attention="runs")
    queries, passages = np.split(of_length_1(embedded_in_batches(model, texts, 1)), 2)
    alone = (queries * passages).sum(axis=1)
    assert np.isfinite(alone).all()
    assert np.unique(alone).size > 100
    for size in (8, 32):
        queries, passages = np.split(of_length_1(embedded_in_batches(model, texts, size)), 2)
        assert np.abs((queries * passages).sum(axis=1) - alone).max() <= tolerance, size
