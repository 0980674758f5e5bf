"""Which kernels a model runs on a CPU: by what the CPU has, so that the plan and the journal can say it.

Attention in bfloat16, between int8 layers too, has two ways (`models/attention.py`). CPU time of one thread, 12 heads
of 32, some 1,000 tokens, attention by products over torch's own:

    tokens of a pair            32     64    112    160    224    288    352    448    512
    Intel, AMX, torch 2.13     2.0    1.8    1.8    1.9    1.7    1.8    1.6    1.7    1.8
    AMD Zen 4, torch 2.13      products are the faster, by 6 % of a whole forward (no tiles: `product_attention.py`)

torch's flash kernel multiplies by oneDNN's blocks where there are tiles and by float32 elsewhere. `python -m
benchmarks.attention` tries both on the machine at hand and says whether this table is right there.
"""

from __future__ import annotations

from rerank_cli.machine.cpu import Cpu


def cpu_attention(cpu: Cpu, precision: str) -> str:
    """The kind of attention of a model in `precision` on `cpu`, as `models/attention.py` names it."""
    return "products" if precision in ("bf16", "int8") and cpu.has_bf16 and not cpu.has_amx else "runs"


def cheaper_precisions(cpu: Cpu) -> tuple[str, ...]:
    """Those that may be faster than fp32 on `cpu`, the fastest first, whatever the model has.

    Pairs a second of the built-in model (`benchmarks/RESULTS.md`): AMX, 28 November 2026, bf16 95 and int8 no more;
    Zen 4, 21 November 2026, int8 39.3, bf16 27.5, fp32 15.1.
    """
    if cpu.has_amx:
        return ("bf16", "int8")
    return ("int8", "bf16") if cpu.has_bf16 else ("int8",)
