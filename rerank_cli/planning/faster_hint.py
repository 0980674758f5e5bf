"""A hint before a run that could be faster on this machine: by how much, at what price, and the option that tries it.

Figures: `benchmarks/RESULTS.md`, pairs/s over those of fp32 on the same machine. AVX512-BF16 (Zen 4), 21 November 2026:
27.5 over 15.1. AMX by torch's kernels, 28 November 2026: 95.4 over 37.0. AMX by our own kernel, 29 November 2026:
bf16 131.9 and 132.8, int8 131.4 and 173.7 over 30.4 and 27.1 (six layers). The
ten best passages: the overlaps of Zen 4 (.95). AVX512-VNNI and no bf16, 29 November 2026: ModernBERT in int8 1.6 and
1.8 times at 384 channels, 2.0 at 768 (CPU time of a forward).
"""

from __future__ import annotations

from rerank_cli.checkpoint import Checkpoint
from rerank_cli.checkpoint.families import int8_refusal
from rerank_cli.errors import ModelError
from rerank_cli.machine.cpu import Cpu
from rerank_cli.planning.cpu_kernels import AMX, cpu_attention
from rerank_cli.planning.memory import shape_if_known

_BF16, _BF16_AMX = 1.8, 2.5  # times fp32, by torch's kernels
_INT8_VNNI = 1.7  # times fp32, on a CPU that multiplies int8 and not bf16
_BY_OUR_KERNEL = {"bf16": 4.5, "int8": 5}  # times fp32


def faster_on(cpu: Cpu, *, device: str, precision: str, checkpoint: Checkpoint | None) -> str | None:
    """One line for a run in fp32 on a CPU that multiplies bf16 or int8; None where nothing faster is known.

    checkpoint: of the model, where there is one: whether our own kernel takes it decides what it would gain.
    """
    if device != "cpu" or precision != "fp32":
        return None
    if not cpu.has("bf16"):
        try:
            has_int8 = checkpoint is not None and int8_refusal(checkpoint.architecture, checkpoint.config) is None
        except ModelError:  # whoever loads it says so
            return None
        if "avx512_vnni" not in cpu.flags or not has_int8:
            return None
        return (
            f"this CPU multiplies int8: about {_INT8_VNNI:g} times as fast; `--precision int8 --check-precision 200` "
            "tries it and says how many of the ten best passages change"
        )
    shape = shape_if_known(checkpoint)
    ours = [name for name in _BY_OUR_KERNEL if cpu_attention(cpu, name, shape) == AMX]
    times = _BY_OUR_KERNEL["bf16"] if "bf16" in ours else _BF16_AMX if cpu.has("amx") else _BF16
    more = f" (int8 {_BY_OUR_KERNEL['int8']:g} times)" if "int8" in ours else ""
    return (
        f"this CPU multiplies bf16: about {times:g} times as fast{more}, and about one in twenty of the ten best "
        "passages changes; `--precision bf16 --check-precision 200` tries it and says how many"
    )
