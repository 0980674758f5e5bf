"""A file that is mapped and cut ends a process with a sentence."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import mmap, sys
from pathlib import Path
from rerank_cli.errors import InputError
from rerank_cli.machine.bus_error import explaining_bus_errors

path = Path(sys.argv[1])
def check():
    if sys.argv[2] == "known":
        raise InputError(f"{path}: was cut\\x1b", hint="do not")
with path.open("r+b") as stream:
    mapped = mmap.mmap(stream.fileno(), 0)
    stream.truncate(0)
    with explaining_bus_errors(check):
        mapped[0]
"""


@pytest.mark.parametrize(
    ("what", "code", "said"),
    [("known", 4, "error: {}: was cut\\x1b\ndo not\n"), ("unknown", -signal.SIGBUS, "error: a bus error: ")],
)
def test_a_mapped_file_that_is_cut_is_named(tmp_path: Path, what: str, code: int, said: str) -> None:
    path = tmp_path / "weights"
    path.write_bytes(bytes(10_000))
    done = subprocess.run([sys.executable, "-c", PROGRAM, path, what], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert done.stderr.startswith(said.format(path))
