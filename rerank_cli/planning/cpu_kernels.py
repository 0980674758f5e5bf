"""Which kernels a model runs on a CPU: decided by what the CPU has, so that the plan and the journal can name them.

Attention in bfloat16, between int8 layers too, is computed in one of two ways (`models/attention.py`). The CPU time of
attention by products, as a multiple of that of torch's own (one thread, 12 heads of 32, some 1,000 tokens):

    tokens of a pair            32     64    112    160    224    288    352    448    512
    Intel, AMX, torch 2.13     2.0    1.8    1.8    1.9    1.7    1.8    1.6    1.7    1.8
    AMD Zen 4, torch 2.13      products are the faster, by 6 % of a whole forward (no tiles: `product_attention.py`)

torch's flash kernel multiplies by oneDNN's blocks where there are tiles and by float32 elsewhere. `python -m
benchmarks.attention` tries both on the machine at hand and says whether this table is right there.

Whole layers of a BERT-like encoder in bfloat16 or int8 are one kernel of our own where there are tiles and the library
is here (`models/amx.py`): 2 to 3 times as fast as torch's. The plan and the journal name it as a kind of attention.
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
    if shape:
        sizes = {"hidden": shape.hidden, "inner": shape.intermediate, "heads": shape.heads}
        if amx.takes(precision, **sizes, activation=shape.activation) and amx.runs_on(cpu):
            return AMX
    return "products" if precision in ("bf16", "int8") and cpu.has("bf16") and not cpu.has("amx") else "runs"


def cheaper_precisions(cpu: Cpu) -> tuple[str, ...]:
    """The precisions that may be faster than fp32 on `cpu`, the fastest first; a model need not have all of them.

    Pairs a second of the built-in model (`benchmarks/RESULTS.md`): AMX by torch's kernels, 28 November 2026, bf16 95
    and int8 no more; by our own, 29 November 2026, int8 is the faster; Zen 4, 21 November 2026, int8 39.3, bf16 27.5,
    fp32 15.1. ModernBERT by torch's kernels with AMX, 29 November 2026: int8 1.2 times bf16 at 768 channels, .9 at 384.
    """
    if cpu.has("amx") and not amx.runs_on(cpu):
        return ("bf16", "int8")
    return ("int8", "bf16") if cpu.has("bf16") else ("int8",)
