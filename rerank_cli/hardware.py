"""What this machine has, asked once and as data; nothing is decided here.

For now the CPU: how many cores this process may really use, and the instructions that decide a precision. Cores come
from the affinity mask and the cgroup quota, because a container that may use 2 of 64 cores and starts 64 threads is
slower than one that starts 2.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True, slots=True)
class Cpu:
    """The processor as this process may use it. flags: instruction sets as /proc/cpuinfo spells them."""

    name: str
    cores: int
    flags: frozenset[str]

    @property
    def has_bf16(self) -> bool:
        """Multiplies bfloat16 in hardware."""
        return bool(self.flags & {"avx512_bf16", "amx_bf16", "bf16"})

    @property
    def has_fp16(self) -> bool:
        """Multiplies float16 in hardware."""
        return bool(self.flags & {"avx512_fp16", "amx_fp16", "asimdhp"})


def detect_cpu() -> Cpu:
    """The CPU of this machine, within the limits of this process."""
    info = _cpuinfo()
    flags = info.get("flags") or info.get("Features") or ""
    name = info.get("model name") or platform.processor() or platform.machine()
    return Cpu(name=name, cores=usable_cores(), flags=frozenset(flags.split()))


def usable_cores() -> int:
    """Cores that this process may use: the affinity mask, or fewer where a cgroup quota says so."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_quota(_CGROUP)
    return affinity if quota is None else max(1, min(affinity, int(quota)))


def _cgroup_quota(root: Path) -> float | None:
    """Cores that the cgroup's quota allows (v2 `cpu.max`, v1 `cpu.cfs_quota_us`), or None without a quota."""
    try:
        quota, period = (root / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (root / "cpu/cpu.cfs_quota_us").read_text().strip()
            period = (root / "cpu/cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    if not quota.isdecimal() or not period.isdecimal() or int(period) == 0:
        return None  # `max` or -1: no quota
    return int(quota) / int(period)


def _cpuinfo() -> dict[str, str]:
    """The first processor's block of /proc/cpuinfo; empty where there is none (macOS)."""
    try:
        block = _CPUINFO.read_text().split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in block.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}
