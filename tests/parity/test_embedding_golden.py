"""The Nemotron embedder through the command line: vectors and cosines that its authors' own code gives."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from rerank_cli.checkpoint import Checkpoint, read_checkpoint
from rerank_cli.cli import main
from rerank_cli.encoding.encoder import ImageLimits, open_encoder, split_pair
from rerank_cli.records import EncodedPair, ImagePassage, ImageSource
from tests.parity import table
from tests.parity.conftest import HERE, pixels_sha256, read_jsonl

AS_REFERENCE = ("--precision", "fp32", "--truncate", "reference", "--special-tokens", "allow")
TOLERANCE = 1e-4
KINDS = {"query": "query", "document": "passage"}

Limits = tuple[int, int]
"""Tokens of a text, tiles of an image: what one run has one of."""


@dataclass(frozen=True)
class EmbeddingGolden:
    name: str
    checkpoint: Path
    cases: dict[str, dict[str, Any]]
    expected: dict[str, dict[str, Any]]
    pairs: list[dict[str, Any]]

    @property
    def limits(self) -> list[Limits]:
        """What some case asks for."""
        return sorted({(case["max_length"], case["max_input_tiles"]) for case in self.cases.values()})

    def cases_of(self, limits: Limits) -> dict[str, dict[str, Any]]:
        """The cases that one run can embed."""
        found = self.cases.items()
        return {name: case for name, case in found if (case["max_length"], case["max_input_tiles"]) == limits}


def load(name: str) -> EmbeddingGolden:
    folder = HERE / name
    cases, expected = ({row["id"]: row for row in read_jsonl(folder / f"{one}.jsonl")} for one in ("cases", "expected"))
    pairs = read_jsonl(folder / "expected_pairs.jsonl")
    return EmbeddingGolden(name, folder / "checkpoint", cases, expected, pairs)


GOLDENS = [
    folder.parent.name
    for folder in sorted(HERE.glob("*/META.json"))
    if (folder.parent / "expected_pairs.jsonl").exists()
]


@pytest.fixture(params=GOLDENS, scope="module")
def embedding(request) -> EmbeddingGolden:
    return load(request.param)


@pytest.fixture(params=[1, 1_000_000], ids=["alone", "one-batch"], scope="module")
def vectors(request, embedding, tmp_path_factory) -> dict[str, np.ndarray]:
    """The vector of each case."""
    return vectors_of(embedding, tmp_path_factory.mktemp("vectors"), "--token-budget", str(request.param))


def row_of(query: dict[str, Any] | None, document: dict[str, Any] | None) -> dict[str, Any]:
    """The row of a pair of cases, or of one with an empty text."""
    image = document and document["image"]
    row = {"query": query["text"] if query else "", "passage": document["text"] if document else ""}
    return row | ({"image": image} if image else {})


def score(golden: EmbeddingGolden, limits: Limits, rows: list[Any], folder: Path, *options: str) -> list[Any]:
    source, target = folder / "rows.jsonl", folder / "scored.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["score", str(source), "-o", str(target), "--overwrite", "--quiet", "--model", str(golden.checkpoint)]
    tokens, tiles = map(str, limits)
    arguments += ["--max-tokens", tokens, "--max-input-tiles", tiles, "--image-root", str(golden.checkpoint.parent)]
    assert main([*arguments, *AS_REFERENCE, *options]) == 0
    return [json.loads(line) for line in target.read_text().splitlines()]


def vectors_of(golden: EmbeddingGolden, folder: Path, *options: str) -> dict[str, np.ndarray]:
    """The vector of each case by its id, as `--embeddings` writes it; the cases of a run in a shuffled order."""
    return {name: vector for limits in golden.limits for name, vector in _vectors(golden, limits, folder, *options)}


def _vectors(golden: EmbeddingGolden, limits: Limits, folder: Path, *options: str) -> Iterator[tuple[str, np.ndarray]]:
    cases = golden.cases_of(limits)
    names = {(KINDS[case["kind"]], case["text"], case["image"]): name for name, case in cases.items()}
    rows = [row_of(case, None) if case["kind"] == "query" else row_of(None, case) for case in cases.values()]
    random.Random(limits[0]).shuffle(rows)
    vectors = folder / "vectors.parquet"
    score(golden, limits, rows, folder, "--embeddings", str(vectors), *options)
    for row in pq.read_table(vectors).to_pylist():
        if name := names.get((row["kind"], row["text"], row["image"])):
            yield name, np.array(row["vector"], dtype=np.float32)


def differences(golden: EmbeddingGolden, vectors: dict[str, np.ndarray]) -> dict[str, float]:
    """How far the numbers of each vector are from the expected ones, at most."""
    return {
        name: float(np.abs(vector - np.array(golden.expected[name]["embedding"])).max())
        for name, vector in vectors.items()
    }


def encoded(
    golden: EmbeddingGolden, checkpoint: Checkpoint | None = None, names: Collection[str] = ()
) -> Iterator[tuple[str, EncodedPair]]:
    """Each case as the model gets it, as a text by itself; those of `names` where they are given."""
    checkpoint = checkpoint or read_checkpoint(golden.checkpoint)
    for name, case in golden.cases.items():
        if names and name not in names:
            continue
        encoder = open_encoder(
            checkpoint,
            max_tokens=case["max_length"],
            truncate="reference",
            special_tokens="allow",
            images=ImageLimits(max_tiles=case["max_input_tiles"]),
        )
        text = case["text"]
        if case["image"]:
            text = ImagePassage(text, ImageSource(case["image"], str(golden.checkpoint.parent)))
        side = list(KINDS).index(case["kind"])
        (pair,) = encoder.encode([("", text) if side else (text, "")])[0]
        yield name, split_pair(pair)[side]


def test_the_goldens_are_there():
    assert {"nemotron-vl-embed-open", "nemotron-vl-embed-fp8-open"} <= set(GOLDENS)


def test_all_cases_and_pairs_are_compared(embedding):
    assert len(embedding.cases) == len(embedding.expected) == 16
    assert sum(1 for case in embedding.cases.values() if case["image"]) == 6
    assert len(embedding.pairs) == 55


def test_every_case_has_the_reference_vector(embedding, vectors):
    assert vectors.keys() == embedding.cases.keys()
    allowed = table.limit(embedding.name, TOLERANCE)
    assert {name: far for name, far in differences(embedding, vectors).items() if not far <= allowed} == {}


def test_every_pair_of_vectors_has_the_reference_cosine(embedding, vectors):
    directions = {name: vector / np.linalg.norm(vector) for name, vector in vectors.items()}
    off = [abs(directions[p["query"]] @ directions[p["document"]] - p["cosine"]) for p in embedding.pairs]
    assert max(off) <= TOLERANCE


def test_every_pair_that_one_run_can_score_has_the_reference_cosine(embedding, tmp_path):
    # A run has one limit: left out are the pairs of a query or document that another limit cuts.
    by_limits: dict[Limits, list[dict[str, Any]]] = {}
    for pair in embedding.pairs:
        query, document = (embedding.cases[pair[side]] for side in ("query", "document"))
        if query["max_length"] > 128 and document["max_length"] > 128:
            by_limits.setdefault((document["max_length"], document["max_input_tiles"]), []).append(pair)
    assert sum(map(len, by_limits.values())) == 40
    for limits, pairs in by_limits.items():
        rows = [row_of(embedding.cases[p["query"]], embedding.cases[p["document"]]) for p in pairs]
        scored = score(embedding, limits, rows, tmp_path)
        assert max(abs(row["cosine"] - p["cosine"]) for row, p in zip(scored, pairs, strict=True)) <= TOLERANCE


def test_token_ids_and_pixels_are_the_reference_ones(embedding):
    for name, text in encoded(embedding):
        expected = embedding.expected[name]
        ids = ",".join(map(str, text.input_ids.tolist()))
        assert hashlib.sha256(ids.encode()).hexdigest() == expected["input_ids_sha256"], name
        assert len(text.input_ids) == expected["n_tokens"]
        assert (text.block.tiles if text.block else 0) == expected["n_tiles"]
        assert pixels_sha256(text) == expected["pixel_values_sha256"], name
