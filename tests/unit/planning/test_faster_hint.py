"""What would be faster: said of fp32 on a CPU that multiplies bf16, and of nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from rerank_cli.checkpoint import locate_checkpoint, read_checkpoint
from rerank_cli.machine import amx
from rerank_cli.machine.cpu import Cpu, detect_cpu
from rerank_cli.planning.faster_hint import faster_on

PARITY = Path(__file__).parents[2] / "parity"

ZEN = Cpu(name="a CPU", cores=4, flags=frozenset({"avx512_bf16"}), architecture="x86_64")
AMX = Cpu(name="a CPU", cores=4, flags=frozenset({"avx512_bf16", "amx_bf16", "amx_tile"}), architecture="x86_64")
VNNI = Cpu(name="a CPU", cores=4, flags=frozenset({"avx512f", "avx512_vnni"}), architecture="x86_64")
OLD = Cpu(name="a CPU", cores=4, flags=frozenset({"avx2"}), architecture="x86_64")


@pytest.mark.parametrize(("cpu", "times"), [(ZEN, "about 1.8 times"), (AMX, "about 2.5 times")])
def test_a_gain_comes_with_its_price_and_the_options_that_try_it(cpu: Cpu, times: str) -> None:
    told = faster_on(cpu, device="cpu", precision="fp32", checkpoint=read_checkpoint(locate_checkpoint(None)))
    assert told is not None
    assert times in told
    assert "one in twenty" in told
    assert "`--precision bf16 --check-precision 200`" in told


@pytest.mark.parametrize(
    ("cpu", "device", "precision"), [(OLD, "cpu", "fp32"), (AMX, "cpu", "bf16"), (AMX, "cuda:0", "fp32")]
)
def test_nothing_is_promised_elsewhere(cpu: Cpu, device: str, precision: str) -> None:
    assert faster_on(cpu, device=device, precision=precision, checkpoint=None) is None


@pytest.mark.parametrize(("name", "told"), [("modernbert", True), ("ettin", True), ("bert", True), ("deberta", False)])
def test_int8_is_told_of_where_a_cpu_multiplies_nothing_else_and_the_model_has_it(name: str, told: bool) -> None:
    folder = PARITY / (f"{name}-open" if name == "ettin" else f"{name}-ce-open") / "checkpoint"
    checkpoint = read_checkpoint(folder)
    found = faster_on(VNNI, device="cpu", precision="fp32", checkpoint=checkpoint)
    assert (found is not None) == told
    assert found is None or "`--precision int8 --check-precision 200`" in found
    assert faster_on(OLD, device="cpu", precision="fp32", checkpoint=checkpoint) is None
    assert faster_on(VNNI, device="cpu", precision="fp32", checkpoint=None) is None


@pytest.mark.skipif(amx.library() is None, reason="no AMX here, or amx.cpp was not compiled")
def test_our_own_kernel_promises_what_it_gains_and_only_for_models_that_it_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here, checkpoint = detect_cpu(), read_checkpoint(locate_checkpoint(None))
    by_torch = faster_on(here, device="cpu", precision="fp32", checkpoint=None)
    told = faster_on(here, device="cpu", precision="fp32", checkpoint=checkpoint)
    assert told is not None
    assert "int8" in told
    assert by_torch is not None
    assert "about 2.5 times" in by_torch
    assert told != by_torch
    monkeypatch.setenv(amx.SWITCH, "0")
    assert faster_on(here, device="cpu", precision="fp32", checkpoint=checkpoint) == by_torch
