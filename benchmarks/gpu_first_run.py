"""The first run on a card: every command of it in a process of its own, with a limit of its own, and what each said.

    python -m benchmarks.gpu_first_run [--device cuda:0] [--only NAME ...] [--small] [--out DIR] [--environments DIR]

facts      what the card, the driver and torch are
smoke      the samples in fp32, fp16 and bf16; the report names the kernels
tests      tests/gpu
ceiling, 1b, padded, minilm, launches, overlap, memory    the sections of `benchmarks.gpu`, each alone
kernels    where a forward's time goes, of several models and lengths (`benchmarks.gpu_kernels`)
host       what the host can feed alone (`benchmarks.host`)
file       100,000 distinct pairs from file to file
shards-2   the same by two processes at once on the one card
peers      beside sentence-transformers and vLLM, with cuDNN's plans and without (`peers-cudnn`)
constants  what the card takes for itself, for `memory/constants.toml`

A command that fails or runs past its limit is told, and the next one begins. `DIR/first-run.json` is written after each
command: what it was, its exit code, its seconds and the end of what it said; its whole output is in `DIR/NAME.log`.
`--small` takes tiny sizes and few rounds, so that all of it can be tried on a CPU (`--device cpu`); its figures mean
nothing. Nothing connects to a network, and the Python that runs this runs all of it.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.material import plain_checkpoint
from benchmarks.peers.sides import ENVIRONMENTS

ROOT = Path(__file__).parents[1]
SECTIONS = ("ceiling", "1b", "padded", "minilm", "launches", "overlap", "memory")  # of `benchmarks.gpu`
_TOLD = 4000  # characters of the end of an output, in the JSON
_DEPRIORITIZED = "TORCH_CUDNN_SDPA_DEPRIORITIZED"


@dataclass(frozen=True, slots=True)
class Step:
    """One measurement. commands: begun at once. limit: seconds. variables: of the environment, beside those there."""

    name: str
    commands: Sequence[Sequence[str]]
    limit: float
    variables: Mapping[str, str] = field(default_factory=dict)


def main() -> int:
    """Run what is asked; returns how many steps did not end well."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # and with it what it has started
    options.out.mkdir(parents=True, exist_ok=True)
    material = _Material(options.out)
    done: list[dict[str, Any]] = []
    for step in steps(options, material):
        if options.only and step.name not in options.only:
            continue
        if step.name.startswith(("file", "shards")):
            material.write(pairs=200 if options.small else 100_000)
        found = run(step, options.out)
        done.append(found)
        told = "ok" if found["ok"] else f"FAILED ({found['why']})"
        print(f"{step.name}: {told}, {found['seconds']:.1f} s", flush=True)
        _write(options.out / "first-run.json", options, done)
    return min(100, sum(not one["ok"] for one in done))


def run(step: Step, out: Path) -> dict[str, Any]:
    """Run the commands of a step to their end or its limit; returns what is written of it."""
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"} | dict(step.variables)
    log = out / f"{step.name}.log"
    began = time.monotonic()
    codes: list[int | None] = []
    with log.open("wb") as file:
        running: list[subprocess.Popen[bytes]] = []
        try:
            for command in step.commands:
                file.write(f"$ {' '.join(command)}\n".encode())
                file.flush()
                running.append(
                    subprocess.Popen(
                        command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=file,
                        stderr=subprocess.STDOUT, start_new_session=True,
                    )
                )  # fmt: skip
            for process in running:
                codes.append(_end_of(process, began + step.limit))
        except OSError as error:  # a command that is not there
            file.write(f"{error}\n".encode())
            codes.append(127)
        finally:
            for process in running:
                _kill(process)
    seconds = time.monotonic() - began
    late = None in codes
    why = f"past its limit of {step.limit:g} s" if late else f"exit codes {codes}" if any(codes) else None
    told = log.read_text(encoding="utf-8", errors="replace")[-_TOLD:]
    return {
        "name": step.name, "commands": [list(command) for command in step.commands], "variables": dict(step.variables),
        "limit": step.limit, "seconds": round(seconds, 2), "exit_codes": codes, "ok": why is None, "why": why,
        "log": log.name, "end_of_log": told,
    }  # fmt: skip


def _end_of(process: subprocess.Popen[bytes], deadline: float) -> int | None:
    """Its exit code; None where it still runs at the deadline."""
    try:
        return process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return None


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a process and those that it has started, which would hold the card."""
    with contextlib.suppress(ProcessLookupError):  # all of them have ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def steps(options: argparse.Namespace, material: _Material) -> list[Step]:
    """All steps, in their order: what shows a fault first, then figures by their worth."""
    small, device, out = options.small, options.device, options.out
    python = sys.executable

    def module(name: str, *arguments: object) -> list[str]:
        return [python, "-m", name, *map(str, arguments)]

    def bench(section: str) -> list[str]:
        others = [name for name in SECTIONS if name != section]
        tiny = ["--small"] if small else []
        return module("benchmarks.gpu", "--device", device, "--seconds", 0.05 if small else 3, *tiny, "--skip", *others)

    def smoke(precision: str) -> list[str]:
        few = ["--limit", 1, "--max-tokens", 64] if small else []
        return module(
            "rerank_cli", "rerank-file", ROOT / "samples" / "python-docs.jsonl", "-o", out / f"smoke-{precision}.jsonl",
            "--device", device, "--precision", precision, "--overwrite", "--restart", *few,
        )  # fmt: skip

    def of_file(name: str, *more: object) -> list[str]:
        return module(
            "rerank_cli", "rerank-file", material.rows, "-o", out / f"{name}.jsonl", "--model", material.model,
            "--device", device, "--overwrite", "--restart", *more,
        )  # fmt: skip

    kind = device.partition(":")[0]
    facts = (
        "import torch,transformers,sys;print(sys.version);print(torch.__version__,transformers.__version__,"
        "torch.version.cuda,torch.backends.cudnn.version());"
        "print([torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())])"
    )
    seen = [] if kind == "cpu" else [Step("nvidia-smi", [["nvidia-smi"]], 60)]
    precisions = ("fp32", "bf16") if kind == "cpu" else ("fp32", "fp16", "bf16")
    peers = module(
        "benchmarks.gpu_peers", "--device", device, "--pairs", 100 if small else 10_000, "--rounds", 1 if small else 2,
        "--environments", options.environments,
    )  # fmt: skip
    whole = [
        *seen,
        Step("facts", [[python, "-c", facts]], 120),
        Step("plan", [module("rerank_cli", "profile-select", "--format", "text")], 120),
        *(Step(f"smoke-{name}", [smoke(name)], 300) for name in precisions),
        Step(
            "tests",
            [module("pytest", "tests/gpu", "-q", "-rs", "-p", "no:cacheprovider", "--timeout", 90, "--durations", 8)],
            900,
        ),
        *(Step(name, [bench(name)], 600, {_DEPRIORITIZED: "1"}) for name in SECTIONS),
        Step(
            "kernels",
            [module("benchmarks.gpu_kernels", "--device", device, *(["--small"] if small else []))],
            600,
        ),
        Step("host", [module("benchmarks.host", "--pairs", 200 if small else 40_000, "--rounds", 1 if small else 2)],
             300),
        Step("file", [of_file("file")], 400),
        Step("shards-2", [of_file(f"shard-{number}", "--shard", f"{number}/2") for number in (1, 2)], 400),
        Step("peers", [peers], 600, {_DEPRIORITIZED: "1"}),
        Step("peers-cudnn", [peers], 600, {_DEPRIORITIZED: "0"}),
    ]  # fmt: skip
    if kind != "cpu":  # a CPU has no context to measure
        whole.append(Step("constants", [module("benchmarks.gpu_constants", "--device", device)], 200))
    return whole


@dataclass(slots=True)
class _Material:
    """The file and the model of whole runs, made when they are first wanted."""

    out: Path

    @property
    def rows(self) -> Path:
        """Lists of distinct passages."""
        return self.out / "rows.jsonl"

    @property
    def model(self) -> Path:
        """The built-in model's first six layers."""
        return self.out / "model"

    def write(self, *, pairs: int) -> None:
        """Make what is not there."""
        from benchmarks.host import write_lists  # loads torch, which a look at `--help` need not

        if not self.rows.exists():
            write_lists(self.rows, pairs, 100)
        if not self.model.exists():
            plain_checkpoint(self.model, layers=6)


def _write(path: Path, options: argparse.Namespace, done: Sequence[Mapping[str, Any]]) -> None:
    document = {
        "question": "gpu first run", "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "host": platform.node(), "device": options.device, "small": options.small, "steps": done,
    }  # fmt: skip
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME", help="steps of these names")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to try all of it")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "gpu", help="folder of logs and figures")
    parser.add_argument("--environments", type=Path, default=ENVIRONMENTS, help="folder of the peers' environments")
    options = parser.parse_args()
    options.out, options.environments = options.out.absolute(), options.environments.absolute()
    return options


if __name__ == "__main__":
    raise SystemExit(main())
