"""Batches side by side: the same batches, the same order, the same bits, and trouble that stays where it is."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.material import plain_checkpoint
from rerank_cli.checkpoint import Checkpoint, read_checkpoint
from rerank_cli.engine.batching import FittingBatches
from rerank_cli.engine.lanes import Lanes
from rerank_cli.engine.local import LocalEngine
from rerank_cli.engine.protocols import Trouble
from rerank_cli.planning.run_plan import Plan
from rerank_cli.records import EncodedPair

PLAN = Plan(
    profile="cpu-fp32", kind="cpu", device="cpu", precision="fp32", max_tokens=512, token_budget=512, window_pairs=512,
    attention="runs", threads=2, reasons=(), engines=("cpu",),
)  # fmt: skip


@pytest.fixture
def lanes():
    opened = Lanes(2, threads=1)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Checkpoint:
    """The widths of a real model, whose sums oneDNN cuts, in two layers: one whole, one for the first token alone."""
    return read_checkpoint(plain_checkpoint(tmp_path_factory.mktemp("two") / "model", layers=2))


def pairs_of(count: int, *, longest: int = 90) -> list[EncodedPair]:
    draw = np.random.default_rng(count)
    lengths = draw.integers(9, longest, count)
    return [EncodedPair(draw.integers(1000, 30000, n, dtype=np.int32), 4, int(n)) for n in lengths]


def scored(plan: Plan, checkpoint: Checkpoint, pairs: list[EncodedPair]) -> np.ndarray:
    with LocalEngine(plan, checkpoint) as engine:
        if engine.needs_calibration:
            engine.calibrate(pairs)
        return engine.score(pairs)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_lanes_and_threads_leave_every_bit_of_the_logits(checkpoint, precision):
    pairs = pairs_of(30)
    plan = replace(PLAN, precision=precision)
    alone = scored(plan, checkpoint, pairs)
    assert np.isfinite(alone).all()
    for changed in ({"lanes": 2}, {"threads": 1}, {"threads": 4, "lanes": 2}):
        assert np.array_equal(scored(replace(plan, **changed), checkpoint, pairs), alone), changed


def test_batches_are_computed_at_the_same_time_each_with_its_threads_and_come_in_order(lanes):
    both = threading.Barrier(2, timeout=30)  # nobody gets past it alone

    def compute(batch: list[int]) -> tuple[list[int], int, bool]:
        both.wait()
        return batch, torch.get_num_threads(), torch.is_inference_mode_enabled()

    trouble = Trouble()
    made = list(FittingBatches(10).run([10, 9, 8, 7], compute, trouble, lanes))
    assert made == [([place], ([place], 1, True)) for place in range(4)]
    assert trouble == Trouble(computed=4 * 16)


def test_fewer_batches_than_lanes_have_all_cores(lanes):
    here = threading.get_ident()
    made = list(FittingBatches(10).run([4, 3], lambda batch: threading.get_ident(), Trouble(), lanes))
    assert made == [([0, 1], here)]


def test_where_a_pair_is_to_have_one_logit_even_one_batch_goes_through_a_lane():
    opened, here = Lanes(2, threads=1, least=1), threading.get_ident()
    try:
        made = list(FittingBatches(10).run([4, 3], lambda batch: threading.get_ident(), Trouble(), opened))
    finally:
        opened.close()
    assert made[0][1] != here


def test_a_batch_that_does_not_fit_beside_another_is_tried_by_itself(lanes):
    here, tried = threading.get_ident(), []

    def compute(batch: list[int]) -> int:
        tried.append((batch, threading.get_ident() == here))
        if threading.get_ident() != here and batch == [1]:
            raise torch.OutOfMemoryError
        return batch[0]

    trouble = Trouble()
    made = list(FittingBatches(10).run([10, 9, 8, 7, 6, 5], compute, trouble, lanes))
    assert sorted(made) == [([place], place) for place in range(6)]
    assert trouble.splits == 0
    assert not trouble.failed
    assert ([1], False) in tried
    assert ([1], True) in tried


def test_what_fits_nowhere_is_halved_and_told_as_without_lanes(lanes):
    def compute(batch: list[int]) -> int:
        if 3 in batch:
            raise MemoryError
        return len(batch)

    trouble = Trouble()
    made = list(FittingBatches(10).run([5] * 6, compute, trouble, lanes))
    assert sorted(place for batch, _ in made for place in batch) == [0, 1, 2, 4, 5]
    assert [problem.code for problem in trouble.failed.values()] == ["out-of-memory"]
    assert list(trouble.failed) == [3]


def test_another_fault_ends_the_run_and_nothing_more_is_begun(lanes):
    begun: list[Any] = []

    def compute(batch: list[int]) -> None:
        begun.append(batch)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(FittingBatches(10).run([10] * 50, compute, Trouble(), lanes))
    assert len(begun) <= 4


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_in_low_precision_a_pair_has_one_logit_whatever_it_is_batched_with(checkpoint, precision):
    pairs = pairs_of(20, longest=200)
    with LocalEngine(replace(PLAN, precision=precision, lanes=2), checkpoint) as engine:
        if engine.needs_calibration:
            engine.calibrate(pairs)
        together = engine.score(pairs)
        order = np.random.default_rng(1).permutation(len(pairs))
        shuffled = engine.score([pairs[place] for place in order])
        alone = np.concatenate([engine.score([pair]) for pair in pairs])
        some = np.concatenate([engine.score(pairs[begin : begin + 7]) for begin in range(0, len(pairs), 7)])
    assert np.array_equal(shuffled, together[order])
    assert np.array_equal(some, together)
    assert np.array_equal(alone, together)
