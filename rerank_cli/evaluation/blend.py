"""Join the scores of a reranker with the order of the first stage, list by list; for `rerank-file` and `evaluate`.

    rrf:W    reciprocal rank fusion: (1 - W) / (60 + rank) + W / (60 + place)        Cormack et al., SIGIR 2009
    z:W      z-scores: (1 - W) z(score) + W z(-log(place))

W is the weight of the given order: 0 is the model alone, 1 the given order. Not every file has first-stage scores, so
-log(place) stands in for them; it falls about as they do. Equal values keep the given order.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

RRF_CONSTANT = 60

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Blend:
    """How scores and the given order are joined."""

    kind: Literal["rrf", "z"]
    weight: float
    """Of the given order, from 0 to 1."""

    def __str__(self) -> str:
        return f"{self.kind}:{self.weight:g}"


def parse_blend(text: str) -> Blend:
    """The blend that `rrf:0.5` or `z:0.3` names."""
    found = re.fullmatch(r"(rrf|z):([0-9]+(?:\.[0-9]*)?|\.[0-9]+)", text)
    if found is None or not 0 <= float(found[2]) <= 1:
        raise ValueError("not a blend", "for example rrf:0.5 or z:0.3; the weight of the given order is 0 to 1")
    return Blend(cast(Any, found[1]), float(found[2]))


def blended(scores: Floats, blend: Blend) -> Floats:
    """The values that candidates are sorted by, highest first: float64 [..., n].

    scores: the model's, [..., n], in the given order; -inf where a list has no candidate.
    """
    there = np.isfinite(scores)
    places = np.broadcast_to(np.arange(1, scores.shape[-1] + 1, dtype=np.float64), scores.shape)
    if blend.kind == "rrf":
        ranks = np.argsort(np.argsort(-scores, axis=-1, kind="stable"), axis=-1, kind="stable") + 1.0
        joined = (1 - blend.weight) / (RRF_CONSTANT + ranks) + blend.weight / (RRF_CONSTANT + places)
    else:
        joined = (1 - blend.weight) * _standardised(scores, there)
        joined = joined + blend.weight * _standardised(-np.log(places), there)
    return np.where(there, joined, -math.inf)


def order_by_score(scores: Floats, *, depth: int | None = None, blend: Blend | None = None) -> npt.NDArray[np.intp]:
    """The given places of the candidates in their new order: [..., n]. Candidates from `depth` on do not move."""
    head = scores if depth is None else scores[..., :depth]
    order = np.argsort(-(blended(head, blend) if blend else head), axis=-1, kind="stable")
    if head.shape[-1] == scores.shape[-1]:
        return order
    rest = np.broadcast_to(
        np.arange(head.shape[-1], scores.shape[-1]), (*scores.shape[:-1], scores.shape[-1] - head.shape[-1])
    )
    return np.concatenate([order, rest], axis=-1)


def _standardised(values: Floats, there: npt.NDArray[np.bool_]) -> Floats:
    """The z-scores of each list; 0 where all its values are equal."""
    count = np.maximum(there.sum(axis=-1, keepdims=True), 1)
    held = np.where(there, values, 0.0)
    mean = held.sum(axis=-1, keepdims=True) / count
    away = np.where(there, held - mean, 0.0)
    deviation = np.sqrt((away**2).sum(axis=-1, keepdims=True) / count)
    return np.asarray(np.divide(away, deviation, out=np.zeros_like(away), where=deviation > 0))
