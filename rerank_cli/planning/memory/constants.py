"""Memory that a device takes whatever is computed (context, workspace of cuBLAS), with its source: `constants.toml`."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path

from rerank_cli.planning.profiles import Capability, same_sku

_FILE = Path(__file__).with_name("constants.toml")
_MIB = 2**20

KNOWN_PAIRS = 2**19
"""Pairs whose scores a run on a CPU keeps in memory, so that one that comes again is not computed again."""
KNOWN_PAIR_BYTES = 36  # a key of 16, and a logit with lengths (`job/score_store/memory_table.py`)


@dataclass(frozen=True, slots=True)
class DeviceConstants:
    """One entry of constants.toml; `status` is `measured`, or `default` for a cautious guess."""

    sku: str
    status: str
    context_bytes: int
    slack_share: float
    slack_bytes: int
    source: str
    driver: str
    torch: str
    date: date


@cache
def _read_constants() -> tuple[DeviceConstants, ...]:
    return tuple(DeviceConstants(**entry) for entry in tomllib.loads(_FILE.read_text(encoding="utf-8"))["device"])


def device_constants(sku: str | None, *, cpu: bool = False) -> DeviceConstants:
    """The entry of a GPU's SKU, or the default one; the CPU has its own."""
    by_name = {entry.sku: entry for entry in _read_constants()}
    if cpu:
        return by_name["cpu"]
    measured = (entry for entry in _read_constants() if entry.status == "measured" and same_sku(entry.sku, sku))
    return next(measured, by_name["*"])


def cublas_workspace_bytes(capability: Capability | None) -> int:
    """What torch gives cuBLAS on each device; the larger where the capability is unknown.

    Source: getChosenWorkspaceSize in torch's CublasHandlePool.cpp: 32 MiB from 9.0 on, `:4096:2:16:8` before.
    """
    if capability is None or capability >= (9, 0):
        return 32 * _MIB
    return (2 * 4096 + 8 * 16) * 1024
