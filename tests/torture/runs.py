"""Runs that are killed, hindered and stopped: `python -m tests.torture.runs` serves them, `Runs` asks for them.

The server has torch and the program loaded and forks a child for each run, so a run costs its own work and not 2 s of
imports. Nothing computes in the server itself, so its children start with no threads but their own. A child writes
through `Hindered`, our own `Files` with a fault at the n-th call.
"""

from __future__ import annotations

import errno
import faulthandler
import gc
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from rerank_cli.journal import Files
from tests.conftest import TINY_CHECKPOINT
from tests.torture.far_runs import become_a_machine

ROOT = Path(__file__).parents[2]
_STOPS = (signal.SIGINT, signal.SIGTERM)


class Hindered(Files):
    """Files whose n-th call, counted from 1 over all kinds, meets a fault.

    fault: `before` or `after` kills the process there, `half` kills it after half of a write, `memory` takes memory
    until the system kills it; the name of an error raises it in place of the call. hand: what a second hand does before
    it, and to which file (`meddle`).
    """

    def __init__(self, at: int, fault: str, count_file: str | None, hand: tuple[str, str] | None = None) -> None:
        self._hand = hand
        self._at = at
        self._fault = fault
        self._calls = 0
        self._count_file = count_file

    def _call(self, name: str, do: Callable[[], Any], half: Callable[[], Any] | None = None) -> Any:
        self._calls += 1
        if self._count_file:
            Path(self._count_file).write_text(str(self._calls))
        if self._calls != self._at:
            return do()
        if self._hand:
            meddle(*self._hand)
            return do()
        if self._fault == "before":
            _kill()
        if self._fault == "half" and half:
            half()
            _kill()
        if self._fault in ("after", "half"):
            do()
            _kill()
        if self._fault == "memory":
            _take_memory()
        number = getattr(errno, self._fault)
        raise OSError(number, os.strerror(number))

    def mkdir(self, path: Path) -> None:
        self._call("mkdir", lambda: super(Hindered, self).mkdir(path))

    def open(self, path: Path) -> int:
        return self._call("open", lambda: super(Hindered, self).open(path))

    def write(self, descriptor: int, data: bytes | memoryview) -> int:
        write = super().write
        half = data[: len(data) // 2]
        return self._call("write", lambda: write(descriptor, data), lambda: write(descriptor, half))

    def fsync(self, descriptor: int) -> None:
        self._call("fsync", lambda: super(Hindered, self).fsync(descriptor))

    def truncate(self, descriptor: int, size: int) -> None:
        self._call("truncate", lambda: super(Hindered, self).truncate(descriptor, size))

    def close(self, descriptor: int) -> None:
        self._call("close", lambda: super(Hindered, self).close(descriptor))

    def create(self, path: Path) -> int:
        return self._call("create", lambda: super(Hindered, self).create(path))

    def rename(self, old: Path, new: Path) -> None:
        self._call("rename", lambda: super(Hindered, self).rename(old, new))

    def place(self, old: Path, new: Path) -> None:
        self._call("place", lambda: super(Hindered, self).place(old, new))

    def unlink(self, path: Path) -> None:
        self._call("unlink", lambda: super(Hindered, self).unlink(path))

    def rmdir(self, path: Path) -> None:
        self._call("rmdir", lambda: super(Hindered, self).rmdir(path))

    def sync_folder(self, path: Path) -> None:
        self._call("sync_folder", lambda: super(Hindered, self).sync_folder(path))


def meddle(what: str, which: str) -> None:  # noqa: C901, PLR0912 (a table)
    """What a second hand may do to a file or a folder; nothing where it is not there."""
    path = Path(which)
    other = path.with_name(f"{path.name}.other")
    if what == "make" and not path.exists():
        path.write_bytes(b"by another hand\n")
    if what == "make" or not path.exists():
        return
    match what:
        case "delete":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        case "cut":
            os.truncate(path, path.stat().st_size // 2)
        case "empty":
            os.truncate(path, 0)
        case "append":
            with path.open("ab") as stream:
                stream.write(b"by another hand\n")
        case "overwrite":
            with path.open("r+b") as stream:
                stream.seek(path.stat().st_size // 2)
                stream.write(b"#")
        case "letter":
            data = path.read_bytes()
            found = re.search(rb"[a-y]", data[len(data) // 2 :])
            at = len(data) // 2 + found.start() if found else 0
            with path.open("r+b") as stream:
                stream.seek(at)
                stream.write(bytes([data[at] + 1]) if found else b"#")
        case "replace":
            other.write_bytes(path.read_bytes()[::-1])
            other.replace(path)
        case "copy":
            other.write_bytes(path.read_bytes())
            other.replace(path)
        case "chmod":
            path.chmod(0o600)
        case "touch":
            os.utime(path)
        case "link":
            other.symlink_to(path) if path.is_dir() else other.hardlink_to(path)
        case "point":
            path.rename(other)
            path.symlink_to(other)
        case "folder":
            path.unlink()
            path.mkdir()
        case "pipe":
            path.unlink()
            os.mkfifo(path)
        case "rename":
            path.rename(other)


HANDS = (
    "delete", "cut", "empty", "append", "overwrite", "letter", "replace", "copy", "chmod", "touch", "link", "point",
    "folder", "pipe", "rename",
)  # fmt: skip
"""What is done to a file; after `letter` JSON is still JSON, and says something else.

`copy`, `chmod`, `touch`, `link` and `point` leave its content as it is."""


def on_one_core() -> None:
    """Keep this process on one core: two threads of a small model wait for each other on a busy machine."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def _take_memory() -> None:
    """Take memory until there is no more, and some 4 GiB at most: then the process ends with another code."""
    taken = [b"x" * 2**24 for _ in range(256)]
    os._exit(len(taken) % 251)


def _let_the_clock_jump(seconds: float, after: int) -> None:
    """The time of day is another one from the call `after` on; the clock that only goes on is as it was."""
    calls = 0
    real, real_ns = time.time, time.time_ns

    def jumped() -> float:
        nonlocal calls
        calls += 1
        return seconds if calls > after else 0.0

    time.time = lambda: real() + jumped()
    time.time_ns = lambda: real_ns() + int(jumped() * 1e9)


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Asked:
    """A run: the fields of `JobOptions`, nested ones as plain values, and what happens to it.

    at, fault, hand: see `Hindered`. after, signal: seconds after which a signal is sent. group: the file by which the
    process joins a control group. greedy_after: pairs after which a batch takes memory without end. jump: seconds by
    which the time of day jumps in the midst of the run.
    """

    inputs: tuple[str, ...]
    output: str
    options: dict[str, Any] = field(default_factory=dict)
    at: int = 0
    fault: str = "before"
    after: float | None = None
    signal: int = signal.SIGKILL
    count_file: str | None = None
    hand: tuple[str, str] | None = None
    machine: dict[str, Any] | None = None
    """What `far_runs.become_a_machine` is given, of a run whose output is an object."""
    group: str | None = None
    greedy_after: int | None = None
    jump: float = 0.0


@dataclass(frozen=True)
class Done:
    """How a run ended. code: the exit code, or minus the signal. said: its messages. seconds: how long it took."""

    code: int
    said: str
    seconds: float


TALLY: Counter[str] = Counter()
"""How many runs met which end, for the summary of a long run."""


def _what_was_done(asked: Asked, done: Done) -> str:
    if asked.after is not None:
        return f"{signal.Signals(asked.signal).name} at a random moment"
    if asked.at and done.code == -signal.SIGKILL:
        return "SIGKILL at a call that writes"
    return f"{asked.fault} at a call that writes" if asked.at and asked.fault.isupper() else ""


class Runs:
    """A server to ask for runs."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.torture.runs"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment,
        )

    def run(self, asked: Asked, **changes: Any) -> Done:
        """Do it."""
        return self.together(replace(asked, **changes))[0]

    def together(self, *asked: Asked) -> list[Done]:
        """Do all of them at the same time."""
        stdin, stdout = self._server.stdin, self._server.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps([vars(one) for one in asked]) + "\n")
        stdin.flush()
        ends = [Done(**done) for done in json.loads(stdout.readline())]
        TALLY.update(filter(None, map(_what_was_done, asked, ends)))
        return ends

    def close(self) -> None:
        """End the server."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        self._server.stdout.close()
        self._server.wait()


def _run(asked: Asked, log: Any) -> int:
    from rerank_cli.errors import RerankError
    from rerank_cli.formats.choices import Teacher, Texts
    from rerank_cli.formats.shapes import FieldNames, Selection
    from rerank_cli.job.options import ErrorLimit, First, JobOptions, Names
    from rerank_cli.job.run import Watcher, run_job
    from rerank_cli.planning.choices import ProfileRequest

    fields = {"model": str(TINY_CHECKPOINT), "checkpoint_every": 0.0, **asked.options}
    made = {
        "selection": Selection,
        "error_limit": ErrorLimit,
        "fields": FieldNames,
        "request": ProfileRequest,
        "texts": Texts,
        "teacher": Teacher,
        "first": First,
    }
    fields |= {name: make(**fields[name]) for name, make in made.items() if name in fields}
    for name in ("metrics", "shard"):
        if fields.get(name) is not None:
            fields[name] = tuple(fields[name])
    names = Names(asked.output, **fields.pop("names", {}))
    options = JobOptions(inputs=tuple(asked.inputs), names=names, **fields)
    files = Hindered(asked.at, asked.fault, asked.count_file, asked.hand) if asked.at else Files()
    watcher = Watcher(on_note=lambda text: log.write(text + "\n"))
    if asked.greedy_after is not None:
        scored = iter(range(-asked.greedy_after, 10**9))

        def on_batch(pairs: int, _: int) -> None:
            if max(next(scored) for _ in range(pairs)) >= 0:
                _take_memory()

        watcher.on_batch = on_batch
    if asked.group:
        Path(asked.group).write_text(str(os.getpid()))
    if asked.jump:
        _let_the_clock_jump(asked.jump, after=10)
    try:
        outcome = run_job(options, watcher, files=files)
    except RerankError as error:
        log.write("\n".join([error.message, str(error.hint), *getattr(error, "__notes__", [])]) + "\n")
        return error.exit_code
    if outcome.was_done:
        log.write("nothing to do\n")
    return 3 if outcome.counts.rows_error and not outcome.was_done else 0


def _child(asked: Asked, path: Path) -> None:
    code = 1
    with path.open("w") as log:
        os.dup2(log.fileno(), 2)
        faulthandler.dump_traceback_later(_hangs_after(), exit=True, file=log)  # code 1, and where it hangs
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # before the run listens, and behind it
        signal.signal(signal.SIGTERM, lambda *_: os._exit(143))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)
        try:
            if asked.machine:
                become_a_machine(**asked.machine)
            code = _run(asked, log)
        finally:
            log.flush()
            if code == 1:
                import traceback

                traceback.print_exc(file=log)
                log.flush()
            os._exit(code)


def _hangs_after() -> float:
    """Seconds after which a run hangs; more on a machine on which others wait for a CPU."""
    return _HANGS_AFTER * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def _started(asked: Asked, log: Path) -> Callable[[], dict[str, Any]]:
    """Start a run; returns what waits for its end."""
    began = time.monotonic()
    # A signal may come before the child has said what it does with it.
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
    child = os.fork()
    if not child:
        _child(asked, log)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)

    def wait() -> dict[str, Any]:
        if asked.after is not None:
            time.sleep(asked.after)
            os.kill(child, asked.signal)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return {"code": code, "said": log.read_text(errors="replace"), "seconds": time.monotonic() - began}

    return wait


_HANGS_AFTER = 120.0  # seconds; a run takes less than one on a machine of its own
_LOADED_ONCE = (
    "ir_measures", "numpy.ma", "rerank_cli.engine.local", "rerank_cli.job.prepare", "rerank_cli.job.run",
    "rerank_cli.report.document",
)  # fmt: skip
"""What a run imports, half a second of it; nothing here starts a thread, as pyarrow does."""


def _serve() -> None:
    for name in _LOADED_ONCE:
        import_module(name)
    with suppress(ImportError):  # of the extra `cloud`; a third of a second of a run whose output is an object
        import_module("botocore.client")
        import_module("obstore.store")
    on_one_core()
    gc.collect()
    gc.freeze()  # else each child copies the pages of all these objects when it first collects
    with tempfile.TemporaryDirectory(prefix="rerank-cli-torture-", dir="/dev/shm") as folder:
        for line in sys.stdin:
            asked = [Asked(**fields) for fields in json.loads(line)]
            waiting = [_started(one, Path(folder, str(place))) for place, one in enumerate(asked)]
            sys.stdout.write(json.dumps([wait() for wait in waiting]) + "\n")
            sys.stdout.flush()


@contextmanager
def serving() -> Iterator[Runs]:
    """A server for as long as the block."""
    runs = Runs()
    try:
        yield runs
    finally:
        runs.close()


if __name__ == "__main__":
    _serve()
