"""Real reports are what the documented schema says, and the page names every key of it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from rerank_cli.cli import main

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "docs" / "reference" / "report.schema.json").read_text("utf-8"))
TINY = str(ROOT / "tests" / "parity" / "bert-ce-open" / "checkpoint")
EMBEDDER = str(ROOT / "tests" / "parity" / "nemotron-vl-embed-open" / "checkpoint")
LISTS = str(ROOT / "samples" / "python-docs.jsonl")
PAIRS = str(ROOT / "samples" / "pairs.jsonl")


def _bad_rows(folder: Path) -> str:
    path = folder / "bad.jsonl"
    path.write_text('{"query": "a", "passages": ["b", "c d"]}\n{"x": 1}\n')
    return str(path)


@pytest.mark.parametrize(
    "arguments",
    [
        ["rerank-file", LISTS, "--limit", "3", "--model", TINY, "--per-query", "{out}.tsv"],
        ["rerank-file", "{bad}", "--model", TINY],
        ["rerank-file", "{bad}", "--model", TINY, "--store", "{out}.store"],
        ["rerank-file", LISTS, "--limit", "3", "--model", TINY, "--first", "bf16", "--store", "{out}.store"],
        ["score", PAIRS, "--model", TINY, "--top-n", "2"],
        ["score", PAIRS, "--model", EMBEDDER, "--embeddings", "{out}.parquet"],
    ],
    ids=["measured", "bad-rows", "store", "two-scorers", "best-pairs", "embedder"],
)
def test_a_report_is_what_the_schema_says(arguments: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    given = [one.format(out=out, bad=_bad_rows(tmp_path)) for one in arguments]
    if "--per-query" in given:
        given += ["--qrels", str(ROOT / "samples" / "qrels.txt")]
    assert main([*given, "-o", str(out), "-q"]) in (0, 3)
    jsonschema.validate(json.loads(Path(f"{out}.report.json").read_text("utf-8")), SCHEMA)


def _documented(heading: str | None) -> set[str]:
    page = (ROOT / "docs" / "reference" / "report.md").read_text("utf-8")
    first, *others = page.split("\n## ")
    part = first if heading is None else next(one for one in others if one.startswith(f"{heading}\n"))
    return set(re.findall(r"^\| `(\w+)` \|", part, flags=re.MULTILINE))


@pytest.mark.parametrize("heading", [None, "counts", "seconds"])
def test_the_page_names_every_key_of_the_schema(heading: str | None) -> None:
    part: dict[str, Any] = SCHEMA if heading is None else SCHEMA["properties"][heading]
    assert _documented(heading) == set(part["properties"])
