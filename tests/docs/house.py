"""The packages in CONTRIBUTING.md and all modules in docs/reference/modules.md, from import contract and docstrings.

python -m tests.docs.house            prints both
python -m tests.docs.house --write    puts them into the two pages
"""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "CONTRIBUTING.md"
BEGIN = "<!-- house: begin (made by `python -m tests.docs.house --write`; a test compares) -->\n"
END = "<!-- house: end -->"
MODULES = ROOT / "docs/reference/modules.md"
_HEAD = """\
# Modules

Every module with the first sentence of its head: `rerank_cli/` package by package from the top down, then what the
tests share (the tests themselves lie by package in `tests/unit/`), and the benchmarks. Made by
`python -m tests.docs.house --write`; a test compares.
"""


def layers() -> list[list[str]]:
    """The entries of `rerank_cli/` from the top down; those of one layer do not import each other."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (contract,) = [one for one in contracts if one["type"] == "layers" and one["containers"] == ["rerank_cli"]]
    return [layer.split(" | ") for layer in contract["layers"] if layer != "__main__"]


def path_of(entry: str) -> Path:
    """The folder or file of an entry of `rerank_cli/`."""
    folder = ROOT / "rerank_cli" / entry
    return folder if folder.is_dir() else folder.with_suffix(".py")


def first_sentence(path: Path) -> str:
    """The first line of the docstring of a package or module."""
    path = path / "__init__.py" if path.is_dir() else path
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    return text.split("\n\n")[0].replace("\n", " ")


def render() -> str:
    """The table."""
    rows = ["| entry | what lies there |", "| --- | --- |"]
    for layer in layers():
        for entry in layer:
            path = path_of(entry)
            rows.append(f"| `{path.name}{'/' * path.is_dir()}` | {first_sentence(path)} |")
    return "\n".join(rows) + "\n"


def render_modules() -> str:
    """The page of modules."""
    entries = [path_of(entry) for layer in layers() for entry in layer]
    alone = [path for path in entries if path.is_file()]
    text = _HEAD + _table("rerank_cli/", "The modules that are no package.", alone)
    for folder in (path for path in entries if path.is_dir()):
        inside = [path for path in sorted(folder.rglob("*.py")) if path != folder / "__init__.py"]
        text += _table(f"{folder.name}/", first_sentence(folder), inside)
    helpers = [path for path in sorted((ROOT / "tests").rglob("*.py")) if "test_" not in path.name]
    text += _table("tests/", "What the tests share.", [path for path in helpers if first_sentence(path)])
    return text + _table("benchmarks/", "Measurements.", sorted((ROOT / "benchmarks").rglob("[a-z]*.py")))


def _table(title: str, sentence: str, paths: Sequence[Path]) -> str:
    rows = "".join(
        f"| `{str(path.relative_to(ROOT)).removeprefix('rerank_cli/').removesuffix('__init__.py')}` | "
        f"{first_sentence(path)} |\n"
        for path in paths
    )
    return f"\n## {title}\n\n{sentence}\n\n| module | what lies there |\n| --- | --- |\n{rows}"


if __name__ == "__main__":
    if "--write" in sys.argv[1:]:
        before, rest = PAGE.read_text().split(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}{render()}{END}{rest.split(END)[1]}")
        MODULES.write_text(render_modules())
    else:
        sys.stdout.write(render() + "\n" + render_modules())
