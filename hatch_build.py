"""Compiles `rerank_cli/models/amx.cpp` when the package is built or installed from its source.

The library goes into the wheel, which is then one for Linux on x86-64. Where there is no compiler, or another machine,
or the compiler refuses, the wheel is one for any machine and runs by torch's kernels: an installation never fails for
it. Nothing is compiled where the program runs.

    python hatch_build.py        compiles into the source tree, after a change of amx.cpp
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ModuleNotFoundError:  # as a program it needs no hatchling
    BuildHookInterface = object  # type: ignore[assignment, misc]

SOURCE = "rerank_cli/models/amx.cpp"
LIBRARY = "rerank_cli/models/_amx.so"
_FLAGS = [
    "-std=c++17", "-O3", "-fPIC", "-shared", "-s", "-pthread", "-fvisibility=hidden",
    "-mfma", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512bf16", "-mamx-tile",
    "-mamx-bf16", "-mamx-int8",
    # GCC's own headers (12) begin with a variable that is not set, on purpose.
    "-Wall", "-Wextra", "-Wno-uninitialized", "-Wno-maybe-uninitialized",
]  # fmt: skip


class AmxHook(BuildHookInterface):  # type: ignore[type-arg, unused-ignore]
    """What hatchling calls."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and say what the wheel then is. version: `standard` or `editable`."""
        if self.target_name != "wheel":
            return
        if why := compile_amx(Path(self.root)):
            self.app.display_warning(f"{SOURCE} is not compiled, torch's kernels run: {why}")
            return
        build_data["artifacts"].append(LIBRARY)
        build_data["pure_python"] = False
        build_data["tag"] = "py3-none-linux_x86_64"


def compile_amx(root: Path) -> str | None:
    """Make the library of the tree at `root` anew; returns why not, and then there is none."""
    why = _compile(root)
    if why:
        (root / LIBRARY).unlink(missing_ok=True)  # it may be of another source
    return why


def _compile(root: Path) -> str | None:
    library = root / LIBRARY
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"it is for Linux on x86-64, not for {sys.platform} on {platform.machine()}"
    compiler = shlex.split(os.environ.get("CXX", "")) or [shutil.which("g++") or shutil.which("clang++") or ""]
    if not compiler[0]:
        return "there is no C++ compiler (g++, clang++, or CXX)"
    digest = hashlib.sha256((root / SOURCE).read_bytes()).hexdigest()
    try:
        with tempfile.TemporaryDirectory(dir=library.parent, prefix=".amx-") as scratch:
            made = Path(scratch) / library.name
            command = [*compiler, *_FLAGS, f'-DSOURCE="{digest}"', SOURCE, "-o", str(made)]
            done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300, check=False)
            if done.returncode == 0:
                made.replace(library)  # at once: a program may be about to load it
                return None
            return (done.stderr.strip().splitlines() or [f"{compiler[0]} ended with {done.returncode}"])[0]
    except (OSError, subprocess.SubprocessError) as error:
        return f"{compiler[0]}: {error}"


if __name__ == "__main__":
    sys.exit(compile_amx(Path(__file__).parent))
