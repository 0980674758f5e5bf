"""The questions that NVML is asked, and the program that asks them: `python -P nvml_child.py SECONDS` prints JSON.

It is run by its path and imports nothing of this package: starting must stay cheap (0.02 s, and 0.04 s for pynvml).
Other modules read only the tables at its top. The lines, in any order between devices:

    {"fault": [CODE or null, TEXT]}                         NVML gives nothing; the last line
    {"asks": FIELD, "of": [GPU, MIG], "function": NAME}     before each call: the last one names what hangs
    {"says": FIELD, "of": [GPU, MIG], "value": ...}
    {"fails": FIELD, "of": [GPU, MIG], "function": NAME, "code": CODE or null, "text": TEXT}
    {"done": true}                                          all is said

`of` is [null, null] for the machine and [GPU, null] for a GPU. Every GPU is asked in a thread of its own (NVML is
thread-safe), so that one that hangs does not silence the others.

Traps that this module avoids, each met in the wild:

* Several packages install a module `pynvml`; only that of nvidia-ml-py has `_nvmlGetFunctionPointer`, and only since
  11.510 `nvmlMemory_v2` (gpustat and nvitop check likewise).
* A name that is not UTF-8 makes nvidia-ml-py's own decoding fail; the bytes are in the exception.
* Some getters return a ctypes number, which json cannot write.
* Old drivers lack functions (FunctionNotFound), and CUDA 14 will remove others: where two names exist, both are tried.
* Version 1 of the memory call is asked: its `free` is without the driver's reserve, and every driver has it.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

INVALID_ARGUMENT = 2
NOT_SUPPORTED = 3
NO_PERMISSION = 4
NOT_FOUND = 6
LIBRARY_NOT_FOUND = 12
FUNCTION_NOT_FOUND = 13
"""Codes of nvmlReturn_t."""

PACKAGE_MISSING, WRONG_PACKAGE, OLD_PACKAGE = -1, -2, -3
"""Codes of our own, for what keeps NVML from being asked at all."""

_MIG_ENABLED = 1
_UNCORRECTED, _SINCE_DRIVER_LOAD = 1, 0  # nvmlMemoryErrorType_t, nvmlEccCounterType_t


class DeviceField(NamedTuple):
    """One field of a device. functions: names in order of preference. read: the plain value in what they return."""

    field: str
    functions: tuple[str, ...]
    read: Callable[[Any], Any]
    arguments: tuple[int, ...] = ()


def _json_value(value: Any) -> Any:
    """A value that json can write, from what nvidia-ml-py returns."""
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    if isinstance(value, (list, tuple)):
        return [_json_value(item) for item in value]
    return getattr(value, "value", value)


_MEMORY = DeviceField("memory", ("nvmlDeviceGetMemoryInfo",), lambda memory: [memory.total, memory.free])
_IDENTITY = (
    DeviceField("name", ("nvmlDeviceGetName",), _json_value),
    DeviceField("uuid", ("nvmlDeviceGetUUID",), _json_value),
    DeviceField("compute_capability", ("nvmlDeviceGetCudaComputeCapability",), _json_value),
)
GPU_QUESTIONS = (
    *_IDENTITY,
    _MEMORY,
    DeviceField("mig", ("nvmlDeviceGetMigMode",), _json_value),
    DeviceField("pci_bus_id", ("nvmlDeviceGetPciInfo",), lambda pci: _json_value(pci.busId)),
    DeviceField("virtualization", ("nvmlDeviceGetVirtualizationMode",), _json_value),
    DeviceField(
        "throttling",
        ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"),
        _json_value,
    ),
    DeviceField(
        "processes",
        ("nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetComputeRunningProcesses_v2"),
        lambda found: [[_json_value(process.pid), _json_value(process.usedGpuMemory)] for process in found],
    ),
    DeviceField("ecc", ("nvmlDeviceGetEccMode",), _json_value),
    DeviceField("ecc_errors", ("nvmlDeviceGetTotalEccErrors",), _json_value, (_UNCORRECTED, _SINCE_DRIVER_LOAD)),
    DeviceField("remapped_rows", ("nvmlDeviceGetRemappedRows",), _json_value),
)
"""What a GPU is asked, in this order: what a plan needs comes before what only gives warnings."""
MIG_QUESTIONS = (
    *_IDENTITY,
    _MEMORY,
    DeviceField("gpu_instance", ("nvmlDeviceGetGpuInstanceId",), _json_value),
    DeviceField("compute_instance", ("nvmlDeviceGetComputeInstanceId",), _json_value),
    DeviceField("memory_mib", ("nvmlDeviceGetAttributes",), lambda attributes: attributes.memorySizeMB),
)
_COUNT = DeviceField("count", ("nvmlDeviceGetCount",), _json_value)
_SYSTEM_QUESTIONS = (
    DeviceField("driver", ("nvmlSystemGetDriverVersion",), _json_value),
    DeviceField("cuda", ("nvmlSystemGetCudaDriverVersion_v2", "nvmlSystemGetCudaDriverVersion"), _json_value),
)


class _Reporter:
    """Writes lines whole, from any thread, to the stdout that the process was started with."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stream = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
        # What a driver library prints must not come between the lines.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

    def write(self, **line: Any) -> None:
        with self._lock:
            self._stream.write(json.dumps(line) + "\n")


class _Session:
    """NVML, open, with every question answered or failing alone."""

    def __init__(self, pynvml: ModuleType, reporter: _Reporter) -> None:
        self._nvml = pynvml
        self._reporter = reporter

    def ask(self, question: DeviceField, of: list[int | None], *arguments: Any) -> Any:
        """The answer, which is also reported; None where the question failed."""
        failure: tuple[int | None, str] = (FUNCTION_NOT_FOUND, "Function Not Found")
        function = question.functions[0]
        for function in question.functions:
            self._reporter.write(asks=question.field, of=of, function=function)
            try:
                value = self._call(question, function, arguments)
            except self._nvml.NVMLError as error:
                failure = (int(error.value), str(error))
                if error.value == FUNCTION_NOT_FOUND:
                    continue
            except (ctypes.ArgumentError, AttributeError, OSError, TypeError, ValueError) as error:
                failure = (None, f"{type(error).__name__}: {error}")
            else:
                self._reporter.write(says=question.field, of=of, value=value)
                return value
            break
        self._reporter.write(fails=question.field, of=of, function=function, code=failure[0], text=failure[1])
        return None

    def _call(self, question: DeviceField, function: str, arguments: tuple[Any, ...]) -> Any:
        known = getattr(self._nvml, function, None)
        if known is None:  # this nvidia-ml-py is older, or newer, than the function
            raise self._nvml.NVMLError(FUNCTION_NOT_FOUND)
        try:
            return question.read(known(*arguments, *question.arguments))
        except UnicodeDecodeError as error:
            return _json_value(error.object)

    def ask_gpu(self, index: int) -> None:
        """Report everything about one GPU and its MIG instances."""
        of: list[int | None] = [index, None]
        handle = self._handle(of, "nvmlDeviceGetHandleByIndex", index)
        if handle is None:
            return
        for question in GPU_QUESTIONS:
            mode = self.ask(question, of, handle)
            if question.field == "mig" and mode is not None and mode[0] == _MIG_ENABLED:
                self._ask_instances(index, handle)

    def _ask_instances(self, gpu: int, handle: Any) -> None:
        count = self.ask(
            DeviceField("mig_slots", ("nvmlDeviceGetMaxMigDeviceCount",), _json_value), [gpu, None], handle
        )
        for slot in range(count or 0):
            instance = self._handle([gpu, slot], "nvmlDeviceGetMigDeviceHandleByIndex", handle, slot)
            if instance is not None:
                for question in MIG_QUESTIONS:
                    self.ask(question, [gpu, slot], instance)

    def _handle(self, of: list[int | None], function: str, *arguments: Any) -> Any:
        """The handle of a device; handles are not reported, they mean nothing to another process."""
        self._reporter.write(asks="handle", of=of, function=function)
        try:
            handle = getattr(self._nvml, function)(*arguments)
        except self._nvml.NVMLError as error:
            self._reporter.write(fails="handle", of=of, function=function, code=int(error.value), text=str(error))
            return None
        self._reporter.write(says="handle", of=of, value=None)
        return handle


def _import_pynvml(reporter: _Reporter) -> ModuleType | None:
    """The module of nvidia-ml-py, or None and a fault reported."""
    try:
        import pynvml
    except ImportError as error:
        reporter.write(fault=[PACKAGE_MISSING, str(error)])
        return None
    place = str(getattr(pynvml, "__file__", "?"))
    if not hasattr(pynvml, "_nvmlGetFunctionPointer"):
        reporter.write(fault=[WRONG_PACKAGE, place])
        return None
    if not hasattr(pynvml, "nvmlMemory_v2"):
        reporter.write(fault=[OLD_PACKAGE, place])
        return None
    module: ModuleType = pynvml
    return module


def _report_all(reporter: _Reporter) -> None:
    nvml = _import_pynvml(reporter)
    if nvml is None:
        return
    reporter.write(asks="init", of=[None, None], function="nvmlInit")
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        reporter.write(fault=[int(error.value), str(error)])
        return
    session = _Session(nvml, reporter)
    gpus = range(session.ask(_COUNT, [None, None]) or 0)
    threads = [threading.Thread(target=session.ask_gpu, args=(index,), daemon=True) for index in gpus]
    for thread in threads:
        thread.start()
    for question in _SYSTEM_QUESTIONS:
        session.ask(question, [None, None])
    for thread in threads:
        thread.join()
    reporter.write(done=True)


def main() -> None:
    """Report everything and leave at once: no nvmlShutdown, it can hang too, and the kernel closes what is open."""
    # The parent kills this process when its time is up; the alarm does so when the parent itself was killed.
    signal.alarm(int(float(sys.argv[1])) + 2)
    _report_all(_Reporter())
    os._exit(0)


if __name__ == "__main__":
    main()
