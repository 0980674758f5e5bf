"""Settings of this process: those that libraries read once, at import, and those of allocator and garbage collector.

The commands that load a model make them before they import anything that imports torch. What the user has set in the
environment stays.
"""

from __future__ import annotations

import ctypes
import gc
import os
import re
import resource
import sys
from pathlib import Path

# oneDNN compiles a kernel for every number of rows and keeps 1,024 of them: over a long file the process creeps up by
# 200 MB. `packed.py` rounds the rows, `product_attention.py` the lengths, to some hundred shapes in all; with these
# caches for them memory stays flat and next to nothing is compiled twice.
_CACHES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "256", "LRU_CACHE_CAPACITY": "64"}
# Threads of libgomp that have nothing to do spin for milliseconds before they sleep. Where other work shares the cores
# they spin against the thread that they wait for: with one of two cores busy a small encoder made 4 to 6 pairs a
# second, and 12 to 19 with this many turns; alone on the machine it costs 1 to 3 % (Zen 4, libgomp of torch 2.13).
_TURNS = ("GOMP_SPINCOUNT", "1000")
# No model library may connect to anything on its own, draw its own progress bars, or log to stderr.
_QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "true",
}
# By default Python looks for garbage after 700 new objects, which is every 100 pairs, and now and then through all of
# the 200,000 that torch brings, 75 ms each time: 15 us a pair of the host's own work, and 0.1 s while libraries are
# imported. Nearly everything here is freed without that: a window of 4,096 pairs has fewer objects than this number,
# and leaves some 400 small ones behind (Intel Xeon with AMX, Python 3.11).
_NEW_OBJECTS = 50_000
_PEAK = re.compile(r"^VmHWM:\s*(\d+) kB$", re.MULTILINE)
# glibc's numbers for mallopt(3) and what they are set to: blocks of up to 32 MiB (the most it takes) come from the
# heap, and the heap's free end goes back to the system only from 256 MiB on.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_keeps_freed_memory = False
_HEAP_BLOCK_BYTES = 32 * 2**20
_HEAP_FREE_BYTES = 256 * 2**20
_MAPPED_BLOCK_BYTES = 2**20


def prepare_process(*, online: bool) -> None:
    """Set what libraries read at import, and how often Python looks for garbage.

    online: the Hugging Face libraries may connect.
    """
    gc.set_threshold(_NEW_OBJECTS, *gc.get_threshold()[1:])
    for name, value in {**_CACHES, **_QUIET}.items():
        os.environ.setdefault(name, value)
    if "OMP_WAIT_POLICY" not in os.environ:  # the turns would win over it
        os.environ.setdefault(*_TURNS)
    if not online:
        os.environ["HF_HUB_OFFLINE"] = "1"


def keep_freed_memory() -> bool:
    """Let the C allocator keep what a batch frees for the next batch; returns whether this allocator can do that.

    By default glibc gives blocks of some MB back to the system and gets them anew, page by page, each page cleared:
    5 % of the time of a small encoder on a CPU (3,000 pages a pair; Zen 4, glibc 2.36, torch 2.13). It is a setting of
    the whole process, so it is for programs, not for libraries.
    """
    # Only glibc has both the function and these numbers.
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    global _keeps_freed_memory
    _keeps_freed_memory = bool(mallopt(_M_MMAP_THRESHOLD, _HEAP_BLOCK_BYTES)) and bool(
        mallopt(_M_TRIM_THRESHOLD, _HEAP_FREE_BYTES)
    )
    return _keeps_freed_memory


def share_one_heap() -> bool:
    """Let threads that start from now on take memory from the heap that `keep_freed_memory` has made large.

    By default glibc gives each thread a heap of its own, of 64 MiB pieces that go back to the system when they are
    free: a batch in such a thread took a quarter more CPU time than in the main one. Does nothing where the heap was
    left as it is.
    """
    return _keeps_freed_memory and bool(ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1))


def give_back_large_blocks() -> None:
    """Let blocks of 1 MiB and more go back to the system when they are freed, each by itself.

    For models whose tensors have another size in each batch: those of the next batch do not fit into the free blocks of
    the heap that `keep_freed_memory` has made large. Without this a padded MPNet whose tensors are 97 MiB at their peak
    took 362 MiB after 60 batches of two layers, an ALBERT of 56 MiB took 152; with it they took 94 and 61 MiB after 6
    batches of one layer (torch 2.13, glibc 2.36). Does nothing where the heap was left as it is.
    """
    if _keeps_freed_memory:
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _MAPPED_BLOCK_BYTES)


def peak_rss_bytes() -> int:
    """The most memory that this program has had resident.

    On Linux from /proc where it is mounted. getrusage also counts what the process had before it became this program:
    a process that a large one started had its parent's memory until then.
    """
    status = Path("/proc/self/status")
    if status.exists() and (line := _PEAK.search(status.read_text(encoding="ascii", errors="replace"))):
        return int(line[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB
