"""Which kernels a model runs on a CPU: by what the CPU has, so that the plan and the journal can say it.

Attention in bfloat16, between int8 layers too, has two ways (`models/attention.py`). CPU time of one thread, 12 heads
of 32, some 1,000 tokens, attention by products over torch's own:

    tokens of a pair            32     64    112    160    224    288    352    448    512
    Intel, AMX, torch 2.13     2.0    1.8    1.8    1.9    1.7    1.8    1.6    1.7    1.8
    AMD Zen 4, torch 2.13      products are the faster, by 6 % of a whole forward (no tiles: `product_attention.py`)

torch's flash kernel multiplies by oneDNN's blocks where there are tiles and by float32 elsewhere. `python -m
benchmarks.attention` tries both on the machine at hand and says whether this table is right there.

Whole layers of a BERT-like encoder in bfloat16 are one kernel of our own where there are tiles and the library is here
(`models/amx.py`): 2 to 3 times as fast as torch's. In the plan and the journal it stands as the kind of attention.
"""

from __future__ import annotations

from typing import Protocol

from rerank_cli.machine import amx
from rerank_cli.machine.cpu import Cpu

AMX = "amx"
"""The kind of attention that is part of a kernel for whole layers."""


class LayerShape(Protocol):
    """What matters of a model's shape (`planning/memory/shape.py`). activation: of BERT-like encoders alone."""

    @property
    def hidden(self) -> int:
        """Channels of a token."""

    @property
    def intermediate(self) -> int:
        """Channels of the MLP."""

    @property
    def heads(self) -> int:
        """Of the attention."""

    @property
    def activation(self) -> str:
        """Of the MLP; empty for other families."""


def cpu_attention(cpu: Cpu, precision: str, shape: LayerShape | None = None) -> str:
    """The kind of attention of a model in `precision` on `cpu`, as `models/attention.py` names it.

    shape: of the model, None where it is not known.
    """
    if precision == "bf16" and shape and _amx_takes(shape) and amx.runs_on(cpu):
        return AMX
    return "products" if precision in ("bf16", "int8") and cpu.has_bf16 and not cpu.has_amx else "runs"


def _amx_takes(shape: LayerShape) -> bool:
    return amx.takes(hidden=shape.hidden, inner=shape.intermediate, heads=shape.heads, activation=shape.activation)


def cheaper_precisions(cpu: Cpu) -> tuple[str, ...]:
    """Those that may be faster than fp32 on `cpu`, the fastest first, whatever the model has.

    Pairs a second of the built-in model (`benchmarks/RESULTS.md`): AMX, 28 November 2026, bf16 95 and int8 no more;
    Zen 4, 21 November 2026, int8 39.3, bf16 27.5, fp32 15.1.
    """
    if cpu.has_amx:
        return ("bf16", "int8")
    return ("int8", "bf16") if cpu.has_bf16 else ("int8",)
