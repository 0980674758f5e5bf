"""Runs on a Ray cluster whose processes share no folder: all that they read and write is in a bucket.

Each of Ray's workers has a current folder, a cache and a folder for temporary files of its own, as on a machine of its
own; the lease of a machine that is gone is 2 seconds.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.conftest import cluster
from tests.cluster.test_ray import actors
from tests.conftest import LONG, TINY_CHECKPOINT
from tests.processes import Started
from tests.stores import SECRET, Bucket, new_bucket, s3_server
from tests.torture.conftest import EMBEDDER, TEXT

pytest.importorskip("ray", reason="Ray is not installed")

APART = """
import os, sys, tempfile
if "default_worker.py" in " ".join(sys.orig_argv):
    folder = tempfile.mkdtemp(dir=os.environ["APART"])
    os.chdir(folder)
    os.environ |= {"XDG_CACHE_HOME": folder + "/cache", "TMPDIR": folder}
    from rerank_cli.journal import store_log
    store_log.LEASE_SECONDS = 2.0
"""


class Apart:
    """A cluster of workers that share nothing, with a bucket. folder: theirs; logs: Ray's own files."""

    def __init__(self, bucket: Bucket, address: str, folder: Path, logs: Path, home: Path) -> None:
        self.bucket, self.address, self.folder, self.logs, self.home = bucket, address, folder, logs, home

    def run(self, *arguments: str, code: int = 0) -> str:
        process = self.start(*arguments)
        said: str = process.communicate(timeout=200)[1].decode()
        assert process.returncode == code, said
        return said

    def start(self, *arguments: str, model: str = "model") -> subprocess.Popen[bytes]:
        where = ["--engine", "ray", "--ray-address", self.address, "--device", "cpu", "--cpus-per-engine", "1"]
        command = [sys.executable, "-m", "rerank_cli", "rerank-file", *arguments, *where, "--engines", "2"]
        environment = {**os.environ, "XDG_CACHE_HOME": str(self.home)}
        return Started(
            [*command, "--model", self.bucket.url(model)], stderr=subprocess.PIPE, stdout=subprocess.PIPE,
            cwd=self.home, env=environment,
        )  # fmt: skip


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Apart]:
    folder = tmp_path_factory.mktemp("apart")
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(APART)
    with s3_server() as endpoint, tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as logs:
        bucket = new_bucket(endpoint)
        with pytest.MonkeyPatch.context() as patch:
            root = str(Path(__file__).parents[2])
            for name, value in {
                **bucket.variables, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32),
                "APART": str(folder), "PYTHONPATH": f"{folder / 'site'}:{root}",
            }.items():  # fmt: skip
                patch.setenv(name, value)
            for path in TINY_CHECKPOINT.iterdir():
                bucket.put(f"model/{path.name}", path.read_bytes())
            with cluster(cpus=2, logs=logs) as address:
                yield Apart(bucket, address, folder, Path(logs), tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def source(apart: Apart, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files in the bucket, of which the same lie in a folder that only the test knows; and judgements."""
    words = TEXT.split()
    folder = tmp_path_factory.mktemp("source")
    qrels = []
    for name, count in (("large", 240), ("small", 60)):
        rows: list[Any] = [
            {
                "id": f"{name}-{n}", "query": words[n % 9],
                "passages": [{"id": str(k), "text": " ".join(words[k % 5 : 6 + (n * k) % 8])} for k in range(30)],
            }
            for n in range(count)
        ]  # fmt: skip
        rows[7] = {"id": 7, "query": 7}
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        qrels += [f"{name}-{n} 0 {n % 30} 1\n" for n in range(0, count, 2)]
        apart.bucket.put(f"lists/{name}.jsonl", (folder / f"{name}.jsonl").read_bytes())
    (folder / "qrels.txt").write_text("".join(qrels))
    apart.bucket.put("qrels.txt", (folder / "qrels.txt").read_bytes())
    return folder


def here(source: Path, out: Path, *more: str, model: Path = TINY_CHECKPOINT) -> dict[str, Any]:
    """What one engine with one thread writes, and its report."""
    command = [sys.executable, "-m", "rerank_cli", "rerank-file", *more, "-o", str(out), "-q", "--model", str(model)]
    one_core = {min(os.sched_getaffinity(0))}
    done = subprocess.run(command, cwd=source, check=False, preexec_fn=lambda: os.sched_setaffinity(0, one_core))
    assert done.returncode in (0, 3)
    report: dict[str, Any] = json.loads(Path(f"{out}.report.json").read_bytes())
    return report


def joined(apart: Apart, folder: str, stem: str) -> bytes:
    names = [name for name in apart.bucket.names() if name.startswith(f"{folder}/{stem}")]
    assert not [name for name in apart.bucket.names() if ".job/" in name]
    return b"".join(apart.bucket.get(name) for name in names)


def test_a_worker_is_killed_and_the_bytes_and_measures_are_those_of_one_engine(
    apart: Apart, source: Path, tmp_path: Path
) -> None:
    judged = ["--metric", "nDCG@10", "--metric", "RR"]
    out, lists = apart.bucket.url("out"), apart.bucket.url("lists/")
    more = ["--qrels", apart.bucket.url("qrels.txt"), *judged, "--report", str(tmp_path / "r.json")]
    process = apart.start(lists, "-o", out, *more, "--checkpoint-every", "0s")
    while not any(".jsonl.job/00000001" in name for name in apart.bucket.names()):
        assert process.poll() is None, process.communicate()[1].decode()
        time.sleep(0.05)
    os.kill(actors()[0], signal.SIGKILL)
    said = process.communicate(timeout=200)[1].decode()
    assert process.returncode == 3, said
    assert "has died" in said
    found = here(source, tmp_path / "all.jsonl", "large.jsonl", "small.jsonl", "--qrels", "qrels.txt", *judged)
    assert joined(apart, "out", "large") + joined(apart, "out", "small") == (tmp_path / "all.jsonl").read_bytes()
    manifest = json.loads(apart.bucket.get("out/_manifest.json"))
    assert manifest == json.loads((tmp_path / "r.json").read_bytes())
    assert manifest["evaluation"] == found["evaluation"]
    assert len(manifest["parts"]) > 2
    assert "nothing to do" in apart.run(lists, "-o", out, *more)
    assert "holds the output of another run" in apart.run(lists, "-o", out, *more, "--top-n", "3", code=4)
    assert not apart.bucket.uploads()
    for path in [*apart.folder.rglob("*"), *apart.logs.rglob("*"), *apart.home.rglob("*")]:
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path
    for name in apart.bucket.names():
        assert SECRET.encode() not in apart.bucket.get(name), name


@pytest.mark.skipif(not LONG, reason="RERANK_TORTURE=long")
def test_an_embedding_model_has_an_engine_for_each_part(apart: Apart, source: Path, tmp_path: Path) -> None:
    for path in EMBEDDER.iterdir():
        if path.is_file():
            apart.bucket.put(f"embedder/{path.name}", path.read_bytes())
    process = apart.start(
        apart.bucket.url("lists/large.jsonl"), "-o", apart.bucket.url("vectors"), "--limit", "120", model="embedder"
    )
    said = process.communicate(timeout=200)[1].decode()
    assert process.returncode == 3, said
    here(source, tmp_path / "v.jsonl", "large.jsonl", "--limit", "120", model=EMBEDDER)
    mine = [json.loads(line) for line in joined(apart, "vectors", "large").splitlines()]
    whole = [json.loads(line) for line in (tmp_path / "v.jsonl").read_text().splitlines()]
    assert len(json.loads(apart.bucket.get("vectors/_manifest.json"))["parts"]) > 1
    for one, other in zip(mine, whole, strict=True):
        assert one["id"] == other["id"]
        scores = [{each["id"]: each["score"] for each in row["passages"]} for row in (one, other)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-5)  # a text is embedded once in each part
