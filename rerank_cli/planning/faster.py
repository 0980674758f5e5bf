"""A hint before a run that could be faster on this machine: by how much, at what price, and the option that tries it.

Figures: `benchmarks/RESULTS.md`, the built-in model in whole runs. Intel with AMX, 28 November 2026: bf16 95.4 and 90.4
pairs/s, fp32 37.0 and 37.9. Zen 4 (AVX512-BF16), 21 November 2026: 27.47 against 15.14, with a top-10 overlap of .95.
"""

from __future__ import annotations

from rerank_cli.machine.cpu import Cpu

_TIMES_AMX, _TIMES_AVX512 = 2.5, 1.8


def faster_on(cpu: Cpu, *, device: str, precision: str) -> str | None:
    """One line for a run in fp32 on a CPU that multiplies bf16; None where nothing faster is known."""
    if device != "cpu" or precision != "fp32" or not cpu.has_bf16:
        return None
    times = _TIMES_AMX if cpu.has_amx else _TIMES_AVX512
    return (
        f"this CPU multiplies bf16: about {times:g} times as fast, and about one in twenty of the ten best passages "
        "changes; `--precision bf16 --check-precision 200` tries it and says how many"
    )
