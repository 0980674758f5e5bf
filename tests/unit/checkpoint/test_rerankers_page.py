"""docs/reference/rerankers.md says of each line what this version does with its architecture."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rerank_cli.checkpoint.families import FAMILIES, is_known

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "rerankers.md"
LINES = re.findall(
    r"^\| (.+?) \| `(.+?)` \| (packed|padded|refused) \| (config|files|card|) \| (.*?) \|$",
    PAGE.read_text(encoding="utf-8"),
    re.M,
)
# What these files say besides refuses them, whatever their architecture.
BY_OTHER_FILES = {"Qwen3ForCausalLM", "Qwen2ForCausalLM", "MistralForCausalLM"}


def test_the_page_has_fifty_lines_and_a_reason_for_each_refusal() -> None:
    assert len(LINES) >= 50
    assert len(LINES) == PAGE.read_text(encoding="utf-8").count("\n| ") - 2
    assert all(note for _, _, verdict, _, note in LINES if verdict == "refused")


@pytest.mark.parametrize(("name", "architecture", "verdict"), [line[:3] for line in LINES])
def test_a_line_is_what_the_product_does(name: str, architecture: str, verdict: str) -> None:
    if verdict == "packed":
        assert architecture in FAMILIES
    elif verdict == "padded":
        assert is_known(architecture)
        assert architecture not in FAMILIES
    else:
        assert architecture in BY_OTHER_FILES or not is_known(architecture)
