"""Every code that a bad row can have is documented, and no other: the codes are read out of the source."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference" / "errors-file.md"
CODE = re.compile(r"[a-z]+(-[a-z0-9]+)+")
MAKERS = re.compile(r"Problem|Missing|LineError|row_error|RowError|refusal")
NO_CODES = {"rerank-file"}


def _code(node: ast.expr) -> str | None:
    found = node.value if isinstance(node, ast.Constant) else None
    return found if isinstance(found, str) and CODE.fullmatch(found) and found not in NO_CODES else None


def _codes(tree: ast.AST) -> Iterator[str]:
    """Codes given to what makes a problem of a row, or returned beside their message."""
    for node in ast.walk(tree):
        found: list[ast.expr] = []
        if isinstance(node, ast.Call):
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            if MAKERS.search(name):
                found = node.args[:4]
        elif isinstance(node, ast.Return | ast.Assign) and isinstance(node.value, ast.Tuple):
            found = node.value.elts[:1] if len(node.value.elts) == 2 else []
        yield from filter(None, map(_code, found))


def test_every_code_of_a_bad_row_is_documented_and_no_other() -> None:
    used = {code for path in (ROOT / "rerank_cli").rglob("*.py") for code in _codes(ast.parse(path.read_text("utf-8")))}
    documented = set(re.findall(r"^\| `([a-z0-9-]+)` \|", PAGE.read_text("utf-8"), flags=re.MULTILINE))
    documented -= {"file", "row", "id", "error", "raw"}
    assert len(used) > 50
    assert documented == used
