from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rerank_cli.models.packed import Run, pack
from rerank_cli.records import EncodedPair

CPU = torch.device("cpu")


def pair(*ids: int, second: int | None = None) -> EncodedPair:
    return EncodedPair(
        input_ids=np.array(ids, dtype=np.int32), second_start=len(ids) if second is None else second, tokens=len(ids)
    )


def of_length(length: int) -> EncodedPair:
    return pair(*range(1, length + 1))


def test_pairs_stand_one_after_another_with_their_own_positions_and_types():
    batch = pack([pair(11, 12, 13, 14, second=3), pair(21, 22, second=1), pair(31, 32)], device=CPU)
    n = batch.tokens
    assert n == 8
    assert batch.input_ids[:n].tolist() == [11, 12, 13, 14, 21, 22, 31, 32]
    assert batch.positions[:n].tolist() == [0, 1, 2, 3, 0, 1, 0, 1]
    assert batch.token_types[:n].tolist() == [0, 0, 0, 1, 0, 1, 0, 0]
    assert batch.starts[:3].tolist() == [0, 4, 6]
    assert batch.cumulative.tolist() == [0, 4, 6, 8]
    assert (batch.lengths, batch.longest) == ((4, 2, 2), 4)
    assert batch.runs == (Run(start=0, count=1, length=4), Run(start=4, count=2, length=2))


def test_tensors_have_the_types_that_lookups_and_kernels_want():
    batch = pack([of_length(3)], device=CPU)
    assert {batch.input_ids.dtype, batch.positions.dtype, batch.token_types.dtype, batch.starts.dtype} == {torch.int64}
    assert batch.cumulative.dtype == torch.int32


def test_the_whole_batch_travels_as_one_buffer():
    batch = pack([of_length(5), of_length(3)], device=CPU)
    parts = [batch.input_ids, batch.token_types, batch.positions, batch.starts]
    assert len({part.untyped_storage().data_ptr() for part in parts}) == 1


def test_filler_is_zeros_so_that_no_lookup_can_fail():
    batch = pack([of_length(17)], device=CPU)
    filler = slice(batch.tokens, None)
    assert len(batch.input_ids) > batch.tokens
    for part in (batch.input_ids, batch.token_types, batch.positions):
        assert not part[filler].any()
    assert not batch.starts[1:].any()


@pytest.mark.parametrize(
    ("tokens", "rows"), [(1, 16), (16, 16), (17, 32), (512, 512), (513, 640), (1024, 1024), (2047, 2048), (2049, 2304)]
)
def test_rows_are_rounded_up(tokens, rows):
    assert len(pack([of_length(tokens)], device=CPU).input_ids) == rows


def test_few_different_numbers_of_rows_come_out_of_many_lengths():
    # oneDNN compiles a kernel for each of them and keeps it.
    seen = {len(pack([of_length(tokens)], device=CPU).input_ids) for tokens in range(1, 2049, 3)}
    assert len(seen) <= 24
    pairs = [of_length(2)] * 300
    assert len({len(pack(pairs[:count], device=CPU).starts) for count in range(1, 301)}) <= 24


LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=30)


@given(lengths=LENGTHS)
def test_runs_cover_every_pair_once_in_order(lengths):
    batch = pack([of_length(length) for length in lengths], device=CPU)
    assert [run.length for run in batch.runs for _ in range(run.count)] == lengths
    position = 0
    for run in batch.runs:
        assert run.start == position
        position += run.count * run.length
    assert position == batch.tokens == sum(lengths)
    assert all(a.length != b.length for a, b in zip(batch.runs, batch.runs[1:], strict=False))


@given(lengths=LENGTHS)
def test_each_pair_can_be_cut_out_again(lengths):
    pairs = [
        pair(*range(100 * place, 100 * place + length), second=length // 2) for place, length in enumerate(lengths)
    ]
    batch = pack(pairs, device=CPU)
    bounds = batch.cumulative.tolist()
    for source, begin, end in zip(pairs, bounds, bounds[1:], strict=False):
        assert batch.input_ids[begin:end].tolist() == source.input_ids.tolist()
        assert batch.positions[begin:end].tolist() == list(range(end - begin))
        assert int(batch.token_types[begin:end].sum()) == len(source.input_ids) - source.second_start
    assert batch.starts[: len(pairs)].tolist() == bounds[:-1]
