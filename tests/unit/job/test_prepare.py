"""What is made ready for a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from rerank_cli.job import prepare as room
from rerank_cli.job.options import JobOptions, Names
from rerank_cli.machine.detect import Machine, detect_machine
from rerank_cli.planning.choices import ProfileRequest
from tests.conftest import TINY_CHECKPOINT, write_lines


@pytest.mark.parametrize(("device", "seconds"), [("auto", 30.0), ("cpu", 3.0)])
def test_a_run_waits_for_a_driver_that_wakes_unless_nobody_wants_a_gpu(
    device: str, seconds: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited = []

    def detect(*, timeout_seconds: float) -> Machine:
        waited.append(timeout_seconds)
        return detect_machine(timeout_seconds=timeout_seconds)

    monkeypatch.setattr(room, "detect_machine", detect)
    path = write_lines(tmp_path / "in.jsonl", [{"query": "which way", "passages": ["two roads"]}])
    request = ProfileRequest(device=device)
    room.prepare(JobOptions((path,), Names(str(tmp_path / "o.jsonl")), model=str(TINY_CHECKPOINT), request=request))
    assert waited == [seconds]
