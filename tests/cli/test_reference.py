"""The reference pages say what the code says."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from rerank_cli.cli.subcommands import SUBCOMMANDS
from tests.conftest import TINY_CHECKPOINT

ROOT = Path(__file__).parents[2]


def _maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_reference", ROOT / "docs" / "make_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MAKER = _maker()


@pytest.mark.parametrize("name", ["cli.md", "exit-codes.md", "environment.md"])
def test_a_page_is_what_the_code_makes(name: str) -> None:
    assert MAKER.pages().keys() == {"cli.md", "exit-codes.md", "environment.md"}
    assert (ROOT / "docs" / "reference" / name).read_text(encoding="utf-8") == MAKER.pages()[name], "run `make docs`"


def test_every_option_of_every_command_is_in_the_reference() -> None:
    page, variables = MAKER.pages()["cli.md"], MAKER.pages()["environment.md"]
    for name, command in MAKER.commands().items():
        section = page.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        for one in command.declared.values():
            if one.hidden:
                assert one.flag not in section and one.variable not in variables
            elif one.flag:
                assert re.search(rf"^\| `(-\w, )?{one.flag}[ `]", section, flags=re.MULTILINE), (name, one.flag)
                assert f"| `{one.variable}` | `{one.flag}` |" in variables


def test_every_variable_that_the_code_reads_is_in_the_reference() -> None:
    read = set()
    for path in (ROOT / "rerank_cli").rglob("*.py"):
        read |= set(re.findall(r"\b(?:NIM_[A-Z_]+|HF_HUB_CACHE|HF_HOME|CUDA_VISIBLE_DEVICES)\b", path.read_text()))
    assert {name for name in read if not name.endswith("_")} <= MAKER.OTHER_VARIABLES.keys()


@pytest.mark.slow
def test_the_examples_run_as_they_stand(tmp_path: Path, served: Path) -> None:
    for name in ("samples", "rerank_cli"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "samples-lists").mkdir()
    path = f"{served}{os.pathsep}{Path(sys.prefix) / 'bin'}{os.pathsep}{os.environ['PATH']}"
    for command in MAKER.commands().values():
        for example in re.findall(r"^  (\S.*(?:\n {6}.*)*)", command.callback.examples, flags=re.MULTILINE):
            large = {"RERANK_MODEL": str(TINY_CHECKPOINT)} if "python-docs" in example else {}
            done = subprocess.run(
                ["bash", "-eu", "-c", example],
                cwd=tmp_path,
                env={**os.environ, "PATH": path, **large},
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, f"{example}\n{done.stderr}"


def test_make_help_lists_every_target_with_its_comment() -> None:
    shown = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert phony is not None
    assert [line.split()[0] for line in shown.splitlines()] == sorted(phony[1].split(), key=phony[1].split().index)
    assert all(len(line.split()) > 2 for line in shown.splitlines())


def test_help_says_of_a_command_what_the_command_says_of_itself() -> None:
    for name, one in SUBCOMMANDS.items():
        assert MAKER.commands()[name].help.splitlines()[0] == one.about
