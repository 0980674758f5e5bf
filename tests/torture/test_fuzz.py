"""Files that were good once: whatever happened to their bytes, they are read or refused, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import LONG
from tests.torture.fuzz import IN_MEMORY, TARGETS, opened
from tests.torture.runs import ROOT

SECONDS = int(os.environ.get("RERANK_FUZZ_SECONDS", "3600"))  # of all targets together
# Bytes put over others, a length that is kept, and bytes behind it.
CHANGES = st.tuples(
    st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=4)), max_size=4),
    st.floats(0, 1) | st.just(1),
    st.binary(max_size=12),
)


def damaged(data: bytes, changes: Any) -> bytes:
    patches, kept, behind = changes
    out = bytearray(data)
    for where, patch in patches:
        place = int(where * len(out))
        out[place : place + len(patch)] = patch
    return bytes(out[: int(kept * len(out))]) + behind


@pytest.fixture(scope="module", params=TARGETS)
def reader(request: pytest.FixtureRequest) -> Iterator[tuple[Callable[[bytes], None], list[bytes]]]:
    with opened(request.param) as read:
        yield read, list(TARGETS[request.param].seeds())


@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(which=st.integers(0, 99), changes=CHANGES)
def test_damaged_bytes_are_read_or_refused(
    reader: tuple[Callable[[bytes], None], list[bytes]], which: int, changes: Any
) -> None:
    read, seeds = reader
    read(damaged(seeds[which % len(seeds)], changes))


@pytest.mark.skipif(not LONG, reason="an hour; `make torture` does it")
@pytest.mark.parametrize("name", TARGETS)
def test_a_search_along_the_branches_finds_no_fault(tmp_path: Path, name: str) -> None:
    pytest.importorskip("atheris")
    command = [sys.executable, "-m", "tests.torture.fuzz", name, "--seconds", str(SECONDS // len(TARGETS))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory(prefix="rerank-cli-fuzz-", dir=IN_MEMORY) as folder:
        command += ["--folder", folder]
        done = subprocess.run(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    print(*[line for line in done.stderr.splitlines() if line.startswith(("Done", "stat::"))], sep="\n")
