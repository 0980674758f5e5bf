"""The table of attacks in docs/reference/reliability.md and the suite are the same."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference" / "reliability.md"
SUITES = ("tests/torture", "tests/unit/journal", "tests/unit/machine")


def test_each_row_names_a_test_that_exists() -> None:
    _, _, table = PAGE.read_text(encoding="utf-8").partition("| what another hand does |")
    named = re.findall(r"\| `(test_\w+)` \|$", table.partition("\n\n")[0], re.MULTILINE)
    rows = [line for line in table.partition("\n\n")[0].splitlines()[2:] if line.startswith("|")]
    assert len(named) == len(rows) > 10
    there = {
        name
        for suite in SUITES
        for path in (ROOT / suite).rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)\(", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert set(named) <= there


def test_each_attack_on_names_and_folders_stands_in_the_table() -> None:
    """A new attack is told: each test of these kinds in the suite of attacks has its row."""
    text = (ROOT / "tests" / "torture" / "test_attacks.py").read_text(encoding="utf-8")
    part = text.partition("# The work folder")[2].partition("# Hangs")[0]
    missing = [
        name for name in re.findall(r"^def (test_\w+)\(", part, re.MULTILINE) if f"`{name}`" not in PAGE.read_text()
    ]
    assert missing == []
