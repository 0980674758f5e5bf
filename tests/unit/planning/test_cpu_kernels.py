"""Which kernels run on which CPU, from the plan to the model."""

from __future__ import annotations

import pytest

from rerank_cli.machine.cpu import Cpu
from rerank_cli.machine.detect import Machine
from rerank_cli.planning.choices import ProfileRequest
from rerank_cli.planning.known_model import find_model
from rerank_cli.planning.run_plan import plan_model, plan_run

OLD, ZEN, AMX = (
    frozenset(),
    frozenset({"avx512_bf16", "avx512_vnni"}),
    frozenset({"avx512_bf16", "amx_bf16", "amx_tile"}),
)


@pytest.mark.parametrize(
    ("flags", "precision", "attention"),
    [
        (ZEN, "bf16", "products"),
        (ZEN, "int8", "products"),
        (ZEN, "fp32", "runs"),
        (AMX, "bf16", "runs"),
        (AMX, "int8", "runs"),
        (OLD, "int8", "runs"),  # attention is in float32 there
    ],
)
def test_attention_goes_by_the_cpu(flags: frozenset[str], precision: str, attention: str) -> None:
    cpu = Cpu("a CPU", cores=2, flags=flags | {"avx512f", "avx512_vnni"}, architecture="x86_64")
    answer = plan_model(ProfileRequest(device="cpu", precision=precision), find_model(None), Machine(cpu=cpu))
    assert answer.plan is not None
    assert answer.plan.attention == attention
    assert plan_run(answer, cuda_devices=0).attention == attention
