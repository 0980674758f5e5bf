"""A process that does not answer a signal is ended, whatever library it is in."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import Started

ROOT = Path(__file__).parents[3]
BUSY = """
import hashlib, signal, sys
from rerank_cli.machine import signal_watchdog
signal_watchdog.SECONDS = 0.2
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM, signal.SIGUSR1):
    signal.signal(number, lambda *_: None)
signal_watchdog.start_signal_watchdog()
print("ready", flush=True)
hashlib.pbkdf2_hmac("sha256", b"", b"", int(sys.argv[1]))
print("done", flush=True)
sys.stdin.read(1)
"""
FOR_EVER, SHORT = 2**31 - 1, 1  # rounds: minutes in C, and none of it


def busy(rounds: int) -> subprocess.Popen[bytes]:
    pipe = subprocess.PIPE
    process = Started([sys.executable, "-c", BUSY, str(rounds)], cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


@pytest.mark.parametrize(
    ("number", "code", "name"),
    [
        (signal.SIGTERM, 143, b"SIGTERM"),
        (signal.SIGINT, 130, b"SIGINT"),
        (signal.SIGALRM, 9, b"the deadline"),
    ],
)
def test_a_library_that_does_not_come_back_is_ended(number: signal.Signals, code: int, name: bytes) -> None:
    with busy(FOR_EVER) as process:
        process.send_signal(signal.SIGUSR1)  # ends nothing
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert said == b"stopped by " + name + b": ended on the spot, as nothing answered for 0.2 s\n"
    assert process.returncode == code


def test_another_signal_ends_nothing_and_a_process_that_ends_in_time_says_nothing() -> None:
    with busy(SHORT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"done\n"
        process.send_signal(signal.SIGUSR1)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.5)
        _, said = process.communicate(b"x", timeout=60)
    assert (process.returncode, said) == (0, b"")
