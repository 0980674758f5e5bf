"""How fast beside sentence-transformers' CrossEncoder: same checkpoint, same pairs, same precision.

    python -m benchmarks.speed [--precision fp32|bf16|int8] [--layers 6] [--pairs 1000] [--rounds 3] [--cpu-time]

Prints pairs per second of both (medians of interleaved rounds), the ratio round by round, the largest difference of
their logits, and how much of this machine's matrix-product speed our forward uses, counted on the operations of real
tokens that are really executed. sentence-transformers is timed with each of several batch sizes first; both its default
(32) and its best are compared with.

In int8 the other side stays in fp32, which is what our int8 replaces. The time of the calibration, once a run, is told
apart.

Each side runs in a process of its own: settings of the allocator and of oneDNN's cache are part of what is compared.

--cpu-time counts the seconds that a single thread of the process worked instead of the time on the wall: on a machine
with other work these ratios hold within a few per cent where wall times do not.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from rerank_cli.runtime import keep_freed_memory, prepare_process

prepare_process(online=False)
keep_freed_memory()

import torch  # noqa: E402 (after the settings that it reads)

from benchmarks.material import candidate_lists, machine, plain_checkpoint, read_pairs  # noqa: E402
from benchmarks.peer import Peer  # noqa: E402
from rerank_cli.checkpoint import Checkpoint, read_checkpoint  # noqa: E402
from rerank_cli.encoding import open_encoder  # noqa: E402
from rerank_cli.engine.scorer import LocalEngine  # noqa: E402
from rerank_cli.hardware import Machine, detect_cpu  # noqa: E402
from rerank_cli.known_model import KnownModel  # noqa: E402
from rerank_cli.profiles import GenericFacts, ProfileRequest  # noqa: E402
from rerank_cli.records import EncodedPair  # noqa: E402
from rerank_cli.run_plan import Plan, plan_model, plan_run  # noqa: E402

Pair = tuple[str, str]
Contender = Callable[[], tuple[float, list[float]]]
"""Scores all pairs; returns seconds and logits."""

DEFAULT_BATCH = 32
BATCH_SIZES = (8, 16, 32, 64)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=("fp32", "bf16", "int8"), default="fp32")
    parser.add_argument("--layers", type=int, default=12, help="layers of the built-in model that are kept")
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--collection", default="cranfield")
    parser.add_argument("--cpu-time", action="store_true")
    options = parser.parse_args()
    threads = 1 if options.cpu_time else detect_cpu().cores
    clock = time.process_time if options.cpu_time else time.perf_counter
    source = candidate_lists(options.collection)
    pairs = read_pairs(source, limit=options.pairs)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = read_checkpoint(plain_checkpoint(Path(folder), layers=options.layers))
        with Peer(checkpoint.path, precision=options.precision, threads=threads) as peer:
            print(machine())
            work = f"{len(pairs)} pairs of {source.parent.name}/{source.name}, {options.layers} layers"
            print(f"{work}, {options.precision}, {threads} threads")
            ours = _ours(checkpoint, pairs, options.precision, threads, clock)
            some = pairs[:200]
            peer.score(some, batch_size=DEFAULT_BATCH)  # warms it up
            probe = {
                size: len(some) / peer.score(some, batch_size=size, cpu_time=options.cpu_time)[0]
                for size in BATCH_SIZES
            }
            best = max(probe, key=lambda size: probe[size])
            print("sentence-transformers by batch size: " + ", ".join(f"{s}: {v:.1f}/s" for s, v in probe.items()))
            contenders: dict[str, Contender] = {
                "rerank-cli": ours,
                f"sentence-transformers, batch {best}": lambda: peer.score(
                    pairs, batch_size=best, cpu_time=options.cpu_time
                ),
                f"sentence-transformers, batch {DEFAULT_BATCH}": lambda: peer.score(
                    pairs, batch_size=DEFAULT_BATCH, cpu_time=options.cpu_time
                ),
            }
            _compare(contenders, len(pairs), options.rounds)
        _utilisation(checkpoint, pairs, options.precision, threads, clock)


def _plan(checkpoint: Checkpoint, precision: str, threads: int) -> Plan:
    known = KnownModel(checkpoint.name, GenericFacts(checkpoint.name, 512), "measured here", checkpoint)
    machine = Machine(cpu=replace(detect_cpu(), cores=threads))
    request = ProfileRequest(device="cpu", precision=precision)
    return plan_run(plan_model(request, known, machine), cuda_devices=0)


def _ours(
    checkpoint: Checkpoint, pairs: list[Pair], precision: str, threads: int, clock: Callable[[], float]
) -> Contender:
    """The pipeline's own encoder and engine, a window at a time."""
    plan = _plan(checkpoint, precision, threads)
    encoder = open_encoder(checkpoint, max_tokens=512)
    engine = LocalEngine(plan, checkpoint)
    first = [entry[0] for entry in encoder.encode(pairs[: plan.window_pairs]) if isinstance(entry, tuple)]
    _calibrate(engine, first, clock)

    def run() -> tuple[float, list[float]]:
        began = clock()
        logits: list[float] = []
        for begin in range(0, len(pairs), plan.window_pairs):
            encoded = encoder.encode(pairs[begin : begin + plan.window_pairs])
            logits += engine.score([entry[0] for entry in encoded if isinstance(entry, tuple)]).tolist()
        return clock() - began, logits

    run()
    return run


def _calibrate(engine: LocalEngine, pairs: list[EncodedPair], clock: Callable[[], float]) -> None:
    if engine.needs_calibration:
        print(f"calibration: {_seconds(lambda: engine.calibrate(pairs), clock):.2f} s")


def _seconds(work: Callable[[], object], clock: Callable[[], float]) -> float:
    began = clock()
    work()
    return clock() - began


def _compare(contenders: dict[str, Contender], pairs: int, rounds: int) -> None:
    speeds: dict[str, list[float]] = {name: [] for name in contenders}
    logits: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, run in contenders.items():
            seconds, logits[name] = run()
            speeds[name].append(pairs / seconds)
    first = next(iter(contenders))
    for name, values in speeds.items():
        line = f"{name:36s} {statistics.median(values):7.2f} pairs/s [{min(values):.2f}..{max(values):.2f}]"
        if name != first:
            ratios = [ours / theirs for ours, theirs in zip(speeds[first], values, strict=True)]
            apart = max(abs(a - b) for a, b in zip(logits[first], logits[name], strict=True))
            line += f"  rerank-cli is {statistics.median(ratios):.2f}x [{min(ratios):.2f}..{max(ratios):.2f}]"
            line += f", max |logit difference| {apart:.1e}"
        print(line)


def _utilisation(
    checkpoint: Checkpoint, pairs: list[Pair], precision: str, threads: int, clock: Callable[[], float]
) -> None:
    """Executed operations of real tokens over time and the speed of a matrix product on the spot."""
    plan = _plan(checkpoint, precision, threads)
    encoded = [entry[0] for entry in open_encoder(checkpoint, max_tokens=512).encode(pairs) if isinstance(entry, tuple)]
    engine = LocalEngine(plan, checkpoint)
    _calibrate(engine, encoded[: plan.window_pairs], clock)
    seconds = _seconds(lambda: engine.score(encoded), clock)
    hidden, inner = checkpoint.integer("hidden_size"), checkpoint.integer("intermediate_size")
    layers, heads = checkpoint.integer("num_hidden_layers"), checkpoint.integer("num_attention_heads")
    lengths = [len(pair.input_ids) for pair in encoded]
    every_layer = 2 * (4 * hidden**2 + 2 * hidden * inner)
    operations = sum(
        (layers - 1) * (every_layer * length + 4 * hidden * length**2)  # all but the last layer
        + 4 * heads * hidden * length  # the last layer's scores and means; the rest of it is for one token a pair
        for length in lengths
    )
    ceiling = _matrix_product_speed(hidden, inner, precision, clock)
    reached = operations / seconds
    share = f"{reached / 1e9:,.0f} of {ceiling / 1e9:,.0f} GFLOP/s, {reached / ceiling:.0%}"
    print(f"{sum(lengths) / seconds:,.0f} tokens/s; executed operations: {share}")


def _matrix_product_speed(hidden: int, inner: int, precision: str, clock: Callable[[], float]) -> float:
    from rerank_cli.models.int8 import Int8Linear
    from rerank_cli.models.linear import linear_kind

    if precision == "int8":
        layer, x = Int8Linear(torch.randn(inner, hidden), torch.zeros(inner)), torch.zeros(2048, hidden).byte()
        return 2 * 2048 * hidden * inner / _product_seconds(lambda: layer(x), clock)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    floats = linear_kind(torch.device("cpu"), dtype)(torch.randn(inner, hidden, dtype=dtype), None)
    rows = torch.randn(2048, hidden, dtype=dtype)
    return 2 * 2048 * hidden * inner / _product_seconds(lambda: floats(rows), clock)


@torch.inference_mode()
def _product_seconds(product: Callable[[], object], clock: Callable[[], float]) -> float:
    for _ in range(20):
        product()
    rounds = [_seconds(lambda: [product() for _ in range(20)], clock) / 20 for _ in range(15)]
    return statistics.median(rounds)


if __name__ == "__main__":
    main()
