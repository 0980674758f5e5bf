from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rerank_cli.checkpoint import Checkpoint, TensorInfo
from rerank_cli.job.dry_run import dry_run
from rerank_cli.job.options import JobOptions, Names
from rerank_cli.job.run import run_job
from rerank_cli.planning.choices import ProfileRequest
from rerank_cli.report.utilisation import forward_flops
from tests.conftest import TINY_CHECKPOINT, write_lines

ROWS = [
    {"query": "which way", "passages": ["two roads", "two roads", "x " * 600, "x " * 600, ""]},
    b"{",
    b"",
    {"query": "", "passages": []},
    {"query": "a", "passages": 5},
]


def options(path: str, out: Path, **more: object) -> JobOptions:
    return replace(JobOptions((path,), Names(str(out)), model=str(TINY_CHECKPOINT)), **more)


@pytest.mark.parametrize("truncate", ["end", "chunk"])
def test_a_dry_run_tells_what_the_run_then_does(tmp_path: Path, truncate: str) -> None:
    wanted = options(write_lines(tmp_path / "in.jsonl", ROWS), tmp_path / "out.jsonl", truncate=truncate)
    told = dry_run(wanted)
    assert not (tmp_path / "out.jsonl").exists()
    done = run_job(wanted)
    for name in ("rows_in", "rows_error", "blank", "lists", "pairs", "pairs_scored", "tokens", "truncated"):
        assert getattr(told.counts, name) == getattr(done.counts, name), name
    assert (told.counts.pairs, told.counts.pairs_scored) == (5, 3)
    assert (told.truncated, told.unscorable) == ({"end": 2, "chunk": 0}[truncate], 0)
    assert told.total_tokens == done.counts.tokens
    assert told.plan == replace(told.plan, max_tokens=512)
    assert list(told.tokens) == ["p0", "p10", "p50", "p90", "p99", "p100"]
    assert told.tokens["p0"] <= told.tokens["p50"] < told.tokens["p100"]
    assert told.tokens["p100"] > 600
    assert told.gflops > 0
    assert told.seconds > 0


def test_pairs_that_cannot_be_scored_are_counted(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "in.jsonl", ROWS)
    told = dry_run(options(path, tmp_path / "out.jsonl", truncate="error"))
    assert (told.unscorable, told.truncated) == (1, 0)
    assert told.tokens["p100"] < 600


def test_an_input_without_pairs_takes_no_time(tmp_path: Path) -> None:
    told = dry_run(options(write_lines(tmp_path / "in.jsonl", []), tmp_path / "out.jsonl"))
    assert (told.tokens, told.seconds, told.counts.rows_in) == ({}, 0.0, 0)


def test_a_longer_input_is_expected_to_take_longer(tmp_path: Path) -> None:
    """In operations: seconds also hold the speed, which is measured anew each time."""
    work = []
    for number, limit in enumerate((64, 512)):
        path = write_lines(tmp_path / f"{number}.jsonl", ROWS)
        told = dry_run(options(path, tmp_path / "out.jsonl", request=ProfileRequest(max_tokens=limit)))
        work.append(told.seconds * told.gflops)
    few, many = work
    assert many > 5 * few > 0


def test_tables_of_embeddings_and_of_the_output_cost_no_operations() -> None:
    def flops(**tensors: tuple[int, int]) -> float:
        shapes = {f"{name.replace('__', '.')}.weight": shape for name, shape in tensors.items()}
        infos = {name: TensorInfo(Path("x"), "F32", shape, 0, 0) for name, shape in shapes.items()}
        checkpoint = Checkpoint(Path("x"), "x", {"num_hidden_layers": 1, "hidden_size": 8}, {}, infos)
        return forward_flops(checkpoint, tokens=10, squares=0)

    layer = {"model__layers__0__mlp__up_proj": (16, 8)}
    tables = {"model__embed_tokens": (1000, 8), "lm_head": (1000, 8), "bert__embeddings__word_embeddings": (1000, 8)}
    assert flops(**layer, **tables) == flops(**layer) == 2 * 16 * 8 * 10
