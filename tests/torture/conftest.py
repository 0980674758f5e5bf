"""How hard the torture is: `make torture` sets RERANK_TORTURE=long, the tests of every day take a short way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import write_lines
from tests.torture.runs import TALLY, Runs, serving

TEXT = "two roads diverged in a yellow wood and sorry i could not travel both"
EMBEDDER = Path(__file__).parents[1] / "parity" / "nemotron-vl-embed-open" / "checkpoint"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if TALLY:
        terminalreporter.section("what runs met")
        terminalreporter.write_line("\n".join(f"{count:6,} {what}" for what, count in sorted(TALLY.items())))


@pytest.fixture(scope="module")  # not longer: other tests look whether this process has children
def runs() -> Iterator[Runs]:
    with serving() as server:
        yield server


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Pairs for five windows of `score`, with bad rows and blank lines between them."""
    folder = tmp_path_factory.mktemp("input")
    words = TEXT.split()
    rows: list[object] = []
    for number in range(300):
        rows.append({"id": number, "query": words[number % 7], "passage": " ".join(words[number % 5 : 5 + number % 9])})
        if number % 50 == 20:
            rows += [b"{", b""]
    return write_lines(folder / "pairs.jsonl", rows)


def outputs(folder: Path) -> dict[str, bytes]:
    """The bytes of the outputs in a folder; of the report nothing, as it tells times."""
    return {
        path.name: b"" if path.name.endswith(".report.json") else path.read_bytes()
        for path in folder.iterdir()
        if path.is_file()
    }
