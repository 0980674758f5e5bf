"""What is said of a run as a whole."""

from __future__ import annotations

import pytest

from rerank_cli.job.totals import warn_of_reruns
from rerank_cli.records import Counts


@pytest.mark.parametrize(
    ("again", "precision", "told"),
    [
        (0, "fp16", None), (10, "fp16", None),
        (11, "fp16", "warning: 11 of 1,000 results in fp16 were no numbers and were computed again in fp32; "
                     "`--precision bf16` has the range of fp32"),
        (1000, "bf16", "warning: 1,000 of 1,000 results in bf16 were no numbers and were computed again in fp32"),
    ],
)  # fmt: skip
def test_many_results_that_were_computed_twice_are_told(again: int, precision: str, told: str | None) -> None:
    said: list[str] = []
    warn_of_reruns(Counts(pairs_scored=1000, fp32_reruns=again), precision, said.append)
    warn_of_reruns(Counts(), precision, said.append)
    assert said == ([told] if told else [])
