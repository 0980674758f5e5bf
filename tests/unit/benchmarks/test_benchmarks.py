from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from benchmarks.peers.process import PeerFailedError, PeerProcess
from benchmarks.tables import RESULTS, read, table

FOLDER = RESULTS.parent
SHOWN = (FOLDER / "RESULTS.md").read_text(encoding="utf-8")
FILES = sorted(RESULTS.glob("*.json"))
CHECKPOINT = Path(__file__).parents[2] / "parity" / "bert-ce-open" / "checkpoint"


def test_there_are_figures_to_show() -> None:
    assert FILES


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_tables_of_the_results_are_those_of_the_figures(file: Path) -> None:
    missing = [line for line in table(read(file)) if line not in SHOWN.splitlines()]
    assert not missing, "`python -m benchmarks.tables` makes them"


def test_every_plot_that_is_shown_is_there_and_every_plot_is_shown() -> None:
    shown = re.findall(r"!\[[^\]]+\]\((plots/[^)]+)\)", SHOWN)
    assert sorted(shown) == sorted(f"plots/{file.name}" for file in (FOLDER / "plots").glob("*.svg"))


def test_the_plots_are_drawn_from_the_figures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (extras `bench` and `plot`)")
    from benchmarks.plots import draw

    assert {file.name for file in draw(RESULTS, tmp_path)} == {file.name for file in (FOLDER / "plots").glob("*.svg")}


def _settings(tmp_path: Path) -> dict[str, object]:
    work = tmp_path / "work.json"
    work.write_text(json.dumps([["a query", ["one passage", "another"]], ["a second query", ["a third passage"]]]))
    return {"checkpoint": str(CHECKPOINT), "work": str(work), "threads": 1, "precision": "fp32"}


def test_a_peer_answers_with_its_logits_and_what_they_cost(tmp_path: Path) -> None:
    with PeerProcess(Path(sys.executable), "benchmarks.peers.rerank_cli_engine", _settings(tmp_path)) as peer:
        every, some = peer.score(batch_size=None), peer.score(batch_size=8, first=1)
    assert peer.ready.version.startswith("rerank-cli ")
    assert len(every.logits) == 3
    assert some.logits == pytest.approx(every.logits[:2], abs=1e-5)
    assert every.real == every.computed > some.real > 0


def test_a_peer_that_breaks_is_told_with_its_last_words(tmp_path: Path) -> None:
    # Its package is not installed here; where it is, the checkpoint is missing.
    settings = _settings(tmp_path) | {"checkpoint": str(tmp_path)}
    peer = PeerProcess(Path(sys.executable), "benchmarks.peers.flashrank_lists", settings)
    with pytest.raises(PeerFailedError, match=r"^(ModuleNotFound|FileNotFound)Error: "), peer:
        pass


def test_a_peer_that_is_not_installed_is_told(tmp_path: Path) -> None:
    with pytest.raises(PeerFailedError, match=r"not installed: .*make bench-peers"):
        PeerProcess(tmp_path / "python", "benchmarks.peers.infinity_engine", _settings(tmp_path))


def test_the_context_of_a_gpu_is_measured_by_one_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    # CUDA's total lacks what the driver reserves: an H100 of 81,559 MiB has some 79.1 GiB. Taken from NVML's figure, a
    # context of 520 MiB came out as next to nothing.
    import torch

    from benchmarks import gpu_constants

    reserve, context, held = 600 << 20, 520 << 20, 20 << 20
    total, used = 81_559 << 20, [reserve, reserve + context + held]

    class Device:
        cuda_index, total_bytes = 0, total

        def __init__(self) -> None:
            self.free_bytes = total - used.pop(0)

    class Machine:
        def __init__(self) -> None:
            self.devices = [Device()]

    class Anything:
        def matmul(self, other: object) -> None:
            """Wake cuBLAS."""

    monkeypatch.setattr(gpu_constants, "detect_machine", Machine)
    monkeypatch.setattr(torch, "ones", lambda *_, device: Anything())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (total - reserve - context - held, total - reserve))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: held)
    assert gpu_constants.context_bytes("cuda:0") == context
