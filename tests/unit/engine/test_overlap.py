"""A device that computes behind the host: a `Transfer` whose copies arrive when the test says so."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rerank_cli.checkpoint import read_checkpoint
from rerank_cli.engine.local import LocalEngine
from rerank_cli.engine.worker import ForgetExact, Hand, Unit
from rerank_cli.errors import EngineError, StoppedError
from rerank_cli.job.stop import Stop
from rerank_cli.models.transfer import Arriving
from rerank_cli.planning.memory.pieces import AHEAD
from rerank_cli.planning.run_plan import Plan
from rerank_cli.records import EncodedPair
from tests.conftest import score_all
from tests.unit.encoding.test_embedding import CountingEmbedder, embedding_engine, pair
from tests.unit.engine.test_local import NATIVE, FakeModel, pairs_of
from tests.unit.engine.test_out_of_memory import Seeing, Small, with_images
from tests.unit.job.test_scoring_loop import Memory, lists

ILLEGAL = torch.AcceleratorError(
    "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be asynchronously reported"
)


class Late:
    """A tensor that arrives when its device has done so much; satisfies `Arriving`."""

    def __init__(self, device: Behind, number: int, tensor: torch.Tensor) -> None:
        self._device = device
        self._number = number
        self._tensor = tensor

    def is_there(self) -> bool:
        return self._device.has_done(self._number)

    def wait(self) -> torch.Tensor:
        while not self.is_there():
            assert not self._device.stopped, "the engine asks before it reads"
        return self._tensor


class Behind:
    """A device with a queue; satisfies `Transfer`. pace: batches it does between two questions, then one each.

    fault: what it answers from then on.
    """

    overlaps: ClassVar[bool] = True

    def __init__(self, pace: Iterable[int] = ()) -> None:
        self.pace = list(pace)
        self.stopped = False
        self.fault: Exception | None = None
        self.given = self.done = self.questions = 0

    def has_done(self, number: int) -> bool:
        self._ask()
        return number < self.done

    def has_room(self) -> bool:
        self._ask()
        return self.given - self.done < AHEAD

    def _ask(self) -> None:
        self.questions += 1
        if self.fault:
            raise self.fault
        if not self.stopped:
            self.done = min(self.given, self.done + (self.pace.pop(0) if self.pace else 1))

    def to_device(self, host: torch.Tensor) -> torch.Tensor:
        return host

    def to_host(self, there: torch.Tensor) -> Arriving:
        self.given += 1
        return Late(self, self.given - 1, there)


def engine(
    model: Any, device: Behind | None, *, budget: int = 100, precision: str = "fp16", **more: Any
) -> LocalEngine:
    plan: Any = SimpleNamespace(
        device="cpu",
        threads=torch.get_num_threads(),
        lanes=1,
        token_budget=budget,
        precision=precision,
        attention="runs",
    )
    return LocalEngine(plan, NATIVE, model=model, transfer=device, **more)


def test_scores_are_none_until_the_device_has_done_all_batches() -> None:
    device = Behind()
    device.stopped = True
    scorer = engine(FakeModel(), device, budget=30)
    pending = scorer.submit(pairs_of([10] * 9))
    scorer.wait(0.002)
    assert (device.given, pending.scores()) == (3, None)
    device.stopped = False
    scorer.wait(5.0)
    scores = pending.scores()
    assert scores is not None
    assert scores.logits.tolist() == list(range(9))


def test_a_second_part_is_handed_over_while_the_first_is_computed() -> None:
    device = Behind()
    device.stopped = True
    scorer = engine(FakeModel(), device, budget=30)
    first, second = (scorer.submit(pairs_of([10] * 6)) for _ in range(2))
    assert (scorer.depth, device.given) == (2, 4)
    device.stopped = False
    while second.scores() is None:
        before = first.scores()
        scorer.wait(5.0)
        assert first.scores() is not None or before is None, "parts are done in their order"


def test_the_host_is_so_many_batches_before_the_device_and_no_more() -> None:
    device = Behind()
    device.stopped = True
    scorer = engine(model := FakeModel(), device, budget=10)
    pending = scorer.submit(pairs_of([10] * 50))
    scorer.wait(0.002)
    assert len(model.batches) == AHEAD
    device.stopped = False
    while (scores := pending.scores()) is None:
        assert device.given - device.done <= AHEAD
        scorer.wait(5.0)
    assert scores.logits.tolist() == list(range(50))


def test_waiting_sleeps_between_its_questions_and_ends() -> None:
    device = Behind()
    device.stopped = True
    scorer = engine(FakeModel(), device)
    pending = scorer.submit(pairs_of([10]))
    asked = device.questions
    scorer.wait(0.05)
    assert pending.scores() is None
    assert device.questions - asked <= 105, "20,000 in a loop that spins"


def test_waiting_for_nothing_returns() -> None:
    engine(FakeModel(), Behind()).wait(1e9)


def test_a_device_that_overlaps_has_a_depth_of_two_and_others_of_one() -> None:
    assert (engine(FakeModel(), Behind()).depth, engine(FakeModel(), None).depth) == (2, 1)


class Odd(Small):
    """Some logits are no numbers, and large batches do not fit."""

    def forward(self, pairs: Any) -> torch.Tensor:
        logits = super().forward(pairs)
        return torch.where(logits % 5 == 3, torch.nan, logits)


@settings(max_examples=40, deadline=None)
@given(
    parts=st.lists(st.lists(st.integers(1, 60), max_size=30), min_size=1, max_size=4),
    pace=st.lists(st.integers(0, 3), max_size=60),
    room=st.sampled_from([25, 80, 1000]),
)
def test_logits_and_trouble_are_those_of_a_device_that_is_waited_for(parts: Any, pace: Any, room: int) -> None:
    sound, late = engine(Odd(room), None, exact=Small(1000)), engine(Odd(room), Behind(pace), exact=Small(1000))
    expected = [sound.submit(pairs_of(lengths)).scores() for lengths in parts]
    pending = [late.submit(pairs_of(lengths)) for lengths in parts]
    while any(one.scores() is None for one in pending):
        late.wait(5.0)
    for found, wanted in zip((one.scores() for one in pending), expected, strict=True):
        assert found is not None and wanted is not None
        assert np.array_equal(found.logits, wanted.logits, equal_nan=True)
        assert (found.trouble.failed, found.trouble.reruns) == (wanted.trouble.failed, wanted.trouble.reruns)
        assert (found.trouble.splits, found.trouble.computed) == (wanted.trouble.splits, wanted.trouble.computed)


@pytest.mark.parametrize("room", [0, 2, 100])
def test_images_are_seen_part_by_part_though_two_are_under_way(room: int) -> None:
    sound, late = engine(Seeing(room), None, budget=20), engine(Seeing(room), Behind([0] * 9), budget=20)
    parts = [with_images([0, 1, 2, None, 3, 4, 0]), with_images([7, None, 8])]
    pending = [late.submit(part) for part in parts]
    for part, one in zip(parts, pending, strict=True):
        while (found := one.scores()) is None:
            late.wait(5.0)
        assert np.array_equal(found.logits, sound.score(part), equal_nan=True)
        assert (found.trouble.failed.keys(), found.trouble.splits) == (
            sound.trouble.failed.keys(),
            sound.trouble.splits,
        )


def test_a_golden_model_has_the_same_bits(tiny: Any) -> None:
    checkpoint = read_checkpoint(tiny("bert"))
    plan = Plan(
        profile="p", kind="generic", device="cpu", precision="fp32", max_tokens=512, token_budget=64, window_pairs=512,
        attention="runs", threads=1, reasons=(),
    )  # fmt: skip
    before = torch.get_num_threads()
    try:
        logits = [LocalEngine(plan, checkpoint, transfer=device).score(_ids()) for device in (None, Behind([0, 3, 1]))]
    finally:
        torch.set_num_threads(before)
    assert logits[0].tobytes() == logits[1].tobytes()


def _ids() -> list[EncodedPair]:
    draw = np.random.default_rng(3)
    return [EncodedPair(draw.integers(5, 30, n, dtype=np.int32), n // 2, n) for n in (30, 40, 12, 9, 50, 3)]


# What goes wrong on the device


def test_a_fault_that_is_heard_of_later_ends_the_run_and_gives_no_number() -> None:
    device = Behind()
    device.stopped = True
    scorer = engine(FakeModel(), device)
    pending = scorer.submit(pairs_of([10] * 30))
    device.fault = ILLEGAL
    with pytest.raises(EngineError, match=r"^cpu: CUDA error: an illegal memory access was encountered$") as caught:
        scorer.wait(5.0)
    assert pending.scores() is None
    assert caught.value.__cause__ is ILLEGAL


def test_a_fault_at_a_launch_names_the_device_too() -> None:
    fault = RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`")
    with pytest.raises(EngineError, match="CUBLAS_STATUS_EXECUTION_FAILED"):
        engine(Small(0, fault), Behind()).submit(pairs_of([10]))


@pytest.mark.parametrize("device", [None, Behind()], ids=["direct", "behind"])
def test_a_part_that_is_interrupted_is_forgotten(device: Behind | None) -> None:
    class Interrupted(FakeModel):
        def forward(self, pairs: Any) -> torch.Tensor:
            if len(self.batches) == 1:
                self.batches.append([])
                raise KeyboardInterrupt
            return super().forward(pairs)

    scorer = engine(Interrupted(), device, budget=10)
    with pytest.raises(KeyboardInterrupt):
        scorer.score(pairs_of([10] * 4))
    assert scorer.score(pairs_of([10] * 3)).tolist() == [0, 1, 2]
    assert scorer.trouble.reruns == 0


@pytest.mark.parametrize(
    "fault",
    [
        torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
    ],
    ids=["cuda", "cublas", "triton"],
)
def test_memory_that_others_than_torchs_allocator_miss_cuts_batches_too(fault: Exception) -> None:
    scorer = engine(Small(30, fault), Behind())
    assert scorer.score(pairs_of([10] * 10)).tolist() == list(range(10))
    assert scorer.trouble.splits == 2


def test_vectors_are_the_same_if_the_device_computes_behind_the_host() -> None:
    device = Behind([0, 0, 0, 1, 0, 1])
    found, expected = (
        embedding_engine(token_budget=6, precision="fp32", model=CountingEmbedder(), transfer=transfer)
        for transfer in (device, None)
    )
    pairs = [pair([number, 1], [number + 1, 2]) for number in range(9)]
    assert found.score(pairs).tobytes() == expected.score(pairs).tobytes()
    assert found.take_fresh() == expected.take_fresh()


def test_a_fault_of_an_embedding_model_names_its_device() -> None:
    device = Behind()
    device.fault = ILLEGAL
    scorer = embedding_engine(token_budget=6, precision="fp32", model=CountingEmbedder(), transfer=device)
    with pytest.raises(EngineError, match="illegal memory access"):
        scorer.score([pair([1], [2])])


# A worker


def unit(number: int, *, alone: bool = False) -> Unit:
    return Unit.of(number, pairs_of([10] * 3), alone=alone)


def test_a_unit_gives_back_what_a_model_reads_of_its_pairs() -> None:
    sent = [
        EncodedPair(np.arange(6, dtype=np.int32), 3, 9, unpooled=2),
        EncodedPair(np.arange(4, dtype=np.int32), 4, 4),
    ]
    for one, found in zip(sent, Unit.of(0, sent).pairs(), strict=True):
        assert found.input_ids.tolist() == one.input_ids.tolist()
        assert (found.second_start, found.block, found.unpooled) == (one.second_start, one.block, one.unpooled)


def test_a_worker_begins_a_second_unit_and_answers_in_their_order() -> None:
    device, told = Behind(), list[Any]()
    device.stopped = True
    hand = Hand(engine(FakeModel(), device), told.append)
    hand.take(unit(1))
    assert len(hand.under_way) == 1
    hand.take(unit(2))
    hand.go_on()
    assert (len(hand.under_way), device.given, told) == (2, 2, [])
    device.stopped = False
    while hand.under_way:
        hand.go_on()
    assert [answer.number for answer in told] == [1, 2]
    assert [answer.logits.tolist() for answer in told] == [[0, 1, 2]] * 2


def test_a_unit_that_is_alone_is_begun_after_the_others_and_done_before_the_next() -> None:
    device, told = Behind(), list[Any]()
    hand = Hand(engine(FakeModel(), device), told.append)
    hand.take(unit(1))
    hand.take(unit(2, alone=True))
    assert [answer.number for answer in told] == [1, 2]
    assert not hand.under_way


def test_what_else_a_worker_is_asked_waits_for_its_units() -> None:
    device, told = Behind(), list[Any]()
    hand = Hand(engine(FakeModel(), device, exact=Small(1000)), told.append)
    hand.take(unit(1))
    hand.take(Unit.of(2, pairs_of([10]), exact=True))
    hand.take(ForgetExact())
    assert [answer.number for answer in told] == [1, 2]


def test_a_fault_reaches_the_worker_and_no_unit_is_answered() -> None:
    device, told = Behind(), list[Any]()
    device.stopped = True
    hand = Hand(engine(FakeModel(), device), told.append)
    hand.take(unit(1))
    device.fault = ILLEGAL
    with pytest.raises(EngineError):
        hand.go_on()
    assert told == []


# A run


def score_on(device: Behind | None, memory: Any, items: Any, **more: Any) -> None:
    # The logit of a pair is its first token, the query's only word, so all lists have logits of their own.
    scorer = engine(FakeModel(), device, budget=4)
    score_all(iter(items), engine=scorer, sink=memory, on_error=memory.errors.append, **more)


@settings(max_examples=15, deadline=None)
@given(pace=st.lists(st.integers(0, 3), max_size=60))
def test_a_run_over_a_device_that_is_behind_writes_what_one_that_is_not_writes(pace: list[int]) -> None:
    items = [item for number in range(9) for item in lists(["a b", "c", "d e f"], query=f"query{number}")]
    found, expected = Memory(), Memory()
    score_on(Behind(pace), found, items, window_pairs=6)
    score_on(None, expected, items, window_pairs=6)
    assert found.ranked == expected.ranked
    assert found.windows == expected.windows


class Lagging(Behind):
    """It has always four batches to do, until it has been given none for long."""

    def _ask(self) -> None:
        self.questions = 0 if self.given != self.last else self.questions + 1
        self.last = self.given
        self.done = max(self.done, self.given if self.questions > 300 else self.given - 4)

    last = 0


def test_while_a_window_is_written_the_device_has_the_next() -> None:
    device = Lagging()

    class Watching(Memory):
        under_way: ClassVar[list[int]] = []

        def write(self, ranked: Any) -> int:
            self.under_way.append(device.given - device.done)
            return super().write(ranked)

    items = [item for number in range(40) for item in lists(["a b c"], query=f"query{number}")]
    memory = Watching()
    score_on(device, memory, items)
    assert len(memory.under_way) == 10
    assert max(memory.under_way) > 0


def test_a_deadline_is_heard_while_the_device_is_waited_for() -> None:
    device, stop = Behind(), Stop()
    device.stopped = True
    memory = Memory()
    with pytest.raises(StoppedError, match="deadline"), stop.listening(0.2):
        score_on(device, memory, lists(["a"]), stop=stop)
    assert memory.windows == []
