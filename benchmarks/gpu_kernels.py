"""Where a forward's time goes on a card: pairs a second by length and token budget, and a table of its kernels.

    python -m benchmarks.gpu_kernels [--device cuda:0] [--calls 8] [--small]

The built-in model's first six layers in fp16, the shape of XLM-R large in fp16, and a Llama of 1 B in bf16 and fp8, all
but the first with blank weights. Lengths up to 512 tokens are tried with budgets from 8,192 to 131,072 tokens a batch.
`--small` takes tiny models, so that the program can be tried on a CPU.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rerank_cli.machine.this_process import keep_freed_memory, prepare_process

prepare_process(online=False)
keep_freed_memory()

import numpy as np  # noqa: E402 (after the settings that torch reads)
import torch  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402

from benchmarks.material import machine, plain_checkpoint  # noqa: E402
from rerank_cli.checkpoint import Checkpoint, read_checkpoint  # noqa: E402
from rerank_cli.errors import RerankError  # noqa: E402
from rerank_cli.models import load_model  # noqa: E402
from rerank_cli.records import EncodedPair  # noqa: E402

_LABELS = {"id2label": {"0": "score"}}
XLM_R_LARGE = {
    "architectures": ["XLMRobertaForSequenceClassification"], "hidden_size": 1024, "intermediate_size": 4096,
    "num_hidden_layers": 24, "num_attention_heads": 16, "vocab_size": 250_002, "max_position_embeddings": 8194,
    "type_vocab_size": 1, "pad_token_id": 1, **_LABELS,
}  # fmt: skip
LLAMA_1B = {
    "architectures": ["LlamaBidirectionalForSequenceClassification"], "hidden_size": 2048, "intermediate_size": 8192,
    "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64,
    "vocab_size": 128_256, "max_position_embeddings": 8192, "pooling": "avg", **_LABELS,
}  # fmt: skip
_TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
_BUDGETS = (8192, 16384, 32768, 65536, 131072)
_LONG = 65536  # tokens of a batch of pairs over 512 tokens
_KERNELS = 12  # shown


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--calls", type=int, default=8)
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    print(machine(), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, checkpoint, precision, lengths in _models(Path(folder), options):
            try:
                _measure(name, checkpoint, precision, lengths, options)
            except RerankError as error:  # a card without FP8
                print(f"{name} {precision}: {error.message}", flush=True)


def _models(folder: Path, options: argparse.Namespace) -> Iterator[tuple[str, Checkpoint, str, tuple[int, ...]]]:
    narrow = "fp16" if options.device.startswith("cuda") else "bf16"
    lengths = (16, 32) if options.small else (128, 512, 2048, 8192)
    small = plain_checkpoint(folder / "minilm", layers=1 if options.small else 6)
    yield "minilm", read_checkpoint(small), narrow, lengths[:2]
    yield "xlm-r large", _blank(XLM_R_LARGE, options), narrow, lengths
    one_b = _blank(LLAMA_1B, options)
    yield "llama 1b", one_b, "bf16", lengths
    if options.device.startswith("cuda"):
        yield "llama 1b", one_b, "fp8", lengths[1:]


def _blank(config: dict[str, Any], options: argparse.Namespace) -> Checkpoint:
    if options.small:
        heads = {"num_key_value_heads": 2, "head_dim": 16} if "head_dim" in config else {}
        config = {**config, **_TINY, **heads, "vocab_size": 1000}
    return Checkpoint(Path("blank"), config["architectures"][0], config, {}, {}, blank=True)


@torch.inference_mode()
def _measure(
    name: str, checkpoint: Checkpoint, precision: str, lengths: tuple[int, ...], options: argparse.Namespace
) -> None:
    is_cuda = options.device.startswith("cuda")
    attention = "varlen" if is_cuda else "runs"
    model = load_model(checkpoint, device=options.device, precision=precision, attention=attention)
    print(f"{name} {precision}: {getattr(model, 'kernels', 'kernels are not told')}", flush=True)
    draw = np.random.default_rng(0)
    vocabulary = checkpoint.integer("vocab_size")
    pairs: list[EncodedPair] = []

    def settle() -> None:
        if is_cuda:
            torch.cuda.synchronize(options.device)

    for length in lengths:
        for budget in (64,) if options.small else _BUDGETS if length <= 512 else (_LONG,):
            count = max(1, budget // length)
            pairs = [EncodedPair(draw.integers(5, vocabulary, length, dtype=np.int32), 3, length)] * count
            for _ in range(3):
                model.forward(pairs)
            settle()
            began = time.perf_counter()
            for _ in range(options.calls):
                model.forward(pairs)
                settle()
            seconds = (time.perf_counter() - began) / options.calls
            print(f"{name} {precision}, {length} tokens, {budget} a batch: {count / seconds:,.0f} pairs/s", flush=True)
    kinds = [ProfilerActivity.CUDA if is_cuda else ProfilerActivity.CPU]
    with profile(activities=kinds, acc_events=True) as profiler:
        model.forward(pairs)
        settle()
    by = "cuda_time_total" if is_cuda else "self_cpu_time_total"
    print(profiler.key_averages().table(sort_by=by, row_limit=_KERNELS, max_name_column_width=50), flush=True)


if __name__ == "__main__":
    main()
