"""How a model runs on this machine, decided once, with reasons, before anything is loaded.

A `Plan` is everything the engine must know and nothing it must decide. `make_plan` is a pure function of the request,
the checkpoint's facts and the machine; options and environment are resolved before it, nobody below reads them.

Precision on a CPU: `auto` is fp32. bf16 is about 1.6 times as fast where the CPU multiplies it in hardware, but moves
logits by up to 0.2 and makes ties, so it runs only when it is asked for. On a CUDA device `auto` is fp16.
"""

from __future__ import annotations

from dataclasses import dataclass

from rerank_cli.errors import DoesNotFitError, UsageError
from rerank_cli.hardware import Cpu

PRECISIONS = ("auto", "fp32", "bf16", "fp16")

# Tokens a batch holds. CPU: 2,048 to 4,096 measured best on Zen 4 (activations stay in L2/L3); CUDA: enough rows to
# fill the card, little enough for 8 GB (measured nowhere yet: to be replaced by the memory model's answer).
_CPU_TOKEN_BUDGET = 2048
_CUDA_TOKEN_BUDGET = 32768
# Pairs a window holds: what is tokenised, sorted and committed together. Packed batches need no wide window to avoid
# padding, so on a CPU it is small and results come early.
_CPU_WINDOW_PAIRS = 512
_CUDA_WINDOW_PAIRS = 4096


@dataclass(frozen=True, slots=True)
class Request:
    """What the user asked of the run; None means "decide"."""

    device: str = "auto"
    precision: str = "auto"
    max_tokens: int | None = None
    token_budget: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """One way to run one model on one device, with the reasons.

    max_tokens: longest pair after truncation. token_budget: tokens that a batch may hold. threads: of the CPU.
    """

    profile: str
    kind: str
    device: str
    precision: str
    max_tokens: int
    token_budget: int
    window_pairs: int
    attention: str
    threads: int
    reasons: tuple[str, ...]


def make_plan(request: Request, *, model_max_tokens: int, cpu: Cpu, cuda_devices: int) -> Plan:
    """The plan for `request`, or `DoesNotFitError` where the machine lacks what it asks for.

    model_max_tokens: what the model can read. cuda_devices: devices that this torch can use.
    """
    reasons: list[str] = []
    device = _device(request.device, cuda_devices, reasons)
    on_cpu = device == "cpu"
    precision = (
        _precision_on_cpu(request.precision, cpu, reasons) if on_cpu else _precision_on_cuda(request.precision, reasons)
    )
    max_tokens = request.max_tokens or model_max_tokens
    if max_tokens > model_max_tokens:
        raise UsageError(f"--max-tokens {max_tokens}: the model reads at most {model_max_tokens} tokens")
    reasons.append(f"max tokens {max_tokens}: {'--max-tokens' if request.max_tokens else 'what the model can read'}")
    if on_cpu:
        reasons.append(f"{cpu.cores} threads: the cores that this process may use")
    default_budget = _CPU_TOKEN_BUDGET if on_cpu else _CUDA_TOKEN_BUDGET
    return Plan(
        profile=f"{'cpu' if on_cpu else 'cuda'}-{precision}",
        kind="cpu" if on_cpu else "generic",
        device=device,
        precision=precision,
        max_tokens=max_tokens,
        token_budget=request.token_budget or default_budget,
        window_pairs=_CPU_WINDOW_PAIRS if on_cpu else _CUDA_WINDOW_PAIRS,
        attention="runs" if on_cpu else "varlen",
        threads=cpu.cores,
        reasons=tuple(reasons),
    )


def _device(asked: str, cuda_devices: int, reasons: list[str]) -> str:
    if asked == "auto":
        found = "cuda:0" if cuda_devices else "cpu"
        reasons.append(f"device {found}: {'the first CUDA device' if cuda_devices else 'torch sees no CUDA device'}")
        return found
    kind, _, index = asked.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdecimal()) or (kind == "cpu" and index):
        raise UsageError(f"--device {asked}: not a device", hint="known are auto, cpu, cuda, cuda:0, cuda:1, ...")
    if kind == "cuda" and int(index or 0) >= cuda_devices:
        raise DoesNotFitError(f"--device {asked}: torch sees {cuda_devices} CUDA devices")
    device = f"cuda:{index or 0}" if kind == "cuda" else "cpu"
    reasons.append(f"device {device}: --device")
    return device


def _precision_on_cpu(asked: str, cpu: Cpu, reasons: list[str]) -> str:
    _known(asked)
    if asked == "auto":
        faster = "; --precision bf16 is faster here and less exact" if cpu.has_bf16 else ""
        reasons.append(f"precision fp32: exact, the default on a CPU{faster}")
        return "fp32"
    if (asked == "bf16" and not cpu.has_bf16) or (asked == "fp16" and not cpu.has_fp16):
        raise DoesNotFitError(
            f"--precision {asked}: {cpu.name} has no {asked} instructions", hint="`--precision fp32` runs anywhere"
        )
    reasons.append(f"precision {asked}: --precision")
    return asked


def _precision_on_cuda(asked: str, reasons: list[str]) -> str:
    _known(asked)
    reasons.append(
        "precision fp16: the default on a CUDA device" if asked == "auto" else f"precision {asked}: --precision"
    )
    return "fp16" if asked == "auto" else asked


def _known(precision: str) -> None:
    if precision not in PRECISIONS:
        raise UsageError(f"--precision {precision}: not known", hint="known are " + ", ".join(PRECISIONS))
