"""The documented table of families is the one that the golden folders give, and the recorded differences are true."""

from __future__ import annotations

from tests.parity import table
from tests.parity.conftest import GOLDENS
from tests.parity.test_embedding_golden import GOLDENS as EMBEDDERS


def test_every_golden_has_a_recorded_difference():
    # A new golden is measured by `python -m tests.parity.table --record --write`.
    assert set(table.recorded()) == {*GOLDENS, *EMBEDDERS}


def test_no_recorded_difference_is_beyond_the_tolerance():
    assert all(table.recorded()[name] <= golden.tolerance for name, golden in GOLDENS.items())


def test_the_page_has_the_table():
    shown = table.PAGE.read_text(encoding="utf-8").split(table.BEGIN)[1].split(table.END)[0]
    assert shown.strip() == table.render(), "write it by `python -m tests.parity.table --write`"


def test_a_difference_that_grows_is_seen_before_it_is_out_of_the_tolerance():
    for name, worst in table.recorded().items():
        assert worst <= table.limit(name, 1.0) == table.GROWTH * worst
