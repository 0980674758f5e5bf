"""The closed forms by themselves: known shapes, and that they never fall. Against the code: tests/memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_cli.planning.memory import BatchSize, Execution, ModelShape, peak
from rerank_cli.planning.memory.peak import _attention_workspace, tower_peak
from rerank_cli.planning.memory.pieces import CHUNK
from rerank_cli.planning.memory.shape import VisionShape

BERT = ModelShape("bert", "BertForSequenceClassification", 384, 1536, 12, 12, 12, 32, 30522, 512, 2)
LLAMA = ModelShape("llama", "LlamaBidirectionalForSequenceClassification", 2048, 8192, 16, 32, 8, 64, 128256)
MODERNBERT = ModelShape(
    "modernbert", "ModernBertForSequenceClassification", 768, 1152, 22, 12, 12, 64, 50368, rotary_kinds=2, window=64
)
PADDED = ModelShape("padded", "DebertaV2ForSequenceClassification", 768, 3072, 12, 12, 12, 64, 128100, 512, 0)
SHAPES = [BERT, LLAMA, MODERNBERT, PADDED]
WAYS = [
    Execution(),
    Execution(element=4, repeats_heads=True),
    Execution(element=4, fused=True, threads=8),
    Execution(fused=True, products=True, threads=8),
]


def peak_of(shape: ModelShape, pairs: int, length: int, how: Execution) -> int:
    return peak(shape, BatchSize.of_runs([(pairs, length)]), how).total


@given(
    shape=st.sampled_from(SHAPES),
    how=st.sampled_from(WAYS),
    pairs=st.integers(1, 200),
    length=st.integers(1, 8192),
    more_pairs=st.integers(0, 50),
    more_length=st.integers(0, 600),
)
def test_the_peak_never_falls_when_batch_or_length_grow(
    shape: ModelShape, how: Execution, pairs: int, length: int, more_pairs: int, more_length: int
) -> None:
    least = peak_of(shape, pairs, length, how)
    assert peak_of(shape, pairs + more_pairs, length + more_length, how) >= least


@given(how=st.sampled_from(WAYS), pairs=st.integers(1, 100), length=st.integers(8, 8192))
def test_a_token_budget_is_never_less_than_a_batch_within_it(how: Execution, pairs: int, length: int) -> None:
    budget = BatchSize.within(pairs * length, length)
    for shape in SHAPES:
        assert peak(shape, budget, how).total >= peak_of(shape, pairs, length, how)


@pytest.mark.parametrize(
    ("shape", "per_token"),
    [
        (BERT, 2 * (2 * 384 + 2 * 1536) + 24),
        (LLAMA, 2 * (2048 + 3 * 2048 + 2 * 512) + 4 * 32 + 8 * 32 + 24),
        (MODERNBERT, 2 * 6 * 768 + 4 * 12 + 2 * 4 * 64 + 24),
    ],
    ids=["bert", "llama", "modernbert"],
)
def test_a_large_batch_costs_so_much_a_token(shape: ModelShape, per_token: int) -> None:
    first, second = (peak_of(shape, pairs, 1024, Execution()) for pairs in (64, 128))
    assert (second - first) / (64 * 1024) == pytest.approx(per_token, abs=0.1)


def test_a_fused_activation_saves_one_wide_tensor_and_costs_the_output() -> None:
    plain, fused = (peak_of(BERT, 4, 512, Execution(element=4, fused=fused)) for fused in (False, True))
    assert plain - fused == 4 * 2048 * (1536 - 384)


def test_llamas_mlp_takes_a_chunk_at_a_time() -> None:
    short, long = peak_of(LLAMA, 1, CHUNK, Execution()), peak_of(LLAMA, 1, 2 * CHUNK, Execution())
    assert long < 2 * short


def test_repeated_heads_cost_keys_and_values_as_wide_as_the_queries() -> None:
    batch = BatchSize.of_runs([(64, 1024)])
    shared, repeated = (
        peak(LLAMA, batch, Execution(repeats_heads=repeats)).attention_workspace for repeats in (False, True)
    )
    assert repeated - shared == 2 * 2 * 2048 * 64 * 1024


def test_scores_of_matrix_products_grow_with_the_square_up_to_512_tokens() -> None:
    how = Execution(products=True, threads=2)
    scores = [_attention_workspace(BERT, BatchSize.of_runs([(8, n)]), how) for n in (256, 512, 1024)]
    # Twice the tokens: all else doubles, 12 heads of 16-bit scores of one pair quadruple.
    assert scores[1] - 2 * scores[0] == 2 * 12 * (512**2 - 2 * 256**2)
    # From 512 tokens on the kernel keeps no more of them; a sum of the softmax a token and head is added.
    assert scores[2] - scores[1] == 4 * 12 * 8 * 512


def test_only_the_largest_run_is_attended_to_at_a_time() -> None:
    one, two = BatchSize.of([8000, 8000]), BatchSize.of([8001, 7999])
    assert (one.tokens, one.rows) == (two.tokens, two.rows)
    assert (one.run_tokens, two.run_tokens) == (16000, 8001)
    how = Execution(repeats_heads=True)
    assert peak(LLAMA, two, how).total < peak(LLAMA, one, how).total


def test_the_tower_sees_8_tiles_at_a_time_and_needs_6_hidden_rows_a_patch() -> None:
    vision = VisionShape(1152, 4304, 27, 16, 16, 512, 256, 6, 0)
    assert vision.patches == 1024
    assert tower_peak(vision, 7, Execution()) == 7 * 1024 * (6 * 1152 * 2 + 4 * 16) + 7 * 3 * 512 * 512
    assert tower_peak(vision, 8, Execution()) == tower_peak(vision, 80, Execution())
    assert [vision.tiles(most) for most in (1, 2, None)] == [1, 3, 7]
