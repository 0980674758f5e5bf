"""`rerank-cli version`; with `--verbose` also what a bug report needs."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from rerank_cli import __version__
from rerank_cli.cli.console import wrapped
from rerank_cli.cli.declare import SAY, option, takes
from rerank_cli.errors import printable

_LIBRARIES = (
    "torch", "transformers", "tokenizers", "safetensors", "numpy", "pyarrow", "pandas", "pillow", "ir-measures",
    "typer", "rich", "nvidia-ml-py", "ray",
)  # fmt: skip
_VARIABLES = ("RERANK_", "NIM_", "CUDA_VISIBLE_DEVICES", "HF_HOME", "HF_HUB_", "OMP_", "PYTORCH_", "TORCH_")
_NAMES = 17  # columns of the names

OPTIONS = [
    option(
        "--verbose", bool, group=SAY, short="-v", basic=True,
        help="Also libraries, devices, folders and variables: what a bug report needs.",
    ),
]  # fmt: skip

EXAMPLES = r"""
What a bug report should hold:
  rerank-cli version --verbose
"""


@takes(OPTIONS, examples=EXAMPLES, exit_codes=(0, 1, 2, 130, 141, 143))
def version(context: typer.Context, *, verbose: bool, **given: Any) -> int:
    """Print the version, and on request what it runs with."""
    lines = [f"{name:<{_NAMES}}  {value}" for name, value in _facts()] if verbose else []
    shown = [wrapped(printable(line), sys.stdout, under=_NAMES + 2) for line in lines]
    sys.stdout.write("\n".join([f"rerank-cli {__version__}", *shown]) + "\n")
    return 0


def _facts() -> Iterator[tuple[str, str]]:
    """Names and values. No library is imported: versions come from metadata, devices from the driver."""
    import platform
    from importlib import metadata  # not at the top: it would take 10 ms of every start

    from rerank_cli.checkpoint.read import locate_checkpoint
    from rerank_cli.machine.detect import detect_machine
    from rerank_cli.planning.profiles import profiles_dir

    yield "python", f"{platform.python_version()} ({sys.executable})"
    yield "system", platform.platform()
    for name in _LIBRARIES:
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:
            yield name, "not installed"
    machine = detect_machine()
    if machine.torch:
        yield "torch's build", f"{machine.torch.accelerator} {machine.torch.cuda or ''}".strip()
    yield "cpu", f"{machine.cpu.name}, {machine.cpu.cores} cores"
    yield "driver", f"{machine.driver}, CUDA {machine.cuda}" if machine.driver else "none"
    for gpu in machine.gpus:
        yield f"gpu {gpu.index}", f"{gpu.name}, {gpu.total_bytes or 0:,} bytes"
    if machine.reason:
        yield "gpus", f"none: {machine.reason}"
    yield "package", str(Path(__file__).parents[1])
    yield "profiles", str(profiles_dir())
    yield "model", f"{locate_checkpoint(None)} (built in)"
    yield "cache", os.environ.get("HF_HUB_CACHE") or os.environ.get("HF_HOME") or "~/.cache/huggingface"
    for name in sorted(os.environ):
        if name.startswith(_VARIABLES):
            yield name, os.environ[name]
