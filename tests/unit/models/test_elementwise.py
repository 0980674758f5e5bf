"""What lies between the products: the kernels run by Triton's interpreter, held against torch's own operations."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from rerank_cli.models.elementwise import Unfused, disagreement, elementwise_for
from rerank_cli.planning.memory.pieces import CHUNK

CPU = torch.device("cpu")
PROGRAM = """
import torch
from rerank_cli.models.elementwise import Fused, Unfused, disagreement
for dtype in (torch.float16, torch.bfloat16, torch.float32):
    print(disagreement(Fused(), torch.device("cpu"), dtype, leave_out={"fp8"}))
    x = torch.randn(7, 48, generator=torch.Generator().manual_seed(0)).to(dtype)
    (values, scales), (expected, their) = (by.quantise_rows(x) for by in (Fused(), Unfused()))
    # Triton 3.9's interpreter halves what is rounded up to a power of two: 124.9 becomes 64. A GPU has its own cast.
    carried = torch.frexp(expected.float())[0].abs() == 0.5
    print(torch.equal(scales, their), torch.equal(values.float()[~carried], expected.float()[~carried]))
    x[3, 5] = torch.nan
    for by in (Fused(), Unfused()):
        values, scales = by.quantise_rows(x)
        print((values.float() * scales).isfinite().all(1).tolist())
"""


def test_the_kernels_compute_what_torch_does() -> None:
    pytest.importorskip("triton", reason="Triton is not installed (it comes with CUDA builds of torch)")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    # A row with something that is no number has no numbers afterwards, and the others keep theirs.
    rows = str([row != 3 for row in range(7)])
    assert done.stdout.splitlines() == ["None", "True True", rows, rows] * 3


@dataclass(frozen=True)
class Spoiled(Unfused):
    """Right but for one operation."""

    where: str
    name: ClassVar[str] = "spoiled"

    def normalise_sum_(self, x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
        return super().normalise_sum_(x, x if self.where == "layer_norm" else residual, weight, bias, epsilon)

    def rms_norm(self, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        return super().rms_norm(x, weight, 0.5 if self.where == "rms_norm" else epsilon)

    def rotate_(self, x: Tensor, rotation: tuple[Tensor, Tensor]) -> None:
        cosines, sines = rotation
        super().rotate_(x, (cosines, -sines if self.where == "rotation" else sines))

    def gate_(self, gate: Tensor, up: Tensor, activation: str) -> Tensor:
        other = "silu" if activation.startswith("gelu") else "gelu_new"
        return super().gate_(gate, up, other if self.where in activation else activation)

    def quantise_rows(self, x: Tensor) -> tuple[Tensor, Tensor]:
        values, scales = super().quantise_rows(x)
        return values, scales * (1.5 if self.where == "fp8" else 1)


@pytest.mark.parametrize("where", ["layer_norm", "rms_norm", "rotation", "silu", "gelu", "fp8"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_kernel_that_computes_something_else_is_found(where: str, dtype: torch.dtype) -> None:
    assert disagreement(Spoiled("nowhere"), CPU, dtype) is None
    told = disagreement(Spoiled(where), CPU, dtype)
    assert told == f"{where} of the kernels and of torch differ on this device"


def test_a_cpu_computes_by_torch() -> None:
    by, told = elementwise_for(CPU, torch.bfloat16)
    assert isinstance(by, Unfused)
    assert told == "unfused"
    assert not by.has_gate("silu")


def test_a_gpu_without_triton_computes_by_torch_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rerank_cli.models.triton_kernels", None)
    elementwise_for.cache_clear()
    by, told = elementwise_for(torch.device("cuda", 0), torch.bfloat16)
    assert isinstance(by, Unfused)
    assert re.match(r"unfused \((Import|ModuleNotFound)Error: ", told)
    elementwise_for.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_long_row_of_tokens_is_computed_in_pieces(dtype: torch.dtype) -> None:
    x = torch.randn(2 * CHUNK + 3, 8, generator=torch.Generator().manual_seed(1)).to(dtype)
    weight = torch.rand(8, generator=torch.Generator().manual_seed(2))
    wide = x.double()
    exact = wide / (wide.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weight
    assert torch.allclose(Unfused().rms_norm(x, weight, 1e-5).double(), exact, atol=2e-2, rtol=1e-2)


def test_rows_in_fp8_keep_three_bits_and_no_row_is_lost_in_anothers_scale() -> None:
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(3)) * torch.tensor([[1e-4], [1.0], [1e4], [0.0]])
    values, scales = Unfused().quantise_rows(x)
    assert values.dtype == torch.float8_e4m3fn
    assert scales.shape == (4, 1)
    restored = values.float() * scales
    assert torch.equal(restored[3], torch.zeros(64))
    largest = x[:3].abs().amax(dim=1, keepdim=True)
    assert ((restored - x)[:3].abs() / largest).max() <= 2**-4
