from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys

import pytest

# Names of `struct mallinfo2` in glibc's malloc.h, all of them size_t.
BLOCKS = """
import ctypes, json, sys
from rerank_cli.machine.this_process import keep_freed_memory
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in names]
libc.mallinfo2.restype = Info
took = keep_freed_memory() if sys.argv[1] == "kept" else False
before = libc.mallinfo2()
blocks = [libc.malloc(16 << 20) for _ in range(5)]
held = libc.mallinfo2()
for block in blocks:
    libc.free(block)
after = libc.mallinfo2()
print(json.dumps([took, held.hblks - before.hblks, after.arena - before.arena]))
"""


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="only glibc 2.33 and later tells"
)
@pytest.mark.parametrize(("mode", "mapped"), [("kept", 0), ("default", 5)])
def test_the_memory_of_a_batch_serves_the_next_one(mode: str, mapped: int) -> None:
    done = subprocess.run([sys.executable, "-c", BLOCKS, mode], capture_output=True, text=True, check=True)
    took, mapped_apart, heap_bytes = json.loads(done.stdout)
    assert took == (mode == "kept")
    assert mapped_apart == mapped
    # Freed, and still in the heap, but for what was free there before; by default nothing of it is left.
    assert (heap_bytes >= 4 * 2**24) == (mode == "kept")


def test_commands_look_for_garbage_seldom() -> None:
    given = "import gc; from rerank_cli.machine.this_process import prepare_process; prepare_process(online=False)"
    command = [sys.executable, "-c", f"{given}; print(gc.isenabled(), gc.get_threshold()[0] > 10_000)"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "True True"


SETTINGS = """
import os
from rerank_cli.machine.this_process import prepare_process
prepare_process(online=False)
print(os.environ.get("GOMP_SPINCOUNT"), os.environ.get("OMP_WAIT_POLICY"))
"""


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, "1000 None"),
        ({"GOMP_SPINCOUNT": "7"}, "7 None"),
        ({"OMP_WAIT_POLICY": "active"}, "None active"),
    ],
)
def test_idle_threads_sleep_soon_unless_the_user_says_otherwise(given: dict[str, str], found: str) -> None:
    environment = {
        name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    }
    command = [sys.executable, "-c", SETTINGS]
    done = subprocess.run(command, env=environment | given, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == found


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process does not start with its parent's peak")
def test_the_peak_of_memory_is_not_that_of_the_parent() -> None:
    # Both are processes of their own: whatever the tests have taken stays out of it.
    child = "from rerank_cli.machine.this_process import peak_rss_bytes; print(peak_rss_bytes())"
    start = f"subprocess.run([sys.executable, '-c', {child!r}], check=True)"
    parent = f"import subprocess, sys; held = b'x' * 2**28; {start}"
    done = subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 2**28
