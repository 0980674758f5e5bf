"""Memory that runs out and results that are no numbers: no score is lost and none is invented."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from rerank_cli.engine.batching import FittingBatches, load_where_it_fits
from rerank_cli.engine.local import LocalEngine
from rerank_cli.engine.protocols import Trouble
from rerank_cli.records import CandidateList, EncodedPair
from tests.unit.encoding.test_embedding import CountingEmbedder, embedding_engine, pair
from tests.unit.engine.test_local import NATIVE, pairs_of

FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


class Small:
    """A model whose batches may hold `room` tokens; more raise what torch raises. The logit is the first token id."""

    kernels = "small"

    def __init__(self, room: float, fault: Exception = FULL) -> None:
        self.room = room
        self.fault = fault
        self.sizes: list[int] = []

    def forward(self, pairs: Any) -> torch.Tensor:
        self.sizes.append(sum(len(pair.input_ids) for pair in pairs))
        if self.sizes[-1] > self.room:
            raise self.fault
        return torch.tensor([float(pair.input_ids[0]) for pair in pairs])


class Unlucky(Small):
    """A model of which one batch in twenty finds no memory, whatever its size."""

    def __init__(self) -> None:
        super().__init__(float("inf"))
        self._luck = random.Random(5)

    def forward(self, pairs: Any) -> torch.Tensor:
        self.room = 0 if self._luck.random() < 0.05 and len(pairs) > 1 else float("inf")
        return super().forward(pairs)


def engine(
    model: Any, *, budget: int = 100, precision: str = "fp16", checkpoint: Any = NATIVE, **more: Any
) -> LocalEngine:
    plan: Any = SimpleNamespace(
        device="cpu",
        threads=torch.get_num_threads(),
        lanes=1,
        token_budget=budget,
        precision=precision,
        attention="runs",
    )
    return LocalEngine(plan, checkpoint, model=model, **more)


@pytest.mark.parametrize(
    "fault",
    [
        FULL,
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:119] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"
        ),
    ],
    ids=["cuda", "python", "cpu"],
)
def test_a_batch_that_does_not_fit_is_computed_in_halves(fault: Exception) -> None:
    model = Small(room=30, fault=fault)
    scorer = engine(model)
    assert scorer.score(pairs_of([10] * 10)).tolist() == list(range(10))
    assert scorer.trouble.splits == 2
    assert scorer.trouble.failed == {}
    assert model.sizes == [100, 50, 20, 10, 20, 20, 10, 20]  # 30 is over the budget that 50 has left


def test_any_other_fault_is_none_of_memory() -> None:
    with pytest.raises(RuntimeError, match="shape"):
        engine(Small(0, RuntimeError("shape mismatch"))).score(pairs_of([10]))


def test_a_pair_that_does_not_fit_alone_has_a_problem_and_no_score() -> None:
    scorer = engine(Small(room=30))
    logits = scorer.score(pairs_of([10, 40, 20]))
    assert np.isnan(logits[1])
    assert logits[[0, 2]].tolist() == [0, 2]
    assert [(place, problem.code) for place, problem in scorer.trouble.failed.items()] == [(1, "out-of-memory")]
    assert "40 tokens" in scorer.trouble.failed[1].message
    assert scorer.score(pairs_of([10])).tolist() == [0]
    assert scorer.trouble.failed == {}, "trouble is that of the last call"


def test_the_smaller_budget_is_remembered_and_grows_again() -> None:
    model = Small(room=30)
    scorer = engine(model)
    scorer.score(pairs_of([10] * 10))
    model.sizes.clear()
    scorer.score(pairs_of([10] * 10))
    assert max(model.sizes) <= 30, "what did not fit is not tried again at once"
    model.room = 100
    for _ in range(60):
        scorer.score(pairs_of([10] * 10))
    assert model.sizes[-1] == 100, "the memory is there again"


def test_a_padded_model_is_cut_by_what_it_pays_for() -> None:
    batches, trouble = FittingBatches(100, padded=True), Trouble()
    tried = []

    def compute(batch: list[int]) -> int:
        tried.append(batch)
        if len(batch) * 40 > 60:
            raise FULL
        return len(batch)

    assert [batch for batch, _ in batches.run([40, 10, 10], compute, trouble)] == [[0], [1], [2]]
    assert batches.tokens == 40


@pytest.mark.parametrize(("padded", "budget", "computed"), [(True, 120, 3 * 40 + 10), (False, 60, 64 + 32)])
def test_what_only_fills_batches_up_is_counted(padded: bool, budget: int, computed: int) -> None:
    batches, trouble = FittingBatches(budget, padded=padded), Trouble()
    made = list(batches.run([40, 10, 10, 20], len, trouble))
    assert sorted(place for batch, _ in made for place in batch) == [0, 1, 2, 3]
    assert trouble.computed == computed


def test_ten_thousand_pairs_have_their_scores_though_memory_runs_out_again_and_again() -> None:
    lengths = [1 + (7 * number) % 90 for number in range(10_000)]
    scorer = engine(Unlucky(), budget=2000)
    splits = 0
    for start in range(0, len(lengths), 500):
        pairs = pairs_of(lengths)[start : start + 500]
        assert scorer.score(pairs).tolist() == list(range(start, start + 500))
        splits += scorer.trouble.splits
    assert splits > 10


def test_what_is_no_number_is_computed_again_in_fp32() -> None:
    class Overflowing(Small):
        def forward(self, pairs: Any) -> torch.Tensor:
            return torch.tensor([(float("nan"), float("inf"), 5.0)[int(pair.input_ids[0]) % 3] for pair in pairs])

    exact = Small(room=100)
    scorer = engine(Overflowing(0), exact=exact)
    assert scorer.score(pairs_of([10] * 6)).tolist() == [0, 1, 5, 3, 4, 5]
    assert (scorer.trouble.reruns, exact.sizes) == (4, [40])


def test_what_is_no_number_in_fp32_stays_none() -> None:
    class Broken(Small):
        def forward(self, pairs: Any) -> torch.Tensor:
            return torch.full((len(pairs),), float("nan"))

    scorer = engine(Broken(0), precision="fp32")
    assert np.isnan(scorer.score(pairs_of([10, 20]))).all()
    assert scorer.trouble.reruns == 0
    again = engine(Broken(0), exact=Broken(0))
    assert np.isnan(again.score(pairs_of([10, 20]))).all()
    assert again.trouble.reruns == 2


class Seeing(Small):
    """A model whose tower holds so many images at a time."""

    def __init__(self, images: int) -> None:
        super().__init__(room=1000)
        self.images = images
        self.seen: set[int] = set()

    def see(self, pairs: Any) -> None:
        self.seen = {pair.block.image for pair in pairs if pair.block}
        if len(self.seen) > self.images:
            raise FULL

    def forward(self, pairs: Any) -> torch.Tensor:
        assert {pair.block.image for pair in pairs if pair.block} <= self.seen
        return super().forward(pairs)


def with_images(images: list[int | None]) -> list[EncodedPair]:
    made = []
    for found, image in zip(pairs_of([10] * len(images)), images, strict=True):
        block: Any = None if image is None else SimpleNamespace(image=image)
        made.append(EncodedPair(found.input_ids, found.second_start, found.tokens, block))
    return made


def test_images_that_do_not_fit_are_seen_in_halves() -> None:
    scorer = engine(Seeing(images=2))
    assert scorer.score(with_images([0, 1, 2, None, 3, 4, 0])).tolist() == list(range(7))
    assert scorer.trouble.splits == 2


def test_an_image_that_does_not_fit_alone_takes_its_pairs_with_it() -> None:
    scorer = engine(Seeing(images=0))
    logits = scorer.score(with_images([0, None, 0]))
    assert logits[1] == 1
    assert sorted(scorer.trouble.failed) == [0, 2]
    assert "the image alone" in scorer.trouble.failed[0].message


# Embedding


class SmallEmbedder(CountingEmbedder):
    """Texts of up to three tokens fit, and id 9 overflows."""

    def forward(self, texts: Any) -> torch.Tensor:
        if sum(len(text.input_ids) for text in texts) > 3:
            raise FULL
        vectors = super().forward(texts)
        vectors[[9 in text.input_ids for text in texts]] = float("inf")
        return vectors


def test_texts_that_do_not_fit_together_are_embedded_in_halves() -> None:
    embedder = embedding_engine(token_budget=50, precision="fp16", model=SmallEmbedder())
    found = embedder.score([pair([0, 1], [0, 1, 1]), pair([0], [0, 0])])
    assert found.tolist() == pytest.approx([3 / 10**0.5, 1.0])
    assert embedder.trouble.splits > 0


def test_a_text_that_does_not_fit_alone_takes_its_pairs_with_it() -> None:
    embedder = embedding_engine(token_budget=50, precision="fp16", model=SmallEmbedder())
    found = embedder.score([pair([0], [0, 0]), pair([1], [0, 1, 2, 3]), pair([0], [0, 1, 2, 3])])
    assert found[0] == pytest.approx(1.0)
    assert np.isnan(found[1:]).all()
    assert {place: problem.code for place, problem in embedder.trouble.failed.items()} == {
        1: "out-of-memory",
        2: "out-of-memory",
    }


def test_a_vector_of_no_numbers_is_computed_again_in_fp32() -> None:
    embedder = embedding_engine(token_budget=50, precision="fp16", model=SmallEmbedder(), exact=CountingEmbedder())
    assert embedder.score([pair([9], [1])]).tolist() == pytest.approx([1.0])
    assert embedder.trouble.reruns == 1


# The pipeline


def test_a_row_without_memory_is_a_bad_row_and_the_report_counts_the_trouble() -> None:
    from rerank_cli.encoding.encoder import EncodingProblem
    from rerank_cli.formats.shapes import FieldNames, PairShape
    from tests.conftest import FakeEngine, json_rows, score_all

    class Troubled(FakeEngine):
        def score(self, pairs: Any, **options: Any) -> Any:
            self.trouble = Trouble({1: EncodingProblem("out-of-memory", "it does not fit")}, splits=3, reruns=2)
            return super().score(pairs, **options)

    rows = json_rows(*({"query": "a", "passage": text} for text in ("a", "b", "a b")))
    written: list[Any] = []
    errors: list[Any] = []
    sink: Any = SimpleNamespace(write=lambda ranked: written.extend(ranked) or len(ranked))
    items = PairShape(FieldNames()).group(rows)
    found = score_all(items, window_pairs=10, engine=Troubled(), sink=sink, on_error=errors.append)
    assert [(error.row, error.code) for error in errors] == [(2, "out-of-memory")]
    assert [item.source.rows[0].number for item in written if isinstance(item.source, CandidateList)] == [1, 3]
    assert (found.counts.out_of_memory_splits, found.counts.fp32_reruns) == (3, 2)


def test_a_model_without_room_on_its_device_is_loaded_on_the_cpu_and_it_is_said() -> None:
    def load(device: str) -> str:
        if device != "cpu":
            raise torch.OutOfMemoryError
        return f"on {device}"

    assert load_where_it_fits(load, "cpu") == ("on cpu", "")
    told = "; fp32 reruns on the CPU, as cuda:0 has no room for them"
    assert load_where_it_fits(load, "cuda:0") == ("on cpu", told)
