"""The processor and the memory that this process may really use, within the limits of its container.

A container that may use 2 of 64 cores and starts 64 threads is slower than one that starts 2, and one that believes
the host's free memory is killed at its own limit. So cores and memory are cut to the limits of the cgroup:

* Which cgroup: /proc/self/cgroup names it, in one line for cgroup v2 (`0::/path`), in one for each controller for v1. A
  limit on any folder from there up to the mount counts, so all are read and the smallest wins. In a container without a
  cgroup namespace the named path is the host's and does not exist here; then the mount itself is the container's
  cgroup.
* Memory in use: what the cgroup is charged, less `inactive_file`, the page cache that the kernel drops first (as the
  kubelet counts its working set). Otherwise memory would look full once a large file has been read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path("/")
FEATURES = {
    "avx2": ("avx2",),  # integer vectors of 256 bits
    "avx512": ("avx512f",),  # vectors of 512 bits
    "bf16": ("avx512_bf16", "amx_bf16", "bf16"),  # multiplies bfloat16
    "fp16": ("avx512_fp16", "amx_fp16", "asimdhp"),  # multiplies float16
    "vnni": ("avx512_vnni", "avx_vnni", "asimddp"),  # multiplies int8 (VNNI, or the dot product of ARM)
    "amx": ("amx_tile",),  # matrix tiles
}
"""What a CPU can do in hardware, each with the flags that say so: one is enough."""


@dataclass(frozen=True, slots=True)
class Cpu:
    """The processor as this process may use it.

    flags: instruction sets as /proc/cpuinfo spells them. architecture: `x86_64`, `aarch64`, ...
    memory_available_bytes: what can still be allocated without swapping, within the cgroup's limit.
    """

    name: str
    cores: int
    flags: frozenset[str]
    architecture: str = ""
    memory_total_bytes: int | None = None
    memory_available_bytes: int | None = None

    def has(self, feature: str) -> bool:
        """Whether it has a feature of `FEATURES`."""
        return not self.flags.isdisjoint(FEATURES[feature])


@dataclass(frozen=True, slots=True)
class HostMemory:
    """The whole machine's memory, whatever the cgroup allows; None where /proc/meminfo does not tell."""

    total_bytes: int | None
    available_bytes: int | None


def detect_cpu(root: Path = _ROOT) -> Cpu:
    """The CPU of this machine, within the limits of this process. root: where `proc` and `sys` lie."""
    first = _read_text_or_nothing(root / "proc/cpuinfo").split("\n\n")[0]  # of the processors; nothing on macOS
    pairs = (line.split(":", 1) for line in first.splitlines() if ":" in line)
    info = {key.strip(): value.strip() for key, value in pairs}
    flags = info.get("flags") or info.get("Features") or ""
    architecture = os.uname().machine
    total, available = _usable_memory(root)
    return Cpu(
        name=info.get("model name") or architecture,
        cores=usable_cores(root),
        flags=frozenset(flags.split()),
        architecture=architecture,
        memory_total_bytes=total,
        memory_available_bytes=available,
    )


def usable_cores(root: Path = _ROOT) -> int:
    """Cores that this process may use: the affinity mask, or fewer where a cgroup quota says so."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for folder in _cgroup_folders(root, "cpu") if (quota := _quota(folder)) is not None]
    return max(1, min([affinity, *map(int, quotas)]))


def host_memory(root: Path = _ROOT) -> HostMemory:
    """MemTotal and MemAvailable of /proc/meminfo."""
    sizes: dict[str, int] = {}
    for line in _read_text_or_nothing(root / "proc/meminfo").splitlines():
        key, _, value = line.partition(":")
        amount = value.split()
        if amount and amount[0].isdecimal():
            sizes[key] = int(amount[0]) * 1024  # the file says kB and means KiB
    return HostMemory(sizes.get("MemTotal"), sizes.get("MemAvailable"))


def _usable_memory(root: Path) -> tuple[int | None, int | None]:
    """Total and available memory, each the smaller of the host's and the cgroup's."""
    host = host_memory(root)
    totals = [] if host.total_bytes is None else [host.total_bytes]
    available = [] if host.available_bytes is None else [host.available_bytes]
    for folder in _cgroup_folders(root, "memory"):
        limit = _smallest(folder, "memory.max", "memory.high", "memory.limit_in_bytes")
        used = _smallest(folder, "memory.current", "memory.usage_in_bytes")
        if limit is None:
            continue
        lines = map(str.split, _read_text_or_nothing(folder / "memory.stat").splitlines())
        stat = {words[0]: words[1] for words in lines if len(words) >= 2}
        # Page cache that the kernel drops first. v1 counts the children's in `total_inactive_file`.
        inactive = stat.get("total_inactive_file") or stat.get("inactive_file") or ""
        droppable = int(inactive) if inactive.isdecimal() else 0
        totals.append(limit)
        available.append(max(0, limit - max(0, (used or 0) - droppable)))
    return min(totals, default=None), min(available, default=None)


def _cgroup_folders(root: Path, controller: str) -> Iterator[Path]:
    """Folders that can limit this process, from its own cgroup up to the mount; some may not exist."""
    mount = root / "sys/fs/cgroup"
    found = False
    for line in _read_text_or_nothing(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:  # v2, alone or (systemd's hybrid) beside v1
            mounts = [mount, mount / "unified"]
        elif controller in controllers.split(","):
            mounts = [mount / name for name in dict.fromkeys((controllers, controller))]
        else:
            continue
        found = True
        # `/../x` names a cgroup outside this process's namespace: only the mount itself can be seen from here.
        parts = () if ".." in path.split("/") else Path(path).parts[1:]
        for base in mounts:
            for depth in range(len(parts), -1, -1):
                yield base.joinpath(*parts[:depth])
    if not found:
        yield from (mount, mount / controller)


def _quota(folder: Path) -> float | None:
    """Cores that this cgroup's quota allows (v2 `cpu.max`, v1 `cpu.cfs_quota_us`), or None without a quota."""
    words = _read_text_or_nothing(folder / "cpu.max").split()
    if not words:
        words = [
            *_read_text_or_nothing(folder / "cpu.cfs_quota_us").split(),
            *_read_text_or_nothing(folder / "cpu.cfs_period_us").split(),
        ]
    if len(words) != 2 or not all(word.isdecimal() for word in words) or int(words[1]) == 0:
        return None  # `max` or -1: no quota
    return int(words[0]) / int(words[1])


def _smallest(folder: Path, *names: str) -> int | None:
    """The smallest number that these files hold; `max` and missing files do not count."""
    words = (_read_text_or_nothing(folder / name).strip() for name in names)
    return min((int(word) for word in words if word.isdecimal()), default=None)


def _read_text_or_nothing(path: Path) -> str:
    """The file's text, or nothing where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
