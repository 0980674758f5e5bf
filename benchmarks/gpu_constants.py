"""What a GPU takes for itself: context, and what the allocator holds beyond the tensors, for `memory/constants.toml`.

    python -m benchmarks.gpu_constants [--device cuda:0] [--model DIR]

Runs a model (the built-in one by default; a larger one shows the allocator's rounding better) over a few batches in the
precision of a plan, and prints the lines to paste. All is read from the driver and torch's allocator:

context_bytes    what the device lost to this process before the first tensor, less what its allocator holds. The
                 driver is asked before and after: CUDA's own total lacks the driver's reserve (half a GiB of an H100)
slack_share      the largest share, over the batches, by which reserved memory at the peak exceeds allocated memory,
                 beyond `slack_bytes`
slack_bytes      two begun segments of 20 MiB, as torch's allocator makes them for tensors of 1 to 10 MiB
"""

from __future__ import annotations

import argparse
import datetime
import math

from rerank_cli.machine.this_process import prepare_process

prepare_process(online=False)

import torch  # noqa: E402 (after the settings that it reads)

from rerank_cli.checkpoint import Checkpoint, locate_checkpoint, read_checkpoint  # noqa: E402
from rerank_cli.checkpoint.max_tokens import model_max_tokens  # noqa: E402
from rerank_cli.machine.detect import detect_machine  # noqa: E402
from rerank_cli.models.measure import measure_forward  # noqa: E402
from rerank_cli.planning.memory import BatchSize, MemoryModel, Placement, estimate  # noqa: E402

SLACK_BYTES = 40 * 2**20
BATCHES = ((1, 512), (8, 512), (64, 256), (128, 128), (256, 512))
"""Pairs and their tokens."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--model", help="a checkpoint folder; default: the built-in model")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(6, f"torch {torch.__version__} sees no CUDA device\n")
    context = context_bytes(options.device)
    checkpoint = read_checkpoint(locate_checkpoint(options.model))
    share = slack_share(checkpoint, options.device)
    print(toml_entry(options.device, context, share))


def context_bytes(device: str) -> int:
    """The device's memory that is gone once a tensor is there, less what torch's allocator holds.

    Another process that takes or gives back memory meanwhile falsifies it: run this on a card that nobody else uses.
    """
    index = torch.device(device).index or 0
    used_before = _used_by_driver(index)
    torch.ones(8, device=device).matmul(torch.ones(8, 8, device=device))  # wakes cuBLAS too
    torch.cuda.synchronize(device)
    return _used_by_driver(index) - used_before - torch.cuda.memory_reserved(device)


def _used_by_driver(cuda_index: int) -> int:
    """What is taken of a device by NVML, which needs no context of its own."""
    for device in detect_machine().devices:
        if device.cuda_index == cuda_index and device.total_bytes is not None and device.free_bytes is not None:
            return device.total_bytes - device.free_bytes
    raise SystemExit(f"NVML does not tell the memory of CUDA device {cuda_index}")


def slack_share(checkpoint: Checkpoint, device: str) -> float:
    """The share that covers every batch, in hundredths."""
    capability = torch.cuda.get_device_capability(device)
    model, place = MemoryModel.of_checkpoint(checkpoint), Placement(precision="fp16", capability=capability)
    worst = 0.0
    for pairs, tokens in BATCHES:
        lengths = [min(tokens, model_max_tokens(checkpoint))] * pairs
        torch.cuda.empty_cache()
        measured = measure_forward(checkpoint, lengths, device=device, precision="fp16", attention="varlen", threads=1)
        estimated = estimate(model, BatchSize.of(lengths), place)
        reserved = (measured.reserved_bytes or 0) - estimated.weights
        share = (reserved - SLACK_BYTES - measured.forward_bytes) / measured.forward_bytes
        worst = max(worst, share)
        print(
            f"# {pairs} x {lengths[0]} tokens: forward {measured.forward_bytes:,} bytes, "
            f"estimated {estimated.forward:,} ({estimated.forward / measured.forward_bytes:.3f}), "
            f"reserved beside the weights {reserved:,}"
        )
    return math.ceil(100 * worst) / 100


def toml_entry(device: str, context: int, share: float) -> str:
    """The entry of this device."""
    index = torch.device(device).index or 0
    machine = detect_machine()
    found = next((one for one in machine.devices if one.cuda_index == index), None)
    sku = (found.sku if found else None) or torch.cuda.get_device_name(device).replace(" ", "-")
    return "\n".join(
        [
            "[[device]]",
            f'sku = "{sku}"',
            'status = "measured"',
            f"context_bytes = {context:_}",
            f"slack_share = {share:.2f}",
            f"slack_bytes = {SLACK_BYTES:_}",
            'source = "benchmarks/gpu_constants.py"',
            f'driver = "{machine.driver or ""}"',
            f'torch = "{torch.__version__}"',
            f"date = {datetime.datetime.now(tz=datetime.UTC).date().isoformat()}",
        ]
    )


if __name__ == "__main__":
    main()
