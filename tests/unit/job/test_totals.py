"""What is said of a run as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from rerank_cli.engine.protocols import Trouble
from rerank_cli.formats.shapes import FieldNames, PairShape
from rerank_cli.job.scoring_loop import score_windows
from rerank_cli.job.totals import Totals
from rerank_cli.job.windows import Windows
from tests.conftest import FakeEncoder, FakeEngine, json_rows

PAIRS = 200  # of a window


class Overflowing(FakeEngine):
    """An engine that computes some results of each window twice. again: how many."""

    def __init__(self, again: Iterator[int]) -> None:
        super().__init__()
        self._again = again

    def score(self, pairs: Any, **options: Any) -> Any:
        found = super().score(pairs, **options)
        self.trouble = Trouble(reruns=next(self._again))
        return found


@pytest.mark.parametrize(
    ("again", "precision", "told"),
    [
        ([2, 1], "fp16", []),
        ([1, 3, PAIRS], "fp16", ["3 of the 200 results of a window in fp16", "; `--precision bf16` has the range of "
                                 "fp32"]),
        ([PAIRS, 0], "bf16", ["200 of the 200 results of a window in bf16", ""]),
    ],
)  # fmt: skip
def test_many_results_that_are_computed_twice_are_told_once_when_it_happens(
    again: list[int], precision: str, told: list[str]
) -> None:
    rows = json_rows(*({"query": f"q {number}", "passage": "p"} for number in range(PAIRS * len(again))))
    windows = Windows(PairShape(FieldNames()).group(rows), max_pairs=PAIRS)
    said: list[tuple[int, str]] = []
    totals = Totals()
    totals.begin_scoring(precision, lambda text: said.append((totals.counts.pairs // PAIRS, text)))
    with closing(score_windows(windows, FakeEncoder(), Overflowing(iter(again)))) as scoring:
        for window in scoring:
            totals.add(window)
    assert totals.counts.fp32_reruns == sum(again)
    middle = " were no numbers and were computed again in fp32"
    first = next((place for place, number in enumerate(again, 1) if number > PAIRS // 100), None)
    assert said == ([(first, f"warning: {middle.join(told)}")] if told else [])
