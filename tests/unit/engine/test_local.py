from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rerank_cli.checkpoint import read_checkpoint
from rerank_cli.engine import open_engine
from rerank_cli.engine.local import LocalEngine
from rerank_cli.records import EncodedPair


class FakeModel:
    """The logit of a pair is its first token id; notes the lengths of each batch."""

    kernels = "counting on fingers"

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def forward(self, pairs):
        assert torch.is_inference_mode_enabled()
        self.batches.append([len(pair.input_ids) for pair in pairs])
        return torch.tensor([float(pair.input_ids[0]) for pair in pairs])


NATIVE = SimpleNamespace(architecture="BertForSequenceClassification")
PADDED = SimpleNamespace(architecture="DebertaV2ForSequenceClassification")


def engine(model, *, token_budget: int = 100, checkpoint=NATIVE) -> LocalEngine:
    plan = SimpleNamespace(
        device="cpu",
        threads=torch.get_num_threads(),
        lanes=1,
        token_budget=token_budget,
        precision="fp32",
        attention="runs",
    )
    return LocalEngine(plan, checkpoint, model=model)


def pairs_of(lengths: list[int]) -> list[EncodedPair]:
    """Pairs of these lengths; the first id is the place in the list."""
    return [
        EncodedPair(input_ids=np.array([place] + [9] * (length - 1), dtype=np.int32), second_start=1, tokens=length)
        for place, length in enumerate(lengths)
    ]


@settings(max_examples=50)
@given(lengths=st.lists(st.integers(1, 60), max_size=40), token_budget=st.integers(1, 200))
def test_logits_come_back_in_the_order_of_the_pairs(lengths, token_budget):
    logits = engine(FakeModel(), token_budget=token_budget).score(pairs_of(lengths))
    assert logits.dtype == np.float32
    assert logits.tolist() == list(range(len(lengths)))


@settings(max_examples=50)
@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=40), token_budget=st.integers(1, 200))
def test_batches_stand_longest_first_and_keep_to_the_budget(lengths, token_budget):
    model = FakeModel()
    engine(model, token_budget=token_budget).score(pairs_of(lengths))
    assert sorted(length for batch in model.batches for length in batch) == sorted(lengths)
    assert all(batch == sorted(batch, reverse=True) for batch in model.batches)
    assert all(len(batch) == 1 or sum(batch) <= token_budget for batch in model.batches)


def test_a_padded_model_pays_for_its_padding():
    lengths = [50, 10, 10, 10]
    packed, padded = FakeModel(), FakeModel()
    engine(packed, token_budget=100).score(pairs_of(lengths))
    engine(padded, token_budget=100, checkpoint=PADDED).score(pairs_of(lengths))
    assert packed.batches == [[50, 10, 10, 10]]
    assert padded.batches == [[50, 10], [10, 10]]


def test_no_pairs_have_no_logits_and_ask_nothing_of_the_model():
    model = FakeModel()
    logits = engine(model).score([])
    assert (logits.shape, logits.dtype) == ((0,), np.float32)
    assert model.batches == []


def test_the_model_is_called_once_a_batch_and_the_watcher_after_each():
    model, seen = FakeModel(), []
    engine(model, token_budget=30).score(
        pairs_of([10, 20, 30, 5]), on_batch=lambda *told: seen.append((*told, len(model.batches)))
    )
    assert seen == [(1, 30, 1), (2, 30, 2), (1, 5, 3)]


def test_an_engine_tells_the_kernels_of_its_model():
    assert engine(FakeModel()).kernels == "counting on fingers"


def test_a_closed_engine_has_given_its_model_back():
    model = FakeModel()
    with engine(model) as opened:
        opened.score(pairs_of([3]))
    with pytest.raises(AttributeError):
        opened.score(pairs_of([3]))


@pytest.mark.parametrize(("family", "told"), [("bert", "linear layers: "), ("deberta", "transformers, padded")])
def test_an_engine_of_a_plan_loads_the_checkpoint_and_takes_its_threads(tiny, family, told):
    before = torch.get_num_threads()
    plan = SimpleNamespace(
        device="cpu", threads=1, lanes=1, token_budget=64, precision="fp32", attention="runs", engines=("cpu",)
    )
    try:
        opened = open_engine(plan, read_checkpoint(tiny(family)))
        assert torch.get_num_threads() == 1
        assert opened.kernels.startswith(told)
        assert opened.score(pairs_of([30, 40, 12])).shape == (3,)
        opened.close()
    finally:
        torch.set_num_threads(before)
