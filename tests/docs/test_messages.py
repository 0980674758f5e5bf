"""Messages of errors, hints, warnings and notes, by the source; `python -m tests.docs.test_messages` lists them all."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from rerank_cli import errors

ROOT = Path(__file__).parents[2]
_KINDS = {
    name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, errors.RerankError)
}
_SAYING = {"say", "warn", "refusal", "add_note"}
_LIBRARIES = re.compile(
    r"\b(pydantic|ValidationError|TyperException|ArrowInvalid|JSONDecodeError|KeyError|ValueError)\b"
)


def _text(node: ast.expr) -> str | None:
    """A message as it stands in the source, with `{}` for what is filled in."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in parts)
    return None


def messages() -> Iterator[tuple[str, int, str]]:
    """File, line and text of each message."""
    for path in sorted((ROOT / "rerank_cli").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name not in _KINDS | _SAYING:
                continue
            hints = [keyword.value for keyword in node.keywords if keyword.arg == "hint"]
            for argument in [*node.args[:1], *hints]:
                if text := _text(argument):
                    yield str(path.relative_to(ROOT)), argument.lineno, text


def test_the_list_has_the_messages() -> None:
    found = list(messages())
    assert len(found) > 250
    assert {"rerank_cli/cli/mem_plot.py", "rerank_cli/planning/memory_answer.py"} <= {file for file, _, _ in found}


def test_no_message_has_a_known_fault() -> None:
    faults = []
    for file, line, text in messages():
        wrong = {
            "ends with a full stop": text.endswith(".") and not text.endswith("..."),
            "has a line break in it": "\n" in text or "\\n" in text,
            "names a class of a library": bool(_LIBRARIES.search(text)),
            "has an odd number of backticks": text.count("`") % 2 == 1,
            "has two blanks": "  " in text.strip(),
            "begins with a capital": bool(re.match(r"[A-Z][a-z]+ (?!the )[a-z]", text)) and "Ray" not in text[:4],
        }
        faults += [f"{file}:{line}: {what}: {text}" for what, is_so in wrong.items() if is_so]
    assert not faults, "\n".join(faults)


if __name__ == "__main__":
    for file, line, text in messages():
        print(f"{file}:{line}: {text}")  # noqa: T201
