"""A data set of the Hub gets the files of a run in one commit, when all is done."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.hub import TOKEN, Hub, hub

SAMPLES = Path(__file__).parents[2] / "samples"
LISTS = str(SAMPLES / "python-docs.jsonl")


@pytest.fixture
def server() -> Iterator[Hub]:
    with hub("USER/NAME", {"README.md": b"# lists\n"}) as made:
        yield made


def _run(server: Hub, here: Path, model: str, out: str, *more: str, token: str = TOKEN) -> tuple[int, str]:
    environment = {
        **os.environ, "HF_ENDPOINT": server.endpoint, "XDG_CACHE_HOME": str(here), "HF_HOME": str(here),
        "HF_TOKEN": token, "HF_HUB_DISABLE_XET": "1",
    }  # fmt: skip
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        environment.pop(name, None)
    given = ["-o", f"hf://datasets/USER/NAME{out}", "--model", model, "--limit", "5", "--online", *more]
    command = [sys.executable, "-m", "rerank_cli", "rerank-file", LISTS, *given]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


def _passages(data: bytes) -> list[list[tuple[str, int, float]]]:
    """Id, rank and logit of each passage, of another process to six digits: what the Hub got is the question here."""
    lists = pq.read_table(io.BytesIO(data)).column("passages").to_pylist()
    return [[(one["id"], one["rank"], round(one["logit"], 6)) for one in each] for each in lists]


def test_one_commit_whatever_the_hub_answers(server: Hub, tmp_path: Path, tiny_model: str) -> None:
    command = [sys.executable, "-m", "rerank_cli", "rerank-file", LISTS, "-o", str(tmp_path / "out.parquet"), "-q"]
    subprocess.run([*command, "--model", tiny_model, "--limit", "5"], check=True)
    server.faults = ["503", "moved", "lost"]
    code, said = _run(server, tmp_path / "a", tiny_model, "/ranked/out.parquet")
    assert code == 0, said
    assert len(server.commits) == 3, "the first, another one's, and the run's"
    assert _passages(server.files["ranked/out.parquet"]) == _passages((tmp_path / "out.parquet").read_bytes())
    assert json.loads(server.files["ranked/out.parquet.report.json"])["counts"]["rows_out"] == 5
    assert sorted(server.files) == [
        "README.md",
        "by-another.txt",
        "ranked/out.parquet",
        "ranked/out.parquet.report.json",
    ]
    assert not list((tmp_path / "a").rglob("*.job"))
    for path in (tmp_path / "a").rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path
    code, said = _run(server, tmp_path / "b", tiny_model, "/ranked/out.parquet")
    assert code == 0, said
    assert "nothing to do" in said
    code, said = _run(server, tmp_path / "b", tiny_model, "/ranked/out.parquet", "--top-n", "2")
    assert code == 4
    assert "out.parquet: exists" in said
    code, said = _run(server, tmp_path / "b", tiny_model, "@main/ranked/out.parquet", "--top-n", "2", "--overwrite")
    assert code == 0, said
    assert len(server.commits) == 4


@pytest.mark.parametrize(
    ("out", "token", "says"),
    [
        ("/out.jsonl", "hf_aReader", "hf://datasets/USER/NAME/: the Hub refuses it (403)"),
        ("@v1/out.jsonl", TOKEN, "v1 is not a branch, and only a branch can be written to"),
        ("2/out.jsonl", TOKEN, "hf://datasets/USER/NAME2/: no such data set, or you may not see it"),
    ],
)
def test_what_cannot_be_written_is_said_before_anything_is_computed(
    server: Hub, tmp_path: Path, tiny_model: str, out: str, token: str, says: str
) -> None:
    if out.startswith("@v1"):
        server.commits = {"v1": {}, **server.commits}
        server.commits["v1"] = {"README.md": b""}
    code, said = _run(server, tmp_path / "c", tiny_model, out, "--dry-run", token=token)
    assert (code, says in said) == (4, True), said
    assert len(server.files) == 1
