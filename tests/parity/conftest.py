"""What the parity tests compare with: the golden folders, and pairs of real texts.

A golden folder holds a tiny checkpoint, cases, and the logits that other people's code computed for them; META.json
says whose. Every folder that holds logits is found, so a new one is tested by being there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from rerank_cli.encoding.encoder import ImageLimits
from rerank_cli.models.siglip import normalise
from rerank_cli.records import EncodedPair, ImagePassage, ImageSource, Passage

HERE = Path(__file__).parent
SAMPLES = HERE.parents[1] / "samples"


@dataclass(frozen=True)
class Group:
    max_tokens: int | None  # None: no limit but the checkpoint's own
    instruction: str | None
    max_tiles: int | None
    folder: Path
    cases: list[dict[str, Any]]

    @property
    def options(self) -> tuple[str, ...]:
        more = () if self.instruction is None else ("--instruction", self.instruction)
        if self.max_tiles is not None:
            more = (*more, "--max-input-tiles", str(self.max_tiles), "--image-root", str(self.folder))
        return more if self.max_tokens is None else ("--max-tokens", str(self.max_tokens), *more)

    @property
    def images(self) -> ImageLimits:
        return ImageLimits(max_tiles=self.max_tiles)

    @property
    def pairs(self) -> list[tuple[str, Passage]]:
        return [(case["query"], self._passage(case)) for case in self.cases]

    def _passage(self, case: dict[str, Any]) -> Passage:
        if case.get("image"):
            return ImagePassage(case["text"], ImageSource(case["image"], str(self.folder)))
        return case["passage"] if "passage" in case else case["text"]


@dataclass(frozen=True)
class Golden:
    name: str
    checkpoint: Path
    tolerance: float
    cases: tuple[dict[str, Any], ...]
    expected: dict[str, dict[str, Any]]

    @property
    def groups(self) -> list[Group]:
        """The cases that one run can score: those of one limit, one instruction and one number of tiles."""
        groups: dict[tuple[int | None, str | None, int | None], Group] = {}
        for case in self.cases:
            key = case["max_length"], case.get("instruction"), case.get("max_input_tiles")
            groups.setdefault(key, Group(*key, folder=self.checkpoint.parent, cases=[])).cases.append(case)
        return list(groups.values())


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def pixels_sha256(pair: EncodedPair) -> str | None:
    """The digest of what the tower gets of a pair's image, as the goldens have it: float32 [tiles, 3, side, side]."""
    if pair.block is None or pair.block.image is None:
        return None
    pixels = normalise(torch.from_numpy(pair.block.image.pixels)).float().permute(0, 3, 1, 2)
    return hashlib.sha256(pixels.contiguous().numpy().tobytes()).hexdigest()


def find_goldens() -> Iterator[Golden]:
    for meta in sorted(HERE.glob("*/META.json")):
        facts, rows = json.loads(meta.read_text()), read_jsonl(meta.parent / "expected.jsonl")
        if "logit" not in rows[0]:
            continue  # an embedding model: test_embedding_golden.py
        yield Golden(
            name=facts["name"],
            checkpoint=meta.parent / "checkpoint",
            tolerance=facts["tolerance"]["float32_abs"],
            cases=tuple(read_jsonl(meta.parent / "cases.jsonl")),
            expected={row["id"]: row for row in rows},
        )


GOLDENS = {golden.name: golden for golden in find_goldens()}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "golden" in metafunc.fixturenames:
        metafunc.parametrize("golden", GOLDENS.values(), ids=GOLDENS)


@pytest.fixture(scope="session")
def goldens() -> dict[str, Golden]:
    return GOLDENS


@pytest.fixture(scope="session")
def real_pairs() -> list[tuple[str, str]]:
    """300 pairs of the sample file: each of its queries, with passages from all of its ranks."""
    lists = read_jsonl(SAMPLES / "python-docs.jsonl")
    pairs = [(row["query"], row["passages"][rank]["text"]) for rank in range(8) for row in lists]
    assert len(pairs) >= 300
    return pairs[:300]
