"""What is built: the wheel holds the package, profiles and the built-in model, and runs where there is nothing else."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from rerank_cli import __version__
from tests.conftest import read_lines

ROOT = Path(__file__).parents[2]
TOOLS = [name for name in ("build", "hatchling") if importlib.util.find_spec(name) is None]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(TOOLS), reason=f"not installed, and a build downloads nothing here: {', '.join(TOOLS)}"),
]


def _build(kind: str, source: Path, out: Path, **environment: str) -> Path:
    command = [sys.executable, "-m", "build", "--no-isolation", f"--{kind}", "--outdir", str(out), str(source)]
    subprocess.run(command, check=True, capture_output=True, cwd=out, env=os.environ | environment)
    (built,) = out.iterdir()
    return built


def _contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _build("sdist", ROOT, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _build("wheel", ROOT, tmp_path_factory.mktemp("wheel"))


def test_the_wheel_is_for_the_machine_of_its_library_or_else_for_any(wheel: Path) -> None:
    compiles = sys.platform == "linux" and platform.machine() == "x86_64" and shutil.which("g++")
    assert ("rerank_cli/models/_amx.so" in _contents(wheel)) == bool(compiles)
    machine = "linux_x86_64" if compiles else "any"
    assert wheel.name == f"rerank_cli-{__version__}-py3-none-{machine}.whl"


def test_without_a_compiler_the_wheel_is_for_any_machine_and_holds_no_library(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    out.mkdir()
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE", "NOTICE", "profiles"):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, _made(source) / name)
    shutil.copytree(ROOT / "rerank_cli", source / "rerank_cli", ignore=shutil.ignore_patterns("builtin", "__pycache__"))
    built = _build("wheel", source, out, CXX="false")
    assert built.name == f"rerank_cli-{__version__}-py3-none-any.whl"
    assert "rerank_cli/models/amx.cpp" in _contents(built)
    assert "rerank_cli/models/_amx.so" not in _contents(built)


def _made(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder


def test_the_wheel_holds_every_file_of_the_package_and_the_profiles_and_no_other(wheel: Path) -> None:
    found = set(_contents(wheel))
    package = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "rerank_cli").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    profiles = {f"rerank_cli/_profiles/{path.name}" for path in (ROOT / "profiles").glob("*.toml")}
    about = f"rerank_cli-{__version__}.dist-info"
    names = ("METADATA", "WHEEL", "entry_points.txt", "RECORD", "licenses/LICENSE", "licenses/NOTICE")
    assert profiles
    assert found == package | profiles | {f"{about}/{name}" for name in names}


def test_the_wheel_holds_model_licences_and_types_as_they_are(wheel: Path) -> None:
    contents = _contents(wheel)
    assert "rerank_cli/py.typed" in contents
    about = f"rerank_cli-{__version__}.dist-info/licenses"
    for name in ("LICENSE", "NOTICE"):
        assert contents[f"{about}/{name}"] == (ROOT / name).read_bytes()
    model = [name for name in contents if name.endswith(".safetensors")]
    assert len(model) == 1
    assert contents[model[0]] == (ROOT / model[0]).read_bytes()


def test_what_an_extra_needs_is_asked_for_by_extras_alone(wheel: Path) -> None:
    """`pip install rerank-cli` brings no client of an object store, no Ray and no browser."""
    (about,) = [text.decode() for name, text in _contents(wheel).items() if name.endswith("/METADATA")]
    asked = re.findall(r"^Requires-Dist: ([\w.-]+)(.*)$", about, flags=re.MULTILINE)
    always = {name for name, condition in asked if "extra ==" not in condition}
    of_extras = {name for name, condition in asked if "extra ==" in condition}
    assert {"torch", "tokenizers"} <= always
    assert {"obstore", "botocore", "ray"} <= of_extras
    assert not always & of_extras


def test_the_sdist_builds_the_same_wheel(sdist: Path, wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    out = tmp_path / "out"
    out.mkdir()
    assert _contents(_build("wheel", source, out)) == _contents(wheel)


def test_the_wheel_alone_reranks_the_samples_offline(wheel: Path, tmp_path: Path) -> None:
    package, elsewhere = tmp_path / "package", tmp_path / "elsewhere"
    elsewhere.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(package)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("RERANK_", "PYTHON"))},
        "PYTHONPATH": str(package),
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "no-cache"),
    }

    def run(*arguments: str) -> str:
        command = [sys.executable, "-P", *arguments]
        return subprocess.run(
            command, cwd=elsewhere, env=environment, check=True, capture_output=True, text=True, timeout=120
        ).stdout

    assert Path(run("-c", "import rerank_cli; print(rerank_cli.__file__)").strip()).is_relative_to(package)
    assert run("-m", "rerank_cli", "--version") == f"rerank-cli {__version__}\n"
    profiles = run("-m", "rerank_cli", "profile-select", "--list", "--model", "nvidia/llama-nemotron-rerank-1b-v2")
    assert "optimized-fp16" in profiles
    samples = str(ROOT / "samples" / "python-docs.jsonl")
    run("-m", "rerank_cli", "rerank-file", samples, "-o", "out.jsonl", "-q", "--limit", "1", "--top-n", "3")
    expected = read_lines(ROOT / "samples" / "expected" / "python-docs.top3.jsonl")[:1]
    assert [_ids(row) for row in read_lines(elsewhere / "out.jsonl")] == [_ids(row) for row in expected]


def _ids(row: dict[str, Any]) -> list[str]:
    return [passage["id"] for passage in row["passages"]]


def test_the_entry_point_is_the_command(wheel: Path) -> None:
    (points,) = [text.decode() for name, text in _contents(wheel).items() if name.endswith("entry_points.txt")]
    assert re.search(r"^rerank-cli = rerank_cli\.cli:entry_point$", points, flags=re.MULTILINE)
