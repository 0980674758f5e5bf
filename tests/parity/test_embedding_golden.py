"""The Nemotron embedder through the command line: vectors and cosines that its authors' own code gives."""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from rerank_cli.checkpoint import read_checkpoint
from rerank_cli.cli import main
from rerank_cli.encoding import open_encoder, split_pair
from tests.parity import table
from tests.parity.conftest import HERE, read_jsonl

AS_REFERENCE = ("--precision", "fp32", "--truncate", "reference", "--special-tokens", "allow")
TOLERANCE = 1e-4

# Passages with images are not read yet: these cases wait. The set must shrink to nothing, not grow.
PENDING = frozenset(
    {
        "e11-document-img-1tile",
        "e12-document-img-1x2",
        "e13-document-img-letter",
        "e14-document-img+text",
        "e15-document-img+text-max4",
        "e16-document-img-max2",
    }
)


@dataclass(frozen=True)
class EmbeddingGolden:
    name: str
    checkpoint: Path
    cases: dict[str, dict[str, Any]]
    expected: dict[str, dict[str, Any]]
    pairs: list[dict[str, Any]]

    @property
    def limits(self) -> list[int]:
        """Every limit that some case asks for."""
        return sorted({case["max_length"] for case in self.cases.values()})

    def case_of(self, kind: str, text: str, limit: int) -> str | None:
        """The id of a case by what the file of vectors says of it."""
        kinds = {"query": "query", "passage": "document"}
        return next(
            (
                name
                for name, case in self.cases.items()
                if (case["kind"], case["text"], case["max_length"]) == (kinds[kind], text, limit)
            ),
            None,
        )


def load(name: str) -> EmbeddingGolden:
    folder = HERE / name
    cases = {case["id"]: case for case in read_jsonl(folder / "cases.jsonl") if case["id"] not in PENDING}
    pairs = [pair for pair in read_jsonl(folder / "expected_pairs.jsonl") if pair["document"] not in PENDING]
    expected = {row["id"]: row for row in read_jsonl(folder / "expected.jsonl")}
    return EmbeddingGolden(name, folder / "checkpoint", cases, expected, pairs)


GOLDENS = [
    folder.parent.name
    for folder in sorted(HERE.glob("*/META.json"))
    if (folder.parent / "expected_pairs.jsonl").exists()
]


@pytest.fixture(params=GOLDENS)
def embedding(request) -> EmbeddingGolden:
    return load(request.param)


def score(golden: EmbeddingGolden, rows: list[dict[str, Any]], folder: Path, *options: str) -> list[dict[str, Any]]:
    source, target = folder / "rows.jsonl", folder / "scored.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["score", str(source), "-o", str(target), "--overwrite", "--quiet", "--model", str(golden.checkpoint)]
    assert main([*arguments, *AS_REFERENCE, *options]) == 0
    return [json.loads(line) for line in target.read_text().splitlines()]


def vectors_of(golden: EmbeddingGolden, limit: int, folder: Path, *options: str) -> dict[str, np.ndarray]:
    """The vector of each case with this limit, by its id, as `--embeddings` writes it."""
    cases = [case for case in golden.cases.values() if case["max_length"] == limit]
    random.Random(limit).shuffle(cases)
    rows = [
        {"query": case["text"], "passage": ""} if case["kind"] == "query" else {"query": "", "passage": case["text"]}
        for case in cases
    ]
    table = folder / "vectors.parquet"
    score(golden, rows, folder, "--max-tokens", str(limit), "--embeddings", str(table), *options)
    named = (
        (golden.case_of(row["kind"], row["text"], limit), row["vector"]) for row in pq.read_table(table).to_pylist()
    )
    return {name: np.array(vector, dtype=np.float32) for name, vector in named if name is not None}


def differences(golden: EmbeddingGolden, vectors: dict[str, np.ndarray]) -> dict[str, float]:
    """How far the numbers of each vector are from the expected ones, at most."""
    return {
        name: float(np.abs(vector - np.array(golden.expected[name]["embedding"])).max())
        for name, vector in vectors.items()
    }


def test_the_goldens_are_there():
    assert {"nemotron-vl-embed-open", "nemotron-vl-embed-fp8-open"} <= set(GOLDENS)


def test_the_pending_cases_are_those_with_an_image(embedding):
    everything = read_jsonl(HERE / embedding.name / "cases.jsonl")
    assert {case["id"] for case in everything if case["image"]} == PENDING
    assert len(embedding.cases) == 10
    assert len(embedding.pairs) == 25


@pytest.mark.parametrize("budget", [1, 1_000_000], ids=["alone", "one-batch"])
def test_every_text_has_the_reference_vector(embedding, tmp_path, budget):
    found = {}
    for limit in embedding.limits:
        found |= vectors_of(embedding, limit, tmp_path, "--token-budget", str(budget))
    assert found.keys() == embedding.cases.keys()
    allowed = table.limit(embedding.name, TOLERANCE)
    assert {name: far for name, far in differences(embedding, found).items() if not far <= allowed} == {}


def test_every_pair_has_the_reference_cosine(embedding, tmp_path):
    # A run has one limit. The pairs whose texts no limit cuts go through it; those with a cut text are put together
    # from the vectors of runs with each limit.
    whole = [
        p
        for p in embedding.pairs
        if min(embedding.cases[p[side]]["max_length"] for side in p if side != "cosine") > 128
    ]
    rows = [
        {"query": embedding.cases[p["query"]]["text"], "passage": embedding.cases[p["document"]]["text"]} for p in whole
    ]
    scored = score(embedding, rows, tmp_path, "--max-tokens", "10240")
    assert len(scored) == 16
    assert max(abs(row["cosine"] - pair["cosine"]) for row, pair in zip(scored, whole, strict=True)) <= TOLERANCE
    vectors = {}
    for limit in embedding.limits:
        vectors |= vectors_of(embedding, limit, tmp_path, "--overwrite")
    directions = {name: vector / np.linalg.norm(vector) for name, vector in vectors.items()}
    off = [abs(directions[p["query"]] @ directions[p["document"]] - p["cosine"]) for p in embedding.pairs]
    assert max(off) <= TOLERANCE


def test_token_ids_are_the_reference_ones(embedding):
    checkpoint = read_checkpoint(embedding.checkpoint)
    for name, case in embedding.cases.items():
        encoder = open_encoder(checkpoint, max_tokens=case["max_length"], truncate="reference", special_tokens="allow")
        is_query = case["kind"] == "query"
        pair = (case["text"], "") if is_query else ("", case["text"])
        text = split_pair(encoder.encode([pair])[0][0])[0 if is_query else 1]
        ids = ",".join(map(str, text.input_ids.tolist()))
        assert hashlib.sha256(ids.encode()).hexdigest() == embedding.expected[name]["input_ids_sha256"], name
        assert len(text.input_ids) == embedding.expected[name]["n_tokens"]
