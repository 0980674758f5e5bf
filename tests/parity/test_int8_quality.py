"""int8 of the built-in model ranks real texts as fp32 does, nearly; on public collections where they are at hand."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rerank_cli.cli import main
from rerank_cli.models.int8_linear import int8_hindrance
from tests.parity.test_golden import scored

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "samples" / "python-docs.jsonl"
# May not be redistributed: not in the repository.
COLLECTIONS = Path(os.environ.get("RERANK_COLLECTIONS", ROOT.parent / "shared" / "collections"))

pytestmark = pytest.mark.skipif(int8_hindrance() is not None, reason="this torch has no int8 layers of oneDNN")


def checked(source: Path, folder: Path, *, pairs: int, limit: int) -> dict[str, Any]:
    """What `--check-precision` says of the first lists of a file."""
    out = folder / "out.jsonl"
    arguments = ["rerank-file", str(source), "-o", str(out), "-q", "--precision", "int8", "--device", "cpu"]
    arguments += ["--max-tokens", "160"]
    assert main([*arguments, "--limit", str(limit), "--check-precision", str(pairs)]) == 0
    report: dict[str, Any] = json.loads(Path(f"{out}.report.json").read_text())
    assert report["plan"]["precision"] == "int8", report["plan"]["warnings"]
    found: dict[str, Any] = report["precision_check"]
    return found


def test_the_samples_are_ranked_nearly_as_in_fp32(tmp_path):
    found = checked(SAMPLES, tmp_path, pairs=20, limit=2)
    assert found["pairs"] >= 20
    assert 0 < found["max_logit_difference"] < 0.7
    assert found["kendall_tau"] > 0.9


@pytest.mark.parametrize("name", ["bert-ce-open", "xlmr-ce-open", "modernbert-ce-open", "ettin-open"])
def test_logits_of_the_authors_code_are_off_by_a_seventh_of_their_spread_at_most(goldens, tmp_path, name):
    """In the mean. The weights are random, which is harder than trained ones; measured: a twentieth to a tenth."""
    golden = goldens[name]
    rows: dict[str, dict[str, Any]] = {}
    for group in golden.groups:
        rows |= scored(golden, group, tmp_path, "--precision", "int8", "--device", "cpu")
    found, expected = (np.array([logits[name]["logit"] for name in rows]) for logits in (rows, golden.expected))
    assert 1e-3 < np.abs(found - expected).mean() < expected.std() / 7


@pytest.mark.parametrize("name", ["vaswani"])
def test_lists_of_a_collection_are_ranked_nearly_as_in_fp32(tmp_path, name):
    source = COLLECTIONS / name / "candidates.jsonl"
    if not source.exists():
        pytest.skip(f"{source} is not here; RERANK_COLLECTIONS names the folder of collections")
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()[:4]]
    for row in rows:
        row["candidates"] = row["candidates"][:20]
    short = tmp_path / "short.jsonl"
    short.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = checked(short, tmp_path, pairs=80, limit=4)
    assert found["pairs"] == 80
    assert np.isfinite(found["max_logit_difference"])
    assert found["max_logit_difference"] < 0.7
    assert found["top10_overlap"] >= 0.95
