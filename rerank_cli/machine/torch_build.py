"""What the installed torch was built for, and the advice where that is not this machine; torch is not imported.

Importing it takes a second and wakes the driver.

The sources, the surest first:

1. `torch/version.py` beside the package that `import torch` would take. The build writes it: `__version__`, and `cuda`,
   `hip`, `xpu` with a version or None. It is right for wheels, conda packages and builds from source alike, and it
   is where `torch.version.cuda` comes from.
2. Without it, the metadata beside the package: the local part of `Version` (`2.13.0+cpu`, `+cu130`, `+rocm7.0`).
3. Without a local part (wheels on PyPI carry none in their metadata), the requirements: the CUDA wheels of Linux
   require `nvidia-...` or `cuda-...` distributions, the CPU wheels of macOS and ARM do not.
"""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

_ASSIGNMENT = re.compile(r"""^(__version__|cuda|hip|xpu)\b[^=\n]*=\s*(?:None|['"]([^'"]*)['"])\s*$""", re.MULTILINE)
_FIELD = re.compile(r"^(Version|Requires-Dist):\s*(\S.*)$", re.MULTILINE)
_CUDA_LOCAL = re.compile(r"cu(\d+)(\d)")


@dataclass(frozen=True, slots=True)
class TorchBuild:
    """An installed torch. accelerator: `cpu`, `cuda`, `rocm` or `xpu`. cuda: the CUDA version it was built with."""

    version: str
    accelerator: str
    cuda: str | None = None


def detect_torch_build() -> TorchBuild | None:
    """The torch that `import torch` would take, or None where there is none."""
    try:
        spec = importlib.util.find_spec("torch")
    except (ImportError, ValueError):  # ValueError: a module put into sys.modules without a spec
        return None
    return None if spec is None or spec.origin is None else read_torch_build(Path(spec.origin).parent)


def read_torch_build(package: Path) -> TorchBuild | None:
    """The build of the torch in this folder, or None where neither it nor the metadata beside it tells a version."""
    try:
        text = (package / "version.py").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    facts: dict[str, str] = dict(_ASSIGNMENT.findall(text))
    if version := facts.get("__version__"):
        if facts.get("hip"):
            return TorchBuild(version, "rocm")
        if facts.get("cuda"):
            return TorchBuild(version, "cuda", facts["cuda"])
        return TorchBuild(version, "xpu" if facts.get("xpu") else "cpu")
    for metadata in sorted(package.parent.glob("torch-*.dist-info/METADATA")):
        build = _from_metadata(metadata.read_text(encoding="utf-8", errors="replace"))
        if build:
            return build
    return None


def torch_warnings(torch: TorchBuild | None, driver_cuda: str | None) -> list[str]:
    """What keeps this torch from using the GPUs that CUDA shows. driver_cuda: the newest CUDA that the driver runs."""
    if torch is None:
        return [f"torch is not installed, so the GPU stays idle; {_remedy(driver_cuda)}"]
    if torch.accelerator != "cuda":
        kind = {"cpu": "CPU", "rocm": "ROCm", "xpu": "XPU"}.get(torch.accelerator, torch.accelerator)
        build = f"GPU present, but torch {torch.version} is a {kind} build and cannot use it"
        return [f"{build}; {_remedy(driver_cuda)}"]
    if torch.cuda and driver_cuda and _major(torch.cuda) > _major(driver_cuda):
        return [
            f"torch {torch.version} is built for CUDA {torch.cuda}, and the driver runs CUDA {driver_cuda} at most; "
            f"update the driver, or {_remedy(driver_cuda)}"
        ]
    return []


def _remedy(driver_cuda: str | None) -> str:
    """How to get a torch for this driver, which runs every CUDA of its own major version and of older ones."""
    if driver_cuda and _major(driver_cuda) >= 13:
        index = "https://download.pytorch.org/whl/cu130"
        return f"`pip install --force-reinstall torch --index-url {index}` installs a CUDA build"
    newest = f" for CUDA {driver_cuda} or older" if driver_cuda else ""
    return f"install a CUDA build of torch{newest}: https://pytorch.org/get-started/locally"


def _major(version: str) -> int:
    head = version.partition(".")[0]
    return int(head) if head.isdecimal() else 0


def _from_metadata(text: str) -> TorchBuild | None:
    head = text.split("\n\n", 1)[0]  # the long description follows and may say anything
    fields = _FIELD.findall(head)
    version = next((value.strip() for key, value in fields if key == "Version"), None)
    if version is None:
        return None
    local = version.partition("+")[2]
    if match := _CUDA_LOCAL.match(local):
        return TorchBuild(version, "cuda", f"{match[1]}.{match[2]}")
    for accelerator in ("rocm", "xpu", "cpu"):
        if local.startswith(accelerator):
            return TorchBuild(version, accelerator)
    needs_cuda = any(key == "Requires-Dist" and value.startswith(("nvidia-", "cuda-")) for key, value in fields)
    return TorchBuild(version, "cuda" if needs_cuda else "cpu")
