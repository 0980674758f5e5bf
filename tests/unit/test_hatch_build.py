"""What is compiled when the package is built: a library, or none and the reason."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def hook() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tree(hook: ModuleType, tmp_path: Path) -> Path:
    source = tmp_path / hook.SOURCE
    source.parent.mkdir(parents=True)
    shutil.copy(ROOT / hook.SOURCE, source)
    return tmp_path


def test_a_compiler_that_refuses_or_is_not_there_leaves_no_library(
    hook: ModuleType, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if sys.platform != "linux" or platform.machine() != "x86_64":
        assert "Linux on x86-64" in hook.compile_amx(tree)
        return
    for compiler, said in (("false", "false ended with 1"), ("no-such-compiler", "no-such-compiler")):
        (tree / hook.LIBRARY).write_bytes(b"of another source")
        monkeypatch.setenv("CXX", compiler)
        assert said in hook.compile_amx(tree)
        assert [path.name for path in (tree / hook.SOURCE).parent.iterdir()] == ["amx.cpp"]
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", "")
    assert "no C++ compiler" in hook.compile_amx(tree)


def test_on_another_machine_nothing_is_compiled(hook: ModuleType, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert "aarch64" in hook.compile_amx(tree)
