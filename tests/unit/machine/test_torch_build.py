"""What torch was built for, read from the files of recorded installations, and what is said of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rerank_cli.machine.torch_build import TorchBuild, detect_torch_build, read_torch_build, torch_warnings

# torch/version.py as the builds write it: wheels since 2.0, 1.13, conda-forge, ROCm, XPU.
CPU = """from typing import Optional

__all__ = ['__version__', 'debug', 'cuda', 'git_version', 'hip', 'rocm', 'xpu']
__version__ = '2.13.0+cpu'
debug = False
cuda: Optional[str] = None
git_version = 'cf30153c4c131c8164ee7798e5022d810682e2cb'
hip: Optional[str] = None
rocm: Optional[str] = None
xpu: Optional[str] = None
"""
CUDA = CPU.replace("+cpu", "+cu130").replace("cuda: Optional[str] = None", "cuda: Optional[str] = '13.0'")
OLD = "__version__ = '1.13.1'\ndebug = False\ncuda = '11.7'\ngit_version = 'x'\nhip = None\n"
CONDA = CUDA.replace("2.13.0+cu130", "2.9.1").replace("13.0", "12.9")
ROCM = CPU.replace("+cpu", "+rocm7.0").replace("hip: Optional[str] = None", "hip: Optional[str] = '7.0.51831'")
XPU = CPU.replace("+cpu", "+xpu").replace("xpu: Optional[str] = None", "xpu: Optional[str] = '20250302'")


def metadata(version: str, *requirements: str) -> str:
    lines = [f"Requires-Dist: {name}" for name in ("filelock", "sympy>=1.13.3", *requirements)]
    head = "\n".join(["Metadata-Version: 2.1", "Name: torch", f"Version: {version}", *lines])
    return f"{head}\n\nVersion: 0.0\nRequires-Dist: nvidia-of-the-description\n"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (CPU, TorchBuild("2.13.0+cpu", "cpu")),
        (CUDA, TorchBuild("2.13.0+cu130", "cuda", "13.0")),
        (OLD, TorchBuild("1.13.1", "cuda", "11.7")),
        (CONDA, TorchBuild("2.9.1", "cuda", "12.9")),
        (ROCM, TorchBuild("2.13.0+rocm7.0", "rocm")),
        (XPU, TorchBuild("2.13.0+xpu", "xpu")),
        (CPU.replace("+cpu", ""), TorchBuild("2.13.0", "cpu")),
    ],
)
def test_the_version_file_decides(text: str, wanted: TorchBuild, tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/version.py").write_text(text)
    (tmp_path / "torch-9.9.dist-info").mkdir()
    (tmp_path / "torch-9.9.dist-info/METADATA").write_text(metadata("9.9+cu999"))
    assert read_torch_build(tmp_path / "torch") == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (metadata("2.13.0+cpu"), TorchBuild("2.13.0+cpu", "cpu")),
        (metadata("2.13.0+cu130"), TorchBuild("2.13.0+cu130", "cuda", "13.0")),
        (metadata("2.3.0+cu118"), TorchBuild("2.3.0+cu118", "cuda", "11.8")),
        (metadata("2.13.0+rocm7.0"), TorchBuild("2.13.0+rocm7.0", "rocm")),
        (metadata("2.13.0+xpu"), TorchBuild("2.13.0+xpu", "xpu")),
        (metadata("2.13.0", 'nvidia-cudnn-cu13==9.1; platform_system == "Linux"'), TorchBuild("2.13.0", "cuda")),
        (metadata("2.13.0", 'cuda-bindings<14; platform_system == "Linux"'), TorchBuild("2.13.0", "cuda")),
        (metadata("2.13.0"), TorchBuild("2.13.0", "cpu")),
        ("Name: torch\n", None),
    ],
)
def test_without_a_version_file_the_metadata_decides(text: str, wanted: TorchBuild | None, tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch-2.dist-info").mkdir()
    (tmp_path / "torch-2.dist-info/METADATA").write_text(text)
    assert read_torch_build(tmp_path / "torch") == wanted


def test_an_empty_folder_is_no_torch(tmp_path: Path) -> None:
    assert read_torch_build(tmp_path) is None


def test_the_answer_is_the_one_that_torch_itself_gives() -> None:
    build = detect_torch_build()
    assert build is not None
    assert (build.version, build.cuda) == (torch.__version__, torch.version.cuda)
    assert (build.accelerator == "cuda") == (torch.version.cuda is not None)


@pytest.mark.parametrize(
    ("build", "cuda", "wanted"),
    [
        (TorchBuild("2.13.0+cpu", "cpu"), "13.0", ("GPU present, but torch 2.13.0+cpu is a CPU build", "/whl/cu130")),
        (TorchBuild("2.13.0+cpu", "cpu"), "12.6", ("CPU build", "for CUDA 12.6 or older", "pytorch.org")),
        (TorchBuild("2.13.0+cpu", "cpu"), None, ("CPU build", "install a CUDA build of torch: https")),
        (TorchBuild("2.13.0+rocm7.0", "rocm"), "13.0", ("ROCm build",)),
        (TorchBuild("2.13.0+cu130", "cuda", "13.0"), "12.8", ("built for CUDA 13.0", "CUDA 12.8 at most", "update")),
        (None, "13.0", ("torch is not installed",)),
    ],
)
def test_a_torch_that_cannot_use_the_gpu_is_named_with_the_remedy(
    build: TorchBuild | None, cuda: str | None, wanted: tuple[str, ...]
) -> None:
    (warning,) = torch_warnings(build, cuda)
    assert all(part in warning for part in wanted), warning


@pytest.mark.parametrize(
    ("build", "cuda"),
    [
        (TorchBuild("2.13.0+cu130", "cuda", "13.0"), "13.0"),
        (TorchBuild("2.13.0+cu132", "cuda", "13.2"), "13.0"),  # minor versions are compatible
        (TorchBuild("2.9.0+cu126", "cuda", "12.6"), "13.0"),
        (TorchBuild("2.9.0", "cuda", None), "13.0"),
        (TorchBuild("2.9.0+cu126", "cuda", "12.6"), None),
    ],
)
def test_a_torch_that_can_is_not_mentioned(build: TorchBuild, cuda: str | None) -> None:
    assert torch_warnings(build, cuda) == []
