"""Every option of a run is known to decide a logit, or not to: a forgotten one would give scores of other runs."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from rerank_cli.job.options import JobOptions, Names
from rerank_cli.job.prepare import PreparedModel, prepare
from rerank_cli.job.score_store.logit_facts import logit_facts
from tests.conftest import TINY_CHECKPOINT, write_lines

CHANGED: dict[str, Any] = {
    "truncate": "error", "special_tokens": "allow", "instruction": "i", "label": 1, "max_unknown": 0.05,
    "taken_as": "qwen3-reranker", "chunk_overlap": 1, "pool": "mean",
}  # fmt: skip
THROUGH_THE_MODEL = {"model", "revision", "online", "template", "images"}
"""What decides by the checkpoint, the encoder's template and its limits of images."""
THROUGH_THE_PLAN = {"request", "profiles_file"}
OF_THE_PAIR = {"query", "in_format", "shape", "texts", "fields"}
"""What decides which texts a pair has."""
AFTERWARDS = {
    "inputs", "names", "pairs", "request_notes", "selection", "error_limit", "overwrite", "restart", "checkpoint_every",
    "lock_wait", "deadline", "shard", "skip", "limit", "max_line_bytes", "qrels", "metrics", "calibration", "command",
    "teacher", "depth", "blend", "first", "drop_duplicates", "check_precision", "store", "store_limit",
}  # fmt: skip
"""What decides which pairs are asked for, when, and what becomes of their scores."""


@pytest.fixture
def options(tmp_path: Path) -> JobOptions:
    source = write_lines(tmp_path / "in.jsonl", [{"query": "q", "passages": ["a", "b"]}])
    return JobOptions((source,), Names(str(tmp_path / "out.jsonl")), model=str(TINY_CHECKPOINT), truncate="chunk")


@pytest.fixture
def prepared(options: JobOptions) -> PreparedModel:
    return prepare(options)


def test_every_option_decides_a_logit_or_is_known_not_to() -> None:
    groups = [set(CHANGED), THROUGH_THE_MODEL, THROUGH_THE_PLAN, OF_THE_PAIR, AFTERWARDS]
    assert sum(map(len, groups)) == len(set().union(*groups))
    assert set().union(*groups) == {field.name for field in fields(JobOptions)}


@pytest.mark.parametrize("name", CHANGED)
def test_an_option_that_decides_a_logit_is_a_fact(options: JobOptions, prepared: PreparedModel, name: str) -> None:
    def facts(given: JobOptions) -> dict[str, Any]:
        return logit_facts(given, prepared, prepared.plan, "kernels")

    assert facts(replace(options, **{name: CHANGED[name]})) != facts(options)


@pytest.mark.parametrize("name", ["depth", "limit", "store_limit"])
def test_an_option_that_does_not_is_none(options: JobOptions, prepared: PreparedModel, name: str) -> None:
    given = replace(options, **{name: 7})
    assert logit_facts(given, prepared, prepared.plan, "kernels") == logit_facts(
        options, prepared, prepared.plan, "kernels"
    )
