"""The library of `models/amx.cpp`: whether it is here, and whether this CPU and this Linux run it.

`hatch_build.py` makes it when the package is built or installed; nothing is compiled later. It runs where all of this
holds, and otherwise torch's kernels do, without a word but in the plan and the report:

    the library lies in the package and was compiled of the very source that lies beside it
    the CPU has its instructions (Sapphire Rapids and later), and Linux gives this process the tiles
    RERANK_AMX is not 0

This module knows nothing of torch: the plan asks it too.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
from functools import cache
from pathlib import Path

from rerank_cli.machine.cpu import Cpu, detect_cpu

SWITCH = "RERANK_AMX"
"""The environment variable that says 0 where torch's kernels are wanted."""
_NEEDED = {"amx_tile", "amx_bf16", "amx_int8", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16", "fma"}
_MODELS = Path(__file__).parents[1] / "models"
_HEAD_CHANNELS = 32  # of which a head has a multiple
_CHANNELS = {"bf16": 32, "int8": 64}  # that a product of tiles sums up


class LinearWeights(ctypes.Structure):
    """`Linear` of amx.cpp: addresses of the packed weights, and of float32 numbers, one an output."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("weights", "scale", "bias")]


class LayerWeights(ctypes.Structure):
    """`Layer` of amx.cpp; addresses are of float32 numbers."""

    _fields_ = [
        *((name, LinearWeights) for name in ("qkv", "out", "expand", "contract")),
        *((name, ctypes.c_void_p) for name in ("attention_norm", "attention_shift", "out_norm", "out_shift")),
        *((name, ctypes.c_void_p) for name in ("input_factors", "attended_factors", "large_scale")),
        *((name, ctypes.c_float * 2) for name in ("by", "zero")),
    ]


class Sizes(ctypes.Structure):
    """`Sizes` of amx.cpp."""

    _fields_ = [
        *((name, ctypes.c_int) for name in ("layers", "hidden", "inner", "heads", "int8", "large")),
        ("epsilon", ctypes.c_float),
    ]


class Embedding(ctypes.Structure):
    """`Embedding` of amx.cpp: addresses of tables, of their norm, and of what each token takes of them."""

    _fields_ = [
        (name, ctypes.c_void_p) for name in ("words", "positions", "types", "norm", "shift", "word", "position", "type")
    ]


def takes(precision: str, *, hidden: int, inner: int, heads: int, activation: str) -> bool:
    """The library computes layers of these sizes in `precision`."""
    if precision not in _CHANNELS or activation != "gelu" or heads <= 0:
        return False
    whole = all(size > 0 and size % _CHANNELS[precision] == 0 for size in (hidden, inner))
    return whole and hidden % (heads * _HEAD_CHANNELS) == 0


def runs_on(cpu: Cpu) -> bool:
    """The library is here and runs on `cpu`. A description of a CPU may be that of another machine."""
    return cpu.flags >= _NEEDED and os.environ.get(SWITCH) != "0" and library() is not None


@cache
def library() -> ctypes.CDLL | None:
    """The library with the types of its functions, ready to run; None where it is not here or does not run."""
    if not detect_cpu().flags >= _NEEDED:  # nothing of it may run there
        return None
    try:
        found = ctypes.CDLL(str(_MODELS / "_amx.so"))
        source = (_MODELS / "amx.cpp").read_bytes()
        found.amx_source.restype = ctypes.c_char_p
        if found.amx_source().decode() != hashlib.sha256(source).hexdigest() or not found.amx_permit():
            return None
        address, number, long = ctypes.c_void_p, ctypes.c_int, ctypes.c_long
        sizes = ctypes.POINTER(Sizes)
        found.amx_huge.argtypes, found.amx_huge.restype = [address, long], None
        found.amx_pack.argtypes, found.amx_pack.restype = [address, address, number, long], None
        found.amx_room.argtypes, found.amx_room.restype = [sizes, long, long], long
        found.amx_run.restype = None
        found.amx_run.argtypes = [
            sizes, ctypes.POINTER(LayerWeights), ctypes.POINTER(Embedding),
            address, address, number, address, long, long, number,
        ]  # fmt: skip
    except (OSError, AttributeError):  # not compiled, or by another loader's rules
        return None
    return found
