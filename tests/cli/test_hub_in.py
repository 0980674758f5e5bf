"""Data sets of the Hub are read at one commit, by ranges, with the bytes of a local copy as the result."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from rerank_cli.cli import main
from tests.hub import SHA, hub

SAMPLES = Path(__file__).parents[2] / "samples"


def _run(source: str, out: Path, model: str, endpoint: str, *more: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "XDG_CACHE_HOME": str(out.parent), "HF_HOME": str(out.parent)}
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        environment.pop(name, None)
    given = ["-o", str(out), "--model", model, "--limit", "5", *more]
    command = [sys.executable, "-m", "rerank_cli", "rerank-file", source, *given]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_a_data_set_is_read_at_one_commit(tmp_path: Path, tiny_model: str) -> None:
    files = {
        "data/train-00000-of-00001.parquet": (SAMPLES / "python-docs.parquet").read_bytes(),
        "lists.jsonl": (SAMPLES / "python-docs.jsonl").read_bytes(), "README.md": b"# lists\n",
    }  # fmt: skip
    with hub("USER/NAME", files) as server:
        for name, url in {
            "python-docs.parquet": "hf://datasets/USER/NAME/data/*.parquet",
            "python-docs.jsonl": "hf://datasets/USER/NAME@main/lists.jsonl",
        }.items():
            local = ["-o", str(tmp_path / f"local-{name}.jsonl"), "--model", tiny_model, "--limit", "5", "-q"]
            assert main(["rerank-file", str(SAMPLES / name), *local]) == 0
            done = _run(url, tmp_path / f"far-{name}.jsonl", tiny_model, server.endpoint, "--online")
            assert done.returncode == 0, done.stderr
            assert (tmp_path / f"far-{name}.jsonl").read_bytes() == (tmp_path / f"local-{name}.jsonl").read_bytes()
        assert all(SHA in one for one in server.asked if "/resolve/" in one)
        asked = len(server.asked)
        offline = _run("hf://datasets/USER/NAME/lists.jsonl", tmp_path / "none.jsonl", tiny_model, server.endpoint)
        assert offline.returncode == 2
        assert "the Hub is not used without `--online`" in offline.stderr
        assert len(server.asked) == asked
