"""The transformer for PyTerrier runs as it stands on the page, and gives what `rerank-file` gives."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rerank_cli.cli import main
from tests.conftest import TINY_CHECKPOINT, write_lines

PAGE = (Path(__file__).parents[2] / "docs" / "guides" / "python.md").read_text(encoding="utf-8")


def test_a_pipeline_has_the_order_and_the_logits_of_a_run(tmp_path: Path) -> None:
    pytest.importorskip("pyterrier", reason="the extra `oracle`")
    (recipe,) = re.findall(r"^```py\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
    rows = [
        {
            "qid": f"q{q}",
            "query": f"two roads {q}",
            "docno": f"{q}{n}",
            "text": "wood " * (1 + n),
            "score": 9 - n,
            "rank": n,
        }
        for q in range(3)
        for n in range(5)
    ]  # fmt: skip
    with (tmp_path / "candidates.csv").open("w", newline="") as out:
        table = csv.DictWriter(out, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    done = subprocess.run(
        [sys.executable, "-P", "-c", recipe, "candidates.csv", str(TINY_CHECKPOINT)],
        cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = sorted(csv.DictReader(io.StringIO(done.stdout)), key=lambda row: (row["qid"], row["rank"]))
    source = write_lines(
        tmp_path / "in.jsonl", [{name: row[name] for name in ("qid", "query", "docno", "text")} for row in rows]
    )
    out_file = tmp_path / "out.jsonl"
    given = ["--group-by", "qid", "--id-field", "docno", "--top-n", "3", "--model", str(TINY_CHECKPOINT), "-q"]
    assert main(["rerank-file", source, "-o", str(out_file), *given]) == 0
    ranked = [json.loads(line) for line in out_file.read_text().splitlines()]
    assert [(row["qid"], row["docno"]) for row in found] == [(row["qid"], row["docno"]) for row in ranked]
    assert [float(row["score"]) for row in found] == pytest.approx([row["logit"] for row in ranked], abs=1e-5)
    assert [row["rank"] for row in found] == ["0", "1", "2"] * 3
