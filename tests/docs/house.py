"""The table of packages in CONTRIBUTING.md, made from the import contract and the packages' docstrings.

python -m tests.docs.house            prints it
python -m tests.docs.house --write    puts it into CONTRIBUTING.md
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


def layers() -> list[list[str]]:
    """The entries of `rerank_cli/` from the top down; those of one layer do not import each other."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (contract,) = [one for one in contracts if one["type"] == "layers" and one["containers"] == ["rerank_cli"]]
    return [layer.split(" | ") for layer in contract["layers"] if layer != "__main__"]


def first_sentence(entry: str) -> str:
    """The first line of the docstring of a package or module."""
    folder = ROOT / "rerank_cli" / entry
    path = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    return text.split("\n\n")[0].replace("\n", " ")


def render() -> str:
    """The table."""
    rows = ["| entry | what lies there |", "| --- | --- |"]
    for layer in layers():
        for entry in layer:
            name = f"{entry}/" if (ROOT / "rerank_cli" / entry).is_dir() else f"{entry}.py"
            rows.append(f"| `{name}` | {first_sentence(entry)} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    if "--write" in sys.argv[1:]:
        before, rest = PAGE.read_text().split(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}{render()}{END}{rest.split(END)[1]}")
    else:
        sys.stdout.write(render())
