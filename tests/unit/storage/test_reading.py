"""An object is read as a file is: what is asked for comes whole, from wherever, in whatever order."""

from __future__ import annotations

import io
import random

import pytest

from rerank_cli.storage.reading import ObjectReader
from tests.stores import Bucket

SIZE = 1_500_000  # more than a start and an end that are kept


@pytest.fixture
def data() -> bytes:
    return random.Random(1).randbytes(SIZE)


def test_any_range_comes_whole(bucket: Bucket, data: bytes) -> None:
    chance = random.Random(2)
    with ObjectReader(bucket.put("a", data)) as reader:
        for _ in range(60):
            begin = chance.choice([0, 4, SIZE // 2, SIZE - 8, reader.tell(), chance.randrange(SIZE)])
            wanted = chance.choice([1, 8, 70_000, 300_000, SIZE])
            reader.seek(begin)
            assert reader.read(wanted) == data[begin : begin + wanted], (begin, wanted)
            assert reader.tell() == min(SIZE, begin + wanted)


@pytest.mark.parametrize("step", [1000, 65_536, 400_000])
def test_steps_from_front_to_back_are_the_object(bucket: Bucket, data: bytes, step: int) -> None:
    with io.BufferedReader(ObjectReader(bucket.put("a", data)), 1 << 16) as reader:
        assert b"".join(iter(lambda: reader.read(step), b"")) == data
