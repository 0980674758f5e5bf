"""README and docs/ say what is true: their commands run, their tables agree with the code, their links lead on."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rerank_cli.checkpoint.families import FAMILIES
from rerank_cli.errors import EXIT_CODES
from rerank_cli.planning.profiles import load_all_profiles
from tests.conftest import TINY_CHECKPOINT
from tests.docs import house
from tests.docs.support_matrix import render_support_matrix

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MODELS = (ROOT / "docs" / "reference" / "models.md").read_text(encoding="utf-8")
BIN = Path(sys.prefix) / "bin"


def _blocks(pattern: str) -> list[Any]:
    """What the pattern finds on each page, under the page's name; each once."""
    found: dict[Any, Any] = {}
    for page in PAGES:
        for block in re.findall(pattern, page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE):
            values = (block,) if isinstance(block, str) else block
            found.setdefault(block, pytest.param(*values, id=f"{page.relative_to(ROOT)}-{len(found)}"))
    return list(found.values())


def _command_blocks() -> list[Any]:
    return _blocks(r"^```sh\n(.*?)^```")


def _runs(block: Any) -> bool:
    return "make " not in block.values[0]


@pytest.fixture(autouse=True)
def program(served: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts find the program."""
    monkeypatch.setenv("PATH", f"{served}{os.pathsep}{BIN}{os.pathsep}{os.environ['PATH']}")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The folder that README's commands run in, without letting them write into the repository."""
    for name in ("samples", "rerank_cli", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copy(ROOT / "Makefile", tmp_path)
    return tmp_path


def _run(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    # Without pipefail: a writer whose reader has enough (`--limit`) ends with SIGPIPE, and that is no fault.
    command = ["bash", "-eu", "-c", script]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("block", list(filter(_runs, _command_blocks())))
def test_every_command_runs(
    block: str, checkout: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    # 225 lists: with a tiny model, whose pairs are too short for the other samples.
    if "python-docs" in block and "nim" not in block and "README" not in request.node.callspec.id:
        monkeypatch.setenv("RERANK_MODEL", str(TINY_CHECKPOINT))
    if "--engine ray" in block:
        pytest.importorskip("ray", reason="Ray is not installed")
    done = _run(block, checkout)
    assert done.returncode == 0, f"{block}\n{done.stderr}"
    for output in re.findall(r"-o (\S+)", block):
        if output != "-" and "--dry-run" not in block:
            made = list(checkout.glob(output.replace("%", "*").rstrip("/")))  # %: what xargs puts there
            assert made
            assert all(path.stat().st_size > 0 for path in made)


def test_the_recipe_for_slurm_does_its_part_and_asks_to_go_on_when_the_time_is_up(checkout: Path) -> None:
    page = (ROOT / "docs" / "guides" / "many-machines.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"^```bash\n(#!/bin/bash\n#SBATCH.*?)^```", page, flags=re.DOTALL | re.MULTILINE)
    tools = checkout / "tools"
    tools.mkdir()
    (tools / "scontrol").write_text('#!/bin/sh\necho "$@" > asked\n')
    (tools / "scontrol").chmod(0o755)
    task = "export SLURM_ARRAY_JOB_ID=7 SLURM_ARRAY_TASK_ID=1 SLURM_ARRAY_TASK_COUNT=8 PATH=$PWD/tools:$PATH\n"
    done = _run(task + script.replace("5h", "0s"), checkout)
    assert (checkout / "asked").read_text() == "requeue 7_1\n", done.stderr
    done = _run(task + script, checkout)
    assert done.returncode == 0, done.stderr
    assert (checkout / "part-1.jsonl").stat().st_size > 0


def _python_blocks() -> list[Any]:
    return _blocks(r"^```python\n(.*?)^```")


def test_readme_has_an_example_in_python() -> None:
    assert "```python\nfrom rerank_cli import Reranker" in README


@pytest.mark.parametrize("block", _python_blocks())
def test_every_example_in_python_runs_and_prints(block: str, checkout: Path) -> None:
    command = [sys.executable, "-P", "-W", "error", "-c", block]  # -P: the installed package, not the link
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "query" in done.stdout


def _outputs() -> list[Any]:
    """Commands with the output that is shown below them."""
    return list(filter(_runs, _blocks(r"^```sh\n([^`]*?)^```\n\n```text\n(.*?)^```")))


@pytest.mark.parametrize(("command", "output"), _outputs())
def test_a_shown_output_is_what_the_command_prints(command: str, output: str, checkout: Path) -> None:
    done = _run(command, checkout)
    printed = "\n".join(line.rstrip() for line in done.stdout.splitlines())
    assert printed.strip("\n") == output.strip("\n")


def test_outputs_of_the_commands_that_load_no_model_are_shown() -> None:
    shown = {" ".join(block.values[0].split()[1:3]) for block in _outputs()}
    assert {"profile-select --model", "mem-estimate --model"} == shown


def test_the_support_matrix_is_that_of_the_profiles() -> None:
    table = MODELS.split("<!-- support matrix: begin (a test compares this table with profiles/) -->\n")[1]
    assert table.split("<!-- support matrix: end -->")[0] == render_support_matrix(load_all_profiles())


def test_the_two_commands_stand_first_and_call_what_the_makefile_and_ci_have() -> None:
    first, second = (block.values[0] for block in _command_blocks()[:2])
    assert first.startswith("make demo")
    assert second.startswith("make test")
    assert "make test" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.slow
def test_make_demo_reranks_the_samples_and_shows_the_table_that_readme_shows(checkout: Path) -> None:
    recipe = subprocess.run(
        ["make", "-n", "demo", f"BIN={BIN}"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.replace("\\\n", " ")
    job = [line for line in recipe.splitlines() if "rerank-cli" in line or "mkdir" in line]
    done = _run("\n".join(job), checkout)
    assert done.returncode == 0, done.stderr
    shown = re.search(r"^ nDCG@10 .*$", README, flags=re.MULTILINE)
    assert shown is not None
    assert shown.group().split() in [line.split() for line in done.stdout.splitlines()]


def test_the_table_of_exit_codes_is_that_of_the_code() -> None:
    page = (ROOT / "docs" / "reference" / "exit-codes.md").read_text(encoding="utf-8")
    table = page.split("<!-- exit codes: begin")[1].split("<!-- exit codes: end")[0]
    assert dict(re.findall(r"^\| (\d+) \| (.*) \|$", table, flags=re.MULTILINE)) == {
        str(code): meaning for code, meaning in EXIT_CODES.items()
    }


def test_every_native_architecture_is_documented() -> None:
    for architecture in FAMILIES:
        assert f"`{architecture}`" in MODELS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_path_and_link_of_a_page_leads_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"`((?:rerank_cli|samples|benchmarks|docs|profiles)/[\w./-]*)`", text):
        assert (ROOT / path).exists(), path
    for link in re.findall(r"\]\(([^)#\s]+)(?:#[\w-]+)?\)", text):
        assert link.startswith("https://") or (page.parent / link).exists(), link
    for link, anchor in re.findall(r"\]\(([^)#\s]*)#([\w-]+)\)", text):
        if not link.startswith("https://"):
            target = (page.parent / link).read_text(encoding="utf-8") if link else text
            headings = re.findall(r"^#+ (.*)$", target, flags=re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
            assert anchor in anchors, f"{link}#{anchor}"


def test_readme_is_for_newcomers() -> None:
    assert len(README.splitlines()) <= 150


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        assert page.name == "index.md" or str(page.relative_to(ROOT / "docs")) in index, page


def test_every_module_that_contributing_names_is_there() -> None:
    named = re.findall(r"`([\w/]+\.py)`", house.PAGE.read_text(encoding="utf-8"))
    assert len(named) > 100
    assert [name for name in named if not (ROOT / name).exists() and not (ROOT / "rerank_cli" / name).exists()] == []


def test_contributing_shows_the_house_as_it_is() -> None:
    assert house.BEGIN + house.render() + house.END in house.PAGE.read_text(encoding="utf-8")


def test_a_module_of_over_400_lines_says_why_in_its_head() -> None:
    long = [path for path in (ROOT / "rerank_cli").rglob("*.py") if len(path.read_text().splitlines()) > 400]
    assert [
        path for path in long if "Over 400 lines" not in (ast.get_docstring(ast.parse(path.read_text())) or "")
    ] == []


def test_the_page_of_modules_shows_them_as_they_are() -> None:
    assert house.MODULES.read_text(encoding="utf-8") == house.render_modules()
