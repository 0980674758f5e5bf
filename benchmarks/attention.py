"""Which attention of bfloat16 is the faster on this CPU, and whether the plan takes it.

    python -m benchmarks.attention [--heads 12] [--head-size 32]

Both kinds of `models/attention.py` in turn, one thread, CPU seconds, for pairs of one length and some 1,000 tokens in
all; the least of some rounds. What the plan takes is `planning/cpu_kernels.py`: a line that disagrees with it by more
than a tenth is marked, and is a reason to change that table.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from benchmarks.material import machine
from rerank_cli.machine.cpu import detect_cpu
from rerank_cli.models.attention import attend
from rerank_cli.models.packed import PackedBatch, pack
from rerank_cli.planning.cpu_kernels import cpu_attention
from rerank_cli.records import EncodedPair

_LENGTHS = (32, 64, 112, 160, 224, 288, 352, 448, 512)
_TOKENS = 1024
_ROUNDS, _CALLS = 5, 10


@torch.inference_mode()
def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--head-size", type=int, default=32)
    options = parser.parse_args()
    torch.set_num_threads(1)
    taken = cpu_attention(detect_cpu(), "bf16")
    print(f"{machine()}\nthe plan takes {taken}; {options.heads} heads of {options.head_size}")
    for length in _LENGTHS:
        pair = EncodedPair(np.full(length, 5, dtype=np.int32), length, length)
        batch = pack([pair] * max(1, _TOKENS // length), device=torch.device("cpu"))
        qkv = torch.randn(len(batch.input_ids), 3, options.heads, options.head_size).bfloat16()
        found: dict[str, list[float]] = {"runs": [], "products": []}
        for _ in range(_ROUNDS):
            for kind, times in found.items():
                times.append(_milliseconds(qkv, batch, kind))
        runs, products = (min(found[kind]) for kind in ("runs", "products"))
        ratio = products / runs
        wrong = ratio > 1.1 if taken == "products" else ratio < 1 / 1.1
        print(f"{length:5} tokens: runs {runs:6.2f} ms, products {products:6.2f} ms, {ratio:.2f}x{' !' * wrong}")


def _milliseconds(qkv: torch.Tensor, batch: PackedBatch, kind: str) -> float:
    q, k, v = qkv.unbind(1)
    attend(q, k, v, batch, kind=kind)
    began = time.process_time()
    for _ in range(_CALLS):
        attend(q, k, v, batch, kind=kind)
    return (time.process_time() - began) / _CALLS * 1e3


if __name__ == "__main__":
    main()
