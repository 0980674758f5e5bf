"""How near to the card's limit: pairs per second and share of its matrix-product speed, beside padded transformers.

    python -m benchmarks.gpu [--device cuda:0] [--seconds 5] [--small] [--skip NAME ...]

ceiling   products of 8,192 x 8,192 x 8,192 in each precision: what the card really does, not what its sheet says
1b        the shape of llama-nemotron-rerank-1b-v2 with random weights: pairs of 512 tokens, and of mixed lengths (those
          of abstracts: a tenth below 121 tokens, half below 224, a tenth above 393), in bf16 and fp8
padded    the same pairs and weights through transformers' LlamaModel, padded, without the causal mask, SDPA, sorted by
          length, at its best batch size
minilm    the built-in model's first six layers over the samples' pairs: tokenising alone, and the engine alone
launches  1, 8, 32 and 128 pairs of 128 tokens, of both shapes: how long the host takes to launch a forward and the
          device to run it. Where the host takes longer, launches dominate (`rerank_cli/engine/local.py` reckons where)
overlap   parts of the mixed lengths with 50 ms of other work of the host after each: scored one by one, and with two
          under way as a run has them
memory    1 and 30 pairs of 8,192 tokens: the peak beside what mem-estimate says, in bf16 and fp8; and the weights

Operations are those that the real tokens need (2 per weight, and attention), whatever is executed. `--small` runs
everything with tiny shapes, so that the program can be tried on a CPU; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from rerank_cli.machine.this_process import keep_freed_memory, prepare_process

prepare_process(online=False)
keep_freed_memory()

import numpy as np  # noqa: E402 (after the settings that torch reads)
import torch  # noqa: E402

from benchmarks import full_size  # noqa: E402
from benchmarks.material import SAMPLES, machine, plain_checkpoint, read_pairs  # noqa: E402
from benchmarks.padded import llama_of, score_padded  # noqa: E402
from rerank_cli.checkpoint import Checkpoint, read_checkpoint  # noqa: E402
from rerank_cli.encoding.encoder import open_encoder  # noqa: E402
from rerank_cli.engine.local import LocalEngine  # noqa: E402
from rerank_cli.engine.protocols import Pending  # noqa: E402
from rerank_cli.job.image_parts import pairs_of  # noqa: E402
from rerank_cli.models import load_model  # noqa: E402
from rerank_cli.models.linear import row_scaled_refusal  # noqa: E402
from rerank_cli.models.measure import measure_forward  # noqa: E402
from rerank_cli.planning.memory import BatchSize, MemoryModel, Placement, estimate  # noqa: E402
from rerank_cli.planning.profiles.matching import CPU_TOKEN_BUDGET, gpu_token_budget  # noqa: E402
from rerank_cli.planning.run_plan import Plan  # noqa: E402
from rerank_cli.records import EncodedPair  # noqa: E402
from rerank_cli.report.utilisation import forward_flops  # noqa: E402

GIB = 2**30
SECTIONS = ("ceiling", "1b", "padded", "minilm", "launches", "overlap", "memory")
_OTHER_WORK_SECONDS = 0.05  # ranking, writing and committing a window of 4,096 pairs


@dataclass(frozen=True, slots=True)
class Bench:
    """What is measured on. ceilings: operations a second of a product, by precision."""

    device: str
    seconds: float
    small: bool
    folder: Path
    ceilings: dict[str, float]

    @property
    def is_cuda(self) -> bool:
        """A GPU: kernels run behind the program."""
        return self.device.startswith("cuda")

    def rate(self, work: Callable[[], object], amount: float) -> float:
        """`amount` a second, of calls that each do so much; the first call warms up."""
        work()
        self.settle()
        began, calls = time.perf_counter(), 0
        while calls < 2 or time.perf_counter() - began < self.seconds:
            work()
            calls += 1
            self.settle()
        return amount * calls / (time.perf_counter() - began)

    def settle(self) -> None:
        """Wait until the device has nothing to do."""
        if self.is_cuda:
            torch.cuda.synchronize(self.device)

    def plan(self, precision: str, token_budget: int) -> Plan:
        """A plan for an engine."""
        attention = "varlen" if self.is_cuda else "runs"
        return Plan(
            profile="benchmark", kind="generic", device=self.device, precision=precision, max_tokens=8192,
            token_budget=token_budget, window_pairs=4096, attention=attention, threads=torch.get_num_threads(),
            reasons=(), engines=(self.device,),
        )  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each figure")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--skip", nargs="*", choices=SECTIONS, default=[])
    options = parser.parse_args()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.exit(6, f"torch {torch.__version__} sees no CUDA device\n")
    print(machine())
    if options.device.startswith("cuda"):
        print(f"{torch.cuda.get_device_name(options.device)}, CUDA {torch.version.cuda}")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options.device, options.seconds, options.small, Path(folder), {})
        measured = {
            "ceiling": ceiling, "1b": one_b, "padded": padded, "minilm": minilm, "launches": launches,
            "overlap": overlap, "memory": memory,
        }  # fmt: skip
        for name, measure in measured.items():
            if name not in options.skip:
                for line in measure(bench):
                    print(f"{name}: {line}", flush=True)


def ceiling(bench: Bench) -> Iterator[str]:
    """The speed of a matrix product in each precision."""
    size = 512 if bench.small else 8192
    a = torch.randn(size, size, device=bench.device, dtype=torch.bfloat16)
    flops = 2.0 * size**3
    bench.ceilings["bf16"] = bench.rate(lambda: torch.mm(a, a), flops)
    yield f"bf16 {bench.ceilings['bf16'] / 1e12:.0f} TFLOP/s"
    if bench.is_cuda and torch.cuda.get_device_capability(bench.device) < (8, 9):
        return
    eight, one = a.to(torch.float8_e4m3fn), torch.ones((), device=bench.device)
    for fast in (False, True):  # the models sum up fast: against the slow product their share would look good

        def product() -> object:
            return torch._scaled_mm(
                eight,
                eight.t(),
                scale_a=one,
                scale_b=one,
                out_dtype=torch.bfloat16,
                use_fast_accum=fast,  # noqa: B023 (called at once)
            )

        bench.ceilings["fp8"] = bench.rate(product, flops)
        yield f"fp8 {bench.ceilings['fp8'] / 1e12:.0f} TFLOP/s{', summed up fast' * fast}"


def one_b(bench: Bench) -> Iterator[str]:
    """Our engine over the 1B shape."""
    checkpoint = _one_b(bench)
    for precision in ("bf16", "fp8"):
        if precision not in bench.ceilings and bench.ceilings:
            continue
        if precision == "fp8" and (refusal := row_scaled_refusal(torch.device(bench.device))):
            yield f"fp8: {refusal}"
            continue
        for what, pairs in _workloads(checkpoint, bench).items():
            with LocalEngine(
                bench.plan(precision, gpu_token_budget(checkpoint.integer("hidden_size"))), checkpoint
            ) as engine:
                rate = bench.rate(lambda: engine.score(pairs), len(pairs))  # noqa: B023 (called at once)
                flops = _flops(checkpoint, pairs) / len(pairs)
                share = f", {rate * flops / bench.ceilings[precision]:.0%} of the ceiling" if bench.ceilings else ""
                yield f"{precision}, {what}: {rate:,.0f} pairs/s, {rate * flops / 1e12:.0f} TFLOP/s{share}"
        yield f"{precision}: {_kernels(bench, checkpoint, precision)}"


def padded(bench: Bench) -> Iterator[str]:
    """Transformers' own model over the same pairs."""
    checkpoint = _one_b(bench)
    model = llama_of(checkpoint.config, device=bench.device, dtype=torch.bfloat16)
    head = torch.zeros(1, checkpoint.integer("hidden_size"), device=bench.device)
    for what, pairs in _workloads(checkpoint, bench).items():
        ids = [pair.input_ids for pair in pairs]
        rates = {
            size: bench.rate(lambda: score_padded(model, head, ids, batch_size=size), len(pairs))  # noqa: B023 (called at once)
            for size in (16, 32, 64, 128)
        }
        best = max(rates, key=lambda size: rates[size])
        yield f"bf16, {what}: {rates[best]:,.0f} pairs/s at its best batch size, {best}"


def minilm(bench: Bench) -> Iterator[str]:
    """A small encoder, with and without the host's work."""
    checkpoint = _minilm(bench)
    texts = read_pairs(SAMPLES, limit=100 if bench.small else 800) * (1 if bench.small else 25)
    encoder = open_encoder(checkpoint, max_tokens=512)
    began = time.perf_counter()
    pairs = pairs_of(encoder.encode(texts))
    yield f"tokenising alone: {len(pairs) / (time.perf_counter() - began):,.0f} pairs/s"
    lengths = sorted(len(pair.input_ids) for pair in pairs)
    precision = "fp16" if bench.is_cuda else "fp32"
    budget = gpu_token_budget(checkpoint.integer("hidden_size")) if bench.is_cuda else CPU_TOKEN_BUDGET
    with LocalEngine(bench.plan(precision, budget), checkpoint) as engine:
        rate = bench.rate(lambda: engine.score(pairs), len(pairs))
        yield f"{precision}, half of the pairs below {lengths[len(lengths) // 2]} tokens: {rate:,.0f} pairs/s"


@torch.inference_mode()
def launches(bench: Bench) -> Iterator[str]:
    """Host and device seconds of a forward, by the size of its batch."""
    for name, checkpoint, precision in (("minilm", _minilm(bench), "fp16"), ("1b", _one_b(bench), "bf16")):
        plan = bench.plan(precision if bench.is_cuda else "fp32", 65_536)
        model = load_model(checkpoint, device=plan.device, precision=plan.precision, attention=plan.attention)
        for count in (1, 8, 32, 128):
            pairs = _random_pairs(checkpoint, [128 if not bench.small else 8] * count)
            forward = partial(model.forward, pairs)
            host = _host_seconds(bench, forward)
            told = f"{name}, {plan.precision}, {count} pairs: host {host * 1e3:.2f} ms"
            if bench.is_cuda:
                device = _device_seconds(forward, bench.device)
                told += f" for {_kernels_of(forward)} kernels, device {device * 1e3:.2f} ms"
                told += "; launches dominate" if host > device else ""
            yield told


def _host_seconds(bench: Bench, forward: Callable[[], object]) -> float:
    """Median seconds until a forward is launched and the device may still compute it."""
    taken = []
    for _ in range(3 if bench.small else 30):
        bench.settle()
        began = time.perf_counter()
        forward()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[1:])


def _device_seconds(forward: Callable[[], object], device: str) -> float:
    """Median seconds of a forward that waits on the device complete, so that no launch is waited for."""
    busy = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
    taken = []
    for _ in range(8):
        for _ in range(20):  # 20 ms and more, in which the host launches all that is timed
            torch.mm(busy, busy)
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record(torch.cuda.current_stream(device))
        forward()
        ended.record(torch.cuda.current_stream(device))
        ended.synchronize()
        taken.append(began.elapsed_time(ended) / 1e3)
    return statistics.median(taken[1:])


def _kernels_of(forward: Callable[[], object]) -> int:
    """What the device was given to run."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        forward()
        torch.cuda.synchronize()
    return sum(1 for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA)


def overlap(bench: Bench) -> Iterator[str]:
    """What a run gains by having two parts under way."""
    checkpoint = _one_b(bench)
    (mixed,) = (pairs for what, pairs in _workloads(checkpoint, bench).items() if what.startswith("mixed"))
    size = max(1, len(mixed) // 8)
    parts = [mixed[start : start + size] for start in range(0, len(mixed), size)]
    with LocalEngine(bench.plan("bf16" if bench.is_cuda else "fp32", 16_384), checkpoint) as engine:

        def run(depth: int) -> None:
            under_way: deque[Pending] = deque()
            waiting = deque(parts)
            while waiting or under_way:
                while waiting and len(under_way) < depth:
                    under_way.append(engine.submit(waiting.popleft()))
                while under_way[0].scores() is None:
                    engine.wait(1.0)
                under_way.popleft()
                time.sleep(_OTHER_WORK_SECONDS)

        alone, both = (bench.rate(partial(run, depth), len(mixed)) for depth in (1, engine.depth))
        yield f"one part after the other {alone:,.0f} pairs/s, {engine.depth} under way {both:,.0f} pairs/s"


def memory(bench: Bench) -> Iterator[str]:
    """Peak bytes of long batches, and of the weights, beside the estimate."""
    checkpoint = _one_b(bench)
    model = MemoryModel.of_checkpoint(checkpoint)
    capability = torch.cuda.get_device_capability(bench.device) if bench.is_cuda else None
    fp8 = [] if capability and capability < (8, 9) else ["fp8"]
    for precision in ["bf16", *fp8] if bench.is_cuda else ["fp32"]:
        place = Placement(cpu=not bench.is_cuda, precision=precision, capability=capability)
        if bench.is_cuda:
            yield _loading(checkpoint, bench, precision, estimate(model, BatchSize.of([8]), place).weights)
        for pairs in (1, 30):
            tokens = 64 if bench.small else 8192
            lengths = [tokens] * pairs
            found = measure_forward(
                checkpoint, lengths, device=bench.device, precision=precision,
                attention="varlen" if bench.is_cuda else "runs", threads=2,
            )  # fmt: skip
            expected = estimate(model, BatchSize.of(lengths), place)
            yield (
                f"{precision}, {pairs} x {tokens}: forward {found.forward_bytes / GIB:.2f} GiB measured, "
                f"{expected.forward / GIB:.2f} estimated"
            )


def _loading(checkpoint: Checkpoint, bench: Bench, precision: str, expected: int) -> str:
    """Bytes that a model holds once it is loaded, and the most that it held meanwhile."""
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(bench.device)
    torch.cuda.reset_peak_memory_stats(bench.device)
    model = load_model(checkpoint, device=bench.device, precision=precision, attention="varlen")
    held = torch.cuda.memory_allocated(bench.device) - before
    most = torch.cuda.max_memory_allocated(bench.device) - before
    del model
    return (
        f"{precision}: weights {held / GIB:.3f} GiB measured, {expected / GIB:.3f} estimated; "
        f"at most {(most - held) / 2**20:.0f} MiB more while they are loaded"
    )


def _minilm(bench: Bench) -> Checkpoint:
    """The built-in model's first six layers."""
    folder = bench.folder / "minilm"
    return read_checkpoint(folder if folder.exists() else plain_checkpoint(folder, layers=6))


def _one_b(bench: Bench) -> Checkpoint:
    """The 1B shape with random weights, or a tiny one."""
    if bench.small:
        return read_checkpoint(full_size.TINY)
    folder = bench.folder / "one-b"
    if not folder.exists():
        full_size.write_checkpoint(folder, fp8=False, pages=False)
    return read_checkpoint(folder)


def _workloads(checkpoint: Checkpoint, bench: Bench) -> dict[str, list[EncodedPair]]:
    count = 20 if bench.small else 2048
    drawn = np.random.default_rng(0).normal(np.log(224), 0.46, count)
    mixed = np.clip(np.exp(drawn), 16, 512).astype(int).tolist()
    return {
        "512 tokens": _random_pairs(checkpoint, [512] * count),
        f"mixed lengths, mean {np.mean(mixed):.0f}": _random_pairs(checkpoint, mixed),
    }


def _random_pairs(checkpoint: Checkpoint, lengths: Sequence[int]) -> list[EncodedPair]:
    draw = np.random.default_rng(1)
    vocabulary = checkpoint.integer("vocab_size")
    return [EncodedPair(draw.integers(2, vocabulary, n, dtype=np.int32), n // 4, n) for n in lengths]


def _flops(checkpoint: Checkpoint, pairs: Sequence[EncodedPair]) -> float:
    lengths = [len(pair.input_ids) for pair in pairs]
    return forward_flops(checkpoint, tokens=sum(lengths), squares=sum(length**2 for length in lengths))


def _kernels(bench: Bench, checkpoint: Checkpoint, precision: str) -> str:
    with LocalEngine(replace(bench.plan(precision, 1024)), checkpoint) as engine:
        return engine.kernels


if __name__ == "__main__":
    main()
