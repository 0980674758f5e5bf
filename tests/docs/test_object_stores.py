"""The recipes for object stores run, as they stand on the page, against a real server."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import TINY_CHECKPOINT
from tests.stores import Bucket

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "guides" / "object-stores.md").read_text(encoding="utf-8")


def test_duckdb_reads_and_writes_the_same_bucket(
    bucket: Bucket, tmp_path: Path, served: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("duckdb", reason="the extra `oracle`")
    (recipe,) = re.findall(r"^```py\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
    bucket.put("all.parquet", (ROOT / "samples" / "python-docs-flat.parquet").read_bytes())
    variables = {"BUCKET": bucket.name, "RERANK_MODEL": str(TINY_CHECKPOINT), "XDG_CACHE_HOME": str(tmp_path)}
    path = f"{served}{os.pathsep}{Path(sys.prefix) / 'bin'}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [sys.executable, "-P", "-c", recipe], env={**os.environ, **bucket.variables, **variables, "PATH": path},
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lists = int(done.stdout)
    assert 1 < lists < 40
    assert bucket.names() == ["all.parquet", "lists.parquet", "ranked.parquet", "ranked.parquet.report.json"]
