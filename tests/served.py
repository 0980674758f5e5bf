"""`rerank-cli` for scripts, without the seconds that a start takes: forks of one process that has everything loaded.

`python -m tests.served SOCKET` listens; the client, a script called `rerank-cli` that stands first in PATH, hands over
its arguments, folder, environment and standard files, and ends with the exit code of the fork. A fork is the program
but for its start: tests of the start, of signals and of what a process loads take the real one.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

from tests.processes import wait_until

ROOT = Path(__file__).parents[1]
_CLIENT = """#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({path!r})
    said = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(server, [len(said).to_bytes(4, "big")], [0, 1, 2])
    server.sendall(said)
    for number in (0, 1, 2):
        os.close(number)
    code = server.recv(1)
os._exit(code[0] if code else 70)
"""


@contextmanager
def served_program() -> Iterator[Path]:
    """A folder for PATH, whose `rerank-cli` is served."""
    with tempfile.TemporaryDirectory(prefix="served-") as folder:
        path = Path(folder) / "socket"
        program = Path(folder) / "bin" / "rerank-cli"
        program.parent.mkdir()
        program.write_text(_CLIENT.format(python=sys.executable, path=str(path)))
        program.chmod(0o755)
        with subprocess.Popen([sys.executable, "-m", "tests.served", str(path)], cwd=ROOT) as server:
            try:
                wait_until(path.exists, "the server of the program does not start")
                yield program.parent
            finally:
                server.kill()


def _serve(path: str) -> None:

    import_module("rerank_cli.models.llama")  # what a run loads
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks
    waiting = f"{path}.waiting"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(waiting)
        server.listen(64)
        Path(waiting).rename(path)  # there when it listens
        while True:
            client, _ = server.accept()
            with client:
                if os.fork() == 0:
                    server.close()
                    _run(client)


def _run(client: socket.socket) -> None:
    """The program in this fork; it never returns."""
    code = 70
    try:
        size, files, _, _ = socket.recv_fds(client, 4, 3)
        said = b""
        while len(said) < int.from_bytes(size, "big"):
            said += client.recv(2**16)
        arguments, folder, environment = json.loads(said)
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        sys.argv = ["rerank-cli", *arguments]
        sys.orig_argv = [sys.executable, "-m", "rerank_cli", *arguments]

        from rerank_cli.cli import main

        code = main()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        client.sendall(bytes([code & 255]))
        os._exit(code)


if __name__ == "__main__":
    _serve(sys.argv[1])
