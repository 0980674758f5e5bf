"""The time on a card that nobody has here: against the figures of the review of the CUDA code, and what must hold."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rerank_cli.machine.gpu_names import CARDS, find_card, speed_of
from rerank_cli.planning.hours import PairLengths, PairTime, pair_time, show_time, why_no_time
from rerank_cli.planning.memory import ModelShape

H100 = speed_of("NVIDIA-H100-80GB-HBM3")
MINI_LM = ModelShape(
    forward="bert", architecture="BertForSequenceClassification", hidden=384, intermediate=1536, layers=6, heads=12,
    kv_heads=12, head_size=32, vocabulary=30522,
)  # fmt: skip
XLM_R_LARGE = ModelShape(
    forward="roberta", architecture="XLMRobertaForSequenceClassification", hidden=1024, intermediate=4096, layers=24,
    heads=16, kv_heads=16, head_size=64, vocabulary=250002,
)  # fmt: skip
LLAMA_1B = ModelShape(
    forward="llama", architecture="LlamaBidirectionalForSequenceClassification", hidden=2048, intermediate=8192,
    layers=16, heads=32, kv_heads=8, head_size=64, vocabulary=128256,
)  # fmt: skip
L12 = replace(MINI_LM, layers=12)

# Pairs a second of the device alone, one H100: the review of the CUDA code of 28 November 2026, reckoned from a matrix
# product and a copy measured on such a card. No speed of this program has been published or measured on a GPU.
OF_THE_DEVICE = [
    (L12, "fp16", 512, 8900), (XLM_R_LARGE, "fp16", 128, 5400), (XLM_R_LARGE, "fp16", 512, 1300),
    (XLM_R_LARGE, "fp16", 2048, 250), (XLM_R_LARGE, "fp16", 8192, 32), (LLAMA_1B, "bf16", 128, 1950),
    (LLAMA_1B, "bf16", 512, 480), (LLAMA_1B, "bf16", 2048, 104), (LLAMA_1B, "bf16", 8192, 17),
    (LLAMA_1B, "fp8", 512, 620), (LLAMA_1B, "fp8", 2048, 125), (LLAMA_1B, "fp8", 8192, 18.5),
]  # fmt: skip
# With the host, at the mean length of Natural Questions (150 to 180 tokens), beside what sentence-transformers is
# published to reach on one H100 (the blog of ettin-reranker), which all of them must beat.
OF_A_RUN = [(MINI_LM, 10_000, 14_000, 3_817), (XLM_R_LARGE, 3_900, 4_600, 1_569), (LLAMA_1B, 1_400, 1_650, 928)]


def _speed(shape: ModelShape, precision: str, tokens: int) -> float:
    time = pair_time(shape, PairLengths.of(1000, tokens), H100, precision=precision)
    assert time is not None
    return 1000 / time.seconds


def test_four_of_five_figures_are_met_within_a_quarter() -> None:
    off = [abs(_speed(shape, precision, tokens) / expected - 1) for shape, precision, tokens, expected in OF_THE_DEVICE]
    assert sum(one <= 0.25 for one in off) >= 0.8 * len(off)
    assert max(off) < 0.15  # what the docstring says, with FP8


@pytest.mark.parametrize(("shape", "least", "most", "published"), OF_A_RUN)
def test_a_run_is_as_fast_as_reckoned_and_faster_than_what_others_have_published(
    shape: ModelShape, least: float, most: float, published: float
) -> None:
    found = _speed(shape, "bf16", 165)
    assert 0.75 * least <= found <= 1.25 * most
    assert found > published


def test_more_tokens_more_layers_and_a_slower_card_take_longer() -> None:
    def seconds(shape: ModelShape = XLM_R_LARGE, tokens: int = 256, card: str = "H100", engines: int = 1) -> float:
        lengths = PairLengths.of(10_000, tokens)
        time = pair_time(shape, lengths, speed_of(card), precision="fp16", engines=engines)
        assert time is not None
        return time.seconds

    assert seconds(tokens=512) > 2 * seconds(tokens=256)  # attention grows with the square
    assert seconds(replace(XLM_R_LARGE, layers=48)) > 1.9 * seconds()
    assert seconds(card="L4") > 3 * seconds(card="H100")
    assert seconds(engines=4) == pytest.approx(seconds() / 4)


def test_lengths_count_one_by_one_and_are_cut() -> None:
    assert PairLengths.all_of([10, 600], 512) == PairLengths(2, 522, 100 + 512**2)
    assert PairLengths.of(3, 10) == PairLengths.all_of([10, 10, 10], 512)


def test_a_small_model_on_a_fast_card_waits_for_the_host() -> None:
    time = pair_time(MINI_LM, PairLengths.of(1000, 100), H100, precision="fp16")
    assert time is not None
    assert time.limit == "host"


@pytest.mark.parametrize(
    ("shape", "card", "precision"),
    [(MINI_LM, None, "fp16"), (replace(MINI_LM, forward="padded"), H100, "fp16"), (MINI_LM, H100, "fp32")],
)
def test_what_is_not_known_is_not_guessed(shape: ModelShape, card: object, precision: str) -> None:
    assert pair_time(shape, PairLengths.of(1, 10), card, precision=precision) is None  # type: ignore[arg-type]


def test_local_layers_of_modernbert_see_their_window_alone() -> None:
    modern = replace(XLM_R_LARGE, forward="modernbert", window=64)
    long = PairLengths.of(10, 8192)
    local, full = (pair_time(one, long, H100, precision="fp16") for one in (modern, replace(modern, window=None)))
    assert local is not None and full is not None
    assert local.seconds < 0.7 * full.seconds


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(1.0, "0.7 to 1.6 s"), (300.0, "3.5 to 8 min"), (7200.0, "1.4 to 3.2 h"), (86400.0 * 9, "6.3 to 14 days")],
)
def test_a_time_is_shown_as_an_interval_in_one_unit(seconds: float, shown: str) -> None:
    time = PairTime(seconds, "products")
    assert show_time(time.low, time.high) == shown


def test_a_card_is_found_by_each_of_its_names_and_speeds_are_plausible() -> None:
    for card in CARDS:
        assert find_card(card.name) == find_card(card.full_name.replace(" ", "-")) == card
        if card.speed is not None:
            assert 20 <= card.speed.tflops <= 2500
            assert 100 <= card.speed.gigabytes_per_second <= 8000


def test_what_has_no_time_has_a_reason() -> None:
    assert why_no_time(L12, H100, precision="fp16") is None
    for shape, speed, precision, said in [
        (L12, None, "fp16", "no published peak"), (L12, H100, "fp32", "not to fp32"),
        (replace(L12, forward="padded"), H100, "fp16", "padded"),
    ]:  # fmt: skip
        assert pair_time(shape, PairLengths.of(1000, 200), speed, precision=precision) is None
        assert said in (why_no_time(shape, speed, precision=precision) or "")
    assert "vision tower" in (why_no_time(L12, H100, precision="fp16", images=True) or "")
