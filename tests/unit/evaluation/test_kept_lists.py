"""What is kept is what was given, however it is packed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_cli.evaluation import kept_lists
from rerank_cli.evaluation.kept_lists import UNJUDGED, KeptLists, KeptValues, SystemList

GRADES = st.sampled_from([UNJUDGED, UNJUDGED + 1, -40_000, -129, -128, -1, 0, 1, 3, 127, 128, 32_767, 2**31 - 1])


@given(
    grades=st.lists(st.lists(GRADES, max_size=4), max_size=9),
    has_places=st.booleans(),
    has_scores=st.booleans(),
    in_block=st.integers(1, 4),
)
def test_lists_are_kept_as_they_are(grades, has_places, has_scores, in_block):
    lists = [
        SystemList(
            ids=np.arange(len(each), dtype=np.uint64) + np.uint64(2**64 - 9),
            grades=np.array(each, dtype=np.int32),
            places=np.arange(len(each), dtype=np.int32) * 20_000 if has_places else None,
            scores=np.linspace(0.1, 0.7, len(each)) if has_scores and each else None,
        )
        for each in grades
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kept_lists, "_LISTS_IN_BLOCK", in_block)
        kept = KeptLists()
        for number, one in enumerate(lists):
            kept.add(f"q{number}", one)
        assert [*kept] == [f"q{number}" for number in range(len(lists))]
        assert kept.have_relevant() == any(grade > 0 for each in grades for grade in each)
        for found, one in zip(kept.values(), lists, strict=True):
            for name in ("ids", "grades", "places", "scores") if len(one.ids) else ("ids", "grades"):
                np.testing.assert_array_equal(getattr(found, name), getattr(one, name), strict=True)


def test_values_are_kept_beside_what_has_none():
    numbers = {}
    kept = KeptValues(numbers)
    for query, values in [("a", [0.1, None]), ("b", None), ("c", [1 / 3, 0.0])]:
        numbers[query] = len(numbers)
        kept.append(values, 2)
    numbers["d"] = 3  # a list whose values are not there yet
    assert dict(kept.items()) == {"a": [0.1, None], "c": [1 / 3, 0.0]}
    assert len(kept) == 2
    assert kept.get("b") is None
    assert "d" not in kept
