"""Inputs that mean harm, met by the program as a user starts it: memory, sockets, what is printed and what is kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.conftest import LONG, read_lines, write_lines

ROOT = Path(__file__).parents[2]
PARITY = ROOT / "tests" / "parity"
GOOD = {"query": "two roads", "passage": "a yellow wood"}
MB = 2**20

# The program, and then what it has used: peak memory, torch, every socket call of Python.
WATCHED = """
import json, sys
sockets = []
sys.addaudithook(lambda event, args: sockets.append(event) if event.startswith("socket.") else None)
from rerank_cli.cli import main
from rerank_cli.machine.this_process import peak_rss_bytes
code = main(sys.argv[1:])
print(json.dumps({"code": code, "peak": peak_rss_bytes(), "torch": "torch" in sys.modules, "sockets": sockets}))
"""


def watched(*arguments: str, **environment: str) -> tuple[dict[str, Any], str]:
    """Run the program; returns what it has used, and what it said."""
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert "Traceback" not in done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tiny_model: str) -> int:
    """Peak memory of a run of two rows."""
    folder = tmp_path_factory.mktemp("base")
    source = write_lines(folder / "in.jsonl", [GOOD, GOOD])
    used, _ = watched("score", source, "-o", str(folder / "out.jsonl"), "--model", tiny_model)
    assert used["code"] == 0
    return int(used["peak"])


def scored_around(folder: Path, source: Path, model: str, base: int) -> None:
    """The good rows before and behind the harm are scored, the harm is one bad row, and memory stays small."""
    out = folder / "out.jsonl"
    used, _ = watched("score", str(source), "-o", str(out), "--model", model)
    assert used["code"] == 3
    assert len(read_lines(out)) == 2
    (error,) = read_lines(f"{out}.errors.jsonl")
    assert error["row"] == 2
    assert used["peak"] - base < 300 * MB


def test_a_line_of_gigabytes_costs_no_memory(tmp_path: Path, tiny_model: str, base: int) -> None:
    source, line = tmp_path / "in.jsonl", json.dumps(GOOD).encode() + b"\n"
    with source.open("wb") as stream:
        stream.write(line)
        stream.seek(2 * 1024 * MB if LONG else 400 * MB, os.SEEK_CUR)  # zeros that take no room on the disk
        stream.write(b"\n" + line)
    scored_around(tmp_path, source, tiny_model, base)


def test_a_gzip_bomb_costs_no_memory(tmp_path: Path, tiny_model: str, base: int) -> None:
    source, line = tmp_path / "in.jsonl.gz", json.dumps(GOOD).encode() + b"\n"
    packer = zlib.compressobj(9, wbits=31)
    with source.open("wb") as stream:
        stream.write(packer.compress(line))
        for _ in range(10_240 if LONG else 400):
            stream.write(packer.compress(bytes(MB)))
        stream.write(packer.compress(b"\n" + line) + packer.flush())
    scored_around(tmp_path, source, tiny_model, base)


def test_a_zstd_bomb_costs_no_memory(tmp_path: Path, tiny_model: str, base: int) -> None:
    source, line = tmp_path / "in.jsonl.zst", json.dumps(GOOD).encode() + b"\n"
    with pa.CompressedOutputStream(pa.OSFile(str(source), "wb"), "zstd") as stream:
        stream.write(line)
        for _ in range(10_240 if LONG else 400):
            stream.write(bytes(MB))
        stream.write(b"\n" + line)
    scored_around(tmp_path, source, tiny_model, base)


def test_a_small_table_of_a_hundred_gigabytes_costs_no_memory(tmp_path: Path, tiny_model: str, base: int) -> None:
    """100,000 rows of 1 MB, one word in a dictionary: less than a kilobyte without the query's column."""
    source, out = tmp_path / "in.parquet", tmp_path / "out.jsonl"
    word = pa.DictionaryArray.from_arrays(pa.array([0] * 100_000, pa.int32()), pa.array(["word " * 200_000]))
    pq.write_table(pa.table({"passage": word}), source, compression="zstd")
    assert source.stat().st_size < 2000
    used, _ = watched(
        "score",
        str(source),
        "--query",
        "which?",
        "-o",
        str(out),
        "--model",
        tiny_model,
        "--limit",
        "20",
        "--max-tokens",
        "64",
    )
    assert used["code"] == 0
    assert out.read_bytes().count(b"\n") == 20
    assert used["peak"] < 1024 * MB


def test_rows_that_would_take_gigabytes_take_what_the_documentation_says(tmp_path: Path) -> None:
    """The limits of docs/reference/reliability.md: a text, the values of a row, the side of an image."""
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    good = {"query": "two roads", "passages": ["a yellow wood"]}
    Image.new("1", (39_000_000, 1)).save(tmp_path / "long.png")
    long = {"query": "two roads", "passages": [{"text": "", "image": str(tmp_path / "long.png")}]}
    objects = b'{"query": "q", "passages": ["p"], "more": [' + b"{}," * 20_000_000 + b"{}]}"
    rows = [
        good, {**good, "passages": ["wood road " * 6_000_000]}, {**good, "query": "wood road " * 500_000},
        {**good, "passages": ["!" * 2**20]}, objects, long, good,
    ]  # fmt: skip
    write_lines(source, rows)
    model = str(PARITY / "nemotron-vl-rerank-open" / "checkpoint")
    used, _ = watched("rerank-file", str(source), "-o", str(out), "--model", model)
    assert used["code"] == 3
    assert len(read_lines(out)) == 3
    codes = [(error["row"], error["error"]["code"]) for error in read_lines(f"{out}.errors.jsonl")]
    assert sorted(codes) == [
        (2, "text-too-long"), (3, "text-too-long"), (5, "too-many-values"), (6, "image-too-large")
    ]  # fmt: skip
    assert used["peak"] < 1300 * MB


def test_a_run_that_was_done_loads_no_torch(tmp_path: Path, tiny_model: str) -> None:
    source = write_lines(tmp_path / "in.jsonl", [GOOD])
    arguments = ["score", source, "-o", str(tmp_path / "out.jsonl"), "--model", tiny_model]
    assert watched(*arguments)[0]["torch"]
    used, said = watched(*arguments)
    assert (used["code"], used["torch"]) == (0, False)
    assert "is complete, with 1 rows; nothing to do" in said


def test_an_input_that_has_gone_is_named_and_the_job_waits_for_it(tmp_path: Path, tiny_model: str) -> None:
    source = write_lines(tmp_path / "in.jsonl", [GOOD] * 70 + [b"{"] * 2)
    arguments = ["score", source, "-o", str(tmp_path / "out.jsonl"), "--model", tiny_model]
    assert watched(*arguments, "--max-errors", "1")[0]["code"] == 7
    Path(source).rename(tmp_path / "away")
    used, said = watched(*arguments)
    assert used["code"] == 4
    assert f"error: {source}: " in said
    (tmp_path / "away").rename(source)
    used, said = watched(*arguments)
    assert used["code"] == 3
    assert "resumes after 72 of " in said


def test_a_pipe_is_read_without_resume_and_says_so_once(tmp_path: Path, tiny_model: str) -> None:
    command = [sys.executable, "-m", "rerank_cli", "score", "-o", str(tmp_path / "out.jsonl"), "--model", tiny_model]
    rows = (json.dumps(GOOD) + "\n").encode() * 200
    done = subprocess.run(command, cwd=ROOT, input=rows, capture_output=True, check=False)
    assert done.returncode == 0
    assert done.stderr.count(b"a pipe cannot be read again") == 1
    assert not (tmp_path / "out.jsonl.job").exists()


class _Canary(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.calls.append(self.path)
        self.send_response(404)
        self.end_headers()

    do_POST = do_HEAD = do_CONNECT = do_GET  # noqa: N815 (the names that http.server looks for)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def canary() -> Iterator[ThreadingHTTPServer]:
    """A server on loopback that notes who calls."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Canary) as server:
        server.calls = []
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("model", ["bert-ce-open", "nemotron-vl-rerank-open", "deberta-ce-open", "no/such-model"])
def test_nothing_is_connected_to(tmp_path: Path, canary: ThreadingHTTPServer, model: str) -> None:
    url = f"http://127.0.0.1:{canary.server_address[1]}"
    images = [f"{url}/page.png", f"file://{url[5:]}/page.png", "//127.0.0.1/page.png"]
    rows = [{"query": url, "passages": [url, {"text": url}]}]
    rows += [{"query": "a", "passages": [{"text": "b", "image": image}]} for image in images]
    source = write_lines(tmp_path / "in.jsonl", rows)
    name = str(PARITY / model / "checkpoint") if (PARITY / model).exists() else model
    everywhere = {"HF_ENDPOINT": url, "http_proxy": url, "https_proxy": url, "all_proxy": url, "no_proxy": ""}
    used, _ = watched("rerank-file", source, "-o", str(tmp_path / "out.jsonl"), "--model", name, **everywhere)
    assert used["code"] == (5 if model == "no/such-model" else 3)
    assert canary.calls == []
    assert {event for event in used["sockets"] if event != "socket.gethostname"} == set()


def test_the_canary_would_sing(canary: ThreadingHTTPServer) -> None:
    code = f"import urllib.request as r; r.urlopen('http://127.0.0.1:{canary.server_address[1]}/x')"
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert canary.calls == ["/x"]
