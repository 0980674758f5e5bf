"""An environment that has only what planning needs: it plans, and says in one sentence what everything else needs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
GOLDENS = ROOT / "tests" / "parity"
PLANNING = ("typer", "rich", "numpy", "nvidia-ml-py")
SCRIPT = """
import contextlib, io, json, sys
from rerank_cli.cli import main
answers = []
for arguments in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    answers.append([code, out.getvalue(), err.getvalue()])
try:
    from rerank_cli import Reranker
except ImportError as error:
    answers.append([0, f"{type(error).__name__}: {error}", ""])
heavy = sorted({"torch", "transformers", "tokenizers", "pandas", "pyarrow"} & set(sys.modules))
print(json.dumps({"answers": answers, "heavy": heavy}))
"""
WORK = [
    ["profile-select", "--format", "text"],
    ["profile-select", "--gpu", "L4", "--format", "json"],
    ["profile-select", "--gpu", "all", "--format", "text"],
    ["profile-select", "--model", "nvidia/llama-nemotron-rerank-1b-v2", "--gpu", "H100", "--explain"],
    ["mem-estimate", "--format", "text"],
    ["mem-estimate", "--gpu", "8.9:24GB", "--solve", "batch-size", "--format", "json"],
    ["mem-estimate", "--model", str(GOLDENS / "deberta-ce-open" / "checkpoint"), "--format", "json"],
    ["mem-estimate", "--model", str(GOLDENS / "zerank2-open" / "checkpoint"), "--format", "json"],
    ["version", "--verbose"],
    ["rerank-file", "--help-all"],
]  # fmt: skip
DO_NOT = [
    ["rerank-file", "samples/python-docs.jsonl", "-o", "-"],
    ["rerank-file", "samples/python-docs.jsonl", "-o", "-", "--dry-run"],
    ["rerank-file", "in.parquet", "-o", "-"],
    ["score", "samples/python-docs.jsonl"],
    ["evaluate", "samples/python-docs.jsonl", "--qrels", "samples/qrels.txt"],
    ["mem-estimate", "--from-file", "samples/python-docs.jsonl"],
    ["mem-estimate", "--measure"],
]


def _with_what_they_need(names: tuple[str, ...]) -> set[str]:
    """Distributions and all that they require, without their extras."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        try:
            required = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue  # for another system or Python
        if name not in found:
            found.add(name)
            waiting += [re.split(r"[^\w.-]", one)[0] for one in required if "extra ==" not in one]
    return found


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("planning")
    for name in _with_what_they_need(PLANNING):
        for file in metadata.files(name) or []:
            top, place = file.parts[0], file.locate()
            if top in ("..", "__pycache__") or (folder / top).exists():
                continue
            (folder / top).symlink_to(Path(str(place)).parents[len(file.parts) - 2] if len(file.parts) > 1 else place)
    for name in ("rerank_cli", "samples", "profiles"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "in.parquet").write_bytes(b"PAR1")
    # -I -S: nothing of this environment, neither its packages nor its variables.
    script = f"import sys; sys.path.insert(0, {str(folder)!r})\n{SCRIPT}"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script],
        input=json.dumps([*WORK, *DO_NOT]),
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_planning_works_and_loads_nothing_else(answers: dict[str, Any]) -> None:
    for arguments, (code, out, err) in zip(WORK, answers["answers"], strict=False):
        assert code == 0, (arguments, err)
        assert out
    assert answers["heavy"] == []


def test_everything_else_ends_in_one_sentence_with_the_command_that_helps(answers: dict[str, Any]) -> None:
    for arguments, (code, out, err) in zip(DO_NOT, answers["answers"][len(WORK) : -1], strict=True):
        (line,) = err.splitlines()
        assert code == 2, arguments
        told = re.fullmatch(r"error: (\S+) is not installed: `(.+ install .+)`", line)
        assert told, (arguments, line)
        assert {"torch", "transformers", "tokenizers", "safetensors", "pyarrow", told[1]} <= set(told[2].split())
        if arguments[0] == "mem-estimate":
            assert json.loads(out)["error"]["message"] == line.removeprefix("error: ")


def test_a_plan_without_torch_names_what_to_install_as_the_next_command(answers: dict[str, Any]) -> None:
    _, out, _ = answers["answers"][0]
    assert "next: " in out
    assert re.search(r" install .*\btorch\b", out.rpartition("next: ")[2])


def test_the_library_says_the_same_where_it_is_imported(answers: dict[str, Any]) -> None:
    assert re.fullmatch(r"ImportError: (\S+) is not installed: `.+ install .*\btorch\b.*`", answers["answers"][-1][1])
