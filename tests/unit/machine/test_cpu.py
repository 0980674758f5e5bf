"""The CPU and its limits, read from recorded /proc and /sys trees."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rerank_cli.machine.cpu import FEATURES, Cpu, detect_cpu, usable_cores

GIB = 2**30
AFFINITY = len(os.sched_getaffinity(0))
MEMINFO = "MemTotal:       65000000 kB\nMemFree:         1000000 kB\nMemAvailable:   50000000 kB\nSwapTotal: 0 kB\n"
# Of an Intel Xeon (Sapphire Rapids), shortened; the second block must not be read.
CPUINFO = """processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz
flags\t\t: fpu sse2 avx2 avx512f avx512_bf16 avx512_vnni avx512_fp16 amx_bf16 amx_tile amx_int8

processor\t: 1
model name\t: another
flags\t\t: fpu
"""
# Of an NVIDIA Grace; ARM gives no name and calls the flags Features.
CPUINFO_ARM = "processor\t: 0\nBogoMIPS\t: 2000.00\nFeatures\t: fp asimd asimdhp asimddp bf16 i8mm sve2\n"


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in {"proc/meminfo": MEMINFO, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_flags_and_name_are_those_of_the_first_processor(tmp_path: Path) -> None:
    cpu = detect_cpu(tree(tmp_path, {"proc/cpuinfo": CPUINFO}))
    assert cpu.name == "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz"
    assert all(map(cpu.has, FEATURES))


def test_an_arm_processor_is_read_by_its_features(tmp_path: Path) -> None:
    cpu = detect_cpu(tree(tmp_path, {"proc/cpuinfo": CPUINFO_ARM}))
    assert {feature for feature in FEATURES if cpu.has(feature)} == {"bf16", "fp16", "vnni"}
    assert cpu.name


@pytest.mark.parametrize(
    ("flag", "claims"),
    [
        ("avx2", {"avx2"}),
        ("avx512f", {"avx512"}),
        ("avx_vnni", {"vnni"}),
        ("avx512_vnni", {"vnni"}),
        ("avx512_bf16", {"bf16"}),
        ("amx_bf16", {"bf16"}),
        ("amx_tile", {"amx"}),
        ("avx512_fp16", {"fp16"}),
        ("sse2", set()),
    ],
)
def test_each_instruction_set_is_claimed_by_its_own_flag(flag: str, claims: set[str]) -> None:
    cpu = Cpu(name="x", cores=1, flags=frozenset({flag}))
    assert {feature for feature in FEATURES if cpu.has(feature)} == claims


V2 = "proc/self/cgroup", "0::/a/b\n"
V1 = "proc/self/cgroup", "9:name=systemd:/\n4:memory:/docker/x\n2:cpu,cpuacct:/docker/x\n"


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, AFFINITY),
        ({"sys/fs/cgroup/cpu.max": "100000 100000\n"}, 1),
        ({"sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        ({"sys/fs/cgroup/cpu.max": "max 100000\n"}, AFFINITY),
        ({"sys/fs/cgroup/cpu.max": "99900000 100000\n"}, AFFINITY),
        ({"sys/fs/cgroup/cpu.max": "100000 0\n"}, AFFINITY),
        ({"sys/fs/cgroup/cpu.max": "garbage\n"}, AFFINITY),
        (dict([V2]) | {"sys/fs/cgroup/a/b/cpu.max": "100000 100000\n"}, 1),
        (dict([V2]) | {"sys/fs/cgroup/a/cpu.max": "100000 100000\n", "sys/fs/cgroup/a/b/cpu.max": "max 100000"}, 1),
        (dict([V2]) | {"sys/fs/cgroup/other/cpu.max": "100000 100000\n"}, AFFINITY),
        (dict([V2]) | {"sys/fs/cgroup/unified/a/b/cpu.max": "100000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/../../x\n", "sys/fs/cgroup/cpu.max": "100000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/../x\n", "sys/fs/x/cpu.max": "100000 100000\n", "sys/fs/cgroup/y": ""}, AFFINITY),
        (
            dict([V1])
            | {
                "sys/fs/cgroup/cpu,cpuacct/docker/x/cpu.cfs_quota_us": "100000\n",
                "sys/fs/cgroup/cpu,cpuacct/docker/x/cpu.cfs_period_us": "100000\n",
            },
            1,
        ),
        (
            # A container of cgroup v1: the path is the host's, and the mount is the container's own cgroup.
            dict([V1])
            | {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "100000\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"},
            1,
        ),
        (
            dict([V1])
            | {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"},
            AFFINITY,
        ),
    ],
)
def test_cores_are_the_affinity_or_the_smallest_quota_above_this_process(
    files: dict[str, str], cores: int, tmp_path: Path
) -> None:
    assert usable_cores(tree(tmp_path, files)) == cores


STAT = "anon 1\ninactive_file 1073741824\nactive_file 5\n"


@pytest.mark.parametrize(
    ("files", "total_gib", "available_gib"),
    [
        (
            dict([V2])
            | {
                "sys/fs/cgroup/a/b/memory.max": str(8 * GIB),
                "sys/fs/cgroup/a/b/memory.current": str(5 * GIB),
                "sys/fs/cgroup/a/b/memory.stat": STAT,
            },
            8,
            4,
        ),
        (
            dict([V2])
            | {
                "sys/fs/cgroup/a/memory.max": str(4 * GIB),
                "sys/fs/cgroup/a/memory.current": str(3 * GIB),
                "sys/fs/cgroup/a/b/memory.max": "max\n",
                "sys/fs/cgroup/a/b/memory.current": str(2 * GIB),
            },
            4,
            1,
        ),
        (
            dict([V2])
            | {
                "sys/fs/cgroup/a/b/memory.high": str(2 * GIB),
                "sys/fs/cgroup/a/b/memory.max": str(8 * GIB),
                "sys/fs/cgroup/a/b/memory.current": str(3 * GIB),
            },
            2,
            0,
        ),
        (
            dict([V1])
            | {
                "sys/fs/cgroup/memory/memory.limit_in_bytes": str(6 * GIB),
                "sys/fs/cgroup/memory/memory.usage_in_bytes": str(4 * GIB),
                "sys/fs/cgroup/memory/memory.stat": "inactive_file 7\ntotal_inactive_file 1073741824\n",
            },
            6,
            3,
        ),
    ],
)
def test_memory_is_the_hosts_or_what_the_cgroup_leaves(
    files: dict[str, str], total_gib: int, available_gib: int, tmp_path: Path
) -> None:
    cpu = detect_cpu(tree(tmp_path, files))
    assert (cpu.memory_total_bytes, cpu.memory_available_bytes) == (total_gib * GIB, available_gib * GIB)


@pytest.mark.parametrize(
    "files",
    [
        {},
        dict([V2]) | {"sys/fs/cgroup/a/b/memory.max": "max\n", "sys/fs/cgroup/a/b/memory.current": "5\n"},
        # cgroup v1 without a limit
        dict([V1]) | {"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"},
    ],
)
def test_without_a_limit_memory_is_the_hosts(files: dict[str, str], tmp_path: Path) -> None:
    cpu = detect_cpu(tree(tmp_path, files))
    assert (cpu.memory_total_bytes, cpu.memory_available_bytes) == (65_000_000 * 1024, 50_000_000 * 1024)


def test_without_proc_nothing_is_made_up(tmp_path: Path) -> None:
    cpu = detect_cpu(tmp_path)
    assert (cpu.memory_total_bytes, cpu.memory_available_bytes, cpu.flags) == (None, None, frozenset())
    assert (cpu.cores, bool(cpu.name), bool(cpu.architecture)) == (AFFINITY, True, True)


def test_this_machine_has_a_cpu() -> None:
    cpu = detect_cpu()
    assert 1 <= cpu.cores <= AFFINITY
    assert cpu.memory_total_bytes and cpu.memory_available_bytes
    assert cpu.memory_available_bytes <= cpu.memory_total_bytes
