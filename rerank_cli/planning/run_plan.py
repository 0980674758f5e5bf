"""The plan of a run: window, threads, lanes, processes, token budget, checked against memory, as the engine wants it.

    answer = plan_model(request, known, machine)        what `profile-select` prints
    plan = plan_run(answer, cuda_devices=...)           what the engine is given; raises where there is no plan

Both commands of a run and `profile-select` go through `plan_model`, so that one request has one plan. A `Plan` is
everything the engine must know and nothing it must decide. What this version cannot do of an answer (FP8 of a model
without such products) is done as near as it can and warned about.

Precision on a CPU: `auto` is fp32. bf16 is about 1.6 times as fast where the CPU multiplies it in hardware, but moves
logits by up to 0.2 and makes ties; int8 (`models/int8_linear.py`) is about 2.5 times as fast and moves them by up to
0.5. Both run only when they are asked for. On a GPU `auto` is fp16, or bf16 for a model that was trained in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rerank_cli.checkpoint.families import family_of
from rerank_cli.checkpoint.quantisation import read_quantisation
from rerank_cli.errors import DoesNotFitError, ModelError
from rerank_cli.machine.detect import Machine
from rerank_cli.planning.choices import ProfileRequest
from rerank_cli.planning.known_model import KnownModel
from rerank_cli.planning.memory import MemoryModel, need_for
from rerank_cli.planning.profile_answer import MachinePlan, plan_machine
from rerank_cli.planning.profiles import ProfilePlan

# Pairs a window holds: what is tokenised, sorted and committed together. Packed batches need no wide window to avoid
# padding, so on a CPU it is small and results come early.
_CPU_WINDOW_PAIRS = 512
_CUDA_WINDOW_PAIRS = 4096
MOST_LANES = 8
"""Lanes of an engine on a CPU. With a small model each holds Python's lock for some 4 % of its time."""
_IMAGE_PROCESSES = 8  # at most; eight read 58 to 80 pages of 1700 x 2200 pixels a second (`benchmarks/`)


@dataclass(frozen=True, slots=True)
class Plan:
    """One way to run one model on one kind of device, with the reasons.

    device: the first one. engines: the device of each loaded copy of the model; if there are several, each is a process
    of its own. max_tokens: longest pair after truncation. token_budget: tokens that a batch may hold. threads: of the
    CPU, for each engine. needed_bytes: of each device, by the memory model; None where it does not know the model.
    image_processes: how many may read page images ahead of the scoring. taken: what the model was taken for, where its
    files do not say it. lanes: batches that an engine on a CPU computes side by side, each with its part of the threads
    (`engine/lanes.py`).
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
    warnings: tuple[str, ...] = ()
    needed_bytes: int | None = None
    engines: tuple[str, ...] = ()
    image_processes: int = 0
    taken: str = ""
    lanes: int = 1


def plan_model(
    request: ProfileRequest, known: KnownModel, machine: Machine, *, notes: Iterable[str] = ()
) -> MachinePlan:
    """The plan for `request`, one that fits by the memory model where there is one. notes: reasons known before."""
    try:
        need = need_for(known.memory_model(), cpu=machine.cpu)
    except ModelError as error:  # no shape in its profile, or a config.json with keys of its own
        need, notes = None, (*notes, f"memory is not checked: {error.message}")
    return plan_machine(request, known, machine, need=need, notes=notes)


def plan_run(answer: MachinePlan, *, cuda_devices: int) -> Plan:
    """The plan of the answer as the engine wants it; raises the answer's error where there is no plan.

    cuda_devices: how many devices this torch can use.
    """
    if answer.error is not None:
        raise answer.error
    planned, machine, devices = answer.plan, answer.machine, answer.device
    assert planned is not None and machine is not None and devices is not None, "an answer is a plan or an error"
    on_cpu = devices == "cpu"
    each = ["cpu"] if on_cpu else [f"cuda:{number}" for number in devices.removeprefix("cuda:").split(",")]
    device = each[0]
    warnings = list(answer.warnings)
    seen = f"torch sees {cuda_devices} CUDA device{'s' * (cuda_devices != 1)}"
    for name in [] if on_cpu else each:
        if int(name.removeprefix("cuda:")) >= cuda_devices:
            raise DoesNotFitError(f"{name}: {seen}", hint="`--device cpu` runs without a GPU")
    if on_cpu and cuda_devices and not machine.devices and planned.kind == "cpu":
        warnings.append(f"the run is on the CPU although {seen}: {machine.reason}")
    engines = each * planned.engine_count  # neighbours in the queue are on different devices
    checkpoint = answer.model.checkpoint if answer.model else None
    family = family_of(checkpoint.architecture) if checkpoint else None
    precision = planned.precision
    if precision == "fp8":
        # Weights that are stored in FP8 are multiplied so where the card can, whatever the run's precision is.
        stored = checkpoint is not None and read_quantisation(checkpoint) is not None
        if stored or not (family and family.fp8):
            precision = "fp16"
            warnings += [] if stored else ["fp8 is computed in fp16: the model has no such products, nor such weights"]
    threads = max(1, machine.cpu.cores // len(engines))
    lanes, needed = _lanes(answer, planned, threads) if on_cpu else (1, planned.needed_bytes)
    return Plan(
        profile=planned.profile,
        kind=planned.kind,
        device=device,
        precision=precision,
        max_tokens=planned.max_tokens,
        token_budget=planned.token_budget,
        window_pairs=_CPU_WINDOW_PAIRS if on_cpu else _CUDA_WINDOW_PAIRS,
        attention=planned.attention,
        threads=threads,
        reasons=answer.reasons,
        warnings=tuple(warnings),
        needed_bytes=needed,
        engines=tuple(engines),
        image_processes=_image_processes(machine.cpu.cores, engines) if family and family.images else 0,
        lanes=lanes,
    )


def needed_together(first: Plan | None, second: Plan) -> int | None:
    """Bytes of each device with a cheap scorer beside the model; None where the need of one is not known.

    Each is counted as if it were alone, with what the process holds for itself, which is too much: the built-in model
    with int8 before it took 1.05 GiB, 0.42 GiB more than alone; 1.36 are counted (Intel Xeon with AMX, 2 cores, 800
    pairs).
    """
    if first is None or second.needed_bytes is None:
        return second.needed_bytes
    return None if first.needed_bytes is None else first.needed_bytes + second.needed_bytes


def _lanes(answer: MachinePlan, planned: ProfilePlan, threads: int) -> tuple[int, int | None]:
    """Lanes of each engine on a CPU, as many as its memory allows, and the bytes of all engines then.

    The token budget stays that of one lane, and with it every batch: lanes change no output. A model that transformers
    runs has one.
    """
    known, machine = answer.model, answer.machine
    checkpoint = known.checkpoint if known else None
    if checkpoint is None or machine is None or planned.needed_bytes is None:
        return 1, planned.needed_bytes
    model = MemoryModel.of_checkpoint(checkpoint)
    if model.shape.forward == "padded":
        return 1, planned.needed_bytes
    free = machine.cpu.memory_available_bytes
    for lanes in range(min(threads, MOST_LANES), 1, -1):
        need = need_for(model, cpu=machine.cpu, lanes=lanes)
        needed = need(
            None,
            precision=planned.precision,
            max_tokens=planned.max_tokens,
            token_budget=max(planned.token_budget, planned.max_tokens),
            engines=planned.engine_count,
        )
        if free is None or needed <= free:
            return lanes, needed
    return 1, planned.needed_bytes


def _image_processes(cores: int, engines: Sequence[str]) -> int:
    """How many processes read page images: on a GPU the cores that are left, as each engine keeps one busy.

    On a CPU the forward uses all cores and takes seconds for a page that is read in a tenth of one: more processes
    would only take turns with it. One reads as fast as a thread would, and an image that crashes it crashes nothing
    else.
    """
    if engines[0] == "cpu":
        return 1
    return max(1, min(_IMAGE_PROCESSES, cores - len(engines)))
