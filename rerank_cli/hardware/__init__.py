"""What this machine has, asked once and as data; nothing is decided here.

    machine = detect_machine()          the whole answer: GPUs, driver, CPU, the installed torch, warnings
    machine.devices                     what a CUDA process started here would see, in CUDA's order
    machine_to_json(machine)            the same as a document; `load_machine_fixture` reads it back

How it is asked, in the order of `detect_machine`:

1. NVML, through nvidia-ml-py, in a child process with a time limit (`nvml.py` is that process, `driver.py` talks to
   it). A sick driver hangs inside a system call, where no Python time limit reaches; a child can be left behind. It
   reports every answer at once, so a hang or a crash loses only what comes after it.
2. The CPU, the memory and their cgroup limits, from /proc and /sys (`cpu.py`), while the child works.
3. What the installed torch was built for, from its files, without importing it (`torch_build.py`).
4. `CUDA_VISIBLE_DEVICES`, which NVML ignores, applied to the answer by UUID (`visibility.py`).

Every field of every GPU fails alone: it is None, and `unread` says why. A GPU with a `reason` cannot be used.
Nothing here imports torch, and only the child imports pynvml.
"""

from rerank_cli.hardware.cpu import Cpu, detect_cpu, usable_cores
from rerank_cli.hardware.fixture import load_machine_fixture, machine_to_json
from rerank_cli.hardware.gpu import CudaDevice, Gpu, GpuProcess, MigInstance, parse_gpu
from rerank_cli.hardware.machine import Machine, describe_machine, detect_machine
from rerank_cli.hardware.torch_build import TorchBuild, detect_torch_build

__all__ = [
    "Cpu",
    "CudaDevice",
    "Gpu",
    "GpuProcess",
    "Machine",
    "MigInstance",
    "TorchBuild",
    "describe_machine",
    "detect_cpu",
    "detect_machine",
    "detect_torch_build",
    "load_machine_fixture",
    "machine_to_json",
    "parse_gpu",
    "usable_cores",
]
