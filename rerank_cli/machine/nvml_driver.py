"""Starts the child process that asks the NVIDIA driver (`nvml_child.py`), and waits for it within a time limit.

    question = DriverQuestion(3.0, environment)     starts the child
    ...                                             time for other work
    answer = question.answer(host_memory)           waits for it, at most until 3 s after the start

Where no driver library can be found no child is started, so that a machine without a GPU pays nothing.

The child is killed when its time is up. One that hangs inside the driver cannot be killed at once; it is not waited
for, and dies when the driver lets go of it.
"""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rerank_cli.machine import nvml_child as nvml
from rerank_cli.machine.cpu import HostMemory
from rerank_cli.machine.gpu import Gpu
from rerank_cli.machine.nvml_answers import SYSTEM, Answers, clean, collect, read_gpu

ANSWER_SECONDS = 3.0
"""About how long a driver that is awake may take."""
WAKING_SECONDS = 30.0
"""For what would run for hours on the CPU if a driver that sleeps (no `nvidia-persistenced`) were taken for none."""

_LIBRARY = "libnvidia-ml.so.1"
_LIBRARY_FOLDERS = ("lib", "lib64", "usr/lib", "usr/lib64", "usr/local/lib")  # and their `*-linux-gnu`
_GOODBYE_SECONDS = 0.2  # for a child that has said all, or was just killed, to be gone
_MOST_BYTES = 2**24  # of answers; 16 GPUs with 7 MIG instances each say 0.3 MB

_FAULTS = {
    nvml.PACKAGE_MISSING: "nvidia-ml-py is not installed, so no GPU can be seen; `pip install nvidia-ml-py`",
    nvml.WRONG_PACKAGE: "the module pynvml is not that of nvidia-ml-py; `pip uninstall pynvml nvidia-ml-py3`, then "
    "`pip install --force-reinstall nvidia-ml-py`",
    nvml.OLD_PACKAGE: "the module pynvml is older than nvidia-ml-py 12.535; "
    "`pip uninstall nvidia-ml-py3`, then `pip install --upgrade nvidia-ml-py`",
    nvml.NO_PERMISSION: "this user may not talk to the NVIDIA driver; check the rights of /dev/nvidia* and, in a "
    "container, its devices",
    9: "the NVIDIA driver is installed but not loaded; `sudo modprobe nvidia`, then look into `dmesg`",
    nvml.LIBRARY_NOT_FOUND: "no NVIDIA driver library (libnvidia-ml.so.1): no driver is installed, or this is a "
    "container that was started without its GPUs (`--gpus all`)",
    nvml.FUNCTION_NOT_FOUND: "the NVIDIA driver library (libnvidia-ml.so.1) is too old, or is not NVIDIA's",
    15: "a GPU has fallen off the bus; look for `Xid` in `dmesg`, then reboot",
    16: "a GPU must be reset; `sudo nvidia-smi --gpu-reset`, or reboot",
    18: "the loaded NVIDIA driver and its library have different versions, as after an update; reboot",
    999: "the NVIDIA driver gives an unknown error, often from a container or hypervisor; look into `dmesg`",
}
"""What an error of nvmlInit means and what helps; by nvmlReturn_t, and by our own negative codes."""

_HANG_HINT = (
    "; look for `Xid` in `dmesg`. Without nvidia-persistenced a driver may also need long to wake: "
    "`sudo nvidia-smi -pm 1` keeps it awake"
)


@dataclass(frozen=True, slots=True)
class DriverAnswer:
    """The driver's versions and GPUs. reason: why there is no GPU; None where there is one."""

    gpus: tuple[Gpu, ...] = ()
    driver: str | None = None
    cuda: str | None = None
    reason: str | None = None
    warnings: tuple[str, ...] = ()


class DriverQuestion:
    """A child process at work on the questions of `nvml_child.py`. root: where `etc`, `lib` and `usr` lie."""

    def __init__(self, timeout_seconds: float, environment: Mapping[str, str], root: Path = Path("/")) -> None:
        self._timeout_seconds = timeout_seconds
        self._deadline = time.monotonic() + timeout_seconds
        self._child: subprocess.Popen[bytes] | None = None
        self._failure: str | None = None
        if library_is_absent(environment, root):
            self._failure = _FAULTS[nvml.LIBRARY_NOT_FOUND]
            return
        # -P: nothing is imported from the program's own folder. Nobody would read its warnings.
        command = [sys.executable, "-P", "-W", "ignore", str(Path(nvml.__file__)), str(timeout_seconds)]
        try:
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=dict(environment),
            )
        except OSError as error:
            self._failure = f"the process that asks NVML did not start: {error}"

    def answer(self, host: HostMemory) -> DriverAnswer:
        """Wait for the child, until the time is up, and make its lines into GPUs."""
        if self._child is None:
            return DriverAnswer(reason=self._failure)
        ended = "cut off"
        try:
            lines, ended = self._read(self._child)
        finally:
            code = _dismiss(self._child, willing=ended in ("done", "end"))
        answers = collect(lines)
        if answers.done:
            return _interpret(answers, host)
        if ended == "timeout":
            answers.silence = f"the NVIDIA driver does not answer within {self._timeout_seconds:g} s"
        elif code is not None and code < 0:
            answers.silence = f"the NVIDIA driver library crashed ({signal.strsignal(-code)})"
        else:
            answers.silence = f"the process that asks NVML ended early, with exit status {code}"
        return _interpret(answers, host)

    def _read(self, child: subprocess.Popen[bytes]) -> tuple[list[bytes], str]:
        """Lines until the last one, the end of the stream, or the deadline: `done`, `end`, `timeout`."""
        assert child.stdout is not None
        descriptor = child.stdout.fileno()
        poll = select.poll()
        poll.register(descriptor, select.POLLIN | select.POLLHUP)
        content = b""
        while len(content) < _MOST_BYTES:
            left = self._deadline - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000):
                return content.splitlines(), "timeout"
            chunk = os.read(descriptor, 65536)
            if not chunk:
                return content.splitlines(), "end"
            content += chunk
            if content.endswith(b'{"done": true}\n'):
                break
        return content.splitlines(), "done"


def library_is_absent(environment: Mapping[str, str], root: Path = Path("/")) -> bool:
    """Whether the loader of this machine would find no `libnvidia-ml.so.1`; false where that is not certain.

    It looks where the loader of Linux looks (ld.so(8)): preloaded libraries, LD_LIBRARY_PATH, the run path of the
    interpreter (conda's names its own `lib`), the cache of `ldconfig`, and the default folders, which a container may
    have filled without running `ldconfig`. Anything preloaded might be the library under another name.
    """
    if not sys.platform.startswith("linux"):
        return sys.platform == "darwin"
    if environment.get("LD_PRELOAD"):
        return False
    try:
        if _LIBRARY.encode() in (root / "etc/ld.so.cache").read_bytes() or (root / "etc/ld.so.preload").exists():
            return False
    except OSError:
        return False
    defaults = [root / name for name in _LIBRARY_FOLDERS]
    multiarch = [folder for base in defaults for folder in base.glob("*-linux-gnu*")]
    # An empty entry is the working directory.
    given = environment.get("LD_LIBRARY_PATH")
    listed = [Path(name or ".") for name in re.split("[:;]", given)] if given else []
    folders = [*listed, Path(sys.base_prefix) / "lib", *defaults, *multiarch]
    return not any(_is_there(folder / _LIBRARY) for folder in folders)


def _is_there(path: Path) -> bool:
    """Whether the loader would find a file: not in a folder that may not be read."""
    try:
        return path.exists()
    except OSError:
        return False


def _dismiss(child: subprocess.Popen[bytes], *, willing: bool) -> int | None:
    """End the child; returns its exit status, or None where it hangs in the driver and cannot be killed.

    Args:
        child: The process that asks NVML.
        willing: The child is about to end by itself.
    """
    assert child.stdout is not None
    child.stdout.close()
    if willing:
        try:
            return child.wait(_GOODBYE_SECONDS)
        except subprocess.TimeoutExpired:
            pass
    child.kill()
    try:
        return child.wait(_GOODBYE_SECONDS)
    except subprocess.TimeoutExpired:
        return None


def _interpret(answers: Answers, host: HostMemory) -> DriverAnswer:
    """Make the answer from what the child has said."""
    if answers.fault:
        code, text = answers.fault
        if code is not None and code < 0:
            return DriverAnswer(reason=f"{_FAULTS[code]} ({text})")
        return DriverAnswer(reason=f"{_FAULTS.get(code or 0, 'NVML did not start')} (NVML: {text})")
    system = answers.device(SYSTEM).said
    number = system.get("cuda")  # 13000 for 13.0
    driver, cuda = clean(system.get("driver")), f"{number // 1000}.{number % 1000 // 10}" if number else None
    if "count" not in system:
        reason = f"no GPU is known: {answers.why(SYSTEM, 'count')}{'' if answers.done else _HANG_HINT}"
        return DriverAnswer(driver=driver, cuda=cuda, reason=reason)
    if system["count"] == 0:
        return DriverAnswer(driver=driver, cuda=cuda, reason="the NVIDIA driver is loaded and sees no GPU")
    gpus = tuple(read_gpu(index, answers, host) for index in range(system["count"]))
    if answers.done:
        return DriverAnswer(gpus, driver, cuda)
    asked = {f"GPU {gpu.index}": answers.pending(gpu.index) for gpu in gpus} | {"the driver": answers.pending(None)}
    silent = [f"{who} ({', '.join(pending)})" for who, pending in asked.items() if pending]
    warning = f"{answers.silence}{': ' if silent else ''}{', '.join(silent)}{_HANG_HINT}"
    return DriverAnswer(gpus, driver, cuda, warnings=(warning,))
