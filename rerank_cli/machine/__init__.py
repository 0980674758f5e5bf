"""What this machine has, asked once and as data; nothing is decided here.

    machine = detect_machine()          the whole answer: GPUs, driver, CPU, the installed torch, warnings
    machine.devices                     what a CUDA process started here would see, in CUDA's order
    load_machine_fixture(path)          the same of a machine that a JSON document describes

How it is asked, in the order of `detect_machine`:

1. NVML, through nvidia-ml-py, in a child process with a time limit (`nvml_child.py` is that process, and
   `nvml_driver.py` talks to it). A sick driver hangs inside a system call, where no Python time limit reaches; a child
   can be left behind. It reports each answer as it comes, so a hang or a crash loses only what comes after it.
2. The CPU, the memory and their cgroup limits, from /proc and /sys (`cpu.py`), while the child works.
3. What the installed torch was built for, from its files, without importing it (`torch_build.py`).
4. `CUDA_VISIBLE_DEVICES`, which NVML ignores, applied to the answer by UUID (`cuda_visible.py`).

Every field of every GPU fails alone: it is None, and `unread` says why. A GPU with a `reason` cannot be used.
Nothing here imports torch, and only the child imports pynvml.
"""
