"""A real Ray cluster on this machine, with more CPUs and GPUs than it has: Ray's own are logical."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

AS_QUICK = {"RAY_worker_niceness": "0"}
"""Variables of Ray. Its workers have the lowest claim on a CPU by default, and wait for minutes where tests run beside
them."""


@contextmanager
def cluster(*, cpus: int, gpus: int = 0, logs: str | None = None) -> Iterator[str]:
    """A cluster for as long as the block; gives its address. logs: the folder of its own files, which stays."""
    with ExitStack() as stack:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        folder = logs or stack.enter_context(TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True))
        command = [
            sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--node-ip-address=127.0.0.1",
            f"--port={port}", f"--num-cpus={cpus}", f"--num-gpus={gpus}", "--include-dashboard=false",
            "--disable-usage-stats", f"--temp-dir={folder}", "--object-store-memory=100000000",
        ]  # fmt: skip
        log = stack.enter_context((Path(folder) / "start.log").open("wb"))
        head = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env={**os.environ, **AS_QUICK})
        try:
            _wait_until_it_listens(head, port, Path(log.name))
            yield f"127.0.0.1:{port}"
        finally:
            head.terminate()
            try:
                head.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(head.pid, 9)
                head.wait()


def _wait_until_it_listens(head: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + 120
    while b"Ray runtime started" not in log.read_bytes():
        assert head.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A cluster of two CPUs and one GPU, all of them logical. Ray starts a process for each CPU when a run connects."""
    pytest.importorskip("ray", reason="Ray is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        with cluster(cpus=2, gpus=1) as address:
            yield address
