"""Engines in processes of their own: real ones, with real weights, that are killed and hurt."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rerank_cli.checkpoint import read_checkpoint
from rerank_cli.engine import open_engine
from rerank_cli.engine.local import LocalEngine
from rerank_cli.engine.pool import PoolEngine
from rerank_cli.engine.protocols import Scores
from rerank_cli.errors import EngineError, ModelError
from rerank_cli.machine.cpu import detect_cpu
from rerank_cli.planning.run_plan import Plan
from rerank_cli.records import EncodedPair
from tests.conftest import TINY_CHECKPOINT
from tests.processes import alive, left_by, wait_until

PLAN = Plan(
    profile="p", kind="cpu", device="cpu", precision="fp32", max_tokens=64, token_budget=128, window_pairs=512,
    attention="runs", threads=1, reasons=(), engines=("cpu", "cpu"),
)  # fmt: skip
# Python reads this before a worker's own code: a fault that no checkpoint and no text could cause so surely.
HURT = """
import os, sys
if "rerank_cli.engine.worker" in " ".join(sys.orig_argv):
    from rerank_cli.engine import worker
    whole = worker.Unit.pairs
    def pairs(unit):
        {0}
        {1}
        {2}
        return whole(unit)
    worker.Unit.pairs = pairs
    {3}
"""


@pytest.fixture
def hurt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Statements that every worker does before it scores a unit, and one (`at_start`) when it starts."""

    def make(*before: str, at_start: str = "pass") -> None:
        folder = tmp_path / "hurt"
        folder.mkdir()
        statements = [*before, "pass", "pass", "pass"][:3]
        (folder / "sitecustomize.py").write_text(HURT.format(*statements, at_start))
        monkeypatch.setenv("PYTHONPATH", f"{folder}:{os.environ.get('PYTHONPATH', '')}")

    return make


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pair(*ids: int) -> EncodedPair:
    return EncodedPair(np.array(ids, dtype=np.int32), 2, len(ids))


def many(count: int, *, seed: int = 0) -> list[EncodedPair]:
    numbers = np.random.default_rng(seed)
    return [pair(*numbers.integers(20, 90, size=numbers.integers(4, 60)).tolist()) for _ in range(count)]


def finish(engine: PoolEngine, pending: Any) -> Scores:
    while not (scores := pending.scores()):
        engine.wait(1.0)
    assert isinstance(scores, Scores)
    return scores


def test_logits_are_those_of_one_engine_bit_for_bit() -> None:
    checkpoint = read_checkpoint(TINY_CHECKPOINT)
    first, second = many(150), many(80, seed=1)
    local = LocalEngine(PLAN, checkpoint)
    batches: list[tuple[int, int]] = []
    with_both = PoolEngine(PLAN, checkpoint)
    try:
        pending = [with_both.submit(pairs, on_batch=lambda *batch: batches.append(batch)) for pairs in (first, second)]
        later = finish(with_both, pending[1])  # asked for in any order
        sooner = finish(with_both, pending[0])
        assert with_both.kernels == f"{local.kernels}; 2 processes"
    finally:
        with_both.close()
    assert np.array_equal(sooner.logits, local.score(first))
    assert np.array_equal(later.logits, local.score(second))
    assert sum(pairs for pairs, _ in batches) == 230
    assert sum(tokens for _, tokens in batches) == sum(len(one.input_ids) for one in first + second)
    assert max(tokens for _, tokens in batches) <= PLAN.token_budget


def test_no_pairs_have_no_logits() -> None:
    engine = PoolEngine(PLAN, read_checkpoint(TINY_CHECKPOINT))
    scores = engine.submit([]).scores()
    engine.close()
    assert scores is not None
    assert scores.logits.shape == (0,)


def test_a_plan_of_one_engine_needs_no_process() -> None:
    checkpoint = read_checkpoint(TINY_CHECKPOINT)
    assert isinstance(open_engine(replace(PLAN, engines=("cpu",)), checkpoint), LocalEngine)
    several = open_engine(PLAN, checkpoint)
    several.close()
    assert isinstance(several, PoolEngine)


def test_a_killed_process_is_started_again_and_no_pair_is_lost() -> None:
    checkpoint = read_checkpoint(TINY_CHECKPOINT)
    pairs, notes = many(400), list[str]()
    engine = PoolEngine(PLAN, checkpoint, on_note=notes.append)
    try:
        pending = engine.submit(pairs)
        os.kill(engine._workers[0].process.pid, signal.SIGKILL)
        scores = finish(engine, pending)
    finally:
        engine.close()
    assert scores.trouble.deaths == 1
    assert scores.trouble.failed == {}
    assert notes == [
        "the process of an engine on cpu was lost (killed by SIGKILL (out of memory?)); it is started again"
    ]
    # A batch that was cut to find what ended the process may differ in its last digit.
    assert np.abs(scores.logits - LocalEngine(PLAN, checkpoint).score(pairs)).max() < 1e-5


def test_pairs_that_end_their_process_are_found_and_only_those(hurt: Callable[..., None]) -> None:
    kill, fail = 17, 18  # token ids
    hurt(
        f"if {kill} in unit.ids: os.kill(os.getpid(), 9)",
        f"if {fail} in unit.ids: raise RuntimeError('device-side assert')",
    )
    pairs = [*many(3), pair(1, kill, *range(30, 60)), *many(3, seed=2), pair(1, fail, *range(30, 40))]
    engine = PoolEngine(replace(PLAN, token_budget=100), read_checkpoint(TINY_CHECKPOINT))
    try:
        scores = finish(engine, engine.submit(pairs))
        again = finish(engine, engine.submit(many(3)))
    finally:
        engine.close()
    told = {3: "killed by SIGKILL (out of memory?)", 7: "RuntimeError: device-side assert"}
    for place, reason in told.items():
        problem = scores.trouble.failed.pop(place)
        assert problem.code == "engine-died"
        assert problem.message == f"the pair has ended 3 processes that scored it ({reason})"
    assert scores.trouble.failed == {}
    assert np.flatnonzero(np.isnan(scores.logits)).tolist() == list(told)
    assert scores.trouble.deaths >= 6
    assert again.trouble.deaths == 0


def test_where_two_units_are_under_way_an_innocent_one_is_not_blamed(hurt: Callable[..., None]) -> None:
    fail = 18
    hurt(
        f"if {fail} in unit.ids: raise RuntimeError('device-side assert')",
        at_start="import rerank_cli.models.transfer as transfer; transfer.Direct.overlaps = True",
    )
    pairs = [pair(*range(30, 80)), pair(1, fail, *range(30, 74)), *many(4)]  # the longest goes first, alone in its unit
    plan = replace(PLAN, token_budget=60, engines=("cpu",))
    engine = PoolEngine(plan, read_checkpoint(TINY_CHECKPOINT))
    try:
        assert engine._workers[0].overlaps
        scores = finish(engine, engine.submit(pairs))
    finally:
        engine.close()
    assert list(scores.trouble.failed) == [1]
    assert np.flatnonzero(np.isnan(scores.logits)).tolist() == [1]


def test_where_every_pair_ends_its_process_the_run_stops(hurt: Callable[..., None]) -> None:
    hurt("raise RuntimeError('no such kernel')")
    engine = PoolEngine(PLAN, read_checkpoint(TINY_CHECKPOINT), patience=2)
    with pytest.raises(EngineError, match="every process that scores ends") as caught:
        finish(engine, engine.submit(many(4)))
    engine.close()
    assert "RuntimeError: no such kernel" in caught.value.message
    assert "Traceback" in caught.value.__notes__[0]


def test_a_process_that_ends_while_it_loads_is_an_error_that_says_so(hurt: Callable[..., None]) -> None:
    hurt(at_start="os._exit(7)")
    with pytest.raises(EngineError, match="ended while it loaded the model: ended with exit code 7"):
        PoolEngine(PLAN, read_checkpoint(TINY_CHECKPOINT))


def test_a_device_that_cannot_be_used_again_is_left_out(hurt: Callable[..., None], tmp_path: Path) -> None:
    mark = tmp_path / "later"
    hurt(at_start=f"if os.path.exists({str(mark)!r}): os._exit(7)")
    notes: list[str] = []
    engine = PoolEngine(PLAN, read_checkpoint(TINY_CHECKPOINT), on_note=notes.append)
    try:
        mark.touch()
        pending = engine.submit(many(200))
        os.kill(engine._workers[0].process.pid, signal.SIGKILL)
        scores = finish(engine, pending)
        while len(notes) < 2:
            engine.wait(1.0)
    finally:
        engine.close()
    assert not np.isnan(scores.logits).any()
    assert notes[1].endswith("(ended with exit code 7): 1 of 2 engines go on")


def test_what_is_wrong_with_a_model_is_told_as_without_processes(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in TINY_CHECKPOINT.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    checkpoint = read_checkpoint(folder)
    missing = next(iter(checkpoint.tensors))
    tensors = {name: value for name, value in checkpoint.tensors.items() if name != missing}
    with pytest.raises(ModelError) as local:
        LocalEngine(PLAN, replace(checkpoint, tensors=tensors))
    with pytest.raises(ModelError) as pooled:
        PoolEngine(PLAN, replace(checkpoint, tensors=tensors))
    assert (pooled.value.message, pooled.value.hint) == (local.value.message, local.value.hint)


PARENT = """
import sys
from rerank_cli.checkpoint import read_checkpoint
from tests.unit.engine.test_pool import PLAN, TINY_CHECKPOINT, PoolEngine, many
engine = PoolEngine(PLAN, read_checkpoint(TINY_CHECKPOINT))
print(*(worker.process.pid for worker in engine._workers), flush=True)
engine.submit(many(100_000))
sys.stdin.read()
"""


def test_processes_end_with_the_one_that_started_them() -> None:
    workers = left_by(PARENT)
    assert len(workers) == 2
    wait_until(lambda: not alive(workers), "a worker outlives its parent")


@pytest.mark.skipif(not detect_cpu().has("vnni"), reason="this CPU does not multiply int8 in hardware (VNNI)")
def test_what_one_engine_has_calibrated_all_others_use() -> None:
    checkpoint, plan = read_checkpoint(TINY_CHECKPOINT), replace(PLAN, precision="int8")
    pairs, sample = many(150), many(40, seed=1)
    local = LocalEngine(plan, checkpoint)
    calibration = local.calibrate(sample)
    expected = local.score(pairs)
    pool = PoolEngine(plan, checkpoint)
    try:
        assert pool.needs_calibration
        assert pool.calibrate(sample) == calibration
        assert not pool.needs_calibration
        assert np.array_equal(finish(pool, pool.submit(pairs)).logits, expected)
        killed = pool._workers[0]
        killed.process.kill()  # the one in its place is told as well
        killed.process.wait()
        while pool._workers[0] is killed or not pool._workers[0].is_ready:
            pool.wait(1.0)
        assert np.array_equal(finish(pool, pool.submit(pairs)).logits, expected)
        exact = pool.score_exactly(pairs)
        pool.forget_exact()
    finally:
        pool.close()
    assert np.array_equal(exact, LocalEngine(PLAN, checkpoint).score(pairs))
    again = PoolEngine(plan, checkpoint, calibration)
    assert not again.needs_calibration
    logits = finish(again, again.submit(pairs)).logits
    again.close()
    assert np.array_equal(logits, expected)
