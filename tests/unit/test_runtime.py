from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
from rerank_cli.runtime import keep_freed_memory, prepare_process
prepare_process(online=False)
kept = keep_freed_memory() if sys.argv[1] == "kept" else False
import torch
def batch():
    layers = [torch.empty(2048, 1536).fill_(1.0) for _ in range(5)]
for _ in range(3):
    batch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    batch()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode: str) -> tuple[str, int]:
    """Whether the allocator took the setting, and the pages that ten more batches asked the system for."""
    done = subprocess.run([sys.executable, "-c", FAULTS, mode], capture_output=True, text=True, check=True)
    kept, count = done.stdout.split()
    return kept, int(count)


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="only glibc has this setting"
)
def test_the_memory_of_a_batch_serves_the_next_one() -> None:
    kept, count = faults("kept")
    assert kept == "True"
    assert count < 100
    assert faults("default")[1] > 1000  # else this test says nothing
