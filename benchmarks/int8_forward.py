"""What int8 gains for ModernBERT, and would gain for a Llama: forwards in turn, one thread, CPU time.

    python -m benchmarks.int8_forward [--rounds 8] [--vnni]

--vnni: as on a CPU that multiplies int8 and neither bfloat16 nor tiles. oneDNN is held back, attention is in float32.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

_SHAPES = {
    "ettin, 10 layers of 384": {},
    "ModernBERT-base, 6 of its 22 layers": {
        "hidden_size": 768,
        "intermediate_size": 1152,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
    },
}
_TOKENS, _PAIRS = 277, 7


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--vnni", action="store_true")
    asked = parser.parse_args()
    if asked.vnni:
        os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX512_CORE_VNNI"  # read when torch is loaded

    import torch

    from benchmarks.material import machine
    from rerank_cli.machine.this_process import keep_freed_memory

    keep_freed_memory()
    torch.set_num_threads(1)
    print(machine(), f"load {os.getloadavg()[0]:.0f}", sep="\n")
    with torch.inference_mode():
        for name, sizes in _SHAPES.items():
            _tell(name, _in_turn(_models(sizes, vnni=asked.vnni), asked.rounds))
        layers = _llama_layers()
        if asked.vnni:
            del layers["bf16"]
        _tell("one layer of a Llama, 2048 / 8192, 8 heads of keys of 64", _in_turn(layers, asked.rounds))


def _models(sizes: Mapping[str, int], *, vnni: bool) -> dict[str, Callable[[], object]]:
    """A forward by precision."""
    import numpy as np
    import torch

    from benchmarks.material import ettin_checkpoint
    from rerank_cli.checkpoint import read_checkpoint
    from rerank_cli.models import Calibrates, load_model
    from rerank_cli.models.int8_calibration import Int8Model
    from rerank_cli.records import EncodedPair

    draw = np.random.default_rng(0)
    pairs = [
        EncodedPair(draw.integers(999, 30_000, _TOKENS).astype(np.int32), second_start=9, tokens=_TOKENS)
        for _ in range(_PAIRS)
    ]
    found: dict[str, Callable[[], object]] = {}
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = read_checkpoint(ettin_checkpoint(Path(folder) / "model", **sizes))
        for precision in ("fp32", "int8") if vnni else ("fp32", "bf16", "int8"):
            model = load_model(checkpoint, device="cpu", precision=precision, attention="runs")
            if isinstance(model, Calibrates):
                if vnni and isinstance(model, Int8Model):
                    model._narrow = torch.float32
                model.calibrate([pairs])
            found[precision] = lambda model=model: model.forward(pairs)
    return found


def _llama_layers() -> dict[str, Callable[[], object]]:
    """The products, norms and rounding of a layer, without its attention, for 1,024 tokens."""
    import torch
    import torch.nn.functional as F
    from torch import Tensor

    from rerank_cli.models.int8_linear import Int8Linear, steps
    from rerank_cli.models.linear import OneDnnLinear

    hidden, inner, keys = 2048, 8192, 512
    sizes = [(hidden + 2 * keys, hidden), (hidden, hidden), (inner, hidden), (inner, hidden), (hidden, inner)]
    weights = [torch.randn(*size) * size[1] ** -0.5 for size in sizes]
    norm, factors = torch.rand(hidden), torch.rand(hidden) * 50
    x, context = torch.randn(2, 1024, hidden).unbind()

    def plain(dtype: torch.dtype) -> Callable[[], object]:
        qkv, out, gate, up, down = (
            OneDnnLinear(weight.to(dtype), None, then="silu" if place == 2 else None)
            for place, weight in enumerate(weights)
        )
        mine, theirs = x.to(dtype), context.to(dtype)

        def normed(x: Tensor) -> Tensor:
            return F.rms_norm(x.float(), (hidden,), norm, 1e-5).to(dtype)

        def run() -> Tensor:
            qkv(normed(mine))
            y = out.add(theirs, mine)
            read = normed(y)
            return down.add(gate(read).mul_(up(read)), y)

        return run

    outs = [torch.bfloat16, torch.float32, torch.bfloat16, torch.bfloat16, torch.float32]
    qkv, out, gate, up, down = (
        Int8Linear(weight, torch.zeros(len(weight)), out=dtype) for weight, dtype in zip(weights, outs, strict=True)
    )

    def rounded() -> Tensor:
        y = x.clone()
        qkv(steps(F.rms_norm(y, (hidden,), factors, 1e-5)))
        y = out.add(steps(context * 50), y)
        read = steps(F.rms_norm(y, (hidden,), factors, 1e-5))
        return down.add(steps(F.silu(gate(read)).mul_(up(read))), y)

    return {"fp32": plain(torch.float32), "bf16": plain(torch.bfloat16), "int8": rounded}


def _in_turn(runs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            begin = time.process_time()
            run()
            times[name].append(time.process_time() - begin)
    return times


def _tell(what: str, times: Mapping[str, list[float]]) -> None:
    parts = []
    for name, found in times.items():
        middle = sorted(found)[len(found) // 2]
        parts.append(f"{name} {min(found) * 1e3:.0f} ({middle * 1e3:.0f}), {min(times['fp32']) / min(found):.2f}x")
    print(f"{what}; ms at least (median), times fp32: {'; '.join(parts)}", flush=True)


if __name__ == "__main__":
    main()
