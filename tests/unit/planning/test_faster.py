"""What would be faster: said of fp32 on a CPU that multiplies bf16, and of nothing else."""

from __future__ import annotations

import pytest

from rerank_cli.machine.cpu import Cpu
from rerank_cli.planning.faster import faster_on

ZEN = Cpu(name="a CPU", cores=4, flags=frozenset({"avx512_bf16"}), architecture="x86_64")
AMX = Cpu(name="a CPU", cores=4, flags=frozenset({"avx512_bf16", "amx_bf16", "amx_tile"}), architecture="x86_64")
OLD = Cpu(name="a CPU", cores=4, flags=frozenset({"avx2"}), architecture="x86_64")


@pytest.mark.parametrize(("cpu", "times"), [(ZEN, "about 1.8 times"), (AMX, "about 2.5 times")])
def test_a_gain_comes_with_its_price_and_the_options_that_try_it(cpu: Cpu, times: str) -> None:
    told = faster_on(cpu, device="cpu", precision="fp32")
    assert told is not None
    assert times in told
    assert "one in twenty" in told
    assert "`--precision bf16 --check-precision 200`" in told


@pytest.mark.parametrize(
    ("cpu", "device", "precision"), [(OLD, "cpu", "fp32"), (AMX, "cpu", "bf16"), (AMX, "cuda:0", "fp32")]
)
def test_nothing_is_promised_elsewhere(cpu: Cpu, device: str, precision: str) -> None:
    assert faster_on(cpu, device=device, precision=precision) is None
