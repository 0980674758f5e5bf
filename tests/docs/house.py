"""The packages in CONTRIBUTING.md and the modules in docs/reference/modules.md, made from the import contract and the
docstrings.

python -m tests.docs.house            prints both
python -m tests.docs.house --write    puts them into the two pages
"""

from __future__ import annotations

import ast
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "CONTRIBUTING.md"
BEGIN = "<!-- house: begin (made by `python -m tests.docs.house --write`; a test compares) -->\n"
END = "<!-- house: end -->"
MODULES = ROOT / "docs/reference/modules.md"
_HEAD = """\
# Modules

Every module of `rerank_cli/` with the first sentence of its head, package by package from the top down. Made by
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
    text = _HEAD
    for folder in (path_of(entry) for layer in layers() for entry in layer):
        if not folder.is_dir():
            continue
        text += f"\n## {folder.name}/\n\n{first_sentence(folder)}\n\n| module | what lies there |\n| --- | --- |\n"
        for path in sorted(folder.rglob("*.py")):
            name = str(path.relative_to(ROOT / "rerank_cli")).removesuffix("__init__.py")
            if name != f"{folder.name}/":
                text += f"| `{name}` | {first_sentence(path)} |\n"
    return text


if __name__ == "__main__":
    if "--write" in sys.argv[1:]:
        before, rest = PAGE.read_text().split(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}{render()}{END}{rest.split(END)[1]}")
        MODULES.write_text(render_modules())
    else:
        sys.stdout.write(render() + "\n" + render_modules())
