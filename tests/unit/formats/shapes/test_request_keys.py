"""Each key of each API is followed or refused, and the documents say the same as the program."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from rerank_cli.formats.shapes import NO_TEXTS, SHAPES, FieldNames, Selection
from rerank_cli.formats.shapes.request_keys import KEYS
from rerank_cli.records import CandidateList, RowError
from tests.conftest import json_rows, ranked_of

DOCUMENT = Path(__file__).parents[4] / "docs" / "reference" / "api-requests.md"
BODIES: dict[str, dict[str, Any]] = {
    "nim": {"query": {"text": "q"}, "passages": [{"text": "a"}, {"text": "b"}]},
    "cohere": {"query": "q", "documents": ["a", "b"]},
    "tei": {"query": "q", "texts": ["a", "b"]},
}
ASKS: dict[str, object] = {
    "truncation_direction": "Left", "truncation_side": "left", "truncate_prompt_tokens": 5, "add_special_tokens": False,
    "normalize": False, "parameters": {"truncate": "NONE"},
}  # fmt: skip
"""Values that ask for something else, where `true` would not."""


def tables() -> dict[str, dict[str, str]]:
    """The treatment of each key by the heading of its API."""
    found: dict[str, dict[str, str]] = {}
    for line in DOCUMENT.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            table = found.setdefault(line[3:], {})
        elif row := re.fullmatch(r"\| `(\w+)` \| ([\w ]+) \|", line):
            table[row[1]] = row[2]
    return found


def test_the_documents_say_what_the_program_does_with_each_key() -> None:
    documented = {key: treatment for table in tables().values() for key, treatment in table.items()}
    assert documented == {key.name: key.treatment for key in KEYS}
    for api, table in tables().items():
        for key, treatment in table.items():
            assert documented[key] == treatment, f"{api}: {key}"


@pytest.mark.parametrize("shape", BODIES)
@pytest.mark.parametrize("key", [key for key in KEYS if key.treatment == "refused"], ids=lambda key: str(key.name))
def test_a_key_that_cannot_be_followed_is_refused_by_name(shape: str, key: Any) -> None:
    body = {**BODIES[shape], key.name: ASKS.get(key.name, True)}
    (found,) = SHAPES[shape].open(FieldNames(), NO_TEXTS).group(json_rows(body))
    assert isinstance(found, RowError)
    assert found.code == "not-supported"
    assert found.message.startswith(f"`{key.name}` cannot be followed")
    for harmless in (None, *key.harmless):
        (found,) = SHAPES[shape].open(FieldNames(), NO_TEXTS).group(json_rows({**body, key.name: harmless}))
        assert isinstance(found, CandidateList), found


@pytest.mark.parametrize("shape", BODIES)
def test_a_key_that_no_api_knows_passes_through(shape: str) -> None:
    opened = SHAPES[shape].open(FieldNames(), NO_TEXTS)
    (found,) = opened.group(json_rows({**BODIES[shape], "my_key": [1], "request_id": "r"}))
    assert isinstance(found, CandidateList)
    (answer,) = opened.render(ranked_of(found, 1.0, 2.0), Selection())
    assert (answer["my_key"], answer["request_id"]) == ([1], "r")


def test_a_request_of_text_embeddings_inference_is_answered() -> None:
    shape = SHAPES["tei"].open(FieldNames(), NO_TEXTS)
    body = {**BODIES["tei"], "return_text": True, "raw_scores": True, "id": 7}
    (found,) = shape.group(json_rows(body))
    assert isinstance(found, CandidateList)
    assert found.limits.whole
    (answer,) = shape.render(ranked_of(found, 1.0, 2.0), Selection())
    assert answer == {
        "id": 7,
        "results": [{"index": 1, "score": 2.0, "text": "b"}, {"index": 0, "score": 1.0, "text": "a"}],
    }
    (found,) = shape.group(json_rows({**BODIES["tei"], "truncate": True}))
    assert isinstance(found, CandidateList)
    assert not found.limits.whole
    (answer,) = shape.render(ranked_of(found, 0.0, -1.0), Selection())
    assert answer["results"][0] == {"index": 0, "score": 0.5}
